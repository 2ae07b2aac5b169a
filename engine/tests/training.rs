//! `train` as a user runs it: the real model, a small corpus of the test's own, and the head that
//! comes out loaded and used.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use candle_core::Device;
use ner_retriever_engine::{
    backend::{Backend, Input, Output as Answer},
    embedder::Embedder,
    model::has_int8,
};
use ner_retriever_protocol::TextRequest;

/// Types with their texts, the mention in brackets.
const TEXTS: [(&str, [&str; 2]); 6] = [
    (
        "river",
        [
            "We followed the [Danube] downstream.",
            "The [Rhine] had flooded the meadows.",
        ],
    ),
    (
        "composer",
        [
            "She played [Chopin] all evening.",
            "An opera by [Verdi] was on.",
        ],
    ),
    (
        "city",
        [
            "He moved to [Lyon] for work.",
            "The mayor of [Porto] resigned.",
        ],
    ),
    (
        "disease",
        [
            "She recovered from [measles].",
            "A vaccine against [cholera] is ready.",
        ],
    ),
    (
        "company",
        [
            "Shares of [Siemens] fell.",
            "[Toyota] recalled a million cars.",
        ],
    ),
    (
        "animal",
        [
            "A [leopard] slept in the tree.",
            "They counted every [salmon].",
        ],
    ),
];
const NOUNS: &str = "city\nriver\n\nstream\nlake\npianist\ncomposer\nmusician\nillness\ndisease\n\
                     virus\ncompany\nbusiness\nanimal\nfish\nperson\nplace\nextraterrestrials\n";

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let texts = TEXTS
            .iter()
            .flat_map(|(kind, texts)| texts.map(|text| line(text, kind)));
        fs::write(folder.join("corpus.jsonl"), texts.collect::<String>()).unwrap();
        let names: BTreeMap<&str, &str> = TEXTS.iter().map(|(kind, _)| (*kind, *kind)).collect();
        let names = serde_json::to_string(&names).unwrap();
        fs::write(folder.join("types.json"), names).unwrap();
        fs::write(folder.join("nouns.txt"), NOUNS).unwrap();
        Self(folder)
    }

    /// Runs `train` on the corpus into `out`.
    fn train(&self, model: &Path, out: &str, options: &[&str]) -> Output {
        let path = |name: &str| self.0.join(name);
        Command::new(env!("CARGO_BIN_EXE_ner-retriever-engine"))
            .args([
                "train",
                "--name",
                "small",
                "--base-model-name",
                "the default",
            ])
            .args([
                "--steps",
                "20",
                "--probe-epochs",
                "1",
                "--held-out-types",
                "0",
            ])
            .args([
                "--projection",
                "residual",
                "--units",
                "16",
                "--probe-block",
                "4",
            ])
            .arg("--model")
            .arg(model)
            .arg("--corpus")
            .arg(path("corpus.jsonl"))
            .arg("--types")
            .arg(path("types.json"))
            .arg("--cache")
            .arg(path("features"))
            .arg("--out")
            .arg(path(out))
            .args(options)
            .output()
            .unwrap()
    }

    fn distil(&self, model: &Path, out: &str, options: &[&str]) -> Output {
        let nouns = self.0.join("nouns.txt");
        let corpus = self.0.join("corpus.jsonl");
        let of_suffixes = [
            "--echo-block",
            "22",
            "--suffix-block",
            "27",
            "--suffix",
            " {mention} is a",
            "--loss",
            "distillation",
            "--type-nouns",
            nouns.to_str().unwrap(),
            "--probe-corpus",
            corpus.to_str().unwrap(),
        ];
        self.train(model, out, &[&of_suffixes, options].concat())
    }
}

/// A line of a corpus from a text with one mention in brackets.
fn line(text: &str, kind: &str) -> String {
    let start = text.find('[').unwrap();
    let end = text.find(']').unwrap() - 1;
    let text = text.replace(['[', ']'], "");
    format!("{{\"text\": {text:?}, \"entities\": [[{start}, {end}, {kind:?}]]}}\n")
}

fn model() -> Option<PathBuf> {
    let model = std::env::var_os("NER_RETRIEVER_MODEL").map(PathBuf::from);
    if model.is_none() {
        println!("skipped: needs NER_RETRIEVER_MODEL");
    }
    model
}

