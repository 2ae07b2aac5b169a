//! From texts to mentions and back to the texts' characters, on a small real checkpoint.

mod common;

use candle_core::Device;
use common::{KV_DIM, checkpoint, write_head, write_head_of};
use ner_retriever_engine::{
    backend::{Backend, Input, Output},
    embedder::Embedder,
    error::{EngineError, ErrorKind},
    representation::Representation,
    sources::Sources,
};
use ner_retriever_protocol::{Mention, Span, TextRequest};
use unicode_segmentation::UnicodeSegmentation;

fn embedder() -> Embedder {
    let head = tempfile::tempdir().unwrap();
    write_head(head.path());
    Embedder::load(&Sources::new(&checkpoint(), head.path()), Device::Cpu, None).unwrap()
}

fn embedder_of(representations: Vec<Representation>) -> Embedder {
    let head = tempfile::tempdir().unwrap();
    write_head_of(head.path(), representations);
    Embedder::load(&Sources::new(&checkpoint(), head.path()), Device::Cpu, None).unwrap()
}

fn suffix(block: usize, text: &str) -> Representation {
    Representation::Suffix {
        block,
        text: text.to_owned(),
        query_form: "a {type}".to_owned(),
    }
}

/// Span ends beside echoes and the suffixes that begin with them.
fn suffix_embedder() -> Embedder {
    let span_end = Representation::SpanEnd {
        block: 2,
        query_form: "{type}".to_owned(),
    };
    embedder_of(vec![
        span_end,
        suffix(2, "\n\"{mention}"),
        suffix(3, "\n\"{mention}\" is a"),
    ])
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn run(embedder: &Embedder, input: Input) -> Result<Output, EngineError> {
    let (prepared, windows) = embedder.prepare(input)?;
    let outputs = embedder.forward(&windows.iter().collect::<Vec<_>>())?;
    embedder.finish(prepared, outputs)
}

fn mentions(
    embedder: &Embedder,
    text: &str,
    spans: Option<&[(u32, u32)]>,
) -> Result<Vec<Mention>, EngineError> {
    let spans = spans.map(|s| s.iter().map(|&(start, end)| Span { start, end }).collect());
    let request = TextRequest {
        text: text.to_owned(),
        spans,
    };
    let input = Input::Text {
        request,
        embed: true,
        threshold: None,
    };
    match run(embedder, input)? {
        Output::Mentions(mentions) => Ok(mentions),
        Output::Type(_) => panic!("a text gave a type's embedding"),
    }
}

fn type_embedding(embedder: &Embedder, name: &str) -> Vec<f32> {
    let name = name.to_owned();
    match run(embedder, Input::Type { name }).unwrap() {
        Output::Type(embedding) => embedding,
        Output::Mentions(_) => panic!("a type gave mentions"),
    }
}

fn characters(text: &str, span: Span) -> String {
    let (start, end) = (span.start as usize, span.end as usize);
    text.chars().skip(start).take(end - start).collect()
}

const TEXTS: [&str; 8] = [
    "A Triceratops skull was found near Hell Creek, Montana.",
    "👩‍🔬 Dr. Ada 🇩🇪 met Zoë at the Cafe\u{301} Süd 🦕.",
    "زار الرئيس مدينة القاهرة أمس",
    "東京都で会いました。",
    "e\u{301}e\u{301}e\u{301} a\u{328}\u{301}",
    "tab\tnewline\nand   spaces   ",
    "\u{1}\u{4}\u{7f} control",
    "<|begin_of_text|> and <|end_of_text|> are plain text here",
];

#[test]
fn detected_mentions_are_exact_parts_of_the_text() {
    let embedder = embedder();
    let mut found = 0;
    for text in TEXTS {
        let boundaries: Vec<usize> = text
            .grapheme_indices(true)
            .map(|(byte, _)| byte)
            .chain([text.len()])
            .collect();
        let boundaries: Vec<u32> = boundaries
            .iter()
            .map(|&byte| text[..byte].chars().count() as u32)
            .collect();
        let mut end = 0;
        for mention in mentions(&embedder, text, None).unwrap() {
            found += 1;
            assert_eq!(mention.text, characters(text, mention.span), "{text:?}");
            assert_eq!(mention.text.trim(), mention.text, "{text:?}");
            assert!(mention.span.start >= end, "mentions of {text:?} overlap");
            assert!(
                boundaries.contains(&mention.span.start),
                "{mention:?} cuts a grapheme"
            );
            assert!(
                boundaries.contains(&mention.span.end),
                "{mention:?} cuts a grapheme"
            );
            assert!((0.01..=1.0).contains(&mention.score));
            let length: f32 = mention.embedding.iter().map(|x| x * x).sum();
            assert!(mention.embedding.len() == KV_DIM && (length - 1.0).abs() < 1e-4);
            end = mention.span.end;
        }
    }
    assert!(found > 20, "{found} mentions are too few to test with");
}

#[test]
fn a_text_without_words_has_no_mentions() {
    let embedder = embedder();
    for text in ["", " ", "\n\t  ", "\u{4}", "... !? -- (+)"] {
        assert_eq!(mentions(&embedder, text, None).unwrap(), [], "{text:?}");
        let request = TextRequest {
            text: text.to_owned(),
            spans: None,
        };
        let (_, windows) = embedder
            .prepare(Input::Text {
                request,
                embed: true,
                threshold: None,
            })
            .unwrap();
        assert!(windows.is_empty(), "{text:?} goes through the model");
    }
}

#[test]
fn given_spans_come_back_in_their_order() {
    let embedder = embedder();
    let text = "Zoë met Ada 🦕 in Rome";
    let spans = [(17, 21), (0, 3), (12, 13), (8, 11), (0, 3), (0, 21)];
    let found = mentions(&embedder, text, Some(&spans)).unwrap();
    let texts: Vec<&str> = found.iter().map(|m| m.text.as_str()).collect();
    assert_eq!(texts, ["Rome", "Zoë", "🦕", "Ada", "Zoë", text]);
    assert_eq!(found[1].embedding, found[4].embedding);
    assert_ne!(found[0].embedding, found[1].embedding);
    // The last character decides: the whole text ends where Rome ends.
    assert_eq!(found[0].embedding, found[5].embedding);
    assert!(found.iter().all(|mention| mention.score == 1.0));
}

#[test]
fn spans_that_do_not_fit_their_text_are_refused() {
    let embedder = embedder();
    for (span, problem) in [
        ((0, 5), "outside"),
        ((4, 9), "outside"),
        ((2, 2), "empty"),
        ((3, 1), "empty"),
        ((3, 4), "white space"),
        ((u32::MAX - 1, u32::MAX), "outside"),
    ] {
        let error = mentions(&embedder, "🦕ab ", Some(&[(0, 1), span])).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidSpan);
        assert!(error.message.contains(problem), "{error}");
        assert!(error.hint.unwrap().contains("4 characters"));
    }
}

