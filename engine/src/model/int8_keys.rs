//! Scores of queries and keys in int8, for sequences so long that attention counts beside the other products.
//!
//! As in SageAttention (arXiv 2410.02367, section 4.2), keys are taken without their mean: a part that all
//! keys of a sequence share takes most of an int8's bits, and adds the same to all scores of a query, which
//! softmax does not see. What weighs the values stays in f32: most of a query's weights are small beside
//! that of the first token, and would be zero.

use std::{ops::Range, slice::from_ref};

use candle_core::Result;
use rayon::prelude::*;

use super::int8::{Activations, Weights, has_int8, may_saturate};

/// Keys that are multiplied together. Some of the last ones are not seen.
pub const CHUNK: usize = 64;
/// Most queries of one task: keys are packed once for all tasks, so that few queries, whose scores stay in the
/// nearest cache, cost nothing. More, and chunks of half and of twice the size, were slower.
pub const QUERIES: usize = 8;
/// Fewest keys of a sequence for which they are worth quantizing.
const KEYS: usize = 64;

/// The keys of one head of a sequence.
pub struct Int8Keys {
    chunks: Vec<Weights>,
    /// What queries are multiplied with, `[head_dim]`: ones.
    factors: Vec<f32>,
}

/// Whether the scores of a sequence of that many keys are computed in int8 where the model is: AVX2's
/// instruction, whose integers are smaller, would cost too much precision.
pub fn pays(keys: usize) -> bool {
    keys >= KEYS && has_int8() && !may_saturate()
}

impl Int8Keys {
    /// Of each head in rows `[keys, heads, head_dim]`.
    pub fn of_heads(rows: &[f32], heads: usize, head_dim: usize) -> Vec<Self> {
        let columns = |head| head * head_dim..(head + 1) * head_dim;
        let of_head = |head| Self::new(rows, heads * head_dim, columns(head));
        (0..heads).into_par_iter().map(of_head).collect()
    }

    /// Of the columns of a head in rows of `width` numbers, `[keys, width]`.
    fn new(rows: &[f32], width: usize, head: Range<usize>) -> Self {
        let (count, head_dim) = (rows.len() / width, head.len());
        let mut keys = Vec::with_capacity(count * head_dim);
        let mut mean = vec![0.0; head_dim];
        for row in rows.chunks_exact(width) {
            let key = &row[head.clone()];
            keys.extend_from_slice(key);
            for (mean, x) in mean.iter_mut().zip(key) {
                *mean += x / count as f32;
            }
        }
        for key in keys.chunks_exact_mut(head_dim) {
            for (x, mean) in key.iter_mut().zip(&mean) {
                *x -= mean;
            }
        }
        let chunks = keys.chunks(CHUNK * head_dim);
        Self {
            chunks: chunks
                .map(|keys| Weights::new(keys, head_dim, &(0..head_dim)))
                .collect(),
            factors: vec![1.0; head_dim],
        }
    }

    /// The products of queries `[rows, head_dim]` with the first `seen` keys, up to the end of a chunk, less
    /// the same for all of a query. Rows of the scores begin every `stride` numbers.
    pub fn scores(&self, q: &[f32], seen: usize, scores: &mut [f32], stride: usize) -> Result<()> {
        let head_dim = self.factors.len();
        let rows = q.len() / head_dim;
        let mut sums = vec![0; rows * CHUNK];
        let all = 0..head_dim;
        let q = Activations::of_groups(q, head_dim, rows, &self.factors, from_ref(&all));
        for q in q {
            let chunks = self.chunks.iter().take(seen.div_ceil(CHUNK));
            for (number, keys) in chunks.enumerate() {
                let sums = &mut sums[..rows * keys.outputs()];
                q.multiply(keys, sums, (&mut scores[number * CHUNK..], stride), true)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::model::int8::tests::error;

    /// Keys that share a large part, of the second of two heads; scores are compared without what a query's
    /// have in common.
    #[test]
    fn scores_are_near_the_exact_ones() {
        let (queries, keys, head_dim) = (40, 2 * CHUNK + 9, 32);
        let random = |shape: (usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        let shared = (random((1, 2 * head_dim)) * 20.0).unwrap();
        let rows = random((keys, 2 * head_dim)).broadcast_add(&shared).unwrap();
        let q = random((queries, head_dim));
        let head = rows.narrow(1, head_dim, head_dim).unwrap();
        let less_mean = |scores: &Tensor| {
            let mean = scores.mean_keepdim(1).unwrap();
            scores.broadcast_sub(&mean).unwrap()
        };
        let exact = q.matmul(&head.t().unwrap()).unwrap();
        let numbers = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let int8 = &Int8Keys::of_heads(&numbers(&rows), 2, head_dim)[1];
        for seen in [2, CHUNK, CHUNK + 1, keys] {
            let stride = seen.next_multiple_of(CHUNK);
            let mut scores = vec![f32::NAN; queries * stride];
            int8.scores(&numbers(&q), seen, &mut scores, stride)
                .unwrap();
            let scores = Tensor::from_vec(scores, (queries, stride), &Device::Cpu).unwrap();
            let (ours, exact) = (scores.narrow(1, 0, seen), exact.narrow(1, 0, seen));
            let (ours, exact) = (less_mean(&ours.unwrap()), less_mean(&exact.unwrap()));
            let error = error(&ours, &exact);
            assert!(error < 0.02, "{seen}: {error}");
        }
    }
}
