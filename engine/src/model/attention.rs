//! From the residual stream to Q, K and V: what the families of models differ in.

use candle_core::{Result, Tensor};

use super::{
    config::LlamaConfig,
    fused::{add_bias, rms_norm, rotate},
    matrix::Matrix,
    rows::columns,
    weights::{Numbers, Weights},
};
use crate::error;

/// A product with a matrix, and the bias that some families add.
struct Linear {
    weight: Matrix,
    /// `[out]`.
    bias: Option<Tensor>,
}

/// A block's norm and its projections to Q, K and V.
pub struct AttentionInputs {
    norm: Tensor,
    /// Q, K and V side by side, so that one product reads the activations once:
    /// `[hidden_size, (heads + 2 * kv_heads) * head_dim]`.
    qkv: Linear,
    /// V alone and exact, where `qkv` is quantized.
    v: Option<Linear>,
    /// The norms of each head of Q and of K, `[head_dim]` each.
    head_norms: Option<(Tensor, Tensor)>,
}

/// What is read of the last block: its norm and V projection.
pub struct Values {
    norm: Tensor,
    /// `[hidden_size, kv_dim]`.
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
            qkv: Linear::load(weights, block, &parts, weights.numbers())?,
            v: (weights.numbers() == Numbers::Int8)
                .then(|| Linear::load(weights, block, &parts[2..], Numbers::F32))
                .transpose()?,
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
        let (heads, kv_heads, head_dim) = (config.heads, config.kv_heads, config.head_dim);
        let (q_dim, kv_dim) = (heads * head_dim, config.kv_dim());
        let qkv = self.qkv.forward(&norm(config, x, &self.norm)?)?;
        let part = |from: usize, count: usize| {
            columns(&qkv, from, count * head_dim)?.reshape((tokens, count, head_dim))
        };
        let rotated = |from: usize, count: usize, head_norm: Option<&Tensor>| match head_norm {
            None => rotate(&qkv, from, count, cos, sin),
            Some(weight) => {
                let part = norm(config, &part(from, count)?, weight)?;
                rotate(&part.flatten_from(1)?, 0, count, cos, sin)
            }
        };
        let norms = self.head_norms.as_ref();
        Ok(Qkv {
            q: rotated(0, heads, norms.map(|(q, _)| q))?,
            k: rotated(q_dim, kv_heads, norms.map(|(_, k)| k))?,
            v: part(q_dim + kv_dim, kv_heads)?,
        })
    }

    /// V to be read where [`Self::forward`] has run on `x` as well: `[tokens, kv_dim]`.
    pub fn values_beside(&self, config: &LlamaConfig, x: &Tensor, qkv: &Qkv) -> Result<Tensor> {
        match &self.v {
            Some(v) => v.forward(&norm(config, x, &self.norm)?),
            None => qkv.v.flatten_from(1),
        }
    }

    pub fn quantize(&mut self) -> Result<()> {
        self.qkv.weight.quantize()
    }

    /// V alone, as [`Values::forward`] gives it.
    pub fn values(&self, config: &LlamaConfig, x: &Tensor) -> Result<Tensor> {
        let normed = norm(config, x, &self.norm)?;
        if let Some(v) = &self.v {
            return v.forward(&normed);
        }
        let kv_dim = config.kv_dim();
        let Some(values) = self.qkv.weight.last(&normed, kv_dim)? else {
            candle_core::bail!("V of a block was not loaded")
        };
        match &self.qkv.bias {
            Some(bias) => add_bias(&values, &bias.narrow(0, bias.dim(0)? - kv_dim, kv_dim)?),
            None => Ok(values),
        }
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
            v: Linear::load(
                weights,
                block,
                &[("self_attn.v_proj", config.kv_dim())],
                Numbers::F32,
            )?,
        })
    }

    /// V of the residual stream `x` `[tokens, hidden_size]`: `[tokens, kv_dim]`.
    pub fn forward(&self, config: &LlamaConfig, x: &Tensor) -> Result<Tensor> {
        self.v.forward(&norm(config, x, &self.norm)?)
    }
}

impl Linear {
    /// Projections of the residual stream, given by name and width, stacked along their outputs.
    fn load(
        weights: &Weights,
        block: usize,
        parts: &[(&str, usize)],
        numbers: Numbers,
    ) -> error::Result<Self> {
        let config = weights.config();
        let stack = |tensor: &dyn Fn(&str, usize) -> error::Result<Tensor>| {
            let parts = parts.iter().map(|(part, width)| tensor(part, *width));
            weights.cat(&parts.collect::<error::Result<Vec<_>>>()?)
        };
        let matrix = |part: &str, width| weights.block(block, part, &[width, config.hidden_size]);
        let bias = |part: &str, width| weights.bias(block, part, &[width]);
        Ok(Self {
            weight: Matrix::new(stack(&matrix)?, numbers)?,
            bias: if config.attention.qkv_bias {
                Some(stack(&bias)?)
            } else {
                None
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let product = self.weight.product(x)?;
        match &self.bias {
            Some(bias) => add_bias(&product, bias),
            None => Ok(product),
        }
    }
}

/// The last dimension of `x` at a root mean square of 1, times `weight`.
pub fn norm(config: &LlamaConfig, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    rms_norm(x, weight, config.rms_norm_eps as f32)
}
