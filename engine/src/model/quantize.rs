//! Numbers to integers for products in int8.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

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

/// The columns `inputs` of `rows` `[out][in]`. With `may_saturate` no two neighbouring integers sum to more
/// than the product's instruction holds.
pub fn weights(rows: &[Vec<f32>], inputs: &Range<usize>, may_saturate: bool) -> Quantized {
    let mut quantized = Quantized {
        integers: vec![0; rows.len() * inputs.len()],
        scales: vec![0.0; rows.len()],
        zeros: vec![0; rows.len()],
    };
    Arch::new().dispatch(Weights {
        rows,
        inputs,
        may_saturate,
        quantized: &mut quantized,
    });
    quantized
}

/// The first columns of the first tokens of `x`, whose rows begin every `stride` numbers, times
/// `factors` `[in]`: the integers, `[tokens, in]`, and what they stand for, by token.
pub fn activations(
    x: &[f32],
    stride: usize,
    tokens: usize,
    factors: &[f32],
) -> (Vec<u8>, Vec<f32>) {
    let mut integers = vec![0; tokens * factors.len()];
    let mut scales = vec![0.0; tokens];
    Arch::new().dispatch(Activations {
        x,
        stride,
        factors,
        integers: &mut integers,
        scales: &mut scales,
    });
    (integers, scales)
}

struct Weights<'a> {
    rows: &'a [Vec<f32>],
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
        for ((row, integers), (scale, zero)) in self.rows.iter().zip(integers).zip(outputs) {
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
            largest[lane] = largest[lane].max(weights[lane].abs());
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
    /// Of each input.
    factors: &'a [f32],
    /// `[tokens, in]`.
    integers: &'a mut [u8],
    /// Of each token.
    scales: &'a mut [f32],
}

impl WithSimd for Activations<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.factors.len();
        let rows = self.integers.chunks_exact_mut(width.max(1));
        for (row, (integers, scale)) in rows.zip(self.scales.iter_mut()).enumerate() {
            let x = &self.x[row * self.stride..][..width];
            let mut largest = [0f32; LANES];
            let (whole, rest) = x.as_chunks::<LANES>();
            let (factors, factors_rest) = self.factors.as_chunks::<LANES>();
            for (x, factor) in whole.iter().zip(factors) {
                for lane in 0..LANES {
                    largest[lane] = largest[lane].max((x[lane] * factor[lane]).abs());
                }
            }
            let rest = rest.iter().zip(factors_rest).map(|(x, factor)| x * factor);
            let largest = rest.chain(largest).fold(0f32, |most, x| most.max(x.abs()));
            *scale = (largest / LARGEST).max(f32::MIN_POSITIVE);
            let unit = 1.0 / *scale;
            for ((integer, x), factor) in integers.iter_mut().zip(x).zip(self.factors) {
                *integer = (x * factor * unit + (ROUND + f32::from(ZERO))).to_bits() as u8;
            }
        }
    }
}
