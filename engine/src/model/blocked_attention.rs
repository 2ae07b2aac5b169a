//! Attention of many queries that see many keys, as two matrix products for each head of the keys.

use candle_core::Result;
use gemm::Parallelism;

use super::{
    cpu_attention::{Task, exponentials},
    int8_keys::CHUNK,
    packed_attention::scale,
};

/// The right side of a product, `[depth, columns]`.
struct Right<'a> {
    numbers: &'a [f32],
    /// Numbers from one row to the next, and from one column to the next.
    strides: (usize, usize),
}

/// What the heads compute with, one after the other.
struct Scratch {
    /// `[rows, head_dim]`.
    q: Vec<f32>,
    /// Scores, then weights, `[rows, seen]`, of rows as long as whole chunks of keys.
    weights: Vec<f32>,
    /// Of the weights, `[rows]`.
    sums: Vec<f32>,
    /// `[rows, head_dim]`.
    means: Vec<f32>,
}

impl Task<'_> {
    /// Fills the output. The rows of a product are the queries of all heads that look at the same keys;
    /// scores of keys that a query does not see are computed with the others, and left out.
    #[inline(always)]
    pub fn attend_blocked(mut self) -> Result<()> {
        let queries = self.q.len() / (self.heads * self.head_dim);
        let rows = queries * self.heads / self.kv_heads;
        let seen = self.prefix + self.visible + queries - 1;
        let mut scratch = Scratch {
            q: vec![0.0; rows * self.head_dim],
            weights: vec![0.0; rows * seen.next_multiple_of(CHUNK)],
            sums: vec![0.0; rows],
            means: vec![0.0; rows * self.head_dim],
        };
        for head in 0..self.kv_heads {
            self.attend_head(head, seen, &mut scratch)?;
        }
        Ok(())
    }

    /// The attention to one head of the keys and values.
    #[inline(always)]
    fn attend_head(&mut self, head: usize, seen: usize, scratch: &mut Scratch) -> Result<()> {
        let Scratch {
            q,
            weights,
            sums,
            means,
        } = scratch;
        let (head_dim, group) = (self.head_dim, self.heads / self.kv_heads);
        let (row, width) = (self.heads * head_dim, self.kv_heads * head_dim);
        let (from, column) = (head * group * head_dim, head * head_dim);
        // The rows of the prefix and the sequence's own, and which column of the weights is the first's.
        let parts = [(0, self.prefix, 0), (1, seen - self.prefix, self.prefix)];
        let parts = || parts.into_iter().filter(|(_, count, _)| *count > 0);
        let packed = q.chunks_exact_mut(group * head_dim);
        for (packed, q) in packed.zip(self.q.chunks_exact(row)) {
            packed.copy_from_slice(&q[from..][..group * head_dim]);
        }
        let stride = seen.next_multiple_of(CHUNK);
        if let Some(keys) = self.int8_keys {
            keys[head].scores(q, seen, weights, stride)?;
        } else {
            for (part, count, at) in parts() {
                let keys = Right {
                    numbers: &self.keys[part][column..],
                    strides: (1, width),
                };
                let size = [sums.len(), count, head_dim];
                let scores = (&mut weights[at..], stride);
                product(size, (q, head_dim), keys, scores, false);
            }
        }
        let scores = weights.chunks_exact_mut(stride).enumerate();
        for ((index, scores), sum) in scores.zip(sums.iter_mut()) {
            let sees = self.prefix + self.visible + index / group;
            *sum = exponentials(&mut scores[..sees], scale(head_dim));
            scores[sees..seen].fill(0.0);
        }
        for (number, (part, count, at)) in parts().enumerate() {
            let values = Right {
                numbers: &self.values[part][column..],
                strides: (width, 1),
            };
            let size = [sums.len(), head_dim, count];
            let (weights, means) = ((&weights[at..], stride), (&mut means[..], head_dim));
            product(size, weights, values, means, number > 0);
        }
        for (index, (means, sum)) in means.chunks_exact(head_dim).zip(sums).enumerate() {
            let at = index / group * row + from + index % group * head_dim;
            for (output, mean) in self.output[at..][..head_dim].iter_mut().zip(means) {
                *output = mean / *sum;
            }
        }
        Ok(())
    }
}

/// The product `[rows, columns]` of `[rows, depth]` and `[depth, columns]`, added to what is there if it
/// `adds`. Rows of the left side and of the product begin every so many numbers.
fn product(
    [rows, columns, depth]: [usize; 3],
    (left, left_stride): (&[f32], usize),
    right: Right,
    (product, stride): (&mut [f32], usize),
    adds: bool,
) {
    assert!(left.len() >= (rows - 1) * left_stride + depth);
    assert!(product.len() >= (rows - 1) * stride + columns);
    assert!(right.numbers.len() > (depth - 1) * right.strides.0 + (columns - 1) * right.strides.1);
    // SAFETY: the sides and the product are as long as the sizes and strides say, and the product is
    // initialised.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            product.as_mut_ptr(),
            1,
            stride as isize,
            adds,
            left.as_ptr(),
            1,
            left_stride as isize,
            right.numbers.as_ptr(),
            right.strides.1 as isize,
            right.strides.0 as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
