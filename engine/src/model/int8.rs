//! Matrix products in int8.
//!
//! The inputs are cut into groups; in each, weights have a scale for each output and activations one for
//! each token, so that a large activation takes precision from its neighbours only. Products are summed
//! in int32 within a group. The kernels are rten-gemm's (AVX-512 VNNI, AVX2, ARM's dot product), chosen at
//! run time.

use std::{cell::Cell, ops::Range};

use candle_core::{Result, Tensor};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedAMatrix, PackedBMatrix};
use rten_tensor::{NdTensor, NdTensorView, prelude::*};

use super::{
    fused::silu_times,
    matrix::{rows, tokens},
    quantize::{Quantized, activations, weights},
    tiles::in_tiles,
};

/// Tokens and outputs of a tile: what one task sums stays in its core's cache.
const TILE: (usize, usize) = (128, 256);
/// Outputs of a gate between which as many of up lie, for [`Int8::gated`].
pub const GATES: usize = TILE.1 / 2;
/// Most inputs that share their scales; finer groups cost time and won no precision back.
const GROUP: usize = 192;
thread_local! {
    /// Choosing the kernel anew for each product would cost a fortieth of a pass.
    static EXECUTOR: GemmExecutor<u8, i8, i32> = GemmExecutor::default();
    /// Sums and products of the last tile, whose memory the next one takes.
    static BUFFERS: Cell<(Vec<i32>, Vec<f32>)> = Cell::default();
}

/// A quantized matrix.
pub struct Int8 {
    /// The inputs of each group.
    groups: Vec<Range<usize>>,
    /// For each tile's worth of outputs, the weights of each group.
    parts: Vec<Vec<Weights>>,
    /// What activations are multiplied with, by input: one over its factor.
    reciprocals: Vec<f32>,
    inputs: usize,
    outputs: usize,
}

/// The weights of a group's inputs for some outputs.
pub struct Weights {
    /// `[inputs, outputs]`.
    packed: PackedBMatrix<i8>,
    /// What an integer stands for, by output.
    scales: Vec<f32>,
    /// What the zeros of the activations take from the sums, by output.
    zeros: Vec<i32>,
}

/// A group's activations of a tile's tokens.
pub struct Activations {
    /// `[tokens, inputs]`.
    packed: PackedAMatrix<u8>,
    /// What an integer stands for, by token.
    scales: Vec<f32>,
}

/// Whether this CPU has instructions for int8 products; without them they are slower than in f32.
pub fn has_int8() -> bool {
    EXECUTOR.with(|executor| !executor.kernel_name().starts_with("generic"))
}

/// Whether the instructions cut off the sums of large products ([`weights`]).
pub fn may_saturate() -> bool {
    EXECUTOR.with(GemmExecutor::may_saturate)
}

