//! Matrix products in bf16 on CPUs with a matrix unit ([`super::amx`]): weights and activations are
//! rounded to bf16, the products summed in f32.

use candle_core::{D, Result, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::{
    amx::{AHEAD, DEPTH, ROWS, STEP, STRIP, Unit},
    fused::silu_times,
    matrix::{rows, tokens},
    tiles::{Tile, in_tiles},
};

/// Most tokens and outputs of a task, whose activations stay in a core's cache. While its strips of
/// tokens are multiplied with a strip of outputs, the next one is fetched.
const TASK: (usize, usize) = (STEP / AHEAD * STRIP, 4 * STRIP);

/// Outputs of a gate between which as many of up lie, for [`Bf16::gated`].
pub const GATES: usize = STRIP;

/// A matrix in bf16.
pub struct Bf16 {
    /// For each strip of outputs and [`DEPTH`] inputs, zeros where there are fewer:
    /// `[2, DEPTH / 2, ROWS outputs, 2]`, which is how the unit takes the right side of a product.
    tiles: Vec<u16>,
    inputs: usize,
    outputs: usize,
}

impl Bf16 {
    /// Of a checkpoint's `[out, in]` in f32.
    pub fn new(weight: &Tensor) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let (storage, layout) = weight.storage_and_layout();
        let (numbers, stride) = rows(&storage, layout)?;
        let mut tiles = vec![0; outputs.div_ceil(STRIP) * strip(inputs)];
        let strips = tiles.par_chunks_mut(strip(inputs).max(1)).enumerate();
        strips.for_each(|(number, tiles)| {
            let first = number * STRIP;
            for output in first..outputs.min(first + STRIP) {
                let row = &numbers[output * stride..][..inputs];
                let at = (output - first) / ROWS * ROWS * DEPTH + output % ROWS * 2;
                for (input, number) in row.iter().enumerate() {
                    let pair = input % DEPTH / 2;
                    tiles[input / DEPTH * STEP + at + pair * 2 * ROWS + input % 2] = round(*number);
                }
            }
        });
        Ok(Self {
            tiles,
            inputs,
            outputs,
        })
    }

    /// The product with activations: `[tokens, in]` to `[tokens, out]`.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        self.product_from(x, 0)
    }

    /// [`Self::product`] of the last `count` outputs alone: `[tokens, count]`.
    pub fn last(&self, x: &Tensor, count: usize) -> Result<Tensor> {
        let first = self.outputs.saturating_sub(count) / STRIP * STRIP;
        let product = self.product_from(x, first)?;
        product.narrow(D::Minus1, self.outputs - first - count, count)
    }

    /// The products of the outputs from `first` on, with which a strip begins.
    fn product_from(&self, x: &Tensor, first: usize) -> Result<Tensor> {
        let (tokens, activations) = self.activations(x)?;
        let width = self.outputs - first;
        // SAFETY: `fill` fills the tile.
        let products = unsafe {
            in_tiles(tokens, width, TASK, |tile| {
                self.fill(&activations, first, tile)
            })
        }?;
        Tensor::from_vec(products, (tokens, width), x.device())
    }

    /// Of a matrix whose strips are a gate's and up's by turns: silu of the gate's products with
    /// activations times those of up, `[tokens, out / 2]`.
    pub fn gated(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, activations) = self.activations(x)?;
        let (width, task) = (self.outputs / 2, (TASK.0, TASK.1 / 2));
        // SAFETY: `fill_gated` fills the tile.
        let products = unsafe {
            in_tiles(tokens, width, task, |tile| {
                self.fill_gated(&activations, tile)
            })
        }?;
        Tensor::from_vec(products, (tokens, width), x.device())
    }

    /// Rounded, in strips of tokens, and how many tokens there are.
    fn activations(&self, x: &Tensor) -> Result<(usize, Vec<u16>)> {
        let tokens = tokens(x, self.inputs)?;
        let (storage, layout) = x.storage_and_layout();
        let (x_rows, stride) = rows(&storage, layout)?;
        let mut activations = vec![0; tokens.div_ceil(STRIP) * strip(self.inputs)];
        let strips = activations.par_chunks_mut(strip(self.inputs).max(1));
        strips.enumerate().for_each(|(number, tiles)| {
            let from = number * STRIP;
            Arch::new().dispatch(Round {
                x: &x_rows[from * stride..],
                stride,
                tokens: STRIP.min(tokens - from),
                inputs: self.inputs,
                tiles,
            });
        });
        Ok((tokens, activations))
    }

    /// The products of a tile, whose outputs count from output `first`.
    fn fill(&self, activations: &[u16], first: usize, mut tile: Tile) -> Result<()> {
        let unit = unit()?;
        let size = strip(self.inputs);
        let mut sums = [[0.0; STRIP]; STRIP];
        for output in tile.outputs.clone().step_by(STRIP) {
            let weights = &self.tiles[(first + output) / STRIP * size..][..size];
            let mut next = weights.as_ptr_range().end;
            for token in tile.tokens.clone().step_by(STRIP) {
                let x = &activations[token / STRIP * size..][..size];
                unit.multiply(x, weights, next, &mut sums);
                next = next.wrapping_add(size / STEP * AHEAD);
                let width = STRIP.min(tile.outputs.end - output);
                for (token, sums) in (token..tile.tokens.end).zip(&sums) {
                    tile.write(token, output, &sums[..width]);
                }
            }
        }
        Ok(())
    }

    fn fill_gated(&self, activations: &[u16], mut tile: Tile) -> Result<()> {
        let unit = unit()?;
        let size = strip(self.inputs);
        let mut gates = [[0.0; STRIP]; STRIP];
        let mut ups = [[0.0; STRIP]; STRIP];
        for output in tile.outputs.clone().step_by(STRIP) {
            let weights = &self.tiles[2 * output / STRIP * size..][..2 * size];
            let (gate, up) = weights.split_at(size);
            let mut next = weights.as_ptr_range().end;
            for token in tile.tokens.clone().step_by(STRIP) {
                let x = &activations[token / STRIP * size..][..size];
                unit.multiply(x, gate, next, &mut gates);
                next = next.wrapping_add(size / STEP * AHEAD);
                unit.multiply(x, up, next, &mut ups);
                next = next.wrapping_add(size / STEP * AHEAD);
                silu_times(gates.as_flattened_mut(), ups.as_flattened());
                for (token, row) in (token..tile.tokens.end).zip(&gates) {
                    tile.write(token, output, row);
                }
            }
        }
        Ok(())
    }
}

