//! Numbers on their way from the device, which computes on while they are waited for.

use candle_core::{Result, Tensor};

/// Where numbers arrive.
#[derive(Default)]
pub struct Downloads {
    #[cfg(feature = "cuda")]
    pinned: cuda::Pinned,
}

/// Numbers that were asked for.
pub enum Download {
    There(Vec<f32>),
    #[cfg(feature = "cuda")]
    Coming(cuda::Coming),
}

impl Downloads {
    /// Asks for the numbers of a tensor `[n]` in f32; on a GPU they are copied once all that was launched
    /// before is done.
    ///
    /// # Errors
    /// The device's.
    pub fn start(&self, tensor: &Tensor) -> Result<Download> {
        #[cfg(feature = "cuda")]
        if tensor.device().is_cuda() {
            return self.pinned.start(tensor).map(Download::Coming);
        }
        tensor.to_vec1().map(Download::There)
    }

    /// Waits for the numbers.
    ///
    /// # Errors
    /// The device's.
    pub fn finish(&self, download: Download) -> Result<Vec<f32>> {
        match download {
            Download::There(numbers) => Ok(numbers),
            #[cfg(feature = "cuda")]
            Download::Coming(coming) => self.pinned.finish(coming),
        }
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::{
        collections::HashMap,
        sync::{Mutex, PoisonError},
    };

    use candle_core::{
        Result, Storage, Tensor, bail,
        cuda_backend::{
            WrapErr,
            cudarc::driver::{CudaEvent, PinnedHostSlice, sys::CUevent_flags},
        },
    };

    /// Fewest numbers of a buffer.
    const SMALLEST: usize = 1 << 12;

    /// Host memory that a GPU copies into on its own, by its size, which is a power of two: to allocate it
    /// takes longer than most copies.
    #[derive(Default)]
    pub struct Pinned(Mutex<HashMap<usize, Vec<PinnedHostSlice<f32>>>>);

    pub struct Coming {
        /// Taken once it is filled.
        buffer: Option<PinnedHostSlice<f32>>,
        copied: CudaEvent,
        count: usize,
        /// Stays until it is copied.
        _tensor: Tensor,
    }

    impl Drop for Coming {
        /// A pass that fails leaves what it asked for: the GPU must not copy into memory that is freed.
        fn drop(&mut self) {
            if self.buffer.is_some() {
                // Without an answer the GPU is lost, and copies no more.
                let _ = self.copied.synchronize();
            }
        }
    }

    impl Pinned {
        fn free(&self, size: usize) -> Option<PinnedHostSlice<f32>> {
            let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            free.get_mut(&size).and_then(Vec::pop)
        }

        pub fn start(&self, tensor: &Tensor) -> Result<Coming> {
            let count = tensor.elem_count();
            let size = count.next_power_of_two().max(SMALLEST);
            // A copy is as long as its target.
            let tensor = tensor.pad_with_zeros(0, 0, size - count)?.contiguous()?;
            let (storage, layout) = tensor.storage_and_layout();
            let (Storage::Cuda(cuda), Some((from, to))) = (&*storage, layout.contiguous_offsets())
            else {
                bail!("expected a contiguous tensor in the GPU's memory");
            };
            let stream = cuda.device.cuda_stream();
            let mut buffer = match self.free(size) {
                Some(buffer) => buffer,
                // SAFETY: it is read only after a copy has filled it.
                None => unsafe { stream.context().alloc_pinned_with_flags(size, 0) }.w()?,
            };
            let numbers = cuda.as_cuda_slice::<f32>()?.slice(from..to);
            stream.memcpy_dtoh(&numbers, &mut buffer).w()?;
            // cudarc waits for copies by events of its own, which one stream for all has switched off.
            let flags = CUevent_flags::CU_EVENT_BLOCKING_SYNC;
            let copied = stream.record_event(Some(flags)).w()?;
            drop(storage);
            Ok(Coming {
                buffer: Some(buffer),
                copied,
                count,
                _tensor: tensor,
            })
        }

        pub fn finish(&self, mut coming: Coming) -> Result<Vec<f32>> {
            coming.copied.synchronize().w()?;
            let Some(buffer) = coming.buffer.take() else {
                bail!("a download was taken twice");
            };
            let numbers = buffer.as_slice().w()?[..coming.count].to_vec();
            let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            free.entry(buffer.len()).or_default().push(buffer);
            Ok(numbers)
        }
    }
}
