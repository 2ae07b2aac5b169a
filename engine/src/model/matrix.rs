//! A weight matrix and its product with activations.

use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, bail};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    bf16::Bf16, calibration::Measured, fused::add, int8::Int8, panels::Panels, weights::Numbers,
};
use crate::error::{self, compute};

/// A matrix that activations are multiplied with.
pub enum Matrix {
    /// f32 on the CPU.
    Panels(Panels),
    /// Rounded, on CPUs that have a unit for it.
    Bf16(Bf16),
    /// Any other numbers, `[out, in]`.
    Float(Tensor),
    /// About to be quantized.
    Measured(Measured),
    /// Quantized, on CPUs that multiply integers several times as fast.
    Int8(Int8),
}

impl Matrix {
    /// A checkpoint's `[out, in]`. To become int8, it measures the activations that it is multiplied with
    /// until [`Self::quantize`].
    ///
    /// # Errors
    /// `OutOfMemory`, `Internal`.
    pub fn new(weight: Tensor, numbers: Numbers) -> error::Result<Self> {
        let in_f32 = weight.device().is_cpu() && weight.dtype() == DType::F32;
        let matrix = || match numbers {
            Numbers::Int8 => Measured::new(weight).map(Self::Measured),
            Numbers::Bf16 if in_f32 => Bf16::new(&weight).map(Self::Bf16),
            _ if in_f32 => Panels::new(&weight).map(Self::Panels),
            _ => Ok(Self::Float(weight)),
        };
        matrix().map_err(compute)
    }

    /// Quantizes a matrix that has measured its activations.
    pub fn quantize(&mut self) -> Result<()> {
        if let Self::Measured(measured) = self {
            *self = Self::Int8(measured.quantize()?);
        }
        Ok(())
    }

    /// The product with activations: `[tokens, in]` to `[tokens, out]`.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Panels(weight) => weight.product(x),
            Self::Bf16(weight) => weight.product(x),
            Self::Float(weight) => x.matmul(&weight.t()?),
            Self::Measured(weight) => weight.product(x),
            Self::Int8(weight) => weight.product(x),
        }
    }

    /// `sum` `[tokens, out]` and the product with activations `[tokens, in]`. The memory of `sum` is not to
    /// be used afterwards: a GPU's product is added to what is there.
    pub fn add_product(&self, sum: Tensor, x: &Tensor) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Self::Float(weight) = self
            && [&sum, x, weight].into_iter().all(cuda::takes)
        {
            return cuda::add_product(sum, x, weight);
        }
        add(&sum, self.product(x)?)
    }

    /// [`Self::product`] of the last `count` outputs alone, `[tokens, count]`; `None` of a quantized
    /// matrix, which cannot be cut.
    pub fn last(&self, x: &Tensor, count: usize) -> Result<Option<Tensor>> {
        let product = match self {
            Self::Panels(weight) => weight.last(x, count)?,
            Self::Bf16(weight) => weight.last(x, count)?,
            Self::Float(weight) => {
                let from = weight.dim(0)? - count;
                x.matmul(&weight.narrow(0, from, count)?.t()?)?
            }
            Self::Measured(_) | Self::Int8(_) => return Ok(None),
        };
        Ok(Some(product))
    }
}

/// The number of tokens of activations, which must have these inputs.
pub fn tokens(x: &Tensor, inputs: usize) -> Result<usize> {
    match x.dims2()? {
        (tokens, of_x) if of_x == inputs => Ok(tokens),
        (_, of_x) => bail!("activations of {of_x} numbers for a matrix of {inputs}"),
    }
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
