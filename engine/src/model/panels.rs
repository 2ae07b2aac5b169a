//! f32 matrices on the CPU, cut into panels of outputs that lie one after the other in memory. A product
//! with few tokens is bound by reading the weights: panels are read from end to end, where columns of a
//! whole matrix lie kilobytes apart or, packed by the kernel, are written and read once more. Panels and
//! groups of tokens are also the tasks of the threads.

use candle_core::{D, Result, Tensor, bail};
use gemm::Parallelism;
use rayon::prelude::*;

use super::matrix::rows;

/// Outputs of a panel: twice what gemm's kernel for AVX-512 takes together, four times that for AVX2's.
const PANEL: usize = 96;
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
        let (tokens, inputs) = x.dims2()?;
        if inputs != self.inputs {
            bail!(
                "activations of {inputs} numbers for a matrix of {}",
                self.inputs
            );
        }
        let (storage, layout) = x.storage_and_layout();
        let (x_rows, stride) = rows(&storage, layout)?;
        let width = self.outputs - first;
        let mut products = Vec::with_capacity(tokens * width);
        let tasks = Tasks {
            weights: self,
            x: x_rows,
            stride,
            tokens,
            first,
            products: products.as_mut_ptr(),
        };
        tasks.run();
        // SAFETY: `run` has filled the capacity: every token's row in every panel from `first` on.
        unsafe { products.set_len(tokens * width) };
        drop(storage);
        Tensor::from_vec(products, (tokens, width), x.device())
    }
}

/// One product.
struct Tasks<'a> {
    weights: &'a Panels,
    x: &'a [f32],
    /// Where the rows of `x` begin.
    stride: usize,
    tokens: usize,
    /// The first output.
    first: usize,
    /// `[tokens, outputs - first]`, not yet initialised.
    products: *mut f32,
}

// SAFETY: the threads share the pointer only to write tiles that do not overlap.
unsafe impl Sync for Tasks<'_> {}

impl Tasks<'_> {
    fn run(&self) {
        let Panels { outputs, .. } = self.weights;
        let panels = (self.first..*outputs).step_by(PANEL);
        let tiles: Vec<(usize, usize)> = (0..self.tokens)
            .step_by(TASK_TOKENS)
            .flat_map(|token| panels.clone().map(move |output| (token, output)))
            .collect();
        tiles
            .into_par_iter()
            .for_each(|(token, output)| self.tile(token, output));
    }

    /// The products of a group of tokens with the panel that begins with an output.
    fn tile(&self, token: usize, output: usize) {
        let Panels {
            numbers,
            inputs,
            outputs,
        } = self.weights;
        let tokens = TASK_TOKENS.min(self.tokens - token);
        let panel_width = PANEL.min(outputs - output);
        let x = &self.x[token * self.stride..][..(tokens - 1) * self.stride + inputs];
        let panel = &numbers[output * inputs..][..inputs * panel_width];
        let width = outputs - self.first;
        // SAFETY: `x` and `panel` are as long as the sizes and strides say. The tile is inside of the
        // `[tokens, width]` that `products` has room for, no other tile has a part of it, and it is
        // written without being read.
        unsafe {
            let tile = self.products.add(token * width + output - self.first);
            gemm::gemm(
                tokens,
                panel_width,
                *inputs,
                tile,
                1,
                width as isize,
                false,
                x.as_ptr(),
                1,
                self.stride as isize,
                panel.as_ptr(),
                1,
                panel_width as isize,
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