#[test]
fn what_is_distilled_is_a_head_and_comes_out_the_same_again() {
    let Some(model) = model() else { return };
    let folder = Folder::new("distilled");
    let options = ["--names-are-capitalized", "--distil-detected"];
    let options = [
        &options[..],
        &["--probe-lower-case", "0.5", "--threshold", "0.1"],
        &["--probe-both-forms", "--probe-dropout", "0.2"],
    ]
    .concat();
    let first = folder.distil(&model, "first", &options);
    assert!(first.status.success(), "{first:?}");
    // With the features from disk this time.
    assert!(folder.distil(&model, "second", &options).status.success());
    for file in ["projection.safetensors", "mentions.safetensors"] {
        let read = |out: &str| fs::read(folder.0.join(out).join(file)).unwrap();
        assert!(read("first") == read("second"), "{file}");
    }

    let embedder = Embedder::load(&model, &folder.0.join("first"), Device::Cpu, None).unwrap();
    let answer = |input| {
        let (prepared, windows) = embedder.prepare(input).unwrap();
        let outputs = embedder
            .forward(&windows.iter().collect::<Vec<_>>())
            .unwrap();
        embedder.finish(prepared, outputs).unwrap()
    };
    let kind = |name: &str| match answer(Input::Type {
        name: name.to_owned(),
    }) {
        Answer::Type(embedding) => embedding,
        Answer::Mentions(_) => panic!("a type has mentions"),
    };
    let request = TextRequest {
        text: "Barges on the Thames waited for rain.".to_owned(),
        spans: Some(vec![ner_retriever_protocol::Span { start: 14, end: 20 }]),
    };
    let text = Input::Text {
        request,
        embed: true,
        threshold: None,
    };
    let Answer::Mentions(mentions) = answer(text) else {
        panic!("a text is no type")
    };
    let cosine = |kind: &[f32]| -> f32 {
        mentions[0]
            .embedding
            .iter()
            .zip(kind)
            .map(|(a, b)| a * b)
            .sum()
    };
    let (river, composer) = (cosine(&kind("river")), cosine(&kind("composer")));
    assert!(river > composer, "{river} {composer}");
}

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
fn another_model_teaches_what_it_says_itself() {
    let Some(model) = model() else { return };
    let folder = Folder::new("taught");
    let projection = |out: &str| fs::read(folder.0.join(out).join("projection.safetensors"));
    // All steps are taken.
    let itself = ["--held-out-texts", "0"];
    let teacher = [&itself[..], &["--teacher", model.to_str().unwrap()]].concat();
    for (out, options) in [
        ("itself", &itself[..]),
        ("other", &teacher),
        (
            "int8-teacher",
            &[&teacher[..], &["--teacher-dtype", "int8"]].concat(),
        ),
        ("int8", &[&itself[..], &["--dtype", "int8"]].concat()),
    ] {
        let is_rounded = out.starts_with("int8");
        if is_rounded && !has_int8() {
            println!("skipped: this CPU does not multiply int8");
            return;
        }
        let output = folder.distil(&model, out, options);
        assert!(output.status.success(), "{output:?}");
        let same = projection(out).unwrap() == projection("itself").unwrap();
        assert_eq!(same, !is_rounded, "{out}");
    }
}

#[test]
fn options_that_do_not_fit_are_refused() {
    let Some(model) = model() else { return };
    let folder = Folder::new("refused");
    let fails = |options: &[&str], expected: &str| {
        let output = folder.train(&model, "head", options);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && message.contains(expected),
            "{message}"
        );
        assert!(!folder.0.join("head").exists());
    };
    let suffix = ["--suffix-block", "27", "--loss", "distillation"];
    fails(&[], "give --block, --echo-block or --suffix-block");
    fails(&["--block", "30"], "block 30 of a model with 30 blocks");
    fails(
        &["--block", "22", "--loss", "distillation"],
        "distillation needs --suffix-block",
    );
    fails(&suffix, "distillation needs --type-nouns");
    fails(
        &["--block", "22", "--lower-case", "1.5"],
        "--lower-case 1.5 is no share of 1",
    );
    fails(
        &["--block", "22", "--teacher", "/nowhere"],
        "--teacher needs --loss distillation",
    );
    fails(
        &["--block", "22", "--distil-detected"],
        "--distil-detected needs --loss distillation",
    );
    fails(
        &["--block", "22", "--distil-threshold", "0.1"],
        "--distil-threshold needs --distil-detected",
    );
    fails(
        &["--block", "22", "--names-are-capitalized"],
        "--names-are-capitalized needs --probe-corpus",
    );
    fails(
        &[
            &suffix[..],
            &["--teacher", "/no/model", "--type-nouns", "/nowhere"],
        ]
        .concat(),
        "\"/no/model\"",
    );
    fails(
        &[&suffix[..], &["--type-nouns", "/nowhere"]].concat(),
        "cannot read \"/nowhere\"",
    );
}
