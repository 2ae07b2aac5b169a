//! Kernels of our own for NVIDIA GPUs. candle's take several passes over memory where one will do, read strided
//! tensors number by number, and come in modules of hundreds, which the driver compiles whole before it runs one.

mod attention;
mod block;
mod head;
mod rows;

use std::ops::Deref;

use candle_core::{
    D, DType, Result, Shape, Storage, Tensor, bail,
    cuda_backend::{
        CudaDType, CudaDevice, CudaStorage,
        cudarc::driver::{CudaSlice, CudaView, LaunchConfig},
    },
    op::BackpropOp,
};

pub use attention::Tiles;
pub use block::{add, add_bias, add_product, columns, rms_norm, rotate, swiglu};
pub use head::{project, span_scores};
pub use rows::{gather, widen};

/// bf16 numbers of one load of 16 bytes: the kernels' `PACK`.
const PACK: usize = 8;
/// Of a block whose work does not say how many.
const THREADS: usize = 256;

/// Whether the kernels of a block take a tensor: contiguous bf16 that divides into loads.
pub fn takes(x: &Tensor) -> bool {
    let aligned = |(from, _): (usize, usize)| from.is_multiple_of(PACK);
    x.device().is_cuda()
        && x.dtype() == DType::BF16
        && x.layout().contiguous_offsets().is_some_and(aligned)
        && x.dim(D::Minus1)
            .is_ok_and(|width| width > 0 && width.is_multiple_of(PACK))
        && x.elem_count() > 0
}

/// Whether counts of numbers divide into loads.
pub fn are_packs(counts: &[usize]) -> bool {
    counts.iter().all(|count| count.is_multiple_of(PACK))
}

/// Numbers of a tensor in the GPU's memory, while it is borrowed.
struct Input<S> {
    storage: S,
    numbers: (usize, usize),
}

/// Those of a contiguous tensor.
fn input(tensor: &Tensor) -> Result<Input<impl Deref<Target = Storage> + '_>> {
    let (storage, layout) = tensor.storage_and_layout();
    match layout.contiguous_offsets() {
        Some(numbers) => Ok(Input { storage, numbers }),
        None => bail!("expected a contiguous tensor"),
    }
}

impl<S: Deref<Target = Storage>> Input<S> {
    fn storage(&self) -> Result<&CudaStorage> {
        match &*self.storage {
            Storage::Cuda(storage) => Ok(storage),
            _ => bail!("expected a tensor in the GPU's memory"),
        }
    }

    fn device(&self) -> Result<&CudaDevice> {
        Ok(&self.storage()?.device)
    }

    fn view<T: CudaDType>(&self) -> Result<CudaView<'_, T>> {
        let (from, to) = self.numbers;
        Ok(self.storage()?.as_cuda_slice::<T>()?.slice(from..to))
    }
}

/// A tensor of what a kernel has written.
fn output<T: CudaDType>(
    slice: CudaSlice<T>,
    device: &CudaDevice,
    shape: impl Into<Shape>,
) -> Tensor {
    let storage = CudaStorage::wrap_cuda_slice(slice, device.clone());
    Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
}

fn threads(items: usize, most: usize) -> u32 {
    items.next_multiple_of(32).min(most) as u32
}

/// A thread for each of many items.
fn launch_each(items: usize) -> LaunchConfig {
    launch((items.div_ceil(THREADS), 1), THREADS as u32)
}

fn launch(grid: (usize, usize), threads: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (grid.0 as u32, grid.1 as u32, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes: 0,
    }
}

#[cfg(test)]
mod tests;
