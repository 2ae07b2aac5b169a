//! The frozen base model: reading checkpoints and running the forward pass.

mod amx;
pub mod attention;
mod bf16;
mod block;
mod blocked_attention;
mod calibration;
pub mod config;
mod cpu_attention;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
pub mod fused;
mod gated;
pub mod gguf;
pub mod identity;
mod int8;
mod int8_keys;
pub(crate) mod lanes;
pub mod llama;
mod matrix;
mod packed_attention;
mod padded_attention;
mod panels;
mod pass;
mod quantize;
pub mod readout;
pub mod rope;
pub mod rows;
pub mod safetensors;
mod tiles;
pub mod weights;

use std::path::Path;

use candle_core::Device;

use crate::{
    error::{EngineError, ErrorKind, Result, model_file},
    representation::MAX_SUFFIX,
    tokenizer::TextTokenizer,
};
pub use amx::available as has_amx;
use config::LlamaConfig;
use gguf::Gguf;
pub use int8::has_int8;
use llama::Llama;
use readout::Readout;
use safetensors::Safetensors;
use weights::Weights;
pub use weights::{Numbers, default_numbers};

/// Longest sequence of tokens that goes through the model in one piece, first token included.
/// Longer texts are cut into overlapping windows of this size: the meaning of a mention rarely
/// depends on what is further away, and attention stays a small part of the cost.
pub const MAX_WINDOW: usize = 512;

/// An opened checkpoint: nothing large has been read yet.
pub struct Checkpoint {
    weights: Weights,
    tokenizer: TextTokenizer,
    /// Hash of what identifies the base model ([`identity`]).
    hash: String,
}

/// A loaded base model.
pub struct BaseModel {
    pub llama: Llama,
    pub tokenizer: TextTokenizer,
    pub hash: String,
    /// What it computes in.
    pub numbers: Numbers,
}

impl BaseModel {
    /// Tokens of a text that go through the model in one piece, the first token not counted: what
    /// the model's context leaves when a suffix may follow.
    pub fn window_size(&self) -> usize {
        let context = self.llama.config().context;
        MAX_WINDOW.min(context.saturating_sub(MAX_SUFFIX)).max(2) - 1
    }
}

impl Checkpoint {
    /// Opens a GGUF file or a Hugging Face folder.
    ///
    /// # Errors
    /// `ModelNotFound`, `ModelDamaged`, `ModelUnsupported`.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let meta = std::fs::metadata(path).map_err(|e| model_file(path, &e))?;
        let (weights, tokenizer) = if meta.is_dir() {
            open_folder(path, device)?
        } else {
            let gguf = Gguf::open(path)?;
            let tokenizer = TextTokenizer::from_gguf(&gguf)?;
            (Weights::from_gguf(gguf, device.clone()), tokenizer)
        };
        let hash = identity::hash(&weights, &tokenizer)?;
        Ok(Self {
            weights,
            tokenizer,
            hash,
        })
    }

    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Has the model run in these numbers instead of those that suit the device.
    #[must_use]
    pub fn in_numbers(mut self, numbers: Numbers) -> Self {
        self.weights.set_numbers(numbers);
        self
    }

    pub fn config(&self) -> &LlamaConfig {
        self.weights.config()
    }

    /// Reads what turns the last block's output into next-token log-odds.
    ///
    /// # Errors
    /// `ModelDamaged`.
    pub fn readout(&self) -> Result<Readout> {
        Readout::load(&self.weights)
    }

    /// Reads the weights up to the V projection of the 0-based block `last`, or all blocks whole if
    /// `last` is their number.
    pub fn load(self, last: usize) -> Result<BaseModel> {
        let context = (MAX_WINDOW + MAX_SUFFIX).min(self.weights.config().context);
        let calibration = calibration::tokens(&self.tokenizer, context)?;
        Ok(BaseModel {
            llama: Llama::load(&self.weights, last, context, &calibration)?,
            tokenizer: self.tokenizer,
            hash: self.hash,
            numbers: self.weights.numbers(),
        })
    }
}

fn open_folder(folder: &Path, device: &Device) -> Result<(Weights, TextTokenizer)> {
    let path = folder.join("config.json");
    if !path.exists() {
        return Err(EngineError::new(
            ErrorKind::ModelNotFound,
            format!("model folder \"{}\" has no config.json", folder.display()),
        )
        .hint(
            "Set ner_retriever.model to the folder of a Hugging Face checkpoint (config.json, \
             tokenizer.json, safetensors) or to one GGUF file.",
        ));
    }
    let text = std::fs::read_to_string(&path).map_err(|e| model_file(&path, &e))?;
    let config = config::from_hf_json(&text, &path)?;
    let tokenizer = TextTokenizer::from_folder(folder, config.vocab_size)?;
    let tensors = Safetensors::open(folder)?;
    let weights = Weights::from_safetensors(folder, config, tensors, device.clone());
    Ok((weights, tokenizer))
}
