//! A head whose mentions another head finds, for another model with another tokenizer.

mod common;

use std::path::Path;

use candle_core::Device;
use common::{Golden, KV_DIM, LLAMA3, checkpoint, describe, write_head, write_head_for};
use ner_retriever_engine::{
    backend::{Backend, Input, Output},
    embedder::Embedder,
    error::{EngineError, ErrorKind},
    head::{CompanionDescription, HeadDescription},
    representation::Representation,
    sources::Sources,
};
use ner_retriever_protocol::{Mention, Span, TextRequest};
use tempfile::TempDir;

const QWEN2: Golden = Golden {
    name: "tiny_qwen2",
    kv_dim: 16,
    hidden_size: 32,
};
const OWN_DIMS: usize = 2 * QWEN2.kv_dim;
const WEIGHT: f64 = 0.3;

const TEXTS: [&str; 5] = [
    "A Triceratops skull was found near Hell Creek, Montana.",
    "👩‍🔬 Dr. Ada 🇩🇪 met Zoë at the Cafe\u{301} Süd 🦕.",
    "زار الرئيس مدينة القاهرة أمس",
    "On 2024-11-29 the 1234567 of 東京都 paid 42 €",
    "... !?",
];

/// A head for the Qwen checkpoint beside the one for the Llama checkpoint that is to be its companion.
struct Heads(TempDir);

impl Heads {
    fn new(weight: f64) -> Self {
        let heads = Self(tempfile::tempdir().unwrap());
        write_head(&heads.0.path().join("companion"));
        heads.change(|own| {
            own.companion = Some(CompanionDescription {
                head: "../companion".to_owned(),
                weight,
            });
        });
        heads
    }

    fn change(&self, change: impl FnOnce(&mut HeadDescription)) {
        let folder = self.0.path().join("own");
        let query_form = "a {type}".to_owned();
        let span_end = Representation::SpanEnd {
            block: 1,
            query_form: query_form.clone(),
        };
        let suffix = Representation::Suffix {
            block: 2,
            text: "\n{mention} is a".to_owned(),
            query_form,
        };
        let mut description = write_head_for(&QWEN2, &folder, vec![span_end, suffix]);
        description.detector = None;
        change(&mut description);
        describe(&folder, &description);
    }

    fn sources(&self) -> Sources {
        Sources {
            companion_model: Some(checkpoint()),
            ..Sources::new(&QWEN2.folder(), &self.0.path().join("own"))
        }
    }

    fn load(&self) -> Embedder {
        Embedder::load(&self.sources(), Device::Cpu, None).unwrap()
    }

    fn error(&self, sources: &Sources) -> EngineError {
        Embedder::load(sources, Device::Cpu, None).err().unwrap()
    }

    fn alone(&self, golden: &Golden, head: &str) -> Embedder {
        let head = self.0.path().join(head);
        Embedder::load(&Sources::new(&golden.folder(), &head), Device::Cpu, None).unwrap()
    }
}

fn run(embedder: &Embedder, input: Input) -> Output {
    let (prepared, windows) = embedder.prepare(input).unwrap();
    let outputs = embedder
        .forward(&windows.iter().collect::<Vec<_>>())
        .unwrap();
    embedder.finish(prepared, outputs).unwrap()
}

fn mentions(
    embedder: &Embedder,
    text: &str,
    spans: Option<Vec<Span>>,
    embed: bool,
) -> Vec<Mention> {
    let text = text.to_owned();
    let input = Input::Text {
        request: TextRequest { text, spans },
        embed,
        threshold: None,
    };
    match run(embedder, input) {
        Output::Mentions(mentions) => mentions,
        Output::Type(_) => panic!("a text gave a type's embedding"),
    }
}

fn type_embedding(embedder: &Embedder, name: &str) -> Vec<f32> {
    let name = name.to_owned();
    match run(embedder, Input::Type { name }) {
        Output::Type(embedding) => embedding,
        Output::Mentions(_) => panic!("a type gave mentions"),
    }
}

fn spans(mentions: &[Mention]) -> Vec<Span> {
    mentions.iter().map(|mention| mention.span).collect()
}

/// Whether an embedding is two others side by side, by the weight.
fn is_of(both: &[f32], own: &[f32], theirs: &[f32]) -> bool {
    let own = own.iter().map(|x| x * (1.0 - WEIGHT as f32).sqrt());
    let theirs = theirs.iter().map(|x| x * (WEIGHT as f32).sqrt());
    let expected: Vec<f32> = own.chain(theirs).collect();
    let mut pairs = both.iter().zip(&expected);
    both.len() == expected.len() && pairs.all(|(a, b)| (a - b).abs() < 1e-4)
}

