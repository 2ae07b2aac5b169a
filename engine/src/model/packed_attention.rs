//! Causal attention over packed sequences that share what they continue.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor, bail};

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

/// The attention of one batch, the same in every block.
pub struct Plan {
    sequences: Vec<Sequence>,
    queries: Queries,
    /// `None` where the CPU's own kernel runs.
    padding: Option<Padding>,
    /// Whether that kernel may compute in int8.
    in_int8: bool,
}

impl Plan {
    /// For sequences that continue an earlier pass of `past_rows` tokens, and heads of `head_dim`
    /// numbers of a type, of a model that computes in `numbers`.
    pub fn new(
        sequences: &[Sequence],
        queries: Queries,
        past_rows: usize,
        head_dim: usize,
        dtype: DType,
        numbers: Numbers,
        device: &Device,
    ) -> Result<Self> {
        let has_kernel = device.is_cpu() && dtype == DType::F32 && head_dim.is_multiple_of(LANES);
        let padding = (!has_kernel)
            .then(|| Padding::new(sequences, queries, past_rows, dtype, device))
            .transpose()?;
        Ok(Self {
            sequences: sequences.to_vec(),
            queries,
            padding,
            in_int8: numbers == Numbers::Int8,
        })
    }

    /// What each query of `q` `[queries, heads, head_dim]` reads of its sequence: as `q`.
    ///
    /// `q` has the queries of the sequences one after the other; `past` are the keys and values of
    /// the earlier pass, without which all prefixes must be empty.
    pub fn attend(&self, q: &Tensor, own: KeyValues, past: Option<KeyValues>) -> Result<Tensor> {
        check(q, own, past, &self.sequences, self.queries)?;
        match &self.padding {
            None => {
                let sequences = &self.sequences;
                in_place(q, own, past, sequences, self.queries, self.in_int8)
            }
            Some(padding) => padding.attend(q, own, past),
        }
    }
}

/// The kernels index by what this has seen to be there.
fn check(
    q: &Tensor,
    own: KeyValues,
    past: Option<KeyValues>,
    sequences: &[Sequence],
    queries: Queries,
) -> Result<()> {
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
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        bail!("{heads} query heads do not divide into {kv_heads} groups");
    }
    let inside = |sequence: &Sequence| {
        let rows = |range: &Range<usize>, rows| range.start <= range.end && range.end <= rows;
        rows(&sequence.prefix, past_rows) && rows(&sequence.own, own_rows)
    };
    let expected: usize = sequences.iter().map(|s| queries.of(&s.own)).sum();
    if rows != expected || !sequences.iter().all(inside) {
        bail!("sequences outside the {rows} queries, {own_rows} and {past_rows} keys");
    }
    Ok(())
}

/// What scores are multiplied by.
pub fn scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

#[cfg(test)]
mod tests;
