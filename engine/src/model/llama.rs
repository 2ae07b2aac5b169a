//! The decoder's forward pass over packed texts, up to the block whose values are used.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use super::{
    attention::{Qkv, Values},
    block::Block,
    config::LlamaConfig,
    packed_attention::{Heads, KeyValues, Plan, Queries, Sequence},
    rope::Rope,
    weights::{Numbers, Weights},
};
use crate::error::{self, compute};

/// Blocks `0..=last`, of the last one only its norm and V projection.
pub struct Llama {
    config: LlamaConfig,
    /// `[vocab_size, hidden_size]`.
    embeddings: Tensor,
    /// Of the activations.
    dtype: DType,
    /// Of attention's products.
    numbers: Numbers,
    blocks: Vec<Block>,
    /// Absent where all blocks are loaded whole.
    values: Option<Values>,
    rope: Rope,
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
    /// Whether `hidden` and `values` are read at the last token of each sequence only, so that the
    /// other tokens need not go through the last block that is passed.
    pub ends_only: bool,
}

/// What one forward pass gives; with [`Wanted::ends_only`], `hidden` and `values` have a row for each
/// sequence.
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
    /// `last` that is the number of blocks, all blocks. The activations of the `calibration` tokens
    /// decide how int8 spends its precision.
    ///
    /// # Errors
    /// `ModelDamaged` if a tensor is missing, cut off or of another shape.
    pub fn load(
        weights: &Weights,
        last: usize,
        context: usize,
        calibration: &[u32],
    ) -> error::Result<Self> {
        let config = weights.config().clone();
        let rope = Rope::new(&config, context, weights.device()).map_err(compute)?;
        let embeddings = weights.embeddings(&[config.vocab_size, config.hidden_size])?;
        let mut model = Self {
            embeddings: match weights.numbers() {
                // A large part of a small model's memory, and as exact as its products need.
                Numbers::Int8 | Numbers::Bf16 if embeddings.dtype() == DType::F32 => {
                    embeddings.to_dtype(DType::F16).map_err(compute)?
                }
                _ => embeddings,
            },
            dtype: weights.dtype(),
            // The activations that int8 is fitted to are exact.
            numbers: Numbers::F32,
            blocks: Vec::with_capacity(last),
            values: None,
            rope,
            config,
        };
        if weights.numbers() == Numbers::Int8 {
            model.load_quantized(weights, last, calibration)?;
        } else {
            for index in 0..last {
                model.blocks.push(Block::load(weights, index)?);
            }
        }
        model.numbers = weights.numbers();
        if last < model.config.blocks {
            model.values = Some(Values::load(weights, last)?);
        }
        Ok(model)
    }

    /// Reads the blocks up to `last` one by one, and has a text pass through each before it is quantized.
    fn load_quantized(
        &mut self,
        weights: &Weights,
        last: usize,
        calibration: &[u32],
    ) -> error::Result<()> {
        let packed = Packed::new([calibration]);
        let prefixes = vec![0..0; packed.lengths.len()];
        let batch = self
            .batch(&packed, &prefixes, None, false)
            .map_err(compute)?;
        let mut x = self.embed(&packed.ids).map_err(compute)?;
        for index in 0..last {
            let mut block = Block::load(weights, index)?;
            let pass = || {
                let qkv = block
                    .inputs
                    .forward(&self.config, &x, &batch.cos, &batch.sin)?;
                block.forward(&self.config, &x, &qkv.q, &qkv, None, &batch.all)
            };
            x = pass().map_err(compute)?;
            block.quantize().map_err(compute)?;
            self.blocks.push(block);
        }
        Ok(())
    }

    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The numbers that the pass computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// 0-based number of the last block, whose V projection is the last thing computed.
    pub fn last_block(&self) -> usize {
        self.blocks.len()
    }

    /// One pass over packed sequences; attention stays within each sequence.
    ///
    /// The pass ends where nothing more is wanted, at [`Llama::last_block`] at the latest.
    pub fn forward(&self, packed: &Packed, wanted: &Wanted) -> Result<Activations> {
        let prefixes = vec![0..0; packed.lengths.len()];
        let batch = self.batch(packed, &prefixes, None, wanted.ends_only)?;
        self.run(packed, &batch, wanted)
    }

    /// A pass over sequences that continue an earlier one, whose cache must reach to the block
    /// before the last that is wanted.
    pub fn extend(&self, continuation: &Continuation, wanted: &Wanted) -> Result<Activations> {
        let Continuation {
            packed,
            prefixes,
            cache,
        } = continuation;
        let batch = self.batch(packed, prefixes, Some(cache), wanted.ends_only)?;
        self.run(packed, &batch, wanted)
    }

    /// The batch of sequences that continue the rows `prefixes` of an earlier pass.
    fn batch<'a>(
        &self,
        packed: &Packed,
        prefixes: &[Range<usize>],
        cache: Option<&'a [(Tensor, Tensor)]>,
        ends_only: bool,
    ) -> Result<Batch<'a>> {
        let (device, dtype) = (self.embeddings.device(), self.dtype());
        let mut sequences = Vec::with_capacity(prefixes.len());
        let (mut positions, mut ends) = (Vec::new(), Vec::new());
        let mut row = 0;
        for (prefix, &length) in prefixes.iter().zip(&packed.lengths) {
            let (prefix, own) = (prefix.clone(), row..row + length);
            row += length;
            positions.extend((prefix.len()..prefix.len() + length).map(|at| at as u32));
            ends.push(row.saturating_sub(1) as u32);
            sequences.push(Sequence { prefix, own });
        }
        let past = cache.and_then(|cache| cache.first());
        let past_rows = past.map_or(Ok(0), |(keys, _)| keys.dim(0))?;
        let heads = Heads {
            dim: self.config.head_dim,
            group: self.config.heads / self.config.kv_heads,
        };
        let plan = |queries| {
            let numbers = self.numbers;
            Plan::new(
                &sequences, queries, past_rows, heads, dtype, numbers, device,
            )
        };
        let (cos, sin) = self.rope.rows(&Tensor::new(positions, device)?)?;
        Ok(Batch {
            sequences: sequences.len(),
            ends: Tensor::new(ends, device)?,
            cos,
            sin,
            all: plan(Queries::All)?,
            last: ends_only.then(|| plan(Queries::Last)).transpose()?,
            cache,
        })
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let ids = Tensor::new(ids, self.embeddings.device())?;
        self.embeddings.index_select(&ids, 0)?.to_dtype(self.dtype)
    }

    fn run(&self, packed: &Packed, batch: &Batch, wanted: &Wanted) -> Result<Activations> {
        let mut x = self.embed(&packed.ids)?;
        let mut hidden = vec![None; wanted.hidden.len()];
        let mut values = vec![None; wanted.values.len()];
        let mut cache = Vec::with_capacity(wanted.cached_blocks);
        let read = wanted.hidden.iter().chain(&wanted.values).copied().max();
        let end = read.max(wanted.cached_blocks.checked_sub(1)).unwrap_or(0);
        // Rows that are read: once only the ends are passed on, all that there are.
        let read = |rows: &Tensor| {
            let rows = if wanted.ends_only && rows.dim(0)? > batch.sequences {
                rows.index_select(&batch.ends, 0)?
            } else {
                rows.clone()
            };
            rows.to_dtype(DType::F32)
        };
        for index in 0..=end {
            keep(&mut hidden, &wanted.hidden, index, || read(&x))?;
            let cached = index < wanted.cached_blocks;
            if index == end && !cached && !wanted.values.contains(&index) {
                break;
            }
            let v = match (self.blocks.get(index), &self.values) {
                (Some(block), _) if index == end && !cached => {
                    Some(block.inputs.values(&self.config, &x)?)
                }
                (None, Some(values)) if index == self.blocks.len() && !cached => {
                    Some(values.forward(&self.config, &x)?)
                }
                (None, _) => candle_core::bail!("block {index} was not loaded"),
                (Some(block), _) => {
                    let (cos, sin) = (&batch.cos, &batch.sin);
                    let qkv = block.inputs.forward(&self.config, &x, cos, sin)?;
                    let v = wanted.values.contains(&index).then(|| {
                        let inputs = &block.inputs;
                        inputs.values_beside(&self.config, &x, &qkv)
                    });
                    let v = v.transpose()?;
                    if index < end {
                        // What follows the last block that is passed reads the ends alone.
                        let ends =
                            wanted.ends_only && index + 1 == end && end >= wanted.cached_blocks;
                        x = self.pass(index, &x, &qkv, batch, ends)?;
                    }
                    if cached {
                        cache.push((qkv.k, qkv.v));
                    }
                    v
                }
            };
            if let Some(v) = v {
                keep(&mut values, &wanted.values, index, || read(&v))?;
            }
        }
        let all = |slots: Vec<Option<Tensor>>| slots.into_iter().flatten().collect();
        Ok(Activations {
            hidden: all(hidden),
            values: all(values),
            cache,
        })
    }

    /// Passes the residual stream `x` `[tokens, hidden_size]` through a block; with `ends`, that of the
    /// sequences' last tokens alone.
    fn pass(
        &self,
        index: usize,
        x: &Tensor,
        qkv: &Qkv,
        batch: &Batch,
        ends: bool,
    ) -> Result<Tensor> {
        let (block, past) = (&self.blocks[index], batch.past(index)?);
        match batch.last.as_ref().filter(|_| ends) {
            None => block.forward(&self.config, x, &qkv.q, qkv, past, &batch.all),
            Some(plan) => {
                let rows = |of: &Tensor| of.index_select(&batch.ends, 0);
                block.forward(&self.config, &rows(x)?, &rows(&qkv.q)?, qkv, past, plan)
            }
        }
    }
}

