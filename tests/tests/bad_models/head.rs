//! A head for the small checkpoint of the engine's tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::json;

/// Dimensions of the checkpoint's V vectors, and of the embeddings.
pub const TINY_DIMS: usize = 32;
const HIDDEN_SIZE: usize = 64;
const HIDDEN_UNITS: usize = 4;
const PROBE_UNITS: usize = 8;
/// The engine's longest mention, words.
const MAX_WORDS: usize = 16;

/// Writes a head whose projection changes nothing but the vectors' length, and whose probe finds
/// every span equally likely.
pub fn write_tiny_head(folder: &Path) {
    let projection: [(&str, &[usize], f32); 6] = [
        ("net.0.weight", &[HIDDEN_UNITS, TINY_DIMS], 0.0),
        ("net.0.bias", &[HIDDEN_UNITS], 0.0),
        ("net.3.weight", &[TINY_DIMS, HIDDEN_UNITS], 0.0),
        ("net.3.bias", &[TINY_DIMS], 0.0),
        ("center.mentions", &[TINY_DIMS], 0.0),
        ("center.types", &[TINY_DIMS], 0.0),
    ];
    write_tensors(&projection, &folder.join("projection.safetensors"));
    let mentions: [(&str, &[usize], f32); 6] = [
        ("mean", &[HIDDEN_SIZE], 0.0),
        ("scale", &[HIDDEN_SIZE], 1.0),
        ("tokens", &[5 * PROBE_UNITS, HIDDEN_SIZE], 0.0),
        ("width", &[MAX_WORDS, PROBE_UNITS], 0.0),
        ("output", &[PROBE_UNITS, 1], 0.0),
        ("bias", &[1], 0.0),
    ];
    write_tensors(&mentions, &folder.join("mentions.safetensors"));
    let description = json!({
        "name": "tiny",
        "base_model": { "name": "tiny Llama 3", "hash": null },
        "representations": [{ "kind": "span_end", "block": 3, "query_form": "{type}" }],
        "projection": {
            "kind": "residual",
            "file": "projection.safetensors",
            "input_dims": TINY_DIMS,
            "dims": TINY_DIMS,
        },
        "detector": { "block": 2, "file": "mentions.safetensors", "threshold": 0.4 },
    });
    fs::write(folder.join("head.json"), description.to_string()).unwrap();
}

/// Tensors by name, each with its shape and the value of all its elements.
fn write_tensors(tensors: &[(&str, &[usize], f32)], file: &Path) {
    let elements: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape, value)| value.to_le_bytes().repeat(shape.iter().product()))
        .collect();
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .zip(&elements)
        .map(|((name, shape, _), bytes)| {
            (
                *name,
                TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap(),
            )
        })
        .collect();
    serialize_to_file(views, None, file).unwrap();
}
