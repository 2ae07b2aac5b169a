//! Numbers to integers for products in int8.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::lanes::larger;

/// Largest quantized magnitude.
pub const LARGEST: f32 = 127.0;
/// What stands for zero among quantized activations, which have no sign. (Packed once for all tiles of
/// outputs, rten-gemm does not take it off itself.)
const ZERO: u8 = 128;
/// Numbers of a row whose maximum is found together.
const LANES: usize = 16;
/// Added to a number of less than 2^22, it leaves the nearest integer in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// Weights as integers.
pub struct Quantized {
    /// `[out, in]`.
    pub integers: Vec<i8>,
    /// What an integer stands for, by output.
    pub scales: Vec<f32>,
    /// What the zeros of the activations take from the sums, by output.
    pub zeros: Vec<i32>,
}

/// The columns `inputs` of `rows`, `width` numbers each. With `may_saturate` no two neighbouring integers
/// sum to more than the product's instruction holds.
pub fn weights(rows: &[f32], width: usize, inputs: &Range<usize>, may_saturate: bool) -> Quantized {
    let outputs = rows.len() / width;
    let mut quantized = Quantized {
        integers: vec![0; outputs * inputs.len()],
        scales: vec![0.0; outputs],
        zeros: vec![0; outputs],
    };
    Arch::new().dispatch(Weights {
        rows,
        width,
        inputs,
        may_saturate,
        quantized: &mut quantized,
    });
    quantized
}

/// The first columns of the first tokens of `x`, whose rows begin every `stride` numbers, times
/// `factors` `[in]`. For each of the groups, which the inputs are cut into: the integers, `[tokens, inputs of
/// the group]`, and what they stand for, by token.
pub fn activations(
    x: &[f32],
    stride: usize,
    tokens: usize,
    factors: &[f32],
    groups: &[Range<usize>],
) -> Vec<(Vec<u8>, Vec<f32>)> {
    let new = |group: &Range<usize>| (vec![0; tokens * group.len()], vec![0.0; tokens]);
    let mut quantized: Vec<_> = groups.iter().map(new).collect();
    Arch::new().dispatch(Activations {
        x,
        stride,
        tokens,
        factors,
        groups,
        quantized: &mut quantized,
    });
    quantized
}

struct Weights<'a> {
    rows: &'a [f32],
    width: usize,
    inputs: &'a Range<usize>,
    may_saturate: bool,
    quantized: &'a mut Quantized,
}

impl WithSimd for Weights<'_> {
    type Output = ();

    // This and all it calls is inlined, so that it is compiled for the caller's registers.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Quantized {
            integers,
            scales,
            zeros,
        } = self.quantized;
        let integers = integers.chunks_exact_mut(self.inputs.len().max(1));
        let outputs = scales.iter_mut().zip(zeros);
        let rows = self.rows.chunks_exact(self.width);
        for ((row, integers), (scale, zero)) in rows.zip(integers).zip(outputs) {
            let row = &row[self.inputs.clone()];
            *scale = unit(row, self.may_saturate);
            for (integer, x) in integers.iter_mut().zip(row) {
                *integer = (x / *scale + ROUND).to_bits() as i8;
            }
            let sum: i32 = integers.iter().copied().map(i32::from).sum();
            *zero = -i32::from(ZERO) * sum;
        }
    }
}

/// What the integer 1 stands for in an output's weights. AVX2's instruction sums the products of two inputs
/// in 16 bits and would cut off what does not fit: 255, the largest activation, times the integers of two
/// weights, which rounding lets sum to `LARGEST + 1` at most, does.
#[inline(always)]
fn unit(weights: &[f32], may_saturate: bool) -> f32 {
    let mut largest = [0f32; LANES];
    let (whole, rest) = weights.as_chunks::<LANES>();
    for weights in whole {
        for lane in 0..LANES {
            largest[lane] = larger(largest[lane], weights[lane].abs());
        }
    }
    let all = rest.iter().chain(&largest);
    let largest = all.fold(0.0, |most: f32, x| most.max(x.abs()));
    let pairs = weights.as_chunks().0.iter().map(|[a, b]| (a + b).abs());
    let of_pairs = pairs.filter(|_| may_saturate).fold(0.0, f32::max);
    (largest.max(of_pairs) / LARGEST).max(f32::MIN_POSITIVE)
}

struct Activations<'a> {
    x: &'a [f32],
    stride: usize,
    tokens: usize,
    /// Of each input.
    factors: &'a [f32],
    groups: &'a [Range<usize>],
    /// Of each group, `[tokens, inputs]` and by token.
    quantized: &'a mut [(Vec<u8>, Vec<f32>)],
}

impl WithSimd for Activations<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        // Rows are read from end to end: a group of each would be too little for the cache to fetch ahead.
        for token in 0..self.tokens {
            let row = &self.x[token * self.stride..][..self.factors.len()];
            for (group, (integers, scales)) in self.groups.iter().zip(&mut *self.quantized) {
                let width = group.len();
                let integers = &mut integers[token * width..][..width];
                let (x, factors) = (&row[group.clone()], &self.factors[group.clone()]);
                scales[token] = quantize(x, factors, integers);
            }
        }
    }
}

/// A token's activations of a group times `factors`; gives what an integer stands for.
#[inline(always)]
fn quantize(x: &[f32], factors: &[f32], integers: &mut [u8]) -> f32 {
    let mut largest = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    let (of_whole, of_rest) = factors.as_chunks::<LANES>();
    for (x, factor) in whole.iter().zip(of_whole) {
        for lane in 0..LANES {
            largest[lane] = larger(largest[lane], (x[lane] * factor[lane]).abs());
        }
    }
    let rest = rest.iter().zip(of_rest).map(|(x, factor)| x * factor);
    let largest = rest.chain(largest).fold(0f32, |most, x| most.max(x.abs()));
    let scale = (largest / LARGEST).max(f32::MIN_POSITIVE);
    let unit = 1.0 / scale;
    for ((integer, x), factor) in integers.iter_mut().zip(x).zip(factors) {
        *integer = (x * factor * unit + (ROUND + f32::from(ZERO))).to_bits() as u8;
    }
    scale
}