fn unit() -> Result<Unit> {
    match Unit::new() {
        Some(unit) => Ok(unit),
        None => bail!("this CPU has no matrix unit"),
    }
}

/// bf16 numbers of a strip with these inputs.
fn strip(inputs: usize) -> usize {
    inputs.div_ceil(DEPTH) * STEP
}

/// The nearest bf16, of two the even one.
#[inline(always)]
fn round(x: f32) -> u16 {
    const NAN: u16 = 0x7fc0;
    let bits = x.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if x.is_nan() { NAN } else { nearest }
}

/// Activations to a strip of tiles.
struct Round<'a> {
    /// From the first of the strip's tokens.
    x: &'a [f32],
    stride: usize,
    tokens: usize,
    inputs: usize,
    /// For each [`DEPTH`] inputs `[STRIP tokens, DEPTH]`, all of it zeros.
    tiles: &'a mut [u16],
}

impl WithSimd for Round<'_> {
    type Output = ();

    // This and all it calls is inlined, so that it is compiled for the caller's registers.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for token in 0..self.tokens {
            let row = &self.x[token * self.stride..][..self.inputs];
            let (whole, rest) = row.as_chunks::<DEPTH>();
            let tiles = self.tiles.chunks_exact_mut(STEP);
            let mut tiles = tiles.map(|step| &mut step[token * DEPTH..][..DEPTH]);
            for (numbers, tile) in whole.iter().zip(&mut tiles) {
                for lane in 0..DEPTH {
                    tile[lane] = round(numbers[lane]);
                }
            }
            for (number, of_tile) in rest.iter().zip(tiles.flatten()) {
                *of_tile = round(*number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::model::{has_amx, int8::tests::error};

    fn random(shape: (usize, usize)) -> Tensor {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap()
    }

    fn rounded(x: &Tensor) -> Tensor {
        let bf16 = x.to_dtype(DType::BF16).unwrap();
        bf16.to_dtype(DType::F32).unwrap()
    }

    #[test]
    fn numbers_are_rounded_to_the_nearest() {
        let of = |x: f32| f32::from_bits(u32::from(round(x)) << 16);
        let numbers = random((1, 1000)).flatten_all().unwrap();
        let expected = rounded(&numbers).to_vec1::<f32>().unwrap();
        for (x, expected) in numbers.to_vec1::<f32>().unwrap().into_iter().zip(expected) {
            assert_eq!(of(x), expected);
        }
        // Halfway to the even one.
        assert_eq!(
            (of(1.0 + 1.0 / 256.0), of(1.0 + 3.0 / 256.0)),
            (1.0, 1.0 + 4.0 / 256.0)
        );
        assert_eq!((of(0.0), of(f32::INFINITY)), (0.0, f32::INFINITY));
        assert_eq!(of(f32::MAX), f32::INFINITY);
        assert!(of(f32::from_bits(0x7fff_ffff)).is_nan() && of(-f32::NAN).is_nan());
    }

    #[test]
    fn products_are_those_of_the_rounded_numbers() {
        if !has_amx() {
            println!("skipped: this CPU has no matrix unit");
            return;
        }
        for (tokens, inputs, outputs) in [
            (1, 576, 960),
            (3, 64, 5),
            (33, 33, 96),
            (70, 40, 97),
            (600, 31, 200),
        ] {
            let (x, weight) = (random((tokens, inputs)), random((outputs, inputs)));
            let exact = rounded(&x).matmul(&rounded(&weight).t().unwrap()).unwrap();
            let matrix = Bf16::new(&weight).unwrap();
            let ours = matrix.product(&x).unwrap();
            assert_eq!(ours.dims(), exact.dims());
            assert!(error(&ours, &exact) < 1e-6);
            // Rows that are part of wider ones, and each token for itself.
            let wide = Tensor::cat(&[&x, &x], 1).unwrap();
            let part = wide.narrow(1, inputs, inputs).unwrap();
            assert_eq!(error(&matrix.product(&part).unwrap(), &ours), 0.0);
            let last = |of: &Tensor| of.narrow(0, tokens - 1, 1).unwrap();
            let alone = matrix.product(&last(&x)).unwrap();
            assert_eq!(error(&alone, &last(&ours)), 0.0);
            for count in [1, outputs / 2, outputs] {
                let last = ours.narrow(1, outputs - count, count).unwrap();
                assert_eq!(error(&matrix.last(&x, count).unwrap(), &last), 0.0);
            }
            assert!(matrix.product(&random((2, inputs + 1))).is_err());
        }
        let none = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
        let none = Bf16::new(&random((7, 3))).unwrap().product(&none);
        assert_eq!(none.unwrap().dims(), [0, 7]);
    }
}