impl Int8 {
    /// Of a checkpoint's `[out, in]` in f32. Each input's activations are divided, and its weights
    /// multiplied, by its factor.
    pub fn new(weight: &Tensor, factors: &[f32]) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let factors = Tensor::new(factors, weight.device())?;
        let rows = weight.broadcast_mul(&factors)?;
        let rows = rows.flatten_all()?.to_vec1::<f32>()?;
        let count = inputs.div_ceil(GROUP).max(1);
        let groups: Vec<Range<usize>> = (0..count)
            .map(|group| inputs * group / count..inputs * (group + 1) / count)
            .collect();
        let parts = rows.par_chunks((TILE.1 * inputs).max(1)).map(|rows| {
            let weights = groups.iter().map(|group| Weights::new(rows, inputs, group));
            weights.collect()
        });
        Ok(Self {
            parts: parts.collect(),
            reciprocals: factors.recip()?.to_vec1()?,
            groups,
            inputs,
            outputs,
        })
    }

    /// The product with activations: `[tokens, in]` to `[tokens, out]`.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, activations) = self.activations(x)?;
        // SAFETY: `with_products` has the tile filled.
        let products = unsafe {
            in_tiles(tokens, self.outputs, TILE, |mut tile| {
                let part = tile.outputs.start / TILE.1;
                self.with_products(&activations, &tile.tokens.clone(), part, |products| {
                    tile.copy_from(products);
                })
            })
        }?;
        Tensor::from_vec(products, (tokens, self.outputs), x.device())
    }

    /// Of a matrix whose outputs are a gate's and up's by turns, [`GATES`] of each: silu of the gate's
    /// products with activations times those of up, `[tokens, out / 2]`.
    pub fn gated(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, activations) = self.activations(x)?;
        let width = self.outputs / 2;
        // SAFETY: `with_products` has the tile filled.
        let products = unsafe {
            in_tiles(tokens, width, (TILE.0, GATES), |mut tile| {
                let part = tile.outputs.start / GATES;
                self.with_products(&activations, &tile.tokens.clone(), part, |products| {
                    let rows = products.chunks_exact_mut(2 * GATES);
                    for (token, row) in tile.tokens.clone().zip(rows) {
                        let (gates, ups) = row.split_at_mut(GATES);
                        silu_times(gates, ups);
                        tile.write(token, tile.outputs.start, gates);
                    }
                })
            })
        }?;
        Tensor::from_vec(products, (tokens, width), x.device())
    }

    /// Quantized activations, those of each group for each tile's worth of tokens, and how many tokens
    /// there are.
    fn activations(&self, x: &Tensor) -> Result<(usize, Vec<Activations>)> {
        let tokens = tokens(x, self.inputs)?;
        let (storage, layout) = x.storage_and_layout();
        let (numbers, stride) = rows(&storage, layout)?;
        let tiles = (0..tokens.div_ceil(TILE.0)).into_par_iter();
        let activations = tiles.flat_map_iter(|tile| {
            let first = tile * TILE.0;
            let (x, tokens) = (&numbers[first * stride..], TILE.0.min(tokens - first));
            Activations::of_groups(x, stride, tokens, &self.reciprocals, &self.groups)
        });
        Ok((tokens, activations.collect()))
    }

    /// Gives `take` the products of a tile's worth of tokens with a part of the outputs, `[tokens,
    /// outputs]`.
    fn with_products(
        &self,
        activations: &[Activations],
        tokens: &Range<usize>,
        part: usize,
        take: impl FnOnce(&mut [f32]),
    ) -> Result<()> {
        let weights = &self.parts[part];
        let activations = &activations[tokens.start / TILE.0 * weights.len()..];
        let outputs = weights.first().map_or(0, Weights::outputs);
        // Taken, not borrowed: while it waits, the thread may begin another tile.
        let (mut sums, mut products) = BUFFERS.take();
        sums.resize(tokens.len() * outputs, 0);
        products.resize(tokens.len() * outputs, 0.0);
        for (group, (activations, weights)) in activations.iter().zip(weights).enumerate() {
            activations.multiply(weights, &mut sums, (&mut products, outputs), group == 0)?;
        }
        take(&mut products);
        BUFFERS.set((sums, products));
        Ok(())
    }
}

impl Weights {
    /// Those columns of rows of `width` numbers, `[out, width]`.
    pub fn new(rows: &[f32], width: usize, inputs: &Range<usize>) -> Self {
        let Quantized {
            integers,
            scales,
            zeros,
        } = weights(rows, width, inputs, may_saturate());
        let integers = NdTensor::from_data([scales.len(), inputs.len()], integers);
        Self {
            packed: EXECUTOR.with(|executor| executor.prepack_b(integers.transposed())),
            scales,
            zeros,
        }
    }

    pub fn outputs(&self) -> usize {
        self.scales.len()
    }
}

impl Activations {
    /// The first columns of the first tokens of `x`, whose rows begin every `stride` numbers, times
    /// `factors` `[columns]`, of each of the groups that the columns are cut into.
    pub fn of_groups(
        x: &[f32],
        stride: usize,
        tokens: usize,
        factors: &[f32],
        groups: &[Range<usize>],
    ) -> impl Iterator<Item = Self> {
        let quantized = activations(x, stride, tokens, factors, groups);
        let widths = groups.iter().map(Range::len);
        widths
            .zip(quantized)
            .map(move |(width, (integers, scales))| {
                let integers = NdTensorView::from_data([tokens, width], &*integers);
                Self {
                    packed: EXECUTOR.with(|executor| executor.prepack_a(integers)),
                    scales,
                }
            })
    }

    /// Adds their products with weights to `products`, whose rows begin every so many numbers, or with
    /// `is_first` makes them those. `sums` is scratch of `[tokens, out]`.
    pub fn multiply(
        &self,
        weights: &Weights,
        sums: &mut [i32],
        (products, stride): (&mut [f32], usize),
        is_first: bool,
    ) -> Result<()> {
        let (a, b) = (
            GemmInputA::Packed(&self.packed),
            GemmInputB::Packed(&weights.packed),
        );
        EXECUTOR
            .with(|executor| executor.gemm(sums, a, b, GemmOptions::default()))
            .map_err(candle_core::Error::wrap)?;
        Arch::new().dispatch(Scale {
            sums,
            tokens: &self.scales,
            outputs: &weights.scales,
            zeros: &weights.zeros,
            products,
            stride,
            is_first,
        });
        Ok(())
    }
}

/// Adds what sums of integers stand for to products, or makes them the products of the first group.
struct Scale<'a> {
    /// `[tokens, out]`.
    sums: &'a [i32],
    /// Scale of each token.
    tokens: &'a [f32],
    /// Scale of each output.
    outputs: &'a [f32],
    /// What is added to the sums of each output. (As the library's bias it would take longer: that is
    /// not compiled for wide registers.)
    zeros: &'a [i32],
    /// `[tokens, out]`, rows beginning every `stride` numbers.
    products: &'a mut [f32],
    stride: usize,
    is_first: bool,
}

