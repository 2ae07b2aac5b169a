//! The decoder's forward pass over packed texts, up to the block whose values are used.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{attention::flash_attn_varlen_cpu, ops, rotary_emb::rope_thd};

use super::{config::LlamaConfig, rope::Rope, weights::Weights};
use crate::error::{self, compute};

/// Blocks `0..=last`, of the last one only its norm and V projection.
pub struct Llama {
    config: LlamaConfig,
    /// `[vocab_size, hidden_size]`.
    embeddings: Tensor,
    blocks: Vec<Block>,
    values: Values,
    rope: Rope,
}

/// A block that the residual stream passes through.
struct Block {
    attention_norm: Tensor,
    /// Q, K and V side by side, so that one product reads the activations once:
    /// `[(heads + 2 * kv_heads) * head_dim, hidden_size]`.
    qkv: Tensor,
    output: Tensor,
    mlp_norm: Tensor,
    /// Gate and up side by side, `[2 * intermediate_size, hidden_size]`.
    gate_up: Tensor,
    down: Tensor,
}

/// What is read of the last block.
struct Values {
    norm: Tensor,
    /// `[kv_dim, hidden_size]`.
    v: Tensor,
}

/// Texts of different lengths side by side without padding.
pub struct Packed {
    /// Token ids of all sequences, one after the other, `[tokens]`.
    pub ids: Vec<u32>,
    /// Tokens of each sequence; they add up to `ids.len()`.
    pub lengths: Vec<usize>,
}

impl Packed {
    /// Packs sequences of token ids.
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut packed = Self {
            ids: Vec::new(),
            lengths: Vec::new(),
        };
        for sequence in sequences {
            packed.ids.extend_from_slice(sequence);
            packed.lengths.push(sequence.len());
        }
        packed
    }
}

/// What one forward pass gives.
pub struct Activations {
    /// For each block asked for, in the order asked: the residual stream entering that block,
    /// `[tokens, hidden_size]`.
    pub hidden: Vec<Tensor>,
    /// For each block asked for, in the order asked: the V projection's output, `[tokens, kv_dim]`.
    pub values: Vec<Tensor>,
}

impl Llama {
    /// Reads the embeddings, blocks `0..last` and the V projection of block `last` (0-based).
    ///
    /// # Errors
    /// `ModelDamaged` if a tensor is missing, cut off or of another shape.
    pub fn load(weights: &Weights, last: usize, context: usize) -> error::Result<Self> {
        let config = weights.config().clone();
        let (hidden, kv) = (config.hidden_size, config.kv_dim());
        let q = config.heads * config.head_dim;
        let inner = config.intermediate_size;
        let block = |index: usize| -> error::Result<Block> {
            let tensor = |name: &str, shape: &[usize]| weights.block(index, name, shape);
            Ok(Block {
                attention_norm: tensor("input_layernorm", &[hidden])?,
                qkv: weights.cat(&[
                    tensor("self_attn.q_proj", &[q, hidden])?,
                    tensor("self_attn.k_proj", &[kv, hidden])?,
                    tensor("self_attn.v_proj", &[kv, hidden])?,
                ])?,
                output: tensor("self_attn.o_proj", &[hidden, q])?,
                mlp_norm: tensor("post_attention_layernorm", &[hidden])?,
                gate_up: weights.cat(&[
                    tensor("mlp.gate_proj", &[inner, hidden])?,
                    tensor("mlp.up_proj", &[inner, hidden])?,
                ])?,
                down: tensor("mlp.down_proj", &[hidden, inner])?,
            })
        };
        let rope = Rope::new(&config, context, weights.device()).map_err(compute)?;
        Ok(Self {
            embeddings: weights.embeddings(&[config.vocab_size, hidden])?,
            blocks: (0..last).map(block).collect::<error::Result<_>>()?,
            values: Values {
                norm: weights.block(last, "input_layernorm", &[hidden])?,
                v: weights.block(last, "self_attn.v_proj", &[kv, hidden])?,
            },
            rope,
            config,
        })
    }

    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// 0-based number of the last block, whose V projection is the last thing computed.
    pub fn last_block(&self) -> usize {
        self.blocks.len()
    }

