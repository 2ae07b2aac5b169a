//! The first half of a block's MLP: silu of the gate's products, times those of up.

use candle_core::{Result, Tensor};

use super::{bf16, fused::swiglu, int8, matrix::Matrix, weights::Numbers};
use crate::error::{self, compute};

/// Gate and up, both `[hidden_size, inner]`, in one matrix. Where the kernels are ours to follow, their
/// outputs alternate, some of the gate and as many of up, so that a tile of products holds both and only
/// what they become is written.
pub struct Gated {
    matrix: Matrix,
    /// Outputs of each in a row, where they alternate.
    alternate: Option<usize>,
}

impl Gated {
    /// Of a checkpoint's `[inner, hidden_size]`.
    ///
    /// # Errors
    /// `OutOfMemory`, `Internal`.
    pub fn new(gate: &Tensor, up: &Tensor, numbers: Numbers) -> error::Result<Self> {
        let inner = gate.dims()[0];
        let alternate = match numbers {
            Numbers::Bf16 if gate.device().is_cpu() => Some(bf16::GATES),
            Numbers::Int8 => Some(int8::GATES),
            _ => None,
        }
        .filter(|count| inner.is_multiple_of(*count));
        let weight = match alternate {
            Some(count) => {
                let parts = |of: &Tensor| of.reshape((inner / count, 1, count, ()));
                let both = || Tensor::cat(&[parts(gate)?, parts(up)?], 1)?.flatten(0, 2);
                both().map_err(compute)?
            }
            None => Tensor::cat(&[gate, up], 0).map_err(compute)?,
        };
        Ok(Self {
            matrix: Matrix::new(weight, numbers)?,
            alternate,
        })
    }

    /// Quantizes a matrix that has measured its activations.
    pub fn quantize(&mut self) -> Result<()> {
        self.matrix.quantize()
    }

    /// Of activations `[tokens, hidden_size]`: `[tokens, inner]`.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        match (&self.matrix, self.alternate) {
            (Matrix::Bf16(weight), Some(_)) => weight.gated(x),
            (Matrix::Int8(weight), Some(_)) => weight.gated(x),
            (weight, None) => swiglu(weight.product(x)?),
            (weight, Some(count)) => {
                let both = weight.product(x)?.reshape(((), 2 * count))?;
                swiglu(both)?.contiguous()?.reshape((x.dim(0)?, ()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::{has_amx, has_int8, int8::tests::error};

    #[test]
    fn all_numbers_give_the_same() {
        let random = |shape: (usize, usize)| Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
        for (tokens, hidden, inner) in [(70, 40, 256), (1, 96, 128), (300, 33, 96), (5, 8, 7)] {
            let x = random((tokens, hidden));
            let small = |of: Tensor| (of * 0.2).unwrap();
            let (gate, up) = (
                small(random((inner, hidden))),
                small(random((inner, hidden))),
            );
            let of = |weight: &Tensor| x.matmul(&weight.t().unwrap()).unwrap();
            let expected = (candle_nn::ops::silu(&of(&gate)).unwrap() * of(&up)).unwrap();
            let numbers = [
                (Numbers::F32, true, 1e-5),
                (Numbers::Bf16, has_amx(), 1e-2),
                (Numbers::Int8, has_int8(), 3e-2),
            ];
            for (numbers, can, bound) in numbers {
                if !can {
                    println!("skipped: this CPU does not multiply {numbers}");
                    continue;
                }
                let mut gated = Gated::new(&gate, &up, numbers).unwrap();
                if numbers == Numbers::Int8 {
                    let measured = gated.product(&x).unwrap();
                    assert!(error(&measured, &expected) < 1e-5);
                    gated.quantize().unwrap();
                }
                let ours = gated.product(&x).unwrap();
                assert_eq!(ours.dims(), [tokens, inner]);
                let error = error(&ours, &expected);
                assert!(error < bound, "{numbers}: {error}");
            }
        }
    }
}
