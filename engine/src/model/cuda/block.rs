//! Between a block's matrix products, on bf16: one pass over memory each. What divides into 16-byte loads is
//! taken, whatever else there is runs candle's operations.

use candle_core::{
    CpuStorage, D, InplaceOp3, Layout, Result, Tensor, bail,
    cuda_backend::{
        CudaStorage, WrapErr,
        cudarc::{
            cublas::{Gemm, GemmConfig, sys::cublasOperation_t},
            driver::PushKernelArg,
        },
    },
};
use half::bf16;

use super::{PACK, input, launch, launch_each, output, threads};

pub(super) const MODULE: &str = "ner_retriever block";
pub(super) const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/block.ptx"));

/// [`crate::model::fused::rms_norm`].
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if weight.dims() != [width] {
        bail!("a norm of {:?} for {:?}", weight.shape(), x.shape());
    }
    let (x_in, norm) = (input(x)?, input(weight)?);
    let device = x_in.device()?;
    let (numbers, weights) = (x_in.view::<bf16>()?, norm.view::<bf16>()?);
    let function = device.get_or_load_custom_func("rms_norm", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<bf16>(x.elem_count()) }?;
    let packs = width / PACK;
    let count = packs as i32;
    let mut builder = function.builder();
    builder
        .arg(&numbers)
        .arg(&weights)
        .arg(&out)
        .arg(&count)
        .arg(&eps);
    let config = launch((x.elem_count() / width, 1), threads(packs, 512));
    // SAFETY: a block for each row, and as many numbers a row as weights.
    unsafe { builder.launch(config) }.w()?;
    Ok(output(out, device, x.shape()))
}

/// The sum of two tensors of one shape.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("cannot add {:?} and {:?}", a.shape(), b.shape());
    }
    let (x, y) = (input(a)?, input(b)?);
    let device = x.device()?;
    let (left, right) = (x.view::<bf16>()?, y.view::<bf16>()?);
    let function = device.get_or_load_custom_func("add", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<bf16>(a.elem_count()) }?;
    let packs = a.elem_count() / PACK;
    let mut builder = function.builder();
    builder.arg(&left).arg(&right).arg(&out).arg(&packs);
    // SAFETY: threads beyond the last pack do nothing; all three have as many numbers.
    unsafe { builder.launch(launch_each(packs)) }.w()?;
    Ok(output(out, device, a.shape()))
}

/// [`crate::model::matrix::Matrix::add_product`] with a weight `[out, in]`.
pub fn add_product(sum: Tensor, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ((tokens, inputs), (outputs, of_weight)) = (x.dims2()?, weight.dims2()?);
    if of_weight != inputs || sum.dims() != [tokens, outputs] {
        bail!(
            "cannot add {:?} by {:?} to {:?}",
            x.shape(),
            weight.shape(),
            sum.shape()
        );
    }
    sum.inplace_op3(x, weight, &AddProduct)?;
    Ok(sum)
}

struct AddProduct;

impl InplaceOp3 for AddProduct {
    fn name(&self) -> &'static str {
        "add-product"
    }

    fn cpu_fwd(
        &self,
        _: &mut CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<()> {
        bail!("add-product is for GPUs")
    }

    fn cuda_fwd(
        &self,
        sum: &mut CudaStorage,
        sum_layout: &Layout,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<()> {
        let (tokens, inputs) = x_layout.shape().dims2()?;
        let outputs = weight_layout.dim(0)?;
        // cuBLAS counts by columns: it multiplies the transposed weight `[out, in]`, whose rows are its
        // columns, with the transposed activations, and gets the transposed sum.
        let config = GemmConfig {
            transa: cublasOperation_t::CUBLAS_OP_T,
            transb: cublasOperation_t::CUBLAS_OP_N,
            m: outputs as i32,
            n: tokens as i32,
            k: inputs as i32,
            alpha: bf16::ONE,
            lda: inputs as i32,
            ldb: inputs as i32,
            beta: bf16::ONE,
            ldc: outputs as i32,
        };
        let blas = sum.device.cublas_handle();
        let weight = weight
            .as_cuda_slice::<bf16>()?
            .slice(weight_layout.start_offset()..);
        let x = x.as_cuda_slice::<bf16>()?.slice(x_layout.start_offset()..);
        let mut sum = sum
            .as_cuda_slice_mut::<bf16>()?
            .slice_mut(sum_layout.start_offset()..);
        // SAFETY: all three are contiguous, and of these shapes.
        unsafe { blas.gemm(config, &weight, &x, &mut sum) }.w()
    }
}

/// [`crate::model::fused::swiglu`], into a tensor of its own.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let (tokens, width) = gate_up.dims2()?;
    let inner = width / 2;
    let both = input(gate_up)?;
    let device = both.device()?;
    let numbers = both.view::<bf16>()?;
    let function = device.get_or_load_custom_func("swiglu", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<bf16>(tokens * inner) }?;
    let packs = inner / PACK;
    let count = packs as i32;
    let mut builder = function.builder();
    builder.arg(&numbers).arg(&out).arg(&count);
    let threads = threads(packs, 256);
    let config = launch((tokens, packs.div_ceil(threads as usize)), threads);
    // SAFETY: a row of blocks for each token; threads beyond its last pack do nothing.
    unsafe { builder.launch(config) }.w()?;
    Ok(output(out, device, (tokens, inner)))
}

