//! A weight matrix and its product with activations: f32 or whatever the model runs in, or int8 on CPUs
//! that multiply it several times as fast.
//!
//! int8: the inputs are cut into groups; in each, weights have a scale for each output and activations one
//! for each token, so that a large activation takes precision from its neighbours only. Products are
//! summed in int32 within a group. The kernels are rten-gemm's (AVX-512 VNNI, ARM's dot product), chosen at
//! run time.

use std::ops::Range;

use candle_core::{CpuStorage, D, DType, Layout, Result, Storage, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions, PackedBMatrix, QuantParams};
use rten_tensor::{NdTensor, NdTensorView, prelude::*};

use super::panels::Panels;
use crate::error::{self, compute};

/// Tokens that one task takes from activations to products: their int32 sums stay in the caches.
const TASK_TOKENS: usize = 64;
/// Most inputs that share their scales; finer groups cost time and won no precision back.
const GROUP: usize = 192;
/// Largest quantized magnitude.
const LARGEST: f32 = 127.0;
/// What stands for zero among quantized activations, which have no sign.
const ZERO: u8 = 128;
/// Numbers of a row whose maximum is found together.
const LANES: usize = 16;

/// A matrix that activations are multiplied with.
pub enum Matrix {
    /// f32 on the CPU.
    Panels(Panels),
    /// Any other numbers, `[in, out]`.
    Float(Tensor),
    Int8(Int8),
}

/// A quantized matrix.
pub struct Int8 {
    groups: Vec<Group>,
    inputs: usize,
    outputs: usize,
}

/// The weights of some inputs.
struct Group {
    inputs: Range<usize>,
    /// `[inputs, out]`.
    packed: PackedBMatrix<i8>,
    /// What an integer stands for, by output.
    scales: Vec<f32>,
}

/// Whether this CPU sums int8 products without cutting off large sums, as AVX2's instruction for them does.
pub fn int8_is_exact() -> bool {
    !executor().may_saturate()
}

/// The fastest kernel that this CPU has, always the same. It cannot be shared between threads.
fn executor() -> GemmExecutor<u8, i8, i32> {
    GemmExecutor::default()
}

impl Matrix {
    /// A checkpoint's `[out, in]`, to be quantized with `int8`, which wants f32 in the CPU's memory.
    ///
    /// # Errors
    /// `OutOfMemory`, `Internal`.
    pub fn new(weight: &Tensor, int8: bool) -> error::Result<Self> {
        let matrix = || {
            if int8 {
                Int8::quantize(weight).map(Self::Int8)
            } else if weight.device().is_cpu() && weight.dtype() == DType::F32 {
                Panels::new(weight).map(Self::Panels)
            } else {
                weight.t()?.contiguous().map(Self::Float)
            }
        };
        matrix().map_err(compute)
    }

    /// The product with activations: `[tokens, in]` to `[tokens, out]`.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Panels(weight) => weight.product(x),
            Self::Float(weight) => x.matmul(weight),
            Self::Int8(weight) => weight.product(x),
        }
    }

    /// [`Self::product`] of the last `count` outputs alone, `[tokens, count]`; `None` of a quantized
    /// matrix, which cannot be cut.
    pub fn last(&self, x: &Tensor, count: usize) -> Result<Option<Tensor>> {
        let product = match self {
            Self::Panels(weight) => weight.last(x, count)?,
            Self::Float(weight) => {
                let from = weight.dim(D::Minus1)? - count;
                x.matmul(&weight.narrow(D::Minus1, from, count)?.contiguous()?)?
            }
            Self::Int8(_) => return Ok(None),
        };
        Ok(Some(product))
    }
}

impl Int8 {
    fn quantize(weight: &Tensor) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let rows = weight.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let count = inputs.div_ceil(GROUP).max(1);
        let groups = (0..count).map(|group| {
            let inputs = inputs * group / count..inputs * (group + 1) / count;
            Group::quantize(&rows, inputs)
        });
        Ok(Self {
            groups: groups.collect(),
            inputs,
            outputs,
        })
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, inputs) = x.dims2()?;
        if inputs != self.inputs {
            bail!(
                "activations of {inputs} numbers for a matrix of {}",
                self.inputs
            );
        }
        let outputs = self.outputs;
        let (storage, layout) = x.storage_and_layout();
        let (numbers, stride) = rows(&storage, layout)?;
        let mut products = vec![0.0; tokens * outputs];
        products
            .par_chunks_mut(TASK_TOKENS * outputs)
            .enumerate()
            .try_for_each(|(task, products)| {
                let from = task * TASK_TOKENS * stride;
                let part = numbers.get(from..).unwrap_or_default();
                self.multiply(part, stride, products)
            })?;
        drop(storage);
        Tensor::from_vec(products, (tokens, outputs), x.device())
    }

    /// The products `[tokens, out]` of some tokens, whose rows begin every `stride` numbers of `x`, added
    /// to `products`.
    fn multiply(&self, x: &[f32], stride: usize, products: &mut [f32]) -> Result<()> {
        let tokens = products.len() / self.outputs;
        let widest = self.groups.iter().map(|group| group.inputs.len()).max();
        let mut integers = vec![0; tokens * widest.unwrap_or(0)];
        let mut scales = vec![0.0; tokens];
        let mut sums = vec![0; products.len()];
        let zeros = vec![ZERO; tokens];
        let executor = executor();
        for group in &self.groups {
            let width = group.inputs.len();
            let integers = &mut integers[..tokens * width];
            Arch::new().dispatch(Quantize {
                x: &x[group.inputs.start..],
                stride,
                integers,
                scales: &mut scales,
            });
            let options = GemmOptions {
                a_quant: Some(QuantParams { zero_point: &zeros }),
                ..GemmOptions::default()
            };
            let integers = NdTensorView::from_data([tokens, width], &*integers);
            let (a, b) = (
                GemmInputA::Unpacked(integers),
                GemmInputB::Packed(&group.packed),
            );
            executor
                .gemm(&mut sums, a, b, options)
                .map_err(candle_core::Error::wrap)?;
            Arch::new().dispatch(Scale {
                sums: &sums,
                tokens: &scales,
                outputs: &group.scales,
                products,
            });
        }
        Ok(())
    }
}

