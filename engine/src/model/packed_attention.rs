//! Causal attention over packed sequences that share what they continue.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, bail};

#[cfg(feature = "cuda")]
use super::cuda::Tiles;
use super::{
    cpu_attention::{LANES, in_place},
    padded_attention::Padding,
    weights::Numbers,
};

/// A sequence's rows in the tensors of a pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Rows of an earlier pass's keys and values that it continues; all of its tokens see them.
    pub prefix: Range<usize>,
    /// Rows of its own keys and values, which each of its tokens sees up to itself.
    pub own: Range<usize>,
}

/// Keys and values, `[tokens, kv_heads, head_dim]` each.
#[derive(Clone, Copy)]
pub struct KeyValues<'a> {
    pub keys: &'a Tensor,
    pub values: &'a Tensor,
}

/// Whose attention is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Queries {
    /// That of all tokens, which Q has a row of each of.
    All,
    /// That of each sequence's last token alone.
    Last,
}

impl Queries {
    /// How many queries a sequence has: its last ones.
    pub fn of(self, own: &Range<usize>) -> usize {
        match self {
            Self::All => own.len(),
            Self::Last => own.len().min(1),
        }
    }
}

/// The heads of a model.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Numbers of each.
    pub dim: usize,
    /// Query heads that share a head of the keys.
    pub group: usize,
}

/// The attention of one batch, the same in every block.
pub struct Plan {
    sequences: Vec<Sequence>,
    queries: Queries,
    heads: Heads,
    way: Way,
}

enum Way {
    /// The CPU's kernel, which may compute in int8.
    Cpu { in_int8: bool },
    /// A GPU's kernel.
    #[cfg(feature = "cuda")]
    Cuda(Tiles),
    /// candle's operations.
    Padded(Padding),
}

impl Plan {
    /// For sequences that continue an earlier pass of `past_rows` tokens, in activations of a type, of
    /// a model that computes in `numbers`.
    pub fn new(
        sequences: &[Sequence],
        queries: Queries,
        past_rows: usize,
        heads: Heads,
        dtype: DType,
        numbers: Numbers,
        device: &Device,
    ) -> Result<Self> {
        let plan = |way| Self {
            sequences: sequences.to_vec(),
            queries,
            heads,
            way,
        };
        if device.is_cpu() && dtype == DType::F32 && heads.dim.is_multiple_of(LANES) {
            let in_int8 = numbers == Numbers::Int8;
            return Ok(plan(Way::Cpu { in_int8 }));
        }
        #[cfg(feature = "cuda")]
        if Tiles::fit(heads, dtype, device) {
            let tiles = Tiles::new(sequences, queries, heads.group, device)?;
            return Ok(plan(Way::Cuda(tiles)));
        }
        let padding = Padding::new(sequences, queries, past_rows, dtype, device)?;
        Ok(plan(Way::Padded(padding)))
    }

    /// What each query of `q` `[queries, heads, head_dim]` reads of its sequence: as `q`.
    ///
    /// `q` has the queries of the sequences one after the other; `past` are the keys and values of
    /// the earlier pass, without which all prefixes must be empty.
    pub fn attend(&self, q: &Tensor, own: KeyValues, past: Option<KeyValues>) -> Result<Tensor> {
        self.check(q, own, past)?;
        match &self.way {
            Way::Cpu { in_int8 } => in_place(q, own, past, &self.sequences, self.queries, *in_int8),
            #[cfg(feature = "cuda")]
            Way::Cuda(tiles) => tiles.attend(q, own, past),
            Way::Padded(padding) => padding.attend(q, own, past),
        }
    }

    /// The kernels index by what this has seen to be there.
    fn check(&self, q: &Tensor, own: KeyValues, past: Option<KeyValues>) -> Result<()> {
        let (rows, heads, head_dim) = q.dims3()?;
        let (own_rows, kv_heads, _) = own.keys.dims3()?;
        let past_rows = past.map_or(Ok(0), |past| past.keys.dim(0))?;
        let shaped = |of: KeyValues, rows| {
            let shape = [rows, kv_heads, head_dim];
            of.keys.dims() == shape && of.values.dims() == shape
        };
        if !shaped(own, own_rows) || past.is_some_and(|past| !shaped(past, past_rows)) {
            bail!("keys and values of other shapes than the queries ask for");
        }
        if (heads, head_dim) != (kv_heads * self.heads.group, self.heads.dim) {
            bail!(
                "{heads} query heads and {kv_heads} heads of {head_dim} where {:?} are expected",
                self.heads
            );
        }
        let inside = |sequence: &Sequence| {
            let rows = |range: &Range<usize>, rows| range.start <= range.end && range.end <= rows;
            rows(&sequence.prefix, past_rows) && rows(&sequence.own, own_rows)
        };
        let expected = self.sequences.iter().map(|s| self.queries.of(&s.own));
        if rows != expected.sum::<usize>() || !self.sequences.iter().all(inside) {
            bail!("sequences outside the {rows} queries, {own_rows} and {past_rows} keys");
        }
        Ok(())
    }
}

/// What scores are multiplied by.
pub fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

#[cfg(test)]
pub mod tests;
