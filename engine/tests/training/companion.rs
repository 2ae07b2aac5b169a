//! A head that another one finds the mentions for.

use std::fs;

use candle_core::Device;
use ner_retriever_engine::{
    backend::Backend,
    embedder::Embedder,
    head::{CompanionDescription, HeadDescription},
    sources::Sources,
};

use crate::{Folder, model};

#[test]
fn a_companion_finds_what_is_distilled_and_stays_with_the_head() {
    let Some(model) = model() else { return };
    let folder = Folder::new("with-companion");
    // It finds something beside the labelled mentions.
    let options = ["--threshold", "0.0001"];
    let first = folder.distil(&model, "companion", &options);
    assert!(first.status.success(), "{first:?}");
    let companion = folder.0.join("companion");
    let nouns = folder.0.join("nouns.txt");
    let options = [
        "--companion",
        companion.to_str().unwrap(),
        "--companion-model",
        model.to_str().unwrap(),
        "--companion-weight",
        "0.25",
        "--suffix-block",
        "27",
        "--loss",
        "distillation",
        "--distil-detected",
        "--type-nouns",
        nouns.to_str().unwrap(),
    ];
    let second = folder.train(&model, "both", &options);
    assert!(second.status.success(), "{second:?}");
    let head = folder.0.join("both");
    assert!(!head.join("mentions.safetensors").exists());
    let description = HeadDescription::read(&head).unwrap();
    assert_eq!(description.detector, None);
    assert_eq!(
        description.companion,
        Some(CompanionDescription {
            head: "../companion".to_owned(),
            weight: 0.25,
        })
    );
    // What it found is distilled, too.
    let none = [&options[..], &["--distil-threshold", "1.1"]].concat();
    assert!(folder.train(&model, "labelled", &none).status.success());
    let projection = |head: &str| fs::read(folder.0.join(head).join("projection.safetensors"));
    assert!(projection("both").unwrap() != projection("labelled").unwrap());

    let sources = Sources {
        companion_model: Some(model.clone()),
        ..Sources::new(&model, &head)
    };
    let both = Embedder::load(&sources, Device::Cpu, None).unwrap();
    let alone = Embedder::load(&Sources::new(&model, &companion), Device::Cpu, None).unwrap();
    let own = description.projection.dims as u32;
    assert_eq!(both.info().dims, own + alone.info().dims);
}
