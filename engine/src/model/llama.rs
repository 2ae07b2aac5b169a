//! The decoder up to the block whose values are used, and what its passes over packed texts take and give.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};

use super::{
    attention::Values,
    block::Block,
    config::LlamaConfig,
    pass::{Batch, Pass},
    rope::Rope,
    rows::rows,
    weights::{Numbers, Weights},
};
use crate::error::{self, compute};

/// Blocks `0..=last`, of the last one only its norm and V projection.
pub struct Llama {
    pub(super) config: LlamaConfig,
    /// `[vocab_size, hidden_size]`.
    embeddings: Tensor,
    /// Of the activations.
    dtype: DType,
    /// Of attention's products.
    pub(super) numbers: Numbers,
    pub(super) blocks: Vec<Block>,
    /// Absent where all blocks are loaded whole.
    pub(super) values: Option<Values>,
    pub(super) rope: Rope,
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

    /// The row of each sequence's last token; none may be empty.
    pub fn ends(&self) -> Vec<u32> {
        let ends = self.lengths.iter().scan(0, |end, length| {
            *end += *length as u32;
            Some(*end - 1)
        });
        ends.collect()
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
    /// The only rows of the pass at which `hidden` and `values` are read, in their order, so that the other tokens
    /// need not go through the last block that is passed; `None`: all.
    pub rows: Option<Vec<u32>>,
}

/// Says during a pass which tokens' values are read, so that the others need not go through the last
/// block that is passed.
pub trait Chooser {
    /// Gets all of [`Wanted::hidden`] as soon as they are there.
    fn see(&mut self, hidden: &[Tensor]) -> Result<()>;

    /// Rows of the pass, in the order of [`Activations::values`]. Called once, and as late as possible:
    /// a GPU computes meanwhile what [`Self::see`] has asked of it.
    fn rows(&mut self) -> Result<Vec<u32>>;
}

/// What one forward pass gives; with [`Wanted::rows`], `hidden` and `values` have a row for each
/// of them, with a [`Chooser`] `values` one for each row that it named.
pub struct Activations {
    /// For each block of [`Wanted::hidden`]: `[tokens, hidden_size]`.
    pub hidden: Vec<Tensor>,
    /// For each block of [`Wanted::values`]: `[tokens, kv_dim]`; none at all if a [`Chooser`] named no row.
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
        let batch = Batch::new(self, &packed, &prefixes, None).map_err(compute)?;
        let mut x = self.embed(&packed.ids).map_err(compute)?;
        for index in 0..last {
            let mut block = Block::load(weights, index)?;
            let pass = |x: Tensor| {
                let qkv = block
                    .inputs
                    .forward(&self.config, &x, &batch.cos, &batch.sin)?;
                block.forward(&self.config, x, &qkv.q, &qkv, None, &batch.all)
            };
            x = pass(x).map_err(compute)?;
            block.quantize().map_err(compute)?;
            self.blocks.push(block);
        }
        Ok(())
    }

    pub(super) fn device(&self) -> &Device {
        self.embeddings.device()
    }

    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// The residual stream that enters block 0, `[tokens, hidden_size]`.
    pub(super) fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let ids = Tensor::new(ids, self.embeddings.device())?;
        rows(&self.embeddings, &ids)?.to_dtype(self.dtype)
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
        let batch = Batch::new(self, packed, &prefixes, None)?;
        Pass::new(self, batch, wanted, None)?.run(&packed.ids)
    }

    /// [`Self::forward`], whose `values` are those of the rows that `chooser` names.
    pub fn forward_choosing(
        &self,
        packed: &Packed,
        wanted: &Wanted,
        chooser: &mut dyn Chooser,
    ) -> Result<Activations> {
        let prefixes = vec![0..0; packed.lengths.len()];
        let batch = Batch::new(self, packed, &prefixes, None)?;
        Pass::new(self, batch, wanted, Some(chooser))?.run(&packed.ids)
    }

    /// A pass over sequences that continue an earlier one, whose cache must reach to the block
    /// before the last that is wanted.
    pub fn extend(&self, continuation: &Continuation, wanted: &Wanted) -> Result<Activations> {
        let Continuation {
            packed,
            prefixes,
            cache,
        } = continuation;
        let batch = Batch::new(self, packed, prefixes, Some(cache))?;
        Pass::new(self, batch, wanted, None)?.run(&packed.ids)
    }
}