impl Group {
    /// Those columns of `[out, in]`.
    fn quantize(rows: &[Vec<f32>], inputs: Range<usize>) -> Self {
        let mut integers = Vec::with_capacity(rows.len() * inputs.len());
        let mut scales = Vec::with_capacity(rows.len());
        for row in rows {
            let row = &row[inputs.clone()];
            let scale = scale(row);
            integers.extend(row.iter().map(|x| (x / scale).round_ties_even() as i8));
            scales.push(scale);
        }
        let integers = NdTensor::from_data([rows.len(), inputs.len()], integers);
        Self {
            packed: executor().prepack_b(integers.transposed()),
            inputs,
            scales,
        }
    }
}

/// What the integer 1 stands for in numbers up to these.
fn scale(numbers: &[f32]) -> f32 {
    let largest = numbers.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    (largest / LARGEST).max(f32::MIN_POSITIVE)
}

/// The numbers of an f32 tensor in the CPU's memory, from its first, and where its rows begin among them.
pub fn rows<'a>(storage: &'a Storage, layout: &Layout) -> Result<(&'a [f32], usize)> {
    match (storage, layout.stride()) {
        (Storage::Cpu(CpuStorage::F32(numbers)), &[stride, 1]) => {
            Ok((&numbers[layout.start_offset()..], stride))
        }
        _ => bail!("expected rows of f32 in the CPU's memory"),
    }
}

/// Activations to integers.
struct Quantize<'a> {
    x: &'a [f32],
    stride: usize,
    /// `[tokens, in]`.
    integers: &'a mut [u8],
    /// Of each token.
    scales: &'a mut [f32],
}

impl WithSimd for Quantize<'_> {
    type Output = ();

    // This and all it calls is inlined, so that it is compiled for the caller's registers.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        /// Added to a number of less than 2^22, it leaves the nearest integer in the lowest bits.
        const ROUND: f32 = 12_582_912.0;
        let width = self.integers.len() / self.scales.len().max(1);
        let rows = self.integers.chunks_exact_mut(width.max(1));
        for (row, (integers, scale)) in rows.zip(self.scales.iter_mut()).enumerate() {
            let x = &self.x[row * self.stride..][..width];
            let mut largest = [0f32; LANES];
            let (whole, rest) = x.as_chunks::<LANES>();
            for part in whole {
                for lane in 0..LANES {
                    largest[lane] = largest[lane].max(part[lane].abs());
                }
            }
            let largest = rest
                .iter()
                .chain(&largest)
                .fold(0f32, |most, x| most.max(x.abs()));
            *scale = (largest / LARGEST).max(f32::MIN_POSITIVE);
            let factor = 1.0 / *scale;
            for (integer, x) in integers.iter_mut().zip(x) {
                *integer = (x * factor + (ROUND + f32::from(ZERO))).to_bits() as u8;
            }
        }
    }
}

/// Adds what sums of integers stand for to products.
struct Scale<'a> {
    /// `[tokens, out]`.
    sums: &'a [i32],
    /// Scale of each token.
    tokens: &'a [f32],
    /// Scale of each output.
    outputs: &'a [f32],
    /// `[tokens, out]`.
    products: &'a mut [f32],
}

impl WithSimd for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let width = self.outputs.len();
        let rows = self
            .products
            .chunks_exact_mut(width)
            .zip(self.sums.chunks_exact(width));
        for ((products, sums), token) in rows.zip(self.tokens) {
            for ((product, sum), output) in products.iter_mut().zip(sums).zip(self.outputs) {
                *product += *sum as f32 * (token * output);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn random(shape: (usize, usize)) -> Tensor {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    /// The root mean square of the differences, relative to that of the numbers.
    fn error(ours: &Tensor, exact: &Tensor) -> f32 {
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
    fn int8_products_are_near_the_exact_ones() {
        for (tokens, inputs, outputs) in
            [(1, 576, 960), (5, 64, 3), (70, 33, 100), (130, 1536, 576)]
        {
            let (x, weight) = (random((tokens, inputs)), random((outputs, inputs)));
            let exact = x.matmul(&weight.t().unwrap()).unwrap();
            let int8 = Matrix::new(&weight, true).unwrap();
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
        let whole = |rows: usize, columns: usize| {
            let numbers = (0..rows * columns).map(|i| match i % columns % 16 {
                0 => LARGEST,
                j => ((i * 37 + j * 11) % 255) as f32 - LARGEST,
            });
            Tensor::from_iter(numbers, &Device::Cpu)
                .unwrap()
                .reshape((rows, columns))
                .unwrap()
        };
        let (x, weight) = (whole(9, 48), whole(21, 48));
        let exact = x.matmul(&weight.t().unwrap()).unwrap();
        let ours = Matrix::new(&weight, true).unwrap().product(&x).unwrap();
        assert!(error(&ours, &exact) < 1e-6);
        let zero = Matrix::new(&weight, true)
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
