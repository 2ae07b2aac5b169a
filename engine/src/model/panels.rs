//! f32 matrices on the CPU, cut into panels of outputs that lie one after the other in memory. A product
//! with few tokens is bound by reading the weights: panels are read from end to end, where columns of a
//! whole matrix lie kilobytes apart or, packed by the kernel, are written and read once more. Panels and
//! groups of tokens are also the tasks of the threads.

use candle_core::{D, Result, Tensor};
use gemm::Parallelism;

use super::{
    matrix::{rows, tokens},
    tiles::{Tile, in_tiles},
};

/// Outputs of a panel: a multiple of what gemm's kernels take together, which is 64 with AVX-512; of 48 to
/// 384 the fastest, with few tokens and with many.
const PANEL: usize = 128;
/// Most tokens of a task, whose activations then stay in a core's cache while panels pass.
const TASK_TOKENS: usize = 256;

/// A matrix of f32.
pub struct Panels {
    /// `[inputs, outputs of the panel]` of each panel.
    numbers: Vec<f32>,
    inputs: usize,
    outputs: usize,
}

impl Panels {
    /// Of a checkpoint's `[out, in]`.
    pub fn new(weight: &Tensor) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let mut numbers = Vec::with_capacity(outputs * inputs);
        for from in (0..outputs).step_by(PANEL) {
            let panel = weight.narrow(0, from, PANEL.min(outputs - from))?;
            numbers.extend(panel.t()?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(Self {
            numbers,
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
        let first = self.outputs.saturating_sub(count) / PANEL * PANEL;
        let product = self.product_from(x, first)?;
        product.narrow(D::Minus1, self.outputs - first - count, count)
    }

    /// The products of the outputs from `first` on, with which a panel begins.
    fn product_from(&self, x: &Tensor, first: usize) -> Result<Tensor> {
        let tokens = tokens(x, self.inputs)?;
        let (storage, layout) = x.storage_and_layout();
        let (x_rows, stride) = rows(&storage, layout)?;
        let width = self.outputs - first;
        // SAFETY: `fill` fills the tile.
        let products = unsafe {
            in_tiles(tokens, width, (TASK_TOKENS, PANEL), |tile| {
                self.fill(x_rows, stride, first, tile);
                Ok(())
            })
        }?;
        drop(storage);
        Tensor::from_vec(products, (tokens, width), x.device())
    }

    /// The products of a tile, whose outputs are those of a panel and count from output `first`.
    fn fill(&self, x: &[f32], stride: usize, first: usize, mut tile: Tile) {
        let (tokens, outputs) = (tile.tokens.len(), tile.outputs.len());
        let x = &x[tile.tokens.start * stride..][..(tokens - 1) * stride + self.inputs];
        let panel = (first + tile.outputs.start) * self.inputs;
        let panel = &self.numbers[panel..][..self.inputs * outputs];
        // SAFETY: `x`, `panel` and the tile are as long as the sizes and strides say; the tile is
        // written without being read.
        unsafe {
            gemm::gemm(
                tokens,
                outputs,
                self.inputs,
                tile.as_mut_ptr(),
                1,
                tile.stride() as isize,
                false,
                x.as_ptr(),
                1,
                stride as isize,
                panel.as_ptr(),
                1,
                outputs as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
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

    fn distance(ours: &Tensor, exact: &Tensor) -> f32 {
        assert_eq!(ours.dims(), exact.dims());
        let difference = (ours - exact).unwrap().abs().unwrap();
        difference
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap()
            .to_scalar()
            .unwrap()
    }

    #[test]
    fn products_are_the_plain_ones() {
        for (tokens, inputs, outputs) in [
            (1, 576, 960),
            (3, 64, 5),
            (33, 33, 96),
            (70, 40, 97),
            (600, 40, 200),
        ] {
            let (x, weight) = (random((tokens, inputs)), random((outputs, inputs)));
            let exact = x.matmul(&weight.t().unwrap()).unwrap();
            let panels = Panels::new(&weight).unwrap();
            assert!(distance(&panels.product(&x).unwrap(), &exact) < 1e-3);
            // Rows that are part of wider ones.
            let wide = Tensor::cat(&[&x, &x], 1).unwrap();
            let part = wide.narrow(1, inputs, inputs).unwrap();
            assert!(distance(&panels.product(&part).unwrap(), &exact) < 1e-3);
            for count in [1, outputs / 2, outputs] {
                let last = exact.narrow(1, outputs - count, count).unwrap();
                assert!(distance(&panels.last(&x, count).unwrap(), &last) < 1e-3);
            }
            assert!(panels.product(&random((2, inputs + 1))).is_err());
        }
        let none = Panels::new(&random((7, 3)))
            .unwrap()
            .product(&Tensor::zeros((0, 3), candle_core::DType::F32, &Device::Cpu).unwrap());
        assert_eq!(none.unwrap().dims(), [0, 7]);
    }
}
