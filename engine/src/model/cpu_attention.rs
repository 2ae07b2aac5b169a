//! Attention on the CPU, which reads keys and values where the pass has left them, each key once for all
//! query heads that look at it: copies of a text's for each of its suffixes would cost more than the
//! products.

use std::ops::Range;

use candle_core::{Result, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::fused::numbers;
use super::int8_keys::{self, Int8Keys};
use super::lanes::{exp, larger};
use super::packed_attention::{KeyValues, Queries, Sequence, scale};

/// Numbers of a head that the kernel takes together; a head must be a multiple.
pub const LANES: usize = 16;
/// Most query heads that it takes together.
const HEADS: usize = 4;
/// Most queries of one task: as many tokens of a long sequence share one packed copy of the keys, which
/// saves more than their scores of keys that only later ones see cost.
const QUERIES: usize = 32;
/// Keys up to which queries go one by one: matrix products of fewer cost more than they save.
const FEW_KEYS: usize = 16;

/// [`super::packed_attention::Plan::attend`] of f32 tensors in the CPU's memory that fit together. With `in_int8`
/// scores of long sequences are computed in int8.
pub fn in_place(
    q: &Tensor,
    own: KeyValues,
    past: Option<KeyValues>,
    sequences: &[Sequence],
    queries: Queries,
    in_int8: bool,
) -> Result<Tensor> {
    let (_, heads, head_dim) = q.dims3()?;
    let kv_heads = own.keys.dim(1)?;
    // Without an earlier pass the prefixes are empty, and of what no row is read does not matter.
    let past = past.unwrap_or(own);
    let tensors = [q, past.keys, past.values, own.keys, own.values];
    let held = tensors.map(Tensor::storage_and_layout);
    let [q_rows, past_keys, past_values, own_keys, own_values] = held
        .each_ref()
        .map(|(storage, layout)| numbers(storage, layout));
    let (q_rows, past_keys, past_values) = (q_rows?, past_keys?, past_values?);
    let (own_keys, own_values) = (own_keys?, own_values?);
    let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
    let mut output = vec![0.0; q_rows.len()];
    let numbers_of = |rows: &Range<usize>| rows.start * kv_width..rows.end * kv_width;
    let quantized = sequences.par_iter().map(|Sequence { prefix, own }| {
        let pays = in_int8 && prefix.is_empty() && int8_keys::pays(queries.of(own));
        pays.then(|| Int8Keys::of_heads(&own_keys[numbers_of(own)], kv_heads, head_dim))
    });
    let quantized: Vec<_> = quantized.collect();
    let (mut rest, mut from) = (output.as_mut_slice(), 0);
    let mut tasks = Vec::new();
    for (Sequence { prefix, own }, quantized) in sequences.iter().zip(&quantized) {
        let all = queries.of(own);
        let most = quantized.as_ref().map_or(QUERIES, |_| int8_keys::QUERIES);
        for first in (0..all).step_by(most) {
            let count = most.min(all - first);
            let (task, after) = rest.split_at_mut(count * q_width);
            rest = after;
            tasks.push(Task {
                q: &q_rows[from * q_width..(from + count) * q_width],
                output: task,
                visible: own.len() - all + first + 1,
                keys: [&past_keys[numbers_of(prefix)], &own_keys[numbers_of(own)]],
                values: [
                    &past_values[numbers_of(prefix)],
                    &own_values[numbers_of(own)],
                ],
                int8_keys: quantized.as_deref(),
                prefix: prefix.len(),
                heads,
                kv_heads,
                head_dim,
            });
            from += count;
        }
    }
    tasks
        .into_par_iter()
        .try_for_each(|task| Arch::new().dispatch(task))?;
    drop(held);
    Tensor::from_vec(output, q.shape(), q.device())
}

/// Successive queries of one sequence.
pub struct Task<'a> {
    /// `[queries, heads, head_dim]`.
    pub q: &'a [f32],
    /// As `q`.
    pub output: &'a mut [f32],
    /// How many of its own sequence's rows the first query sees; each further one sees one more.
    pub visible: usize,
    /// The prefix's and the sequence's own, `[rows, kv_heads, head_dim]` each.
    pub keys: [&'a [f32]; 2],
    pub values: [&'a [f32]; 2],
    /// Of each head, all keys of a sequence without prefix; `None` where scores are computed in f32.
    pub int8_keys: Option<&'a [Int8Keys]>,
    /// Rows of the prefix.
    pub prefix: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl WithSimd for Task<'_> {
    type Output = Result<()>;

    // This and all it calls is inlined, so that it is compiled for the caller's registers.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Result<()> {
        let queries = self.q.len() / (self.heads * self.head_dim);
        if queries > 1 && self.prefix + self.visible + queries > FEW_KEYS {
            return self.attend_blocked();
        }
        let Self { head_dim, .. } = self;
        let (width, group) = (self.kv_heads * head_dim, self.heads / self.kv_heads);
        let row = self.heads * head_dim;
        let mut weights = Vec::new();
        let queries = self
            .q
            .chunks_exact(row)
            .zip(self.output.chunks_exact_mut(row));
        for (index, (q, output)) in queries.enumerate() {
            let own = (self.visible + index) * width;
            let keys = [self.keys[0], &self.keys[1][..own]];
            let values = [self.values[0], &self.values[1][..own]];
            let seen = self.prefix + self.visible + index;
            for head in 0..self.kv_heads {
                let column = head * head_dim;
                let mut from = head * group;
                while from < (head + 1) * group {
                    let count = HEADS.min((head + 1) * group - from);
                    let heads = from * head_dim..(from + count) * head_dim;
                    let view = View {
                        keys,
                        values,
                        width,
                        column,
                        head_dim,
                        seen,
                    };
                    let (q, output) = (&q[heads.clone()], &mut output[heads]);
                    match count {
                        1 => view.attend::<1>(q, output, &mut weights),
                        2 => view.attend::<2>(q, output, &mut weights),
                        3 => view.attend::<3>(q, output, &mut weights),
                        _ => view.attend::<HEADS>(q, output, &mut weights),
                    }
                    from += count;
                }
            }
        }
        Ok(())
    }
}

/// What one query sees of one head of the keys and values.
struct View<'a> {
    keys: [&'a [f32]; 2],
    values: [&'a [f32]; 2],
    /// Numbers of a row.
    width: usize,
    /// Where the head begins in a row.
    column: usize,
    head_dim: usize,
    /// Rows.
    seen: usize,
}

impl View<'_> {
    /// `q` and `output` are `[R, head_dim]`.
    #[inline(always)]
    fn attend<const R: usize>(&self, q: &[f32], output: &mut [f32], weights: &mut Vec<f32>) {
        weights.clear();
        weights.resize(R * self.seen, 0.0);
        self.scores::<R>(q, weights);
        let mut sums = [0.0; R];
        for (sum, weights) in sums.iter_mut().zip(weights.chunks_exact_mut(self.seen)) {
            *sum = exponentials(weights, scale(self.head_dim));
        }
        self.weigh::<R>(weights, &sums, output);
    }

    /// The products of `R` query heads with all keys, `[R, seen]`.
    #[inline(always)]
    fn scores<const R: usize>(&self, q: &[f32], scores: &mut [f32]) {
        let mut at = 0;
        for keys in self.keys {
            for row in keys.chunks_exact(self.width) {
                let (key, _) = row[self.column..][..self.head_dim].as_chunks::<LANES>();
                let mut sums = [[0.0; LANES]; R];
                for (part, key) in key.iter().enumerate() {
                    for (head, sums) in sums.iter_mut().enumerate() {
                        let q = &q[head * self.head_dim + part * LANES..][..LANES];
                        for lane in 0..LANES {
                            sums[lane] += q[lane] * key[lane];
                        }
                    }
                }
                for (head, sums) in sums.iter().enumerate() {
                    scores[head * self.seen + at] = total(sums);
                }
                at += 1;
            }
        }
    }

    /// The means of the values, weighted by `weights` `[R, seen]` whose sums are `sums`.
    #[inline(always)]
    fn weigh<const R: usize>(&self, weights: &[f32], sums: &[f32; R], output: &mut [f32]) {
        for part in (0..self.head_dim).step_by(LANES) {
            let mut means = [[0.0; LANES]; R];
            let mut at = 0;
            for values in self.values {
                for row in values.chunks_exact(self.width) {
                    let value = &row[self.column + part..][..LANES];
                    for (head, means) in means.iter_mut().enumerate() {
                        let weight = weights[head * self.seen + at];
                        for lane in 0..LANES {
                            means[lane] += weight * value[lane];
                        }
                    }
                    at += 1;
                }
            }
            for (head, means) in means.iter().enumerate() {
                let output = &mut output[head * self.head_dim + part..][..LANES];
                for lane in 0..LANES {
                    output[lane] = means[lane] / sums[head];
                }
            }
        }
    }
}

/// Replaces scores by the exponentials of their distance to the highest, so that none overflows;
/// gives their sum.
#[inline(always)]
pub fn exponentials(scores: &mut [f32], scale: f32) -> f32 {
    let (whole, rest) = scores.as_chunks_mut::<LANES>();
    let mut highest = [f32::NEG_INFINITY; LANES];
    for part in &*whole {
        for lane in 0..LANES {
            highest[lane] = larger(highest[lane], part[lane]);
        }
    }
    let highest = rest
        .iter()
        .chain(&highest)
        .copied()
        .fold(f32::NEG_INFINITY, larger);
    let mut sums = [0.0; LANES];
    for part in whole {
        for lane in 0..LANES {
            part[lane] = exp((part[lane] - highest) * scale);
            sums[lane] += part[lane];
        }
    }
    let mut sum = total(&sums);
    for score in rest {
        *score = exp((*score - highest) * scale);
        sum += *score;
    }
    sum
}

/// The sum of the lanes, by halves.
#[inline(always)]
fn total(lanes: &[f32; LANES]) -> f32 {
    let mut lanes = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
