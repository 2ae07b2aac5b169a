//! A head's projection and its probe, in f32.

use candle_core::{
    D, DType, Result, Tensor, bail,
    cuda_backend::{WrapErr, cudarc::driver::PushKernelArg},
};

use super::{THREADS, input, launch, launch_each, output, threads};
use crate::{
    mentions::{candidates::Candidates, probe::Probe},
    projection::{Projection, Side},
};

const MODULE: &str = "ner_retriever head";
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/head.ptx"));

/// [`Projection::apply`].
pub fn project(projection: &Projection, x: &Tensor, side: Side) -> Result<Tensor> {
    let x = x.contiguous()?;
    let dims = x.dim(D::Minus1)?;
    let network = |x: &Tensor| {
        let first = x.matmul(&projection.first.weight.t()?)?;
        let hidden = add_row(&first, &projection.first.bias, true)?;
        let second = hidden.matmul(&projection.second.weight.t()?)?;
        add_row(&second, &projection.second.bias, false)
    };
    let sum = match &projection.centers {
        None => network(&x)?,
        Some(centers) => {
            let center = match side {
                Side::Mention => &centers.mentions,
                Side::Type => &centers.types,
            };
            let parts = centers.parts as f64;
            let z = unit_parts(&x, Some(center), centers.parts, parts.sqrt().recip())?;
            // The same at the length that the network takes.
            let length = (dims as f64 / parts).sqrt();
            let scaled = unit_parts(&x, Some(center), centers.parts, length)?;
            add_numbers(&z, &network(&scaled)?)?
        }
    };
    unit_parts(&sum, None, 1, 1.0)
}

/// [`Probe::score`].
pub fn span_scores(probe: &Probe, hidden: &Tensor, candidates: &Candidates) -> Result<Tensor> {
    let (tokens, units, count) = (hidden.dim(0)?, probe.output.dim(0)?, candidates.spans.len());
    let normal = standardize(&hidden.contiguous()?, &probe.mean, &probe.scale)?;
    let parts = normal.matmul(&probe.tokens.t()?)?;
    let rows = candidates.rows.iter().flatten();
    let rows: Vec<u32> = rows.map(|row| row.unwrap_or(tokens as u32)).collect();
    let widths = candidates
        .spans
        .iter()
        .map(|s| (s.last_word - s.first_word) as u32);
    let rows = Tensor::new(rows, hidden.device())?;
    let widths = Tensor::new(widths.collect::<Vec<_>>(), hidden.device())?;
    let tensors = [
        &parts,
        &probe.width,
        &probe.output,
        &probe.bias,
        &rows,
        &widths,
    ]
    .map(input);
    let [parts, width, weights, bias, rows, widths] = tensors;
    let (parts, width, weights, bias) = (parts?, width?, weights?, bias?);
    let (rows, widths) = (rows?, widths?);
    let device = parts.device()?;
    let views = (
        parts.view::<f32>()?,
        rows.view::<u32>()?,
        widths.view::<u32>()?,
    );
    let weights = (
        width.view::<f32>()?,
        weights.view::<f32>()?,
        bias.view::<f32>()?,
    );
    let function = device.get_or_load_custom_func("span_scores", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<f32>(count) }?;
    let counts = [count, tokens, units].map(|count| count as i32);
    let mut builder = function.builder();
    builder.arg(&views.0).arg(&views.1).arg(&views.2);
    builder
        .arg(&weights.0)
        .arg(&weights.1)
        .arg(&weights.2)
        .arg(&out);
    for count in &counts {
        builder.arg(count);
    }
    let grid = (count.div_ceil(THREADS / 32), 1);
    // SAFETY: a warp for each candidate, whose rows are tokens of `hidden` and whose width is one of the
    // probe's.
    unsafe { builder.launch(launch(grid, THREADS as u32)) }.w()?;
    Ok(output(out, device, count))
}

/// Rows `[n, width]` in f32 and a vector `[width]` for all of them.
fn check(x: &Tensor, row: &Tensor) -> Result<usize> {
    let width = x.dim(D::Minus1)?;
    if row.dims() != [width] || x.dtype() != DType::F32 || x.elem_count() == 0 {
        bail!(
            "a row of {:?} for {:?} {:?}",
            row.shape(),
            x.dtype(),
            x.shape()
        );
    }
    Ok(width)
}