/// A long text must find in each place what the same words give alone, however the windows fall.
#[test]
fn every_part_of_a_long_text_is_read() {
    let embedder = embedder();
    let sentence = "Dr. Ada Lovelace met Zoë in Rome. ";
    let long = sentence.repeat(200);
    let found = mentions(&embedder, &long, None).unwrap();
    let length = sentence.chars().count() as u32;
    for number in 0..200 {
        let within =
            |m: &&Mention| m.span.end > number * length && m.span.start < (number + 1) * length;
        assert!(
            found.iter().any(|m| within(&m)),
            "nothing in sentence {number}"
        );
    }
    for mention in &found {
        assert_eq!(mention.text, characters(&long, mention.span));
    }
    let spans: Vec<(u32, u32)> = (0..200)
        .map(|n| (n * length + 4, n * length + 16))
        .collect();
    let given = mentions(&embedder, &long, Some(&spans)).unwrap();
    assert!(given.iter().all(|mention| mention.text == "Ada Lovelace"));
}

#[test]
fn a_batch_gives_what_its_texts_give_alone() {
    batch_gives_what_its_texts_give_alone(&embedder());
}

#[test]
fn a_batch_with_suffixes_gives_what_its_texts_give_alone() {
    batch_gives_what_its_texts_give_alone(&suffix_embedder());
}

/// The words after a mention change its suffix's vector and leave its end's.
#[test]
fn a_suffix_knows_what_follows_the_mention() {
    let embedder = suffix_embedder();
    let of = |text: &str| {
        mentions(&embedder, text, Some(&[(0, 3)]))
            .unwrap()
            .remove(0)
    };
    let (a, b) = (of("Ada is a river."), of("Ada was a poet in London."));
    let equal = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    assert_eq!(a.embedding.len(), 3 * KV_DIM);
    let parts = a.embedding.chunks(KV_DIM).zip(b.embedding.chunks(KV_DIM));
    let unchanged: Vec<bool> = parts.map(|(a, b)| equal(a, b)).collect();
    assert_eq!(unchanged, [true, false, false]);
}

