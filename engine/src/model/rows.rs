//! Parts of tensors.

use candle_core::{D, DType, Result, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;

/// The rows `rows` `[n]` u32 of a tensor: `[n, ..]`.
pub fn rows(of: &Tensor, rows: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(gathered) = cuda::gather(of, rows)? {
        return Ok(gathered);
    }
    of.index_select(rows, 0)
}

/// A tensor in f32.
pub fn in_f32(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(widened) = cuda::widen(x)? {
        return Ok(widened);
    }
    x.to_dtype(DType::F32)
}

/// `count` columns of `x` `[tokens, width]` from column `from` on: `[tokens, count]`.
pub fn columns(x: &Tensor, from: usize, count: usize) -> Result<Tensor> {
    let part = x.narrow(D::Minus1, from, count)?;
    #[cfg(feature = "cuda")]
    if cuda::takes(x) && cuda::are_packs(&[from, count]) {
        return cuda::columns(x, from, count);
    }
    part.contiguous()
}