impl WithSimd for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.outputs.len();
        let rows = self
            .products
            .chunks_mut(self.stride)
            .zip(self.sums.chunks_exact(width));
        for ((products, sums), token) in rows.zip(self.tokens) {
            let outputs = self.outputs.iter().zip(self.zeros);
            let all = products.iter_mut().zip(sums).zip(outputs);
            if self.is_first {
                for ((product, sum), (output, zero)) in all {
                    *product = (sum + zero) as f32 * (token * output);
                }
            } else {
                for ((product, sum), (output, zero)) in all {
                    *product += (sum + zero) as f32 * (token * output);
                }
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::quantize::LARGEST;

    fn random(shape: (usize, usize)) -> Tensor {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    /// The root mean square of the differences, relative to that of the numbers.
    pub fn error(ours: &Tensor, exact: &Tensor) -> f32 {
        let size = |of: &Tensor| {
            of.sqr()
                .unwrap()
                .mean_all()
                .unwrap()
                .to_scalar::<f32>()
                .unwrap()
        };
        (size(&(ours - exact).unwrap()) / size(exact)).sqrt()
    }

    #[test]
    fn large_sums_are_not_cut_off() {
        for weights in [
            [127.0, 0.0],
            [64.0, 63.0],
            [100.0, 100.0],
            [-90.0, -120.0f32],
        ] {
            let weight = Tensor::new(vec![weights.repeat(32)], &Device::Cpu).unwrap();
            let x = Tensor::full(LARGEST, (1, 64), &Device::Cpu).unwrap();
            let ours = Int8::new(&weight, &[1.0; 64]).unwrap().product(&x).unwrap();
            let exact = x.matmul(&weight.t().unwrap()).unwrap();
            assert!(error(&ours, &exact) < 0.01, "{weights:?}: {ours} {exact}");
        }
    }

    #[test]
    fn int8_products_are_near_the_exact_ones() {
        for (tokens, inputs, outputs) in
            [(1, 576, 960), (5, 64, 3), (70, 33, 100), (130, 1536, 576)]
        {
            let (x, weight) = (random((tokens, inputs)), random((outputs, inputs)));
            let exact = x.matmul(&weight.t().unwrap()).unwrap();
            let factors: Vec<f32> = (0..inputs).map(|i| 1.0 + (i % 3) as f32 / 8.0).collect();
            let int8 = Int8::new(&weight, &factors).unwrap();
            let ours = int8.product(&x).unwrap();
            assert_eq!(ours.dims(), exact.dims());
            assert!(error(&ours, &exact) < 0.02, "{}", error(&ours, &exact));
            // Rows that are part of wider ones, and each token for itself.
            let wide = Tensor::cat(&[&x, &x], 1).unwrap();
            let part = wide.narrow(1, inputs, inputs).unwrap();
            let of_part = int8.product(&part).unwrap();
            assert_eq!(error(&of_part, &ours), 0.0);
            let last = x.narrow(0, tokens - 1, 1).unwrap();
            let alone = int8.product(&last).unwrap();
            assert_eq!(error(&alone, &ours.narrow(0, tokens - 1, 1).unwrap()), 0.0);
            assert!(int8.product(&random((2, inputs + 1))).is_err());
        }
    }

    /// Integers are exact where the numbers of each group are whole multiples of the scale.
    #[test]
    fn whole_numbers_are_exact() {
        // With zeros between them no pair of weights is larger than the largest.
        let whole = |rows: usize, columns: usize, zeros: bool| {
            let numbers = (0..rows * columns).map(|i| match i % columns % 16 {
                0 => LARGEST,
                j if zeros && j % 2 == 1 => 0.0,
                j => ((i * 37 + j * 11) % 255) as f32 - LARGEST,
            });
            Tensor::from_iter(numbers, &Device::Cpu)
                .unwrap()
                .reshape((rows, columns))
                .unwrap()
        };
        let pairs_count = may_saturate();
        let (x, weight) = (whole(9, 48, false), whole(21, 48, pairs_count));
        let exact = x.matmul(&weight.t().unwrap()).unwrap();
        let ours = Int8::new(&weight, &[1.0; 48]).unwrap().product(&x).unwrap();
        assert!(error(&ours, &exact) < 1e-6);
        let zero = Int8::new(&weight, &[1.0; 48])
            .unwrap()
            .product(&x.zeros_like().unwrap())
            .unwrap();
        assert_eq!(
            zero.abs()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f32>()
                .unwrap(),
            0.0
        );
    }
}
