//! The probe: what it learns from, and from where it can be taken.

use std::fs;

use candle_core::{Device, IndexOp, Tensor, safetensors};

use crate::{Folder, line, model};

#[test]
fn a_projection_is_trained_for_the_probe_of_another_head() {
    let Some(model) = model() else { return };
    let folder = Folder::new("probe_of");
    let threshold = ["--block", "22", "--threshold", "0.25"];
    let first = folder.train(&model, "first", &threshold);
    assert!(first.status.success(), "{first:?}");
    let first = folder.0.join("first");
    let probe_of = ["--block", "8", "--probe-of", first.to_str().unwrap()];
    let second = folder.train(&model, "second", &probe_of);
    assert!(second.status.success(), "{second:?}");
    let read = |out: &str, file: &str| fs::read(folder.0.join(out).join(file)).unwrap();
    let probe = "mentions.safetensors";
    assert!(read("first", probe) == read("second", probe));
    let projection = "projection.safetensors";
    assert!(read("first", projection) != read("second", projection));
    let description: serde_json::Value =
        serde_json::from_slice(&read("second", "head.json")).unwrap();
    assert_eq!(description["detector"]["threshold"], 0.25);
    assert_eq!(description["provenance"]["probe"]["head"], "small");

    let fails = |options: &[&str], expected: &str| {
        let output = folder.train(&model, "third", &[&probe_of, options].concat());
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && message.contains(expected),
            "{message}"
        );
    };
    fails(
        &["--probe-corpus", "/nowhere"],
        "--probe-of trains no probe: it goes without --probe-corpus",
    );
    let description = String::from_utf8(read("first", "head.json")).unwrap();
    let other = description.replace("\"block\": 4", "\"block\": 5");
    assert_ne!(other, description);
    fs::write(first.join("head.json"), other).unwrap();
    fails(&[], "the probe of head \"small\" reads block 5, not 4");
    fs::remove_file(first.join("head.json")).unwrap();
    fails(&[], "head.json");
}

#[test]
fn what_nobody_labelled_is_learned_from() {
    let Some(model) = model() else { return };
    let folder = Folder::new("unlabelled");
    let texts = [
        "We followed Anna to the [Danube] at last.",
        "Then the [Rhine] rose and Peter left Cologne.",
        "They say that Maria crossed the [Elbe] alone.",
    ];
    let corpus = folder.0.join("corpus.jsonl");
    fs::write(
        &corpus,
        texts.map(|text| line(text, "river")).concat() + &fs::read_to_string(&corpus).unwrap(),
    )
    .unwrap();
    let train = |out: &str, options: &[&str]| {
        let output = folder.distil(&model, out, &[&["--threshold", "0.01"], options].concat());
        assert!(output.status.success(), "{output:?}");
        ["mentions.safetensors", "projection.safetensors"]
            .map(|file| fs::read(folder.0.join(out).join(file)).unwrap())
    };
    let [mentions, projection] = train("labels", &[]);
    let [by_capitals, same] = train("capitals", &["--names-are-capitalized"]);
    assert!(by_capitals != mentions && same == projection);
    let [same, of_detected] = train("detected", &["--distil-detected"]);
    assert!(same == mentions && of_detected != projection);
    // Nothing has a probability above 1.
    let options = ["--distil-detected", "--distil-threshold", "1.1"];
    assert!(train("surely-detected", &options) == [mentions, projection]);
}