#[test]
fn the_companion_finds_and_both_embed() {
    let heads = Heads::new(WEIGHT);
    let both = heads.load();
    let theirs = heads.alone(&LLAMA3, "companion");
    heads.change(|_| ());
    let own = heads.alone(&QWEN2, "own");
    let mut found = 0;
    for text in TEXTS {
        let mentions_of_both = mentions(&both, text, None, true);
        let by_companion = mentions(&theirs, text, None, true);
        let spans = spans(&by_companion);
        let by_own = mentions(&own, text, Some(spans.clone()), true);
        assert_eq!(mentions_of_both.len(), by_companion.len(), "{text:?}");
        for ((both, theirs), own) in mentions_of_both.iter().zip(&by_companion).zip(&by_own) {
            assert_eq!((both.span, both.score), (theirs.span, theirs.score));
            assert_eq!(both.text, theirs.text);
            assert!(is_of(&both.embedding, &own.embedding, &theirs.embedding));
            found += 1;
        }
        let given = mentions(&both, text, Some(spans), true);
        let pairs = given.iter().zip(&mentions_of_both);
        for (given, detected) in pairs {
            assert_eq!(given.score, 1.0);
            assert_eq!(given.embedding, detected.embedding);
        }
        let unembedded = mentions(&both, text, None, false);
        assert!(unembedded.iter().all(|m| m.embedding.is_empty()));
        assert_eq!(unembedded.len(), mentions_of_both.len());
    }
    assert!(found > 10, "{found} mentions are too few to test with");
    let of = |embedder| type_embedding(embedder, "river");
    assert!(is_of(&of(&both), &of(&own), &of(&theirs)));
    assert_eq!(both.info().dims as usize, OWN_DIMS + KV_DIM);
}

#[test]
fn a_batch_gives_what_its_texts_give_alone() {
    let both = Heads::new(WEIGHT).load();
    let input = |(number, text): (usize, &&str)| Input::Text {
        request: TextRequest {
            text: (*text).to_owned(),
            spans: None,
        },
        embed: number != 2,
        threshold: None,
    };
    let name = "river".to_owned();
    let mut inputs: Vec<Input> = TEXTS.iter().enumerate().map(input).collect();
    inputs.insert(1, Input::Type { name });
    let prepared: Vec<_> = inputs
        .iter()
        .map(|input| both.prepare(input.clone()).unwrap())
        .collect();
    let windows: Vec<_> = prepared.iter().flat_map(|(_, windows)| windows).collect();
    let mut outputs = both.forward(&windows).unwrap().into_iter();
    for ((prepared, windows), input) in prepared.into_iter().zip(inputs) {
        let outputs = outputs.by_ref().take(windows.len()).collect();
        let close = |a: &[f32], b: &[f32]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
        };
        match (both.finish(prepared, outputs).unwrap(), run(&both, input)) {
            (Output::Type(batched), Output::Type(alone)) => assert!(close(&batched, &alone)),
            (Output::Mentions(batched), Output::Mentions(alone)) => {
                assert_eq!(spans(&batched), spans(&alone));
                for (batched, alone) in batched.iter().zip(&alone) {
                    assert!(close(&batched.embedding, &alone.embedding));
                }
            }
            _ => panic!("an answer of the other kind"),
        }
    }
    assert!(outputs.next().is_none());
}

#[test]
fn a_companion_without_a_weight_only_finds() {
    let heads = Heads::new(0.0);
    let both = heads.load();
    let theirs = heads.alone(&LLAMA3, "companion");
    heads.change(|_| ());
    let own = heads.alone(&QWEN2, "own");
    for text in TEXTS {
        let found = mentions(&both, text, None, true);
        let spans = spans(&found);
        assert_eq!(spans, self::spans(&mentions(&theirs, text, None, true)));
        for (a, b) in found.iter().zip(mentions(&own, text, Some(spans), true)) {
            assert_eq!(a.embedding.len(), OWN_DIMS);
            let mut pairs = a.embedding.iter().zip(&b.embedding);
            assert!(pairs.all(|(a, b)| (a - b).abs() < 1e-4));
        }
    }
    assert_eq!(both.info().dims as usize, OWN_DIMS);
    assert_eq!(type_embedding(&both, "river").len(), OWN_DIMS);
}

