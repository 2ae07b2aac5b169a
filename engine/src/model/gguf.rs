//! Configuration and tensors of a GGUF file (specification: ggml `docs/gguf.md`).

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use candle_core::{
    Device, Tensor,
    quantized::gguf_file::{Content, Value},
};

use super::config::{
    Attention, LlamaConfig, RopeScaling, unsupported_architecture, unsupported_rope,
};
use crate::error::{Result, compute, model_damaged, model_file};

/// Bytes of each tensor that go into a sample.
const SAMPLE_BYTES: u64 = 256;

/// The tensor of rope's divisors, Llama 3's scaling.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// An opened GGUF file: its metadata, and where its tensors are.
pub struct Gguf {
    path: PathBuf,
    content: Content,
    config: LlamaConfig,
    /// Whether the rows of Q and K are in the order of interleaved rope.
    permuted: bool,
}

impl Gguf {
    /// Reads the metadata of a file.
    ///
    /// # Errors
    /// `ModelNotFound`, `ModelDamaged`, and `ModelUnsupported` for another architecture.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| model_file(path, &e))?;
        let content =
            Content::read(&mut BufReader::new(file)).map_err(|e| model_damaged(path, e))?;
        let config = config(&content, path)?;
        let mut gguf = Self {
            path: path.to_path_buf(),
            // llama.cpp's converter permutes them for Llama and Mistral alone.
            permuted: config.attention == Attention::default(),
            config,
            content,
        };
        if gguf.content.tensor_infos.contains_key(ROPE_FREQS) {
            gguf.config.rope_scaling = Some(RopeScaling::Divisors(gguf.rope_divisors()?));
        }
        Ok(gguf)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// A metadata value.
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    /// Whether there is a tensor of Hugging Face's name.
    pub fn has(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(&gguf_name(name))
    }

    /// A tensor by Hugging Face's name, dequantized to f32.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let tensor = self.read(&gguf_name(name), device)?;
        let heads = if !self.permuted {
            return Ok(tensor);
        } else if name.ends_with("self_attn.q_proj.weight") {
            self.config.heads
        } else if name.ends_with("self_attn.k_proj.weight") {
            self.config.kv_heads
        } else {
            return Ok(tensor);
        };
        unpermute(&tensor, heads).map_err(|e| model_damaged(&self.path, e))
    }

    pub fn sample(&self, update: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut infos: Vec<_> = self.content.tensor_infos.iter().collect();
        infos.sort_by_key(|(name, _)| name.as_str());
        let mut file = File::open(&self.path).map_err(|e| model_file(&self.path, &e))?;
        for (name, info) in infos {
            update(format!("{name} {:?} {:?}\n", info.ggml_dtype, info.shape.dims()).as_bytes());
            let elements = info.shape.elem_count() / info.ggml_dtype.block_size();
            let bytes = (elements * info.ggml_dtype.type_size()) as u64;
            let from = self.content.tensor_data_offset + info.offset + bytes / 2;
            let mut sample = vec![0; SAMPLE_BYTES.min(bytes - bytes / 2) as usize];
            file.seek(SeekFrom::Start(from))
                .and_then(|_| file.read_exact(&mut sample))
                .map_err(|e| self.cut_off(name, &e))?;
            update(&sample);
        }
        Ok(())
    }

    /// What each frequency of rope is divided by, `[head_dim / 2]`.
    fn rope_divisors(&self) -> Result<Vec<f32>> {
        let tensor = self.read(ROPE_FREQS, &Device::Cpu)?;
        let divisors: Vec<f32> = tensor.to_vec1().map_err(|e| model_damaged(&self.path, e))?;
        let pairs = self.config.head_dim / 2;
        let plausible = |divisor: &f32| divisor.is_finite() && *divisor > 0.0;
        if divisors.len() == pairs && divisors.iter().all(plausible) {
            Ok(divisors)
        } else {
            Err(model_damaged(
                &self.path,
                format_args!("tensor \"{ROPE_FREQS}\" does not hold {pairs} positive numbers"),
            ))
        }
    }

    /// A tensor by GGUF's name, dequantized to f32.
    fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        if !self.content.tensor_infos.contains_key(name) {
            return Err(model_damaged(
                &self.path,
                format_args!("tensor \"{name}\" is missing"),
            ));
        }
        let file = File::open(&self.path).map_err(|e| model_file(&self.path, &e))?;
        let quantized = self
            .content
            .tensor(&mut BufReader::new(file), name, device)
            .map_err(|e| self.cut_off(name, &e))?;
        quantized.dequantize(device).map_err(compute)
    }

    fn cut_off(&self, name: &str, error: &dyn std::fmt::Display) -> crate::error::EngineError {
        model_damaged(
            &self.path,
            format_args!("tensor \"{name}\" cannot be read: {error}"),
        )
    }
}