fn add_row(x: &Tensor, row: &Tensor, with_silu: bool) -> Result<Tensor> {
    let width = check(x, row)? as i32;
    let (x_in, row_in, count) = (input(x)?, input(row)?, x.elem_count());
    let device = x_in.device()?;
    let (numbers, row) = (x_in.view::<f32>()?, row_in.view::<f32>()?);
    let function = device.get_or_load_custom_func("add_row", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<f32>(count) }?;
    let with_silu = i32::from(with_silu);
    let mut builder = function.builder();
    builder
        .arg(&numbers)
        .arg(&row)
        .arg(&out)
        .arg(&count)
        .arg(&width)
        .arg(&with_silu);
    // SAFETY: threads beyond the last number do nothing; the row is as wide as those of `x`.
    unsafe { builder.launch(launch_each(count)) }.w()?;
    Ok(output(out, device, x.shape()))
}

fn add_numbers(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        bail!("cannot add {:?} and {:?}", a.shape(), b.shape());
    }
    let (x, y, count) = (input(a)?, input(b)?, a.elem_count());
    let device = x.device()?;
    let (left, right) = (x.view::<f32>()?, y.view::<f32>()?);
    let function = device.get_or_load_custom_func("add_numbers", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<f32>(count) }?;
    let mut builder = function.builder();
    builder.arg(&left).arg(&right).arg(&out).arg(&count);
    // SAFETY: threads beyond the last number do nothing; all three have as many.
    unsafe { builder.launch(launch_each(count)) }.w()?;
    Ok(output(out, device, a.shape()))
}

/// Each of the parts of each row, less `center`, at a length.
fn unit_parts(x: &Tensor, center: Option<&Tensor>, parts: usize, length: f64) -> Result<Tensor> {
    let (rows, dims) = x.dims2()?;
    if let Some(center) = center {
        check(x, center)?;
    }
    if !dims.is_multiple_of(parts) {
        bail!("{dims} dimensions do not divide into {parts}");
    }
    // Without a center the kernel does not read it.
    let (x_in, center_in) = (input(x)?, input(center.unwrap_or(x))?);
    let device = x_in.device()?;
    let (numbers, middle) = (x_in.view::<f32>()?, center_in.view::<f32>()?);
    let function = device.get_or_load_custom_func("unit_parts", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<f32>(rows * dims) }?;
    let (width, centered) = ((dims / parts) as i32, i32::from(center.is_some()));
    let length = length as f32;
    let mut builder = function.builder();
    builder
        .arg(&numbers)
        .arg(&middle)
        .arg(&out)
        .arg(&width)
        .arg(&centered)
        .arg(&length);
    let config = launch((rows, parts), threads(dims / parts, THREADS));
    // SAFETY: a block for each part of each row.
    unsafe { builder.launch(config) }.w()?;
    Ok(output(out, device, (rows, dims)))
}

fn standardize(x: &Tensor, mean: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let width = check(x, mean)?.max(check(x, scale)?) as i32;
    let (x_in, mean, scale) = (input(x)?, input(mean)?, input(scale)?);
    let (device, count) = (x_in.device()?, x.elem_count());
    let (numbers, mean) = (x_in.view::<f32>()?, mean.view::<f32>()?);
    let scale = scale.view::<f32>()?;
    let function = device.get_or_load_custom_func("standardize", MODULE, PTX)?;
    // SAFETY: the kernel below writes all of it.
    let out = unsafe { device.alloc::<f32>(count) }?;
    let mut builder = function.builder();
    builder
        .arg(&numbers)
        .arg(&mean)
        .arg(&scale)
        .arg(&out)
        .arg(&count)
        .arg(&width);
    // SAFETY: threads beyond the last number do nothing; both vectors are as wide as the rows of `x`.
    unsafe { builder.launch(launch_each(count)) }.w()?;
    Ok(output(out, device, x.shape()))
}
