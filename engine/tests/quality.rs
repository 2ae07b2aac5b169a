//! The default head on entity types that it was not trained on.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::Device;
use ner_retriever_engine::{
    corpus,
    embedder::Embedder,
    eval::{Protocol, evaluate, report::Spans},
    sources::Sources,
};

const TEXTS: usize = 1000;

/// The corpora beside the project, and the default model.
fn inputs() -> Option<(PathBuf, PathBuf)> {
    let data = std::env::var_os("NER_RETRIEVER_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    );
    let data = data.join("data");
    let model = std::env::var_os("NER_RETRIEVER_MODEL").map(PathBuf::from);
    match model {
        Some(model) if data.exists() => Some((data, model)),
        _ => {
            println!("skipped: needs the shared corpora and NER_RETRIEVER_MODEL");
            None
        }
    }
}

#[test]
fn the_default_head_finds_and_types_mentions_of_unseen_types() {
    let Some((data, model)) = inputs() else {
        return;
    };
    let head = Path::new(env!("CARGO_MANIFEST_DIR")).join("../heads/smollm2-135m");
    let embedder = Embedder::load(&Sources::new(&model, &head), Device::Cpu, None).unwrap();
    let path = data.join("fewnerd_test.jsonl.gz");
    let documents = corpus::sample(corpus::read(&path).unwrap(), Some(TEXTS), 1);
    let names = corpus::read_type_names(&data.join("type_names.json"), &path).unwrap();

    let cache = std::env::temp_dir().join(format!("ner_retriever-eval-{}", std::process::id()));
    let protocol = |spans| Protocol {
        spans,
        threshold: None,
        labelled_from: None,
        examples: 5,
        seed: 1,
        export: None,
        cache: Some(&cache),
    };
    let evaluate = |spans| evaluate(&embedder, &documents, &names, protocol(spans)).unwrap();
    let gold = evaluate(Spans::Gold);
    println!("{gold}");
    assert!(gold.macro_r_precision > gold.baselines.bm25);
    assert!(gold.macro_r_precision > gold.baselines.unprojected);
    let shown = gold.with_examples.unwrap();
    assert!(shown.types > 0);
    assert!(shown.macro_r_precision > shown.by_name, "{shown:?}");

    let detected = evaluate(Spans::Detected);
    println!("{detected}");
    let kept = fs::read_dir(&cache).unwrap().count();
    let again = evaluate(Spans::Detected);
    assert_eq!(again.detection, detected.detection);
    assert_eq!(again.macro_r_precision, detected.macro_r_precision);
    assert_eq!((kept, fs::read_dir(&cache).unwrap().count()), (2, 2));
    fs::remove_dir_all(&cache).unwrap();
    let detection = detected.detection.unwrap();
    assert!(detection.coverage >= 0.80, "{detection:?}");
    assert!(detection.mentions_per_text <= 5.0, "{detection:?}");
    assert!(detected.macro_r_precision > detected.baselines.bm25);
}