/// Keeps what `read` gives of a block in the places that ask for that block.
fn keep(
    slots: &mut [Option<Tensor>],
    wanted: &[usize],
    index: usize,
    read: impl Fn() -> Result<Tensor>,
) -> Result<()> {
    for (slot, _) in slots.iter_mut().zip(wanted).filter(|(_, at)| **at == index) {
        *slot = Some(read()?);
    }
    Ok(())
}

/// The parts of a packed batch that every block uses.
struct Batch<'a> {
    sequences: usize,
    /// Row of each sequence's last token, `[sequences]` u32.
    ends: Tensor,
    /// `[tokens, head_dim / 2]`.
    cos: Tensor,
    /// `[tokens, head_dim / 2]`.
    sin: Tensor,
    /// Attention of all tokens.
    all: Plan,
    /// Attention of the last tokens, where it is wanted.
    last: Option<Plan>,
    /// Cache of the pass that the sequences continue.
    cache: Option<&'a [(Tensor, Tensor)]>,
}

impl<'a> Batch<'a> {
    /// Keys and values of a block that the sequences continue.
    fn past(&self, block: usize) -> Result<Option<KeyValues<'a>>> {
        let Some(cache) = self.cache else {
            return Ok(None);
        };
        let Some((keys, values)) = cache.get(block) else {
            candle_core::bail!("block {block} was not cached");
        };
        Ok(Some(KeyValues { keys, values }))
    }
}
