//! The decoder's forward pass over packed texts, up to the block whose values are used.

use std::ops::Range;

use candle_core::{D, Device, Result, Tensor};
use candle_nn::{attention::flash_attn_varlen_cpu, ops};

use super::{
    attention::{AttentionInputs, Qkv, Values, linear, norm},
    config::LlamaConfig,
    rope::Rope,
    weights::Weights,
};
use crate::error::{self, compute};

/// Blocks `0..=last`, of the last one only its norm and V projection.
pub struct Llama {
    config: LlamaConfig,
    /// `[vocab_size, hidden_size]`.
    embeddings: Tensor,
    blocks: Vec<Block>,
    /// Absent where all blocks are loaded whole.
    values: Option<Values>,
    rope: Rope,
}

/// A block that the residual stream passes through.
struct Block {
    inputs: AttentionInputs,
    output: Tensor,
    mlp_norm: Tensor,
    /// Gate and up side by side, `[2 * intermediate_size, hidden_size]`.
    gate_up: Tensor,
    down: Tensor,
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

/// What is read off one forward pass. Blocks are 0-based.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Blocks whose incoming residual stream is kept.
    pub hidden: Vec<usize>,
    /// Blocks whose V projection's output is kept.
    pub values: Vec<usize>,
    /// Number of blocks, from the first, whose keys and values later sequences attend to.
    pub cached_blocks: usize,
}

/// What one forward pass gives.
pub struct Activations {
    /// For each block of [`Wanted::hidden`]: `[tokens, hidden_size]`.
    pub hidden: Vec<Tensor>,
    /// For each block of [`Wanted::values`]: `[tokens, kv_dim]`.
    pub values: Vec<Tensor>,
    /// Keys (rotated) and values of the cached blocks, `[tokens, kv_heads, head_dim]` each.
    pub cache: Vec<(Tensor, Tensor)>,
}

/// Sequences that each continue a part of an earlier pass: they attend to it and to themselves, and
/// their positions follow its own. Several may continue the same part without seeing each other.
pub struct Continuation<'a> {
    pub packed: Packed,
    /// For each sequence, the rows of the earlier pass that it continues.
    pub prefixes: Vec<Range<usize>>,
    /// [`Activations::cache`] of the earlier pass.
    pub cache: &'a [(Tensor, Tensor)],
}

