//! The parts of a block between its matrix products, on the CPU. Candle runs them as several passes
//! over tensors that do not fit the caches, some on one thread only, and compiled for the registers
//! that every CPU has. Here each is one pass over rows, on all threads, compiled for the widths of
//! registers that there are; [`pulp`] chooses at run time. A GPU in bf16 has kernels of its own
//! ([`super::cuda`]); other numbers run candle's operations.

use candle_core::{CpuStorage, D, DType, InplaceOp1, Layout, Result, Storage, Tensor, bail};
use candle_nn::{ops, rotary_emb::rope_thd};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::lanes::exp;

/// Numbers that one task works on: enough to outweigh what starting it costs.
const TASK: usize = 1 << 14;
/// A sum is kept in as many parts, so that it needs no order: they fill one or more registers.
const LANES: usize = 16;

/// What fills, or changes, one row of numbers.
trait RowOp: Sync {
    fn row(&self, index: usize, row: &mut [f32]);
}

/// Rows for one thread.
struct Rows<'a, O> {
    op: &'a O,
    /// Number of the first.
    first: usize,
    rows: &'a mut [f32],
    width: usize,
}

impl<O: RowOp> WithSimd for Rows<'_, O> {
    type Output = ();

    // This and all it calls is inlined, so that it is compiled for the caller's registers.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (index, row) in self.rows.chunks_exact_mut(self.width).enumerate() {
            self.op.row(self.first + index, row);
        }
    }
}

fn each_row(rows: &mut [f32], width: usize, op: &impl RowOp) {
    let width = width.max(1);
    let several = (TASK / width).max(1);
    let tasks = rows.par_chunks_mut(several * width).enumerate();
    tasks.for_each(|(task, rows)| {
        Arch::new().dispatch(Rows {
            op,
            first: task * several,
            rows,
            width,
        });
    });
}

/// Whether the passes of this file take a tensor.
fn is_ours(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// The numbers of a contiguous f32 tensor in the CPU's memory.
///
/// # Errors
/// If it is another tensor.
pub fn numbers<'a>(storage: &'a Storage, layout: &Layout) -> Result<&'a [f32]> {
    match storage {
        Storage::Cpu(storage) => cpu_numbers(storage, layout),
        _ => bail!("expected a tensor in the CPU's memory"),
    }
}

/// The numbers of a contiguous f32 tensor.
///
/// # Errors
/// If it is another tensor.
pub fn cpu_numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice()?[from..to]),
        None => bail!("expected a contiguous tensor"),
    }
}

/// The last dimension of `x` at a root mean square of 1, times `weight`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::takes(x) && cuda::takes(weight) {
        return cuda::rms_norm(x, weight, eps);
    }
    if !is_ours(x) {
        return ops::rms_norm(x, weight, eps);
    }
    let (x_storage, x_layout) = x.storage_and_layout();
    let (weight_storage, weight_layout) = weight.storage_and_layout();
    let op = RmsNorm {
        input: numbers(&x_storage, x_layout)?,
        weight: numbers(&weight_storage, weight_layout)?,
        eps,
    };
    if x.dim(D::Minus1)? != op.weight.len() {
        bail!("a norm of {} for {:?}", op.weight.len(), x.shape());
    }
    let mut output = vec![0.0; op.input.len()];
    each_row(&mut output, op.weight.len(), &op);
    Tensor::from_vec(output, x.shape(), x.device())
}

struct RmsNorm<'a> {
    input: &'a [f32],
    weight: &'a [f32],
    eps: f32,
}

impl RowOp for RmsNorm<'_> {
    #[inline(always)]
    fn row(&self, index: usize, row: &mut [f32]) {
        let width = self.weight.len();
        let input = &self.input[index * width..][..width];
        let mut sums = [0.0; LANES];
        let (whole, rest) = input.as_chunks::<LANES>();
        for part in whole {
            for lane in 0..LANES {
                sums[lane] += part[lane] * part[lane];
            }
        }
        let rest: f32 = rest.iter().map(|x| x * x).sum();
        let mean = (sums.iter().sum::<f32>() + rest) / width as f32;
        let factor = 1.0 / (mean + self.eps).sqrt();
        for ((output, x), weight) in row.iter_mut().zip(input).zip(self.weight) {
            *output = x * factor * weight;
        }
    }
}

/// Products `[tokens, out]` and a bias `[out]`.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::takes(x) && cuda::takes(bias) {
        return cuda::add_bias(x, bias);
    }
    x.broadcast_add(bias)
}

