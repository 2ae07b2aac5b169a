//! The hyperparameters of a decoder of the Llama architecture or of one close to it.

use std::{fmt::Display, path::Path};

use serde::Deserialize;

use crate::error::{EngineError, Result, model_damaged, model_unsupported};

/// What the forward pass needs to know, from `config.json` or GGUF metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub blocks: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: Option<RopeScaling>,
    /// Context length in tokens that the model was trained for.
    pub context: usize,
    pub attention: Attention,
}

/// What a family of models adds to Llama's attention.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Attention {
    /// Q, K and V have biases (Qwen 2).
    pub qkv_bias: bool,
    /// Each head of Q and of K is normalised before it is rotated (Qwen 3).
    pub qk_norm: bool,
}

impl Attention {
    /// By Hugging Face's `model_type` or GGUF's `general.architecture`; `None` for a family that
    /// the forward pass does not cover.
    pub fn of(family: &str) -> Option<Self> {
        let llama = Self::default();
        match family {
            "llama" | "mistral" => Some(llama),
            "qwen2" => Some(Self {
                qkv_bias: true,
                ..llama
            }),
            "qwen3" => Some(Self {
                qk_norm: true,
                ..llama
            }),
            _ => None,
        }
    }
}

impl LlamaConfig {
    /// Width of a token's V vector: all key-value heads of a block side by side.
    pub fn kv_dim(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// What tells this configuration from others. Heads name a hash of it, so the form stays as it
    /// was when only Llama's attention was known.
    pub fn identity(&self) -> String {
        let Self {
            vocab_size,
            hidden_size,
            intermediate_size,
            blocks,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps,
            rope_theta,
            rope_scaling,
            context,
            attention,
        } = self;
        let mut identity = format!(
            "LlamaConfig {{ vocab_size: {vocab_size}, hidden_size: {hidden_size}, \
             intermediate_size: {intermediate_size}, blocks: {blocks}, heads: {heads}, \
             kv_heads: {kv_heads}, head_dim: {head_dim}, rms_norm_eps: {rms_norm_eps:?}, \
             rope_theta: {rope_theta:?}, rope_scaling: {rope_scaling:?}, context: {context} }}"
        );
        if *attention != Attention::default() {
            identity.push_str(&format!(" {attention:?}"));
        }
        identity
    }

    /// Refuses sizes that no tensor could have, so that later arithmetic cannot divide by zero or
    /// overflow.
    pub fn check(self, path: &Path) -> Result<Self> {
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.blocks,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.context,
        ];
        let plausible = sizes.iter().all(|&size| (1..=1 << 24).contains(&size))
            && self.heads.is_multiple_of(self.kv_heads)
            && self.head_dim.is_multiple_of(2);
        if plausible {
            Ok(self)
        } else {
            Err(model_damaged(
                path,
                format_args!("its configuration is not plausible: {self:?}"),
            ))
        }
    }
}

/// How rotary frequencies are stretched beyond the context of pre-training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Llama 3.1: transformers `modeling_rope_utils.py`, `_compute_llama3_parameters`.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// Every frequency divided by one factor.
    Linear { factor: f64 },
    /// One divisor per frequency: GGUF's tensor `rope_freqs.weight`, `[head_dim / 2]`.
    Divisors(Vec<f32>),
}

#[derive(Deserialize)]
struct HfConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<HfRope>,
    /// transformers 5 writes theta and scaling here.
    rope_parameters: Option<HfRope>,
    max_position_embeddings: usize,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    hidden_act: Option<String>,
    sliding_window: Option<usize>,
    /// Qwen's configurations name a window that is off unless this turns it on.
    use_sliding_window: Option<bool>,
}

#[derive(Deserialize)]
struct HfRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

