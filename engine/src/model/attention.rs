//! From the residual stream to Q, K and V: what the families of models differ in.

use candle_core::{D, Result, Tensor};
use candle_nn::{ops, rotary_emb::rope_thd};

use super::{config::LlamaConfig, weights::Weights};
use crate::error;

/// A product with a matrix, and the bias that some families add.
struct Linear {
    /// `[out, in]`.
    weight: Tensor,
    /// `[out]`.
    bias: Option<Tensor>,
}

/// A block's norm and its projections to Q, K and V.
pub struct AttentionInputs {
    norm: Tensor,
    /// Q, K and V side by side, so that one product reads the activations once:
    /// `[(heads + 2 * kv_heads) * head_dim, hidden_size]`.
    qkv: Linear,
    /// The norms of each head of Q and of K, `[head_dim]` each.
    head_norms: Option<(Tensor, Tensor)>,
}

/// What is read of the last block: its norm and V projection.
pub struct Values {
    norm: Tensor,
    /// `[kv_dim, hidden_size]`.
    v: Linear,
}

/// Q and K, rotated, and V of one block: `[tokens, heads, head_dim]`, for K and V of `kv_heads`.
pub struct Qkv {
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
}

impl AttentionInputs {
    /// Reads those of a block (0-based).
    ///
    /// # Errors
    /// `ModelDamaged` if a tensor is missing, cut off or of another shape.
    pub fn load(weights: &Weights, block: usize) -> error::Result<Self> {
        let config = weights.config();
        let (q, kv) = (config.heads * config.head_dim, config.kv_dim());
        let head_norm = |part: &str| weights.block(block, part, &[config.head_dim]);
        let head_norms = if config.attention.qk_norm {
            Some((
                head_norm("self_attn.q_norm")?,
                head_norm("self_attn.k_norm")?,
            ))
        } else {
            None
        };
        let parts = [
            ("self_attn.q_proj", q),
            ("self_attn.k_proj", kv),
            ("self_attn.v_proj", kv),
        ];
        Ok(Self {
            norm: weights.block(block, "input_layernorm", &[config.hidden_size])?,
            qkv: Linear::load(weights, block, &parts)?,
            head_norms,
        })
    }

    /// Q, K and V of the residual stream `x` `[tokens, hidden_size]`, whose positions' cosines and
    /// sines are `[tokens, head_dim / 2]` each.
    pub fn forward(
        &self,
        config: &LlamaConfig,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
    ) -> Result<Qkv> {
        let tokens = x.dim(0)?;
        let (q_dim, kv_dim) = (config.heads * config.head_dim, config.kv_dim());
        let qkv = self.qkv.forward(&norm(config, x, &self.norm)?)?;
        let heads = |from: usize, count: usize| {
            qkv.narrow(D::Minus1, from, count * config.head_dim)?
                .contiguous()?
                .reshape((1, tokens, count, config.head_dim))
        };
        let (mut q, mut k) = (heads(0, config.heads)?, heads(q_dim, config.kv_heads)?);
        if let Some((q_norm, k_norm)) = &self.head_norms {
            q = norm(config, &q, q_norm)?;
            k = norm(config, &k, k_norm)?;
        }
        Ok(Qkv {
            q: rope_thd(&q, cos, sin)?.squeeze(0)?,
            k: rope_thd(&k, cos, sin)?.squeeze(0)?,
            v: heads(q_dim + kv_dim, config.kv_heads)?.squeeze(0)?,
        })
    }
}

impl Values {
    /// Reads those of a block (0-based).
    ///
    /// # Errors
    /// `ModelDamaged` if a tensor is missing, cut off or of another shape.
    pub fn load(weights: &Weights, block: usize) -> error::Result<Self> {
        let config = weights.config();
        Ok(Self {
            norm: weights.block(block, "input_layernorm", &[config.hidden_size])?,
            v: Linear::load(weights, block, &[("self_attn.v_proj", config.kv_dim())])?,
        })
    }

    /// V of the residual stream `x` `[tokens, hidden_size]`: `[tokens, kv_dim]`.
    pub fn forward(&self, config: &LlamaConfig, x: &Tensor) -> Result<Tensor> {
        self.v.forward(&norm(config, x, &self.norm)?)
    }
}

impl Linear {
    /// Projections of the residual stream, given by name and width, stacked along their outputs.
    fn load(weights: &Weights, block: usize, parts: &[(&str, usize)]) -> error::Result<Self> {
        let config = weights.config();
        let stack = |tensor: &dyn Fn(&str, usize) -> error::Result<Tensor>| {
            let parts = parts.iter().map(|(part, width)| tensor(part, *width));
            weights.cat(&parts.collect::<error::Result<Vec<_>>>()?)
        };
        let matrix = |part: &str, width| weights.block(block, part, &[width, config.hidden_size]);
        let bias = |part: &str, width| weights.bias(block, part, &[width]);
        Ok(Self {
            weight: stack(&matrix)?,
            bias: if config.attention.qkv_bias {
                Some(stack(&bias)?)
            } else {
                None
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = linear(x, &self.weight)?;
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

/// `x` `[tokens, in]` times the transpose of `weight` `[out, in]`.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)
}

/// The last dimension of `x` at a root mean square of 1, times `weight`.
pub fn norm(config: &LlamaConfig, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    ops::rms_norm(x, weight, config.rms_norm_eps as f32)
}