/// Some heads of `x` `[tokens, width]`, which begin at column `from`, rotated by `cos` and `sin`
/// `[tokens, head_dim / 2]` in f32: `[tokens, heads, head_dim]`.
pub fn rotate(x: &Tensor, from: usize, heads: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let ((tokens, width), (rows, half)) = (x.dims2()?, cos.dims2()?);
    let columns = heads * 2 * half;
    if rows != tokens || sin.dims() != cos.dims() || from + columns > width {
        bail!("cannot rotate {heads} heads of {:?}", x.shape());
    }
    let shape = (tokens, heads, 2 * half);
    #[cfg(feature = "cuda")]
    if cuda::takes(x) && cuda::are_packs(&[from, half]) {
        return cuda::rotate(x, from, heads, cos, sin);
    }
    if !is_ours(x) {
        let part = x.narrow(D::Minus1, from, columns)?.contiguous()?;
        let part = part.reshape((1, tokens, heads, 2 * half))?;
        let (cos, sin) = (cos.to_dtype(x.dtype())?, sin.to_dtype(x.dtype())?);
        return rope_thd(&part, &cos, &sin)?.squeeze(0);
    }
    let (x_storage, x_layout) = x.storage_and_layout();
    let (cos_storage, cos_layout) = cos.storage_and_layout();
    let (sin_storage, sin_layout) = sin.storage_and_layout();
    let op = Rotate {
        input: numbers(&x_storage, x_layout)?,
        width,
        from,
        cos: numbers(&cos_storage, cos_layout)?,
        sin: numbers(&sin_storage, sin_layout)?,
        half,
    };
    let mut output = vec![0.0; tokens * columns];
    each_row(&mut output, columns, &op);
    Tensor::from_vec(output, shape, x.device())
}

struct Rotate<'a> {
    input: &'a [f32],
    width: usize,
    from: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
}

impl RowOp for Rotate<'_> {
    #[inline(always)]
    fn row(&self, index: usize, row: &mut [f32]) {
        let half = self.half;
        let input = &self.input[index * self.width + self.from..][..row.len()];
        let cos = &self.cos[index * half..][..half];
        let sin = &self.sin[index * half..][..half];
        let heads = row.chunks_exact_mut(2 * half);
        for (output, input) in heads.zip(input.chunks_exact(2 * half)) {
            let (output_a, output_b) = output.split_at_mut(half);
            let (a, b) = input.split_at(half);
            for i in 0..half {
                output_a[i] = a[i] * cos[i] - b[i] * sin[i];
                output_b[i] = a[i] * sin[i] + b[i] * cos[i];
            }
        }
    }
}

/// The MLP's gate and up, side by side in `gate_up` `[tokens, 2 * inner]`, joined:
/// `[tokens, inner]`, the values in memory of `gate_up`, which is not to be used afterwards.
pub fn swiglu(gate_up: Tensor) -> Result<Tensor> {
    let inner = gate_up.dim(D::Minus1)? / 2;
    #[cfg(feature = "cuda")]
    if cuda::takes(&gate_up) && cuda::are_packs(&[inner]) {
        return cuda::swiglu(&gate_up);
    }
    let gate = gate_up.narrow(D::Minus1, 0, inner)?;
    if is_ours(&gate_up) {
        gate_up.inplace_op1(&SwiGlu { inner })?;
        return Ok(gate);
    }
    let up = gate_up.narrow(D::Minus1, inner, inner)?;
    ops::silu(&gate.contiguous()?)? * up
}

/// `x` and `product`, whose memory the sum takes: it is not to be used afterwards.
pub fn add(x: &Tensor, product: Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if cuda::takes(x) && cuda::takes(&product) {
        return cuda::add(x, &product);
    }
    if !is_ours(&product) || x.dims() != product.dims() {
        return x + product;
    }
    let (storage, layout) = x.storage_and_layout();
    product.inplace_op1(&Add {
        x: numbers(&storage, layout)?,
        width: x.dim(D::Minus1)?,
    })?;
    Ok(product)
}

struct Add<'a> {
    x: &'a [f32],
    width: usize,
}

impl InplaceOp1 for Add<'_> {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        in_place(storage, layout, self.width, self)
    }
}

impl RowOp for Add<'_> {
    #[inline(always)]
    fn row(&self, index: usize, row: &mut [f32]) {
        let x = &self.x[index * self.width..][..row.len()];
        for (sum, x) in row.iter_mut().zip(x) {
            *sum += x;
        }
    }
}

/// Rows of a contiguous tensor, changed by `op`.
fn in_place(
    storage: &mut CpuStorage,
    layout: &Layout,
    width: usize,
    op: &impl RowOp,
) -> Result<()> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(numbers), Some((from, to))) => {
            each_row(&mut numbers[from..to], width, op);
            Ok(())
        }
        _ => bail!("expected contiguous f32"),
    }
}

/// In place: a tensor of its own would be as large as half of a block's weights.
struct SwiGlu {
    inner: usize,
}

impl InplaceOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        in_place(storage, layout, 2 * self.inner, self)
    }
}

impl RowOp for SwiGlu {
    #[inline(always)]
    fn row(&self, _: usize, row: &mut [f32]) {
        let (gates, ups) = row.split_at_mut(self.inner);
        SiluTimes { gates, ups }.each();
    }
}

/// silu of the gates, times ups.
pub fn silu_times(gates: &mut [f32], ups: &[f32]) {
    Arch::new().dispatch(SiluTimes { gates, ups });
}

struct SiluTimes<'a> {
    gates: &'a mut [f32],
    ups: &'a [f32],
}

impl SiluTimes<'_> {
    #[inline(always)]
    fn each(self) {
        for (gate, up) in self.gates.iter_mut().zip(self.ups) {
            *gate = *gate / (1.0 + exp(-*gate)) * *up;
        }
    }
}

impl WithSimd for SiluTimes<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.each();
    }
}

#[cfg(test)]
mod tests;
