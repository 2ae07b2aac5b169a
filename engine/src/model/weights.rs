//! The tensors of a checkpoint under Hugging Face's names, whatever file holds them.

use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use super::{config::LlamaConfig, gguf::Gguf, safetensors::Safetensors};
use crate::error::{Result, compute, model_damaged};

/// An opened checkpoint from which tensors are read one by one.
pub struct Weights {
    path: PathBuf,
    config: LlamaConfig,
    device: Device,
    numbers: Numbers,
    source: Source,
}

/// What a model computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    F32,
    F16,
    /// On a CPU weights and activations of the matrix products alone, all else in f32.
    Bf16,
    /// Weights and activations of the matrix products in int8, all else in f32.
    Int8,
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

enum Source {
    Gguf(Gguf),
    Safetensors(Safetensors),
}

/// On a GPU bf16, which checkpoints of its size are published in and its matrix units are fastest with;
/// f32 on the CPU.
pub fn default_numbers(device: &Device) -> Numbers {
    if device.is_cpu() {
        Numbers::F32
    } else {
        Numbers::Bf16
    }
}

impl Weights {
    pub fn from_gguf(gguf: Gguf, device: Device) -> Self {
        Self {
            path: gguf.path().to_path_buf(),
            config: gguf.config().clone(),
            numbers: default_numbers(&device),
            device,
            source: Source::Gguf(gguf),
        }
    }

    pub fn from_safetensors(
        path: &Path,
        config: LlamaConfig,
        tensors: Safetensors,
        device: Device,
    ) -> Self {
        Self {
            path: path.to_path_buf(),
            config,
            numbers: default_numbers(&device),
            device,
            source: Source::Safetensors(tensors),
        }
    }

    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The numbers between the products.
    pub fn dtype(&self) -> DType {
        match self.numbers {
            Numbers::F16 => DType::F16,
            Numbers::Bf16 if !self.device.is_cpu() => DType::BF16,
            Numbers::F32 | Numbers::Int8 | Numbers::Bf16 => DType::F32,
        }
    }

    /// The numbers of the matrix products.
    pub fn numbers(&self) -> Numbers {
        self.numbers
    }

    /// Has the model run in other numbers than those that suit the device.
    pub fn set_numbers(&mut self, numbers: Numbers) {
        self.numbers = numbers;
    }

    /// Hashes of what identifies the weights without reading all of them: the tensors' names,
    /// shapes and types, and a sample of their bytes.
    ///
    /// # Errors
    /// `ModelDamaged` when the files end before the tensors do.
    pub fn sample(&self, update: &mut dyn FnMut(&[u8])) -> Result<()> {
        match &self.source {
            Source::Gguf(gguf) => gguf.sample(update),
            Source::Safetensors(tensors) => tensors.sample(update),
        }
    }

    /// The token embeddings, which must have this shape.
    pub fn embeddings(&self, shape: &[usize]) -> Result<Tensor> {
        self.tensor("model.embed_tokens.weight", shape)
    }

    /// The norm after the last block, which must have this shape.
    pub fn output_norm(&self, shape: &[usize]) -> Result<Tensor> {
        self.tensor("model.norm.weight", shape)
    }

    /// The output embeddings, which must have this shape; a checkpoint without them ties them to
    /// the input's.
    pub fn output(&self, shape: &[usize]) -> Result<Tensor> {
        const NAME: &str = "lm_head.weight";
        let has = match &self.source {
            Source::Gguf(gguf) => gguf.has(NAME),
            Source::Safetensors(tensors) => tensors.has(NAME),
        };
        if has {
            self.tensor(NAME, shape)
        } else {
            self.embeddings(shape)
        }
    }

    /// The weight of one part of a block (0-based), which must have this shape.
    pub fn block(&self, block: usize, part: &str, shape: &[usize]) -> Result<Tensor> {
        self.tensor(&format!("model.layers.{block}.{part}.weight"), shape)
    }

    /// The bias of one part of a block (0-based), which must have this shape.
    pub fn bias(&self, block: usize, part: &str, shape: &[usize]) -> Result<Tensor> {
        self.tensor(&format!("model.layers.{block}.{part}.bias"), shape)
    }

    /// Matrices with the same inputs, or their biases, stacked along their outputs.
    pub fn cat(&self, parts: &[Tensor]) -> Result<Tensor> {
        Tensor::cat(parts, 0).map_err(compute)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = match &self.source {
            Source::Gguf(gguf) => gguf.tensor(name, &self.device)?,
            Source::Safetensors(tensors) => tensors.tensor(name, &self.device)?,
        };
        if tensor.dims() != shape {
            return Err(model_damaged(
                &self.path,
                format_args!(
                    "tensor \"{name}\" has shape {:?} where the configuration asks for {shape:?}",
                    tensor.dims()
                ),
            ));
        }
        tensor.to_dtype(self.dtype()).map_err(compute)
    }
}