/// Of numbers the companion has a token for three digits and the base model one for each, so that their windows
/// are not of one length.
#[test]
fn a_long_text_is_read_to_its_end_by_both() {
    let heads = Heads::new(WEIGHT);
    let both = heads.load();
    let sentence = "Dr. Ada Lovelace met Zoë in Rome. ";
    let numbers = format!("{}{}", "123 456 ".repeat(300), sentence.repeat(9));
    for text in [sentence.repeat(200), numbers] {
        let (_, windows) = both
            .prepare(Input::Text {
                request: TextRequest {
                    text: text.clone(),
                    spans: None,
                },
                embed: true,
                threshold: None,
            })
            .unwrap();
        let most = both.model().window_size() + 1;
        assert!(windows.len() > 2);
        assert!(windows.iter().all(|window| window.ids.len() <= most));
        let found = mentions(&both, &text, None, true);
        for mention in &found {
            let (start, end) = (mention.span.start as usize, mention.span.end as usize);
            let expected: String = text.chars().skip(start).take(end - start).collect();
            assert_eq!(mention.text, expected);
            assert_eq!(mention.embedding.len(), OWN_DIMS + KV_DIM);
        }
        let length = text.chars().count() as u32;
        let last_sentence = length - sentence.chars().count() as u32;
        assert!(
            found
                .iter()
                .any(|mention| mention.span.start >= last_sentence)
        );
        let end = Span {
            start: length - 6,
            end: length - 2,
        };
        let given = mentions(&both, &text, Some(vec![end]), true);
        assert_eq!(given[0].text, "Rome");
        assert_eq!(given[0].embedding.len(), OWN_DIMS + KV_DIM);
    }
}

#[test]
fn a_companion_and_its_weight_are_part_of_the_fingerprint() {
    let fingerprint = |heads: &Heads| heads.load().info().fingerprint.clone();
    let heads = Heads::new(WEIGHT);
    let first = fingerprint(&heads);
    assert_eq!(first, fingerprint(&Heads::new(WEIGHT)));
    assert_ne!(first, fingerprint(&Heads::new(0.4)));
    let other = Representation::SpanEnd {
        block: 2,
        query_form: "{type}".to_owned(),
    };
    write_head_for(&LLAMA3, &heads.0.path().join("companion"), vec![other]);
    assert_ne!(first, fingerprint(&heads));
    heads.change(|_| ());
    assert_ne!(first, heads.alone(&QWEN2, "own").info().fingerprint);
}

#[test]
fn what_is_wrong_with_a_companion_is_said() {
    let heads = Heads::new(WEIGHT);
    let expect = |sources: &Sources, kind: ErrorKind, message: &str, hint: &str| {
        let error = heads.error(sources);
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(message), "{error}");
        let found = error.hint.unwrap_or_default();
        assert!(found.contains(hint), "{found}");
    };
    let setting = "Set ner_retriever.companion_model";
    let sources = heads.sources();
    let with = |companion_model: Option<&Path>| Sources {
        companion_model: companion_model.map(Path::to_owned),
        ..sources.clone()
    };
    expect(
        &with(None),
        ErrorKind::ModelNotFound,
        "is not given",
        setting,
    );
    let nowhere = Path::new("/nowhere/model.gguf");
    expect(
        &with(Some(nowhere)),
        ErrorKind::ModelNotFound,
        "/nowhere",
        setting,
    );
    let other = QWEN2.folder();
    expect(
        &with(Some(&other)),
        ErrorKind::HeadMismatch,
        "of the companion",
        setting,
    );

    let companion = |head: &str, weight| {
        Some(CompanionDescription {
            head: head.to_owned(),
            weight,
        })
    };
    heads.change(|own| own.companion = companion("../nobody", WEIGHT));
    expect(
        &sources,
        ErrorKind::HeadNotFound,
        "nobody/head.json",
        "beside the head",
    );
    for weight in [1.0, -0.1] {
        heads.change(|own| own.companion = companion("../companion", weight));
        expect(
            &sources,
            ErrorKind::HeadDamaged,
            "weight",
            "Copy the head's folder",
        );
    }
    let detector = write_head(&heads.0.path().join("companion")).detector;
    heads.change(|own| {
        own.detector = detector;
        own.companion = companion("../companion", WEIGHT);
    });
    expect(
        &sources,
        ErrorKind::HeadDamaged,
        "a detector and a companion",
        "Copy the head's folder",
    );
    heads.change(|own| own.companion = companion("../companion", WEIGHT));
    let folder = heads.0.path().join("companion");
    let mut blind = write_head(&folder);
    blind.detector = None;
    // One that has a companion itself has no detector of its own.
    for next in [None, companion("../own", WEIGHT)] {
        blind.companion = next;
        describe(&folder, &blind);
        expect(
            &sources,
            ErrorKind::HeadDamaged,
            "it has no detector",
            "Copy the head's folder",
        );
    }
}
