//! What a model gives for texts, written to compare it with other programs.

use std::{collections::HashMap, path::Path};

use candle_core::{Tensor, safetensors};

use super::invalid;
use crate::{
    backend::{Backend, Input},
    embedder::Embedder,
    error::{Result, compute},
    prepare::Window,
    projection::Side,
};

/// Writes, of texts of one window each: `ids` `[tokens]`, `lengths` `[texts]`, `rows` `[mentions]` of the
/// ids (the mentions' last tokens), `values` `[mentions, input_dims]`, `embeddings` `[mentions, dims]`.
pub fn write(
    embedder: &Embedder,
    inputs: &[Input],
    batch_tokens: usize,
    path: &Path,
) -> Result<()> {
    if embedder.companion().is_some() {
        let problem = "the vectors of a head with a companion are of two models";
        return Err(invalid("write", path, &problem));
    }
    let (mut ids, mut lengths, mut rows) = (Vec::new(), Vec::new(), Vec::new());
    let mut values = Vec::new();
    let mut batch = Vec::new();
    for (index, input) in inputs.iter().enumerate() {
        let (_, windows) = embedder.prepare(input.clone())?;
        let [window] = <[Window; 1]>::try_from(windows).map_err(|windows| {
            let found = windows.len();
            invalid(
                "use",
                path,
                &format!("text {} has {found} windows", index + 1),
            )
        })?;
        let (_, ends) = window.mentions(&[]);
        rows.extend(ends.iter().map(|end| (ids.len() + end) as u32));
        ids.extend_from_slice(&window.ids);
        lengths.push(window.ids.len() as u32);
        batch.push(window);
        let tokens: usize = batch.iter().map(|window| window.ids.len()).sum();
        if tokens >= batch_tokens || index + 1 == inputs.len() {
            let windows: Vec<&Window> = batch.iter().collect();
            values.extend(embedder.represent(&windows)?.values);
            batch.clear();
        }
    }
    let values = Tensor::cat(&values, 0).map_err(compute)?;
    let embeddings = embedder.project(&values, Side::Mention)?;
    let save = || {
        let device = &candle_core::Device::Cpu;
        let numbers = |of: Vec<u32>| Tensor::new(of, device);
        let tensors = HashMap::from([
            ("ids", numbers(ids)?),
            ("lengths", numbers(lengths)?),
            ("rows", numbers(rows)?),
            ("values", values.to_device(device)?),
            ("embeddings", embeddings.to_device(device)?),
        ]);
        safetensors::save(&tensors, path)
    };
    save().map_err(compute)
}
