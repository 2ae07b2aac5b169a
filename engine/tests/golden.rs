//! The forward pass against transformers + torch (tests/golden/README.md says how they were made).

#[path = "common/gguf.rs"]
mod gguf;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use ner_retriever_engine::model::{
    BaseModel, Checkpoint, Numbers,
    config::RopeScaling,
    has_amx,
    llama::{Chooser, Continuation, Packed, Wanted},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    points: Vec<Point>,
}

#[derive(Deserialize)]
struct Point {
    block: usize,
    position: usize,
    v: Vec<f32>,
    hidden: Vec<f32>,
}

fn golden(name: &str) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn load(path: &Path) -> BaseModel {
    load_in(Numbers::F32, path)
}

fn load_in(numbers: Numbers, path: &Path) -> BaseModel {
    let checkpoint = Checkpoint::open(path, &Device::Cpu).unwrap();
    let checkpoint = checkpoint.in_numbers(numbers);
    let last = checkpoint.config().blocks - 1;
    checkpoint.load(last).unwrap()
}

fn row(tensor: &Tensor, index: usize) -> Vec<f32> {
    tensor.get(index).unwrap().to_vec1().unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter()
            .zip(y)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The distance of two vectors relative to their length: unlike the cosine it sees a wrong scale.
fn relative_distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(x, y)| f64::from(x - y)));
    difference / norm(&mut b.iter().map(|x| f64::from(*x)))
}

/// Rounding to seven bits and a sign, which differences in the last place of an f32 may turn.
const INT8: Tolerance = Tolerance {
    cosine: 0.95,
    distance: 0.35,
    packed: 0.1,
};

/// How near vectors must be.
struct Tolerance {
    /// Least cosine and largest relative distance to transformers.
    cosine: f64,
    distance: f64,
    /// Largest relative distance of a text among others to the text alone.
    packed: f64,
}

const F32: Tolerance = Tolerance {
    cosine: 0.9999,
    distance: 1e-3,
    packed: 1e-4,
};

/// Eleven bits instead of 24.
const F16: Tolerance = Tolerance {
    cosine: 0.9999,
    distance: 1e-2,
    packed: 1e-2,
};

/// Eight bits.
const BF16: Tolerance = Tolerance {
    cosine: 0.9995,
    distance: 3e-2,
    packed: 1e-2,
};

fn check(model: &BaseModel, golden: &Golden, tolerance: &Tolerance) {
    let blocks: Vec<usize> = (0..=model.llama.last_block()).collect();
    let packed = Packed::new(golden.texts.iter().map(|t| t.ids.as_slice()));
    let wanted = Wanted {
        hidden: blocks.clone(),
        values: blocks.clone(),
        ..Wanted::default()
    };
    let all = model.llama.forward(&packed, &wanted).unwrap();
    let mut start = 0;
    for text in &golden.texts {
        let mut ids = vec![model.tokenizer.first()];
        ids.extend(model.tokenizer.encode(&text.text).unwrap().ids);
        assert_eq!(ids, text.ids, "tokens of {:?}", text.text);
        let alone = model
            .llama
            .forward(&Packed::new([ids.as_slice()]), &wanted)
            .unwrap();
        for point in &text.points {
            let what = format!(
                "{:?} block {} position {}",
                text.text, point.block, point.position
            );
            let pairs = [
                (&all.values, &alone.values, &point.v),
                (&all.hidden, &alone.hidden, &point.hidden),
            ];
            for (packed, alone, expected) in pairs {
                let packed = row(&packed[point.block], start + point.position);
                let alone = row(&alone[point.block], point.position);
                let (cosine, distance) = (
                    cosine(&packed, expected),
                    relative_distance(&packed, expected),
                );
                let between = relative_distance(&packed, &alone);
                assert!(cosine >= tolerance.cosine, "{what}: {cosine}");
                assert!(distance <= tolerance.distance, "{what}: {distance}");
                assert!(between <= tolerance.packed, "{what}: packed {between}");
            }
        }
        start += ids.len();
    }
}