/// GGUF's name of a tensor.
fn gguf_name(name: &str) -> String {
    name.replace("model.embed_tokens", "token_embd")
        .replace("model.norm", "output_norm")
        .replace("lm_head", "output")
        .replace("model.layers.", "blk.")
        .replace("input_layernorm", "attn_norm")
        .replace("post_attention_layernorm", "ffn_norm")
        .replace("self_attn.q_proj", "attn_q")
        .replace("self_attn.k_proj", "attn_k")
        .replace("self_attn.v_proj", "attn_v")
        .replace("self_attn.o_proj", "attn_output")
        .replace("self_attn.q_norm", "attn_q_norm")
        .replace("self_attn.k_norm", "attn_k_norm")
        .replace("mlp.gate_proj", "ffn_gate")
        .replace("mlp.up_proj", "ffn_up")
        .replace("mlp.down_proj", "ffn_down")
}

/// Undoes the row order in which GGUF stores Q and K for interleaved rope (llama.cpp
/// `convert_hf_to_gguf.py`, `LlamaModel.permute`): back to halves, as transformers rotates them.
fn unpermute(weight: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    if !rows.is_multiple_of(2 * heads) {
        candle_core::bail!("{rows} rows of attention weights do not divide into {heads} heads");
    }
    weight
        .reshape((heads, rows / heads / 2, 2, columns))?
        .transpose(1, 2)?
        .reshape((rows, columns))
}

/// The hyperparameters among a file's metadata.
fn config(content: &Content, path: &Path) -> Result<LlamaConfig> {
    let architecture = match content.metadata.get("general.architecture") {
        Some(Value::String(name)) => name.as_str(),
        _ => return Err(model_damaged(path, "\"general.architecture\" is missing")),
    };
    let attention =
        Attention::of(architecture).ok_or_else(|| unsupported_architecture(path, architecture))?;
    let optional = |key: &str| content.metadata.get(&format!("{architecture}.{key}"));
    let size = |key: &str| {
        optional(key)
            .and_then(|value| value.to_u32().ok())
            .map(|value| value as usize)
            .ok_or_else(|| model_damaged(path, format_args!("\"{architecture}.{key}\" is missing")))
    };
    let heads = size("attention.head_count")?;
    let hidden_size = size("embedding_length")?;
    let vocab_size = match content.metadata.get("tokenizer.ggml.tokens") {
        Some(Value::Array(tokens)) => tokens.len(),
        _ => return Err(model_damaged(path, "\"tokenizer.ggml.tokens\" is missing")),
    };
    let head_dim = size("attention.key_length").unwrap_or(hidden_size / heads.max(1));
    let rotated = size("rope.dimension_count").unwrap_or(head_dim);
    if rotated != head_dim {
        let kind = format_args!("{rotated} of a head's {head_dim} dimensions");
        return Err(unsupported_rope(path, kind));
    }
    LlamaConfig {
        vocab_size,
        hidden_size,
        intermediate_size: size("feed_forward_length")?,
        blocks: size("block_count")?,
        heads,
        kv_heads: size("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        rms_norm_eps: optional("attention.layer_norm_rms_epsilon")
            .and_then(|value| value.to_f32().ok())
            .map_or(1e-5, f64::from),
        rope_theta: optional("rope.freq_base")
            .and_then(|value| value.to_f32().ok())
            .map_or(10_000.0, f64::from),
        rope_scaling: rope_scaling(&optional, path)?,
        context: size("context_length")?,
        attention,
    }
    .check(path)
}

fn rope_scaling<'a>(
    optional: &dyn Fn(&str) -> Option<&'a Value>,
    path: &Path,
) -> Result<Option<RopeScaling>> {
    let kind = match optional("rope.scaling.type") {
        Some(Value::String(kind)) => kind.as_str(),
        _ => "none",
    };
    match kind {
        "none" => Ok(None),
        "linear" => optional("rope.scaling.factor")
            .and_then(|factor| factor.to_f32().ok())
            .map(|factor| {
                let factor = f64::from(factor);
                Some(RopeScaling::Linear { factor })
            })
            .ok_or_else(|| model_damaged(path, "its rope scaling lacks its factor")),
        other => Err(unsupported_rope(path, format_args!("scaling \"{other}\""))),
    }
}