/// Reads the text of a checkpoint's `config.json`; `path` is named in errors.
///
/// # Errors
/// `ModelDamaged` if it is not such JSON, `ModelUnsupported` for another architecture.
pub fn from_hf_json(text: &str, path: &Path) -> Result<LlamaConfig> {
    let architecture: serde_json::Value =
        serde_json::from_str(text).map_err(|e| model_damaged(path, e))?;
    let model_type = architecture["model_type"].as_str().unwrap_or("(none)");
    let attention =
        Attention::of(model_type).ok_or_else(|| unsupported_architecture(path, model_type))?;
    let hf: HfConfig = serde_json::from_str(text).map_err(|e| model_damaged(path, e))?;
    if hf.attention_bias || hf.mlp_bias || hf.hidden_act.as_deref().is_some_and(|a| a != "silu") {
        return Err(unsupported_architecture(
            path,
            &format!("{model_type} with biases or another activation than silu"),
        ));
    }
    let head_dim = match hf.head_dim {
        Some(dim) => dim,
        None if hf.num_attention_heads > 0 => hf.hidden_size / hf.num_attention_heads,
        None => 0,
    };
    let is_qwen = attention != Attention::default();
    let windowed = hf.use_sliding_window.unwrap_or(!is_qwen);
    let rope = hf.rope_parameters.or(hf.rope_scaling);
    let theta = hf
        .rope_theta
        .or(rope.as_ref().and_then(|rope| rope.rope_theta))
        .unwrap_or(10_000.0);
    LlamaConfig {
        vocab_size: hf.vocab_size,
        hidden_size: hf.hidden_size,
        intermediate_size: hf.intermediate_size,
        blocks: hf.num_hidden_layers,
        heads: hf.num_attention_heads,
        kv_heads: hf.num_key_value_heads.unwrap_or(hf.num_attention_heads),
        head_dim,
        rms_norm_eps: hf.rms_norm_eps,
        rope_theta: theta,
        rope_scaling: rope.map_or(Ok(None), |rope| hf_rope_scaling(&rope, path))?,
        // A window within the sliding window attends exactly as with full attention.
        context: hf
            .max_position_embeddings
            .min(hf.sliding_window.filter(|_| windowed).unwrap_or(usize::MAX)),
        attention,
    }
    .check(path)
}

fn hf_rope_scaling(rope: &HfRope, path: &Path) -> Result<Option<RopeScaling>> {
    let missing = || model_damaged(path, "its rope scaling lacks a parameter");
    match rope.rope_type.as_deref().unwrap_or("default") {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear {
            factor: rope.factor.ok_or_else(missing)?,
        })),
        "llama3" => Ok(Some(RopeScaling::Llama3 {
            factor: rope.factor.ok_or_else(missing)?,
            low_freq_factor: rope.low_freq_factor.ok_or_else(missing)?,
            high_freq_factor: rope.high_freq_factor.ok_or_else(missing)?,
            original_context: rope.original_max_position_embeddings.ok_or_else(missing)?,
        })),
        other => Err(unsupported_rope(path, format_args!("scaling \"{other}\""))),
    }
}

/// The error for rotary embeddings of another kind.
pub fn unsupported_rope(path: &Path, kind: impl Display) -> EngineError {
    model_unsupported(
        path,
        format_args!("rope with {kind}"),
        "Rope must turn all dimensions of a head; its scaling may be default, linear or llama3.",
    )
}

/// The error for a model of another architecture.
pub fn unsupported_architecture(path: &Path, architecture: &str) -> EngineError {
    model_unsupported(
        path,
        format_args!("architecture \"{architecture}\""),
        "Supported are the architectures llama (Llama 3.x, SmolLM2), mistral, qwen2 (Qwen 2 and 2.5) \
         and qwen3; none with a mixture of experts.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(model: &str, change: impl Fn(&mut serde_json::Value)) -> LlamaConfig {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let text = std::fs::read_to_string(path.join(model).join("config.json")).unwrap();
        let mut json = serde_json::from_str(&text).unwrap();
        change(&mut json);
        from_hf_json(&json.to_string(), &path).unwrap()
    }

    /// As the heads that ship were trained with it.
    #[test]
    fn the_identity_of_a_configuration_stays() {
        let llama = "LlamaConfig { vocab_size: 512, hidden_size: 64, intermediate_size: 160, \
             blocks: 4, heads: 4, kv_heads: 2, head_dim: 16, rms_norm_eps: 1e-5, \
             rope_theta: 500000.0, rope_scaling: Some(Llama3 { factor: 8.0, \
             low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 64.0 }), \
             context: 512 }";
        assert_eq!(read("tiny_llama3", |_| ()).identity(), llama);
        let qwen2 = read("tiny_qwen2", |_| ()).identity();
        assert!(qwen2.ends_with(" Attention { qkv_bias: true, qk_norm: false }"));
    }

    #[test]
    fn a_sliding_window_limits_the_context_where_it_is_on() {
        let context = |model: &str, switch: Option<bool>| {
            read(model, |json| {
                json["sliding_window"] = 8.into();
                json["use_sliding_window"] = switch.into();
            })
            .context
        };
        assert_eq!(context("tiny_qwen2", None), 512);
        assert_eq!(context("tiny_qwen2", Some(false)), 512);
        assert_eq!(context("tiny_qwen3", Some(true)), 8);
        assert_eq!(context("tiny_llama3", None), 8);
    }
}