/// [`crate::model::fused::rotate`], by cosines and sines in f32.
pub fn rotate(x: &Tensor, from: usize, heads: usize, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let ((tokens, width), half) = (x.dims2()?, cos.dim(D::Minus1)?);
    let (x_in, cos, sin) = (input(x)?, input(cos)?, input(sin)?);
    let device = x_in.device()?;
    let numbers = x_in.view::<bf16>()?;
    let (cos, sin) = (cos.view::<f32>()?, sin.view::<f32>()?);
    let function = device.get_or_load_custom_func("rotate", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<bf16>(tokens * heads * 2 * half) }?;
    let counts = [width / PACK, from / PACK, heads, half / PACK].map(|count| count as i32);
    let mut builder = function.builder();
    builder.arg(&numbers).arg(&cos).arg(&sin).arg(&out);
    for count in &counts {
        builder.arg(count);
    }
    let config = launch((tokens, 1), threads(heads * half / PACK, 256));
    // SAFETY: a block for each token; the caller has seen that the heads lie within its row, and that there
    // is an angle for each half of a head.
    unsafe { builder.launch(config) }.w()?;
    Ok(output(out, device, (tokens, heads, 2 * half)))
}

/// [`crate::model::rows::columns`].
pub fn columns(x: &Tensor, from: usize, count: usize) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    let x_in = input(x)?;
    let device = x_in.device()?;
    let numbers = x_in.view::<bf16>()?;
    let function = device.get_or_load_custom_func("columns", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<bf16>(tokens * count) }?;
    let counts = [width, from, count].map(|count| (count / PACK) as i32);
    let mut builder = function.builder();
    builder.arg(&numbers).arg(&out);
    for count in &counts {
        builder.arg(count);
    }
    // SAFETY: a block for each token; the caller has seen that the columns lie within its row.
    unsafe { builder.launch(launch((tokens, 1), threads(count / PACK, 256))) }.w()?;
    Ok(output(out, device, (tokens, count)))
}

/// Adds a bias `[out]` to products `[tokens, out]`.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (tokens, width) = x.dims2()?;
    if bias.dims() != [width] {
        bail!("a bias of {:?} for {:?}", bias.shape(), x.shape());
    }
    let (x_in, row) = (input(x)?, input(bias)?);
    let device = x_in.device()?;
    let (numbers, biases) = (x_in.view::<bf16>()?, row.view::<bf16>()?);
    let function = device.get_or_load_custom_func("add_bias", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<bf16>(tokens * width) }?;
    let packs = width / PACK;
    let count = packs as i32;
    let mut builder = function.builder();
    builder.arg(&numbers).arg(&biases).arg(&out).arg(&count);
    let threads = threads(packs, 256);
    let config = launch((tokens, packs.div_ceil(threads as usize)), threads);
    // SAFETY: a row of blocks for each token; threads beyond its last pack do nothing.
    unsafe { builder.launch(config) }.w()?;
    Ok(output(out, device, (tokens, width)))
}