#[test]
fn a_text_teaches_in_both_its_forms() {
    let Some(model) = model() else { return };
    let folder = Folder::new("forms");
    let train = |out: &str, options: &[&str]| {
        let output = folder.distil(&model, out, options);
        assert!(output.status.success(), "{output:?}");
        let description = fs::read(folder.0.join(out).join("head.json")).unwrap();
        let description: serde_json::Value = serde_json::from_slice(&description).unwrap();
        let held_out = &description["provenance"]["probe"]["held_out_texts"];
        let mentions = fs::read(folder.0.join(out).join("mentions.safetensors"));
        (held_out.as_u64().unwrap(), mentions.unwrap())
    };
    let lower = ["--probe-lower-case", "1"];
    let (held_out, of_lower) = train("lower", &lower);
    let (both_held_out, of_both) = train("both", &[&lower[..], &["--probe-both-forms"]].concat());
    assert_eq!(both_held_out, 2 * held_out);
    assert!(of_both != of_lower);
    let (_, with_dropout) = train(
        "dropout",
        &[&lower[..], &["--probe-dropout", "0.5"]].concat(),
    );
    assert!(with_dropout != of_lower);
}

#[test]
fn a_probe_without_texts_is_refused() {
    let Some(model) = model() else { return };
    let folder = Folder::new("no-texts");
    let empty = folder.0.join("empty.jsonl");
    fs::write(&empty, "").unwrap();
    let probe_corpus = ["--block", "22", "--probe-corpus", empty.to_str().unwrap()];
    let output = folder.train(&model, "head", &probe_corpus);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.contains("the probe needs two texts at least"),
        "{message}"
    );
}

#[test]
fn of_several_probes_the_mean_counts() -> candle_core::Result<()> {
    let Some(model) = model() else { return Ok(()) };
    let folder = Folder::new("networks");
    let train = |out: &str, options: &[&str]| {
        let output = folder.train(&model, out, &[&["--block", "22"], options].concat());
        assert!(output.status.success(), "{output:?}");
        let file = folder.0.join(out).join("mentions.safetensors");
        safetensors::load(file, &Device::Cpu)
    };
    let one = train("one", &[])?;
    let two = train("two", &["--probe-networks", "2"])?;
    let units = one["output"].dim(0)?;
    assert_eq!(two["output"].dim(0)?, 2 * units);
    // The first is what one alone is; its say is half.
    let numbers = |tensor: Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    let of = |index: usize| two["width"].i((.., index * units..(index + 1) * units));
    assert_eq!(numbers(of(0)?)?, numbers(one["width"].clone())?);
    assert_ne!(numbers(of(0)?)?, numbers(of(1)?)?);
    let halves = (two["output"].i(..units)? * 2.0)?;
    assert_eq!(numbers(halves)?, numbers(one["output"].clone())?);

    let output = folder.train(&model, "none", &["--block", "22", "--probe-networks", "0"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && message.contains("--probe-networks"),
        "{message}"
    );
    Ok(())
}

#[test]
fn the_base_model_reads_texts_that_are_labelled_anew_once() {
    let Some(model) = model() else { return };
    let folder = Folder::new("labelled_anew");
    let files = || {
        let folders = fs::read_dir(folder.0.join("features")).unwrap();
        let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
        files.count()
    };
    let corpus = folder.0.join("corpus.jsonl");
    let train = |out: &str, corpus_of_probe: &str| {
        let options = ["--block", "22", "--probe-corpus", corpus_of_probe];
        let output = folder.train(&model, out, &options);
        assert!(output.status.success(), "{output:?}");
        files()
    };
    let labelled = fs::read_to_string(&corpus).unwrap();
    let probe_corpus = folder.0.join("probe.jsonl");
    fs::write(&probe_corpus, &labelled).unwrap();
    let read = train("first", probe_corpus.to_str().unwrap());
    // Of the probe's texts no mention is read, of the projection's their types are not.
    let of_other_types = labelled.replace("\"river\"", "\"city\"");
    let of_other_spans = labelled.replace(
        &line("We followed the [Danube] downstream.", "river"),
        &line("We followed the Danube [downstream].", "river"),
    );
    assert!(of_other_types != labelled && of_other_spans != labelled);
    fs::write(&corpus, of_other_types).unwrap();
    fs::write(&probe_corpus, &of_other_spans).unwrap();
    assert_eq!(train("second", probe_corpus.to_str().unwrap()), read);
    fs::write(&corpus, of_other_spans).unwrap();
    assert!(train("third", probe_corpus.to_str().unwrap()) > read);
}