#[test]
fn smollm2_matches_transformers() {
    let Some(model) = std::env::var_os("NER_RETRIEVER_MODEL").map(PathBuf::from) else {
        println!("skipped: NER_RETRIEVER_MODEL does not name the default model's GGUF file");
        return;
    };
    let golden = golden("smollm2.json");
    check(&load(&model), &golden, &F32);
    check(&load_in(Numbers::F16, &model), &golden, &F16);
    check(&load_in(Numbers::Int8, &model), &golden, &INT8);
    if has_amx() {
        check(&load_in(Numbers::Bf16, &model), &golden, &BF16);
    }
}

/// A tiny checkpoint, as a folder and as GGUF; gives the latter for further checks.
fn check_both(name: &str, pre: &str) -> BaseModel {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let golden = golden(&format!("{name}.json"));
    check(&load(&folder), &golden, &F32);
    // Other numbers than f32 go the way that a GPU goes: candle's operations, padded attention.
    check(&load_in(Numbers::F16, &folder), &golden, &F16);
    let file = tempfile::NamedTempFile::new().unwrap();
    gguf::convert(&folder, pre, file.path(), |_, _| ());
    let model = load(file.path());
    check(&model, &golden, &F32);
    model
}

/// The GGUF has rope's scaling as divisors, and Q and K in another order.
#[test]
fn a_llama_3_checkpoint_matches_transformers() {
    let gguf = check_both("tiny_llama3", "llama-bpe");
    let scaling = &gguf.llama.config().rope_scaling;
    assert!(matches!(scaling, Some(RopeScaling::Divisors(_))));
}

/// Biases on Q, K and V; tied embeddings; a window of 8 tokens that is off.
#[test]
fn a_qwen_2_checkpoint_matches_transformers() {
    let gguf = check_both("tiny_qwen2", "qwen2");
    assert!(gguf.llama.config().attention.qkv_bias);
}

/// Norms on the heads of Q and K; heads wider than the residual stream divided by their number.
#[test]
fn a_qwen_3_checkpoint_matches_transformers() {
    let gguf = check_both("tiny_qwen3", "qwen2");
    assert!(gguf.llama.config().attention.qk_norm);
}

/// Names rows once it has seen the hidden states.
struct Chosen {
    rows: Vec<u32>,
    seen: usize,
}

impl Chooser for Chosen {
    fn see(&mut self, hidden: &[Tensor]) -> candle_core::Result<()> {
        self.seen += hidden.len();
        Ok(())
    }

    fn rows(&mut self) -> candle_core::Result<Vec<u32>> {
        assert_eq!(self.seen, 1);
        Ok(std::mem::take(&mut self.rows))
    }
}

/// Chosen rows have the values that they have in a pass of all rows, wherever the hidden states are read
/// and whatever else is wanted.
#[test]
fn chosen_rows_have_the_values_of_a_whole_pass() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for name in ["tiny_llama3", "tiny_qwen2", "tiny_qwen3"] {
        let models = [
            (load(&folder.join(name)), F32.packed),
            (load_in(Numbers::F16, &folder.join(name)), F16.packed),
        ];
        for (model, tolerance) in models {
            check_chosen(&model, tolerance);
        }
    }
}

fn check_chosen(model: &BaseModel, tolerance: f64) {
    let texts: [&[u32]; 3] = [&[1, 5, 9, 3, 7], &[4], &[8, 2, 6]];
    let packed = Packed::new(texts);
    // Out of order, one of them twice; one in the midst of the first sequence.
    for rows in [&[8, 0, 3, 5, 3][..], &[2]] {
        check_chosen_rows(model, &packed, rows, tolerance);
    }
}

fn check_chosen_rows(model: &BaseModel, packed: &Packed, rows: &[u32], tolerance: f64) {
    let last = model.llama.last_block();
    for (hidden, values, cached_blocks) in [
        (1, vec![last], 0),
        (last, vec![last], 0),
        (1, vec![0, last], 0),
        (1, vec![1], last),
        (0, vec![last, 1], 1),
    ] {
        let wanted = Wanted {
            hidden: vec![hidden],
            values,
            cached_blocks,
            ..Wanted::default()
        };
        let all = model.llama.forward(packed, &wanted).unwrap();
        let choosing = |rows: &[u32]| {
            let mut chooser = Chosen {
                rows: rows.to_vec(),
                seen: 0,
            };
            let llama = &model.llama;
            llama
                .forward_choosing(packed, &wanted, &mut chooser)
                .unwrap()
        };
        let chosen = choosing(rows);
        assert_eq!(chosen.cache.len(), cached_blocks);
        assert_eq!(chosen.hidden[0].dims(), all.hidden[0].dims());
        assert_eq!(chosen.values.len(), all.values.len());
        for (chosen, all) in chosen.values.iter().zip(&all.values) {
            assert_eq!(chosen.dim(0).unwrap(), rows.len());
            for (at, of) in rows.iter().enumerate() {
                let expected = row(all, *of as usize);
                let distance = relative_distance(&row(chosen, at), &expected);
                assert!(distance <= tolerance, "{wanted:?} row {of}: {distance}");
            }
        }
        let none = choosing(&[]);
        assert!(none.values.is_empty(), "{wanted:?}");
        assert_eq!(none.cache.len(), cached_blocks);
    }
}

