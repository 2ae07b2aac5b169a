//! Tensors of a Hugging Face folder: one `model.safetensors` or shards with an index.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor, safetensors::MmapedSafetensors};
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::error::{EngineError, ErrorKind, Result, compute, model_damaged, model_file};

/// Bytes of each tensor that go into a sample.
const SAMPLE_BYTES: usize = 256;

/// Memory-mapped safetensors files.
pub struct Safetensors {
    folder: PathBuf,
    tensors: MmapedSafetensors,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Safetensors {
    /// Maps the files of a folder.
    ///
    /// # Errors
    /// `ModelNotFound` if there are none, `ModelDamaged` if a header does not fit its file.
    pub fn open(folder: &Path) -> Result<Self> {
        let files = files(folder)?;
        for file in &files {
            std::fs::File::open(file).map_err(|e| model_file(file, &e))?;
        }
        // SAFETY: the maps are only read. A checkpoint that another process shortens while it is
        // mapped ends the engine by SIGBUS, which the supervisor handles like any other crash.
        let tensors =
            unsafe { MmapedSafetensors::multi(&files) }.map_err(|e| model_damaged(folder, e))?;
        Ok(Self {
            folder: folder.to_path_buf(),
            tensors,
        })
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.get(name).is_ok()
    }

    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        if self.tensors.get(name).is_err() {
            return Err(model_damaged(
                &self.folder,
                format_args!("tensor \"{name}\" is missing"),
            ));
        }
        self.tensors.load(name, device).map_err(compute)
    }

    pub fn sample(&self, update: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut tensors = self.tensors.tensors();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, view) in tensors {
            update(format!("{name} {:?} {:?}\n", view.dtype(), view.shape()).as_bytes());
            let bytes = view.data();
            let middle = bytes.len() / 2;
            update(&bytes[middle..bytes.len().min(middle + SAMPLE_BYTES)]);
        }
        Ok(())
    }
}

/// The files that hold the tensors.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Err(EngineError::new(
            ErrorKind::ModelNotFound,
            format!(
                "model folder \"{}\" has neither model.safetensors nor model.safetensors.index.json",
                folder.display()
            ),
        )
        .hint("Point ner_retriever.model at a checkpoint saved in the safetensors format."));
    }
    let text = std::fs::read_to_string(&index).map_err(|e| model_file(&index, &e))?;
    let index: Index = serde_json::from_str(&text).map_err(|e| model_damaged(&index, e))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    Ok(names.iter().map(|name| folder.join(name)).collect())
}
