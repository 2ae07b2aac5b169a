//! A sweep reads what a head reads.

use std::path::{Path, PathBuf};

use candle_core::{D, Device, Tensor};
use ner_retriever_engine::{
    corpus::{Document, GoldMention, TypeNames},
    embedder::Embedder,
    error::ErrorKind,
    eval::{auc::auc, index::Index, report::Spans},
    model::{Checkpoint, Numbers},
    projection::normalize,
    representation::{Representation, TYPE_PLACE},
    sources::Sources,
    sweep::{BlockScore, Form, sweep},
};
use ner_retriever_protocol::Span;

/// Types that are hard to tell apart, so that each block does so in its own way.
const TEXTS: [(&str, &str, &str); 12] = [
    (
        "The Danube flows through nine countries.",
        "Danube",
        "water",
    ),
    ("Jordan was dry that summer.", "Jordan", "water"),
    ("They met at Amazon again.", "Amazon", "water"),
    ("Her flight to Lisbon was late.", "Lisbon", "place"),
    ("Jordan closed its borders.", "Jordan", "place"),
    ("Ford has four hundred inhabitants.", "Ford", "place"),
    ("Amazon raised its prices.", "Amazon", "company"),
    ("They met at Ford again.", "Ford", "company"),
    ("Siemens builds trains.", "Siemens", "company"),
    ("Jordan scored forty points.", "Jordan", "person"),
    ("Ford became president in 1974.", "Ford", "person"),
    ("Siemens was born in Lenthe.", "Siemens", "person"),
];

fn documents() -> Vec<Document> {
    let documents = TEXTS.iter().map(|(text, mention, kind)| {
        let start = text.find(mention).unwrap() as u32;
        let span = Span {
            start,
            end: start + mention.len() as u32,
        };
        Document {
            text: (*text).to_owned(),
            mentions: vec![GoldMention {
                span,
                kind: (*kind).to_owned(),
            }],
        }
    });
    documents.collect()
}

/// The area under the curve over all pairs of the texts' mentions, one part of `[mentions, dims]`.
fn area(values: &Tensor, part: usize, dims: usize) -> f64 {
    let values = values.narrow(D::Minus1, part * dims, dims).unwrap();
    let centred = values.broadcast_sub(&values.mean(0).unwrap()).unwrap();
    let unit = normalize(&centred).unwrap();
    let cosines: Vec<Vec<f32>> = unit.matmul(&unit.t().unwrap()).unwrap().to_vec2().unwrap();
    let (mut same, mut different) = (Vec::new(), Vec::new());
    for (a, cosines) in cosines.iter().enumerate() {
        for (b, cosine) in cosines[..a].iter().enumerate() {
            if TEXTS[a].2 == TEXTS[b].2 {
                same.push(*cosine);
            } else {
                different.push(*cosine);
            }
        }
    }
    auc(&same, &different)
}

#[test]
fn every_block_is_read_where_a_head_reads_it() {
    let Some(path) = std::env::var_os("NER_RETRIEVER_MODEL").map(PathBuf::from) else {
        println!("skipped: needs NER_RETRIEVER_MODEL");
        return;
    };
    let names = TypeNames::from([
        ("water".to_owned(), Some("river".to_owned())),
        ("place".to_owned(), Some("city".to_owned())),
        ("company".to_owned(), Some("company".to_owned())),
        ("person".to_owned(), Some("person".to_owned())),
    ]);
    let head = Path::new(env!("CARGO_MANIFEST_DIR")).join("../heads/smollm2-135m");
    let embedder =
        Embedder::load(&Sources::new(&path, &head), Device::Cpu, Some(Numbers::F32)).unwrap();
    let index = Index::new(&embedder, &documents(), Spans::Gold, None).unwrap();
    let representations = &embedder.head().description.representations;
    let dims = index.values.dim(1).unwrap() / representations.len();

    let checkpoint = Checkpoint::open(&path, &Device::Cpu).unwrap();
    let last = checkpoint.config().blocks - 1;
    let model = checkpoint.load(last).unwrap();
    let swept = |form: Form| sweep(&model, &documents(), &names, form);
    for (part, representation) in representations.iter().enumerate() {
        let form = Form {
            suffix: match representation {
                Representation::SpanEnd { .. } => None,
                Representation::Suffix { text, .. } => Some(text),
            },
            query: representation.query_form(),
        };
        let scores: Vec<BlockScore> = swept(form).unwrap();
        assert_eq!(scores.len(), last + 1);
        assert_eq!(
            scores[representation.block()].auc,
            area(&index.values, part, dims),
            "{representation:?}"
        );
        // The blocks beside it have another area, so that what is read is of this block.
        for beside in [representation.block() - 1, representation.block() + 1] {
            assert_ne!(scores[beside].auc, scores[representation.block()].auc);
        }
    }
    let unnamed = sweep(&model, &documents(), &TypeNames::new(), Form::default());
    assert_eq!(unnamed.unwrap_err().kind, ErrorKind::InvalidSetting);
    for (suffix, query) in [(Some(" is a"), TYPE_PLACE), (None, "a kind of")] {
        let error = swept(Form { suffix, query }).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidSetting);
    }
}
