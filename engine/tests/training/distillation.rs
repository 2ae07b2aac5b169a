//! The projection: what is distilled, and from whom.

use std::fs;

use candle_core::Device;
use ner_retriever_engine::{
    backend::{Backend, Input, Output as Answer},
    embedder::Embedder,
    model::has_int8,
    sources::Sources,
};
use ner_retriever_protocol::{Span, TextRequest};

use crate::{Folder, model};

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

    let embedder = Embedder::load(
        &Sources::new(&model, &folder.0.join("first")),
        Device::Cpu,
        None,
    )
    .unwrap();
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
        spans: Some(vec![Span { start: 14, end: 20 }]),
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