/// Whichever of them stand side by side, in whatever order.
#[test]
fn a_suffix_that_another_begins_with_gives_what_it_gives_alone() {
    let suffixes = [
        suffix(2, "\n\"{mention}"),
        suffix(3, "\n\"{mention}\" is a"),
        suffix(1, " {mention} is"),
    ];
    let text = "Ada Lovelace met Zoë in Rome; Ada Lovelace was a poet.";
    let of = |numbers: &[usize]| {
        let representations = numbers.iter().map(|number| suffixes[*number].clone());
        let embedder = embedder_of(representations.collect());
        mentions(
            &embedder,
            text,
            Some(&[(0, 12), (17, 20), (24, 28), (30, 42)]),
        )
        .unwrap()
    };
    let alone: Vec<Vec<Mention>> = (0..suffixes.len()).map(|number| of(&[number])).collect();
    for together in [&[0, 1][..], &[1, 0], &[0, 2], &[2, 1, 0], &[1, 1]] {
        for (number, mention) in of(together).iter().enumerate() {
            let parts = mention.embedding.chunks(KV_DIM);
            assert_eq!(parts.len(), together.len());
            for (part, which) in parts.zip(together) {
                let expected = &alone[*which][number].embedding;
                let cosine = cosine(part, expected);
                assert!(cosine > 0.99999, "{together:?}, {}: {cosine}", mention.text);
            }
        }
    }
}

/// Their suffixes attend to more rows than one pass takes.
#[test]
fn many_mentions_of_a_long_text_get_what_each_gets_alone() {
    let embedder = suffix_embedder();
    let long = "Dr. Ada Lovelace met Zoë in Rome. ".repeat(200);
    let spans: Vec<(u32, u32)> = (0..200).map(|n| (n * 34 + 4, n * 34 + 16)).collect();
    let together = mentions(&embedder, &long, Some(&spans)).unwrap();
    for number in [0, 99, 199] {
        let alone = mentions(&embedder, &long, Some(&spans[number..=number])).unwrap();
        let pairs = together[number].embedding.iter().zip(&alone[0].embedding);
        assert_eq!(alone[0].text, "Ada Lovelace");
        assert!(pairs.clone().count() == 3 * KV_DIM);
        assert!(pairs.clone().all(|(a, b)| (a - b).abs() < 1e-4), "{number}");
    }
}

fn batch_gives_what_its_texts_give_alone(embedder: &Embedder) {
    let type_alone = type_embedding(embedder, "dinosaur");
    // Every third text is asked for its mentions alone.
    let embed = |number: usize| !number.is_multiple_of(3);
    let input = |(number, text): (usize, &&str)| Input::Text {
        request: TextRequest {
            text: (*text).to_owned(),
            spans: None,
        },
        embed: embed(number),
        threshold: None,
    };
    let mut inputs: Vec<Input> = TEXTS.iter().enumerate().map(input).collect();
    inputs.insert(
        3,
        Input::Type {
            name: "dinosaur".to_owned(),
        },
    );
    let prepared: Vec<_> = inputs
        .into_iter()
        .map(|i| embedder.prepare(i).unwrap())
        .collect();
    let windows: Vec<_> = prepared.iter().flat_map(|(_, windows)| windows).collect();
    let mut outputs = embedder.forward(&windows).unwrap().into_iter();
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    let mut texts = TEXTS.iter().enumerate();
    for (prepared, windows) in prepared {
        let outputs = outputs.by_ref().take(windows.len()).collect();
        match embedder.finish(prepared, outputs).unwrap() {
            Output::Type(embedding) => assert!(close(&embedding, &type_alone)),
            Output::Mentions(batched) => {
                let (number, text) = texts.next().unwrap();
                let alone = mentions(embedder, text, None).unwrap();
                assert_eq!(batched.len(), alone.len());
                for (a, b) in batched.iter().zip(&alone) {
                    assert_eq!(a.span, b.span);
                    assert_eq!(a.embedding.is_empty(), !embed(number));
                    assert!(close(&a.embedding, &b.embedding));
                }
            }
        }
    }
}

#[test]
fn a_type_needs_a_name_of_some_tokens() {
    let embedder = embedder();
    for (name, kind) in [
        ("", ErrorKind::InvalidSetting),
        ("  ", ErrorKind::InvalidSetting),
        ("river ".repeat(1000).as_str(), ErrorKind::TextTooLarge),
    ] {
        let name = name.to_owned();
        let error = embedder.prepare(Input::Type { name }).err().unwrap();
        assert_eq!(error.kind, kind);
        assert!(error.hint.is_some());
    }
    assert_eq!(
        type_embedding(&embedder, " river\n"),
        type_embedding(&embedder, "river")
    );
}
