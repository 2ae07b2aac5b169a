//! What training reads of the base model, computed once and kept on disk: the frozen model's pass
//! over a corpus takes most of a training run.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor, safetensors};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::{
    error::{EngineError, ErrorKind, Result, compute},
    model::{BaseModel, MAX_WINDOW, identity::hex, llama::Packed},
    tokenizer::Encoded,
};

/// Texts in one file of the cache; an interrupted run loses at most this much work.
const SHARD_TEXTS: usize = 512;
/// Tokens of one forward pass.
const BATCH_TOKENS: usize = 2048;

/// Which activations are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// 0-based block whose V vectors are kept.
    pub values: usize,
    /// 0-based block whose incoming hidden states are kept.
    pub hidden: usize,
}

/// Activations of every token of a list of texts; rows count the model's first token.
pub struct Features {
    /// Per text.
    texts: Vec<TextFeatures>,
}

/// Activations of one text.
pub struct TextFeatures {
    pub encoded: Encoded,
    /// `[tokens + 1, kv_dim]`, f32.
    pub values: Tensor,
    /// `[tokens + 1, hidden_size]`, f16: the probe is trained in f32 from batches of them.
    pub hidden: Tensor,
}

impl Features {
    /// Reads the features of texts from `cache`, computing what is not there.
    ///
    /// # Errors
    /// `InvalidSetting` if the cache cannot be written, and the model's errors.
    pub fn compute(
        model: &BaseModel,
        texts: &[&str],
        blocks: Blocks,
        cache: &Path,
    ) -> Result<Self> {
        let folder = cache.join(key(model, texts, blocks));
        fs::create_dir_all(&folder).map_err(|e| unwritable(&folder, &e))?;
        let progress = ProgressBar::new(texts.len() as u64);
        if let Ok(style) =
            ProgressStyle::with_template("features {wide_bar} {pos}/{len} texts, {eta} left")
        {
            progress.set_style(style);
        }
        let mut all = Vec::with_capacity(texts.len());
        for (number, texts) in texts.chunks(SHARD_TEXTS).enumerate() {
            let encoded: Vec<Encoded> = texts
                .iter()
                .map(|text| encode(model, text))
                .collect::<Result<_>>()?;
            let path = folder.join(format!("{number:05}.safetensors"));
            let mut tensors = match safetensors::load(&path, &Device::Cpu) {
                Ok(tensors) => tensors,
                Err(_) => {
                    let tensors = shard(model, &encoded, blocks)?;
                    write(&tensors, &path)?;
                    tensors
                }
            };
            let mut take = |name: &str| {
                tensors.remove(name).ok_or_else(|| {
                    let message = format!("\"{}\" lacks \"{name}\"", path.display());
                    EngineError::new(ErrorKind::InvalidSetting, message)
                        .hint("Delete the file; it is computed again.")
                })
            };
            let (values, hidden) = (take("values")?, take("hidden")?);
            let mut row = 0;
            for encoded in encoded {
                let rows = encoded.ids.len() + 1;
                let part = |t: &Tensor| t.narrow(0, row, rows).map_err(compute);
                all.push(TextFeatures {
                    values: part(&values)?,
                    hidden: part(&hidden)?,
                    encoded,
                });
                row += rows;
            }
            progress.inc(texts.len() as u64);
        }
        progress.finish();
        Ok(Self { texts: all })
    }

    /// The texts' features, in the order of the texts.
    pub fn texts(&self) -> &[TextFeatures] {
        &self.texts
    }
}

/// A text's tokens, cut to one window: training texts are sentences.
fn encode(model: &BaseModel, text: &str) -> Result<Encoded> {
    let mut encoded = model.tokenizer.encode(text)?;
    encoded.ids.truncate(MAX_WINDOW - 1);
    encoded.offsets.truncate(MAX_WINDOW - 1);
    Ok(encoded)
}

fn shard(
    model: &BaseModel,
    encoded: &[Encoded],
    blocks: Blocks,
) -> Result<HashMap<String, Tensor>> {
    let sequences: Vec<Vec<u32>> = encoded
        .iter()
        .map(|e| {
            std::iter::once(model.tokenizer.first())
                .chain(e.ids.iter().copied())
                .collect()
        })
        .collect();
    let (mut values, mut hidden) = (Vec::new(), Vec::new());
    let mut rest = sequences.as_slice();
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|ids| {
            tokens += ids.len();
            tokens <= BATCH_TOKENS
        });
        let (batch, after) = rest.split_at(fits.count().max(1));
        rest = after;
        let packed = Packed::new(batch.iter().map(Vec::as_slice));
        let activations = model
            .llama
            .forward(&packed, &[blocks.hidden], &[blocks.values])
            .map_err(compute)?;
        values.extend(activations.values);
        for tensor in activations.hidden {
            hidden.push(tensor.to_dtype(DType::F16).map_err(compute)?);
        }
    }
    Ok(HashMap::from([
        (
            "values".to_owned(),
            Tensor::cat(&values, 0).map_err(compute)?,
        ),
        (
            "hidden".to_owned(),
            Tensor::cat(&hidden, 0).map_err(compute)?,
        ),
    ]))
}

/// Writes beside and renames, so that an interrupted run leaves no half file.
fn write(tensors: &HashMap<String, Tensor>, path: &Path) -> Result<()> {
    let part: PathBuf = path.with_extension("part");
    safetensors::save(tensors, &part).map_err(compute)?;
    fs::rename(&part, path).map_err(|e| unwritable(path, &e))
}

fn key(model: &BaseModel, texts: &[&str], blocks: Blocks) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{} {blocks:?}\n", model.hash));
    for text in texts {
        hasher.update(text);
        hasher.update([0]);
    }
    hex(&hasher.finalize())[..16].to_owned()
}

fn unwritable(path: &Path, error: &std::io::Error) -> EngineError {
    EngineError::new(
        ErrorKind::InvalidSetting,
        format!("cannot write \"{}\": {error}", path.display()),
    )
    .hint("Name a folder that can be written with --cache.")
}