    /// One pass over packed sequences; attention stays within each sequence.
    ///
    /// `hidden_at` and `values_at` name 0-based blocks up to [`Llama::last_block`]; the pass ends at
    /// the highest of them.
    pub fn forward(
        &self,
        packed: &Packed,
        hidden_at: &[usize],
        values_at: &[usize],
    ) -> Result<Activations> {
        let device = self.embeddings.device();
        let batch = Batch::new(packed, &self.rope, device)?;
        let ids = Tensor::new(packed.ids.as_slice(), device)?;
        let mut x = self.embeddings.index_select(&ids, 0)?;
        let mut hidden = vec![None; hidden_at.len()];
        let mut values = vec![None; values_at.len()];
        let end = hidden_at.iter().chain(values_at).max().copied();
        for index in 0..=end.unwrap_or(0) {
            for (slot, _) in hidden
                .iter_mut()
                .zip(hidden_at)
                .filter(|(_, at)| **at == index)
            {
                *slot = Some(x.clone());
            }
            let wants_values = values_at.contains(&index);
            let v = match self.blocks.get(index) {
                Some(_) if Some(index) == end && !wants_values => break,
                Some(block) => self.block(block, &mut x, &batch, Some(index) == end)?,
                None if index == self.blocks.len() => {
                    let normed = self.norm(&x, &self.values.norm)?;
                    linear(&normed, &self.values.v)?
                }
                None => candle_core::bail!("block {index} was not loaded"),
            };
            for (slot, _) in values
                .iter_mut()
                .zip(values_at)
                .filter(|(_, at)| **at == index)
            {
                *slot = Some(v.clone());
            }
        }
        let all = |slots: Vec<Option<Tensor>>| slots.into_iter().flatten().collect();
        Ok(Activations {
            hidden: all(hidden),
            values: all(values),
        })
    }

    /// Passes `x` `[tokens, hidden_size]` through a block and returns the block's V
    /// `[tokens, kv_dim]`. `values_only` leaves `x` as it is.
    fn block(
        &self,
        block: &Block,
        x: &mut Tensor,
        batch: &Batch,
        values_only: bool,
    ) -> Result<Tensor> {
        let config = &self.config;
        let tokens = x.dim(0)?;
        let (q_dim, kv_dim) = (config.heads * config.head_dim, config.kv_dim());
        let normed = self.norm(x, &block.attention_norm)?;
        if values_only {
            return linear(&normed, &block.qkv.narrow(0, q_dim + kv_dim, kv_dim)?);
        }
        let qkv = linear(&normed, &block.qkv)?;
        let heads = |from: usize, count: usize| {
            qkv.narrow(D::Minus1, from, count * config.head_dim)?
                .contiguous()?
                .reshape((1, tokens, count, config.head_dim))
        };
        let rotate = |t: Tensor| rope_thd(&t, &batch.cos, &batch.sin)?.squeeze(0);
        let q = rotate(heads(0, config.heads)?)?;
        let k = rotate(heads(q_dim, config.kv_heads)?)?;
        let v = heads(q_dim + kv_dim, config.kv_heads)?.squeeze(0)?;
        let attended = self
            .attention(&q, &k, &v, batch)?
            .reshape((tokens, q_dim))?;
        let after_attention = (&*x + linear(&attended, &block.output)?)?;
        let normed = self.norm(&after_attention, &block.mlp_norm)?;
        let gate_up = linear(&normed, &block.gate_up)?;
        let gate = gate_up.narrow(D::Minus1, 0, config.intermediate_size)?;
        let up = gate_up.narrow(
            D::Minus1,
            config.intermediate_size,
            config.intermediate_size,
        )?;
        let inner = (ops::silu(&gate.contiguous()?)? * up)?;
        *x = (after_attention + linear(&inner, &block.down)?)?;
        v.reshape((tokens, kv_dim))
    }

    /// Causal attention within each sequence: `[tokens, heads, head_dim]`.
    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, batch: &Batch) -> Result<Tensor> {
        let scale = 1.0 / (self.config.head_dim as f32).sqrt();
        flash_attn_varlen_cpu(
            q,
            k,
            v,
            None,
            &batch.lengths,
            &batch.lengths,
            batch.longest,
            batch.longest,
            scale,
            true,
            None,
            None,
        )
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        ops::rms_norm(x, weight, self.config.rms_norm_eps as f32)
    }
}

/// `x` `[tokens, in]` times the transpose of `weight` `[out, in]`.
fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)
}

/// The parts of a packed batch that every block uses.
struct Batch {
    /// `[sequences]` u32.
    lengths: Tensor,
    longest: usize,
    /// `[tokens, head_dim / 2]`.
    cos: Tensor,
    /// `[tokens, head_dim / 2]`.
    sin: Tensor,
}

impl Batch {
    fn new(packed: &Packed, rope: &Rope, device: &Device) -> Result<Self> {
        let positions: Vec<u32> = packed.lengths.iter().flat_map(|&n| 0..n as u32).collect();
        let (cos, sin) = rope.rows(&Tensor::new(positions.as_slice(), device)?)?;
        let lengths: Vec<u32> = packed.lengths.iter().map(|&n| n as u32).collect();
        Ok(Self {
            lengths: Tensor::new(lengths.as_slice(), device)?.to_dtype(DType::U32)?,
            longest: packed.lengths.iter().copied().max().unwrap_or(0),
            cos,
            sin,
        })
    }
}
