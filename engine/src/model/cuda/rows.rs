//! Rows of tensors, and bf16 in f32.

use candle_core::{
    DType, Result, Tensor,
    cuda_backend::{
        CudaDType, WrapErr,
        cudarc::driver::{DeviceRepr, PushKernelArg},
    },
};
use half::bf16;

use super::{
    PACK,
    block::{MODULE, PTX},
    input, launch, launch_each, output, takes, threads,
};

/// The rows `rows` `[n]` u32 of `x` `[.., width]`, `[n, width]`; `None` where there is no kernel for `x`.
pub fn gather(x: &Tensor, rows: &Tensor) -> Result<Option<Tensor>> {
    let fits = |number: usize| {
        let aligned = |(from, _): (usize, usize)| (from * number).is_multiple_of(16);
        let width = x.elem_count() / x.dims().first().copied().unwrap_or(1).max(1);
        x.device().is_cuda()
            && x.layout().contiguous_offsets().is_some_and(aligned)
            && (width * number).is_multiple_of(16)
            && x.elem_count() > 0
            && rows.elem_count() > 0
    };
    match x.dtype() {
        DType::BF16 if fits(2) => gather_of::<bf16>(x, rows, 8).map(Some),
        DType::F32 if fits(4) => gather_of::<f32>(x, rows, 4).map(Some),
        _ => Ok(None),
    }
}

/// Of numbers of which a load has `pack`.
fn gather_of<T: CudaDType + DeviceRepr>(x: &Tensor, rows: &Tensor, pack: usize) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let (count, width) = (shape[0] as u32, x.elem_count() / shape[0]);
    shape[0] = rows.elem_count();
    let (x_in, rows_in) = (input(x)?, input(rows)?);
    let device = x_in.device()?;
    let (numbers, indices) = (x_in.view::<T>()?, rows_in.view::<u32>()?);
    let function = device.get_or_load_custom_func("gather", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<T>(shape[0] * width) }?;
    let packs = (width / pack) as i32;
    let mut builder = function.builder();
    builder
        .arg(&numbers)
        .arg(&indices)
        .arg(&out)
        .arg(&packs)
        .arg(&count);
    // SAFETY: a block for each row of the result; only rows that are there are read.
    unsafe { builder.launch(launch((shape[0], 1), threads(width / pack, 256))) }.w()?;
    Ok(output(out, device, shape))
}

/// `x` in f32; `None` where there is no kernel for it.
pub fn widen(x: &Tensor) -> Result<Option<Tensor>> {
    if !takes(x) {
        return Ok(None);
    }
    let x_in = input(x)?;
    let device = x_in.device()?;
    let numbers = x_in.view::<bf16>()?;
    let function = device.get_or_load_custom_func("widen", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<f32>(x.elem_count()) }?;
    let packs = x.elem_count() / PACK;
    let mut builder = function.builder();
    builder.arg(&numbers).arg(&out).arg(&packs);
    // SAFETY: threads beyond the last pack do nothing.
    unsafe { builder.launch(launch_each(packs)) }.w()?;
    Ok(Some(output(out, device, x.shape())))
}