/// Two sequences that continue the same text, without seeing each other, and one that continues the
/// first token of another, give what each gives in one piece; also where only their ends and starts are read.
#[test]
fn a_continuation_gives_what_the_whole_sequence_gives() {
    for name in ["tiny_llama3", "tiny_qwen2", "tiny_qwen3"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        check_continuation(&load(&folder.join(name)), F32.packed);
        check_continuation(&load_in(Numbers::F16, &folder.join(name)), F16.packed);
    }
}

fn check_continuation(model: &BaseModel, tolerance: f64) {
    let last = model.llama.last_block();
    let encode = |text: &str| model.tokenizer.encode(text).unwrap().ids;
    let start = |text: &str| {
        let first = std::iter::once(model.tokenizer.first());
        first.chain(encode(text)).collect::<Vec<u32>>()
    };
    let texts = [start("Ada met Zoe in Rome."), start("A river in Egypt.")];
    let endings = [
        encode("\n\"Ada\" is a"),
        encode("\n\"Rome\" is a"),
        encode("dinosaur"),
    ];
    let cached = Wanted {
        cached_blocks: last,
        ..Wanted::default()
    };
    let packed = Packed::new(texts.iter().map(Vec::as_slice));
    let earlier = model.llama.forward(&packed, &cached).unwrap();
    let (first, second) = (texts[0].len(), texts[0].len());
    let continuation = Continuation {
        packed: Packed::new(endings.iter().map(Vec::as_slice)),
        prefixes: vec![0..first, 0..first, second..second + 1],
        cache: &earlier.cache,
    };
    let wanted = Wanted {
        values: vec![last],
        ..Wanted::default()
    };
    let together = model.llama.extend(&continuation, &wanted).unwrap();
    let count = endings.len();
    let starts = [0, endings[0].len(), endings[0].len() + endings[1].len()];
    let read = Wanted {
        hidden: vec![1, last],
        rows: Some(
            [
                continuation.packed.ends(),
                starts.map(|row| row as u32).to_vec(),
            ]
            .concat(),
        ),
        ..wanted.clone()
    };
    let some = model.llama.extend(&continuation, &read).unwrap();
    let prefixes = [&texts[0][..], &texts[0][..], &texts[1][..1]];
    let mut row_after = 0;
    for (number, (prefix, ending)) in prefixes.iter().zip(&endings).enumerate() {
        row_after += ending.len();
        let whole = [prefix, ending.as_slice()].concat();
        let alone = Wanted {
            hidden: vec![1, last],
            ..wanted.clone()
        };
        let packed = Packed::new([whole.as_slice()]);
        let alone = model.llama.forward(&packed, &alone).unwrap();
        let close = |tensor: &Tensor, at: usize, expected: &Tensor, of: usize| {
            let expected = row(expected, of);
            assert!(relative_distance(&row(tensor, at), &expected) <= tolerance);
        };
        let (start, end) = (prefix.len(), whole.len() - 1);
        close(&together.values[0], row_after - 1, &alone.values[0], end);
        for (at, of) in [(number, end), (count + number, start)] {
            close(&some.values[0], at, &alone.values[0], of);
            close(&some.hidden[0], at, &alone.hidden[0], of);
            close(&some.hidden[1], at, &alone.hidden[1], of);
        }
    }
    for rows in some.values.iter().chain(&some.hidden) {
        assert_eq!(rows.dim(0).unwrap(), 2 * count);
    }
}
