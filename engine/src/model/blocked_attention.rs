//! Attention of many queries that see many keys, as two matrix products for each head of the keys.

use gemm::Parallelism;

use super::{
    cpu_attention::{Task, exponentials},
    packed_attention::scale,
};

/// The right side of a product, `[depth, columns]`.
struct Right<'a> {
    numbers: &'a [f32],
    /// Numbers from one row to the next, and from one column to the next.
    strides: (usize, usize),
}

impl Task<'_> {
    /// Fills the output. The rows of a product are the queries of all heads that look at the same keys;
    /// scores of keys that a query does not see are computed with the others, and left out.
    #[inline(always)]
    pub fn attend_blocked(self) {
        let (head_dim, group) = (self.head_dim, self.heads / self.kv_heads);
        let (row, width) = (self.heads * head_dim, self.kv_heads * head_dim);
        let queries = self.q.len() / row;
        let rows = queries * group;
        let own = self.visible + queries - 1;
        let seen = self.prefix + own;
        // The rows of the prefix and the sequence's own, and which column of the weights is the first's.
        let parts = [(0, self.prefix, 0), (1, own, self.prefix)];
        let parts = || parts.into_iter().filter(|(_, count, _)| *count > 0);
        let mut q = vec![0.0; rows * head_dim];
        let mut weights = vec![0.0; rows * seen];
        let mut sums = vec![0.0; rows];
        let mut means = vec![0.0; rows * head_dim];
        for head in 0..self.kv_heads {
            let heads = head * group * head_dim..(head + 1) * group * head_dim;
            let column = head * head_dim;
            for (packed, q) in q
                .chunks_exact_mut(heads.len())
                .zip(self.q.chunks_exact(row))
            {
                packed.copy_from_slice(&q[heads.clone()]);
            }
            for (part, count, at) in parts() {
                product(
                    [rows, count, head_dim],
                    (&q, head_dim),
                    Right {
                        numbers: &self.keys[part][column..],
                        strides: (1, width),
                    },
                    (&mut weights[at..], seen),
                    false,
                );
            }
            let scores = weights.chunks_exact_mut(seen).enumerate();
            for ((index, weights), sum) in scores.zip(&mut sums) {
                let (weights, unseen) =
                    weights.split_at_mut(self.prefix + self.visible + index / group);
                *sum = exponentials(weights, scale(head_dim));
                unseen.fill(0.0);
            }
            for (number, (part, count, at)) in parts().enumerate() {
                product(
                    [rows, head_dim, count],
                    (&weights[at..], seen),
                    Right {
                        numbers: &self.values[part][column..],
                        strides: (width, 1),
                    },
                    (&mut means, head_dim),
                    number > 0,
                );
            }
            for (index, (means, sum)) in means.chunks_exact(head_dim).zip(&sums).enumerate() {
                let at = index / group * row + heads.start + index % group * head_dim;
                for (output, mean) in self.output[at..][..head_dim].iter_mut().zip(means) {
                    *output = mean / sum;
                }
            }
        }
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