impl Llama {
    /// Reads the embeddings, blocks `0..last` and the V projection of block `last` (0-based); of a
    /// `last` that is the number of blocks, all blocks.
    ///
    /// # Errors
    /// `ModelDamaged` if a tensor is missing, cut off or of another shape.
    pub fn load(weights: &Weights, last: usize, context: usize) -> error::Result<Self> {
        let config = weights.config().clone();
        let (hidden, q) = (config.hidden_size, config.heads * config.head_dim);
        let inner = config.intermediate_size;
        let block = |index: usize| -> error::Result<Block> {
            let tensor = |name: &str, shape: &[usize]| weights.block(index, name, shape);
            Ok(Block {
                inputs: AttentionInputs::load(weights, index)?,
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
            values: (last < config.blocks)
                .then(|| Values::load(weights, last))
                .transpose()?,
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
    /// The pass ends where nothing more is wanted, at [`Llama::last_block`] at the latest.
    pub fn forward(&self, packed: &Packed, wanted: &Wanted) -> Result<Activations> {
        let device = self.embeddings.device();
        let batch = Batch::new(packed, &self.rope, device)?;
        self.run(packed, &batch, wanted)
    }

    /// A pass over sequences that continue an earlier one, whose cache must reach to the block
    /// before the last that is wanted.
    pub fn extend(&self, continuation: &Continuation, wanted: &Wanted) -> Result<Activations> {
        let device = self.embeddings.device();
        let batch = Batch::continuing(continuation, &self.rope, device)?;
        self.run(&continuation.packed, &batch, wanted)
    }

    fn run(&self, packed: &Packed, batch: &Batch, wanted: &Wanted) -> Result<Activations> {
        let ids = Tensor::new(packed.ids.as_slice(), self.embeddings.device())?;
        let mut x = self.embeddings.index_select(&ids, 0)?;
        let mut hidden = vec![None; wanted.hidden.len()];
        let mut values = vec![None; wanted.values.len()];
        let mut cache = Vec::with_capacity(wanted.cached_blocks);
        let read = wanted.hidden.iter().chain(&wanted.values).copied().max();
        let end = read.max(wanted.cached_blocks.checked_sub(1)).unwrap_or(0);
        for index in 0..=end {
            keep(&mut hidden, &wanted.hidden, index, &x);
            let cached = index < wanted.cached_blocks;
            if index == end && !cached && !wanted.values.contains(&index) {
                break;
            }
            let v = match (self.blocks.get(index), &self.values) {
                (None, Some(values)) if index == self.blocks.len() && !cached => {
                    values.forward(&self.config, &x)?
                }
                (None, _) => candle_core::bail!("block {index} was not loaded"),
                (Some(block), _) => {
                    let (cos, sin) = (&batch.cos, &batch.sin);
                    let qkv = block.inputs.forward(&self.config, &x, cos, sin)?;
                    if index < end {
                        self.block(block, &mut x, &qkv, index, batch)?;
                    }
                    let v = qkv.v.flatten_from(1)?;
                    if cached {
                        cache.push((qkv.k, qkv.v));
                    }
                    v
                }
            };
            keep(&mut values, &wanted.values, index, &v);
        }
        let all = |slots: Vec<Option<Tensor>>| slots.into_iter().flatten().collect();
        Ok(Activations {
            hidden: all(hidden),
            values: all(values),
            cache,
        })
    }

    /// Passes the residual stream `x` `[tokens, hidden_size]` through a block.
    fn block(
        &self,
        block: &Block,
        x: &mut Tensor,
        qkv: &Qkv,
        index: usize,
        batch: &Batch,
    ) -> Result<()> {
        let Qkv { q, k, v } = qkv;
        let attended = match &batch.past {
            None => self.attention(q, k, v, batch)?,
            Some(past) => {
                let (keys, values) = past.extend(index, k, v)?;
                self.attention(q, &keys, &values, batch)?
            }
        };
        let attended = attended.flatten_from(1)?;
        let after_attention = (&*x + linear(&attended, &block.output)?)?;
        let normed = norm(&self.config, &after_attention, &block.mlp_norm)?;
        let gate_up = linear(&normed, &block.gate_up)?;
        let inner = self.config.intermediate_size;
        let gate = gate_up.narrow(D::Minus1, 0, inner)?;
        let up = gate_up.narrow(D::Minus1, inner, inner)?;
        let inner = (ops::silu(&gate.contiguous()?)? * up)?;
        *x = (after_attention + linear(&inner, &block.down)?)?;
        Ok(())
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
            &batch.key_lengths,
            batch.longest,
            batch.longest,
            scale,
            true,
            None,
            None,
        )
    }
}

/// Keeps a block's tensor in the places that ask for that block.
fn keep(slots: &mut [Option<Tensor>], wanted: &[usize], index: usize, tensor: &Tensor) {
    for (slot, _) in slots.iter_mut().zip(wanted).filter(|(_, at)| **at == index) {
        *slot = Some(tensor.clone());
    }
}

/// The parts of a packed batch that every block uses.
struct Batch<'a> {
    /// Tokens of each sequence, `[sequences]` u32.
    lengths: Tensor,
    /// Tokens that each sequence may attend to, `[sequences]` u32.
    key_lengths: Tensor,
    /// The most of them.
    longest: usize,
    /// `[tokens, head_dim / 2]`.
    cos: Tensor,
    /// `[tokens, head_dim / 2]`.
    sin: Tensor,
    past: Option<Past<'a>>,
}

/// What the sequences of a batch continue.
struct Past<'a> {
    cache: &'a [(Tensor, Tensor)],
    /// For each sequence the rows it attends to: first those of the cache, then its own, which
    /// count on from the cache's end.
    rows: Tensor,
}

impl Past<'_> {
    /// Keys and values of a block that the batch's sequences attend to, side by side.
    fn extend(&self, block: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let Some((past_k, past_v)) = self.cache.get(block) else {
            candle_core::bail!("block {block} was not cached");
        };
        let rows =
            |past: &Tensor, new: &Tensor| Tensor::cat(&[past, new], 0)?.index_select(&self.rows, 0);
        Ok((rows(past_k, k)?, rows(past_v, v)?))
    }
}

impl<'a> Batch<'a> {
    fn new(packed: &Packed, rope: &Rope, device: &Device) -> Result<Self> {
        Self::at(packed, &vec![0; packed.lengths.len()], rope, device)
    }

    fn continuing(of: &Continuation<'a>, rope: &Rope, device: &Device) -> Result<Self> {
        let starts: Vec<usize> = of.prefixes.iter().map(Range::len).collect();
        let mut batch = Self::at(&of.packed, &starts, rope, device)?;
        let mut own = of.cache.first().map_or(Ok(0), |(k, _)| k.dim(0))?;
        let mut rows: Vec<u32> = Vec::new();
        for (prefix, length) in of.prefixes.iter().zip(&of.packed.lengths) {
            rows.extend(prefix.clone().map(|row| row as u32));
            rows.extend((own..own + length).map(|row| row as u32));
            own += length;
        }
        batch.past = Some(Past {
            cache: of.cache,
            rows: Tensor::new(rows, device)?,
        });
        Ok(batch)
    }

    /// Sequences whose first positions are `starts`.
    fn at(packed: &Packed, starts: &[usize], rope: &Rope, device: &Device) -> Result<Self> {
        let sequences = || packed.lengths.iter().zip(starts);
        let positions: Vec<u32> = sequences()
            .flat_map(|(&length, &start)| start as u32..(start + length) as u32)
            .collect();
        let (cos, sin) = rope.rows(&Tensor::new(positions, device)?)?;
        let key_lengths: Vec<u32> = sequences().map(|(n, start)| (n + start) as u32).collect();
        let lengths: Vec<u32> = packed.lengths.iter().map(|&n| n as u32).collect();
        Ok(Self {
            lengths: Tensor::new(lengths, device)?,
            longest: key_lengths.iter().copied().max().unwrap_or(0) as usize,
            key_lengths: Tensor::new(key_lengths, device)?,
            cos,
            sin,
            past: None,
        })
    }
}
