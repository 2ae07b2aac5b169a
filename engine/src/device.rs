//! The settings that say where and how the model runs.

use candle_core::{Device, DeviceLocation};

use crate::{
    error::{EngineError, ErrorKind, Result},
    model::{Numbers, default_numbers, has_amx, has_int8},
};

/// The device that `ner_retriever.device` names. In an engine that was built with CUDA, `auto` is the
/// first GPU: whoever starts it wants one, and has the CPU's engine for machines without.
///
/// # Errors
/// `DeviceUnavailable` for a GPU that cannot be used, `InvalidSetting` for an unknown name.
pub fn select(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "auto" => automatic(),
        "cuda" => cuda(0, name),
        name => match name.strip_prefix("cuda:").map(str::parse) {
            Some(Ok(ordinal)) => cuda(ordinal, name),
            _ => Err(invalid("device", name, "auto, cpu, cuda or cuda:N")),
        },
    }
}

#[cfg(feature = "cuda")]
fn automatic() -> Result<Device> {
    cuda(0, "cuda:0")
}

#[cfg(not(feature = "cuda"))]
fn automatic() -> Result<Device> {
    Ok(Device::Cpu)
}

/// The GPU with the driver's number `ordinal`, which the setting calls `name`. The bindings panic
/// about some states of a driver.
#[cfg(feature = "cuda")]
fn cuda(ordinal: usize, name: &str) -> Result<Device> {
    let problem = match std::panic::catch_unwind(|| open_cuda(ordinal)) {
        Ok(Ok(device)) => return Ok(device),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the driver's library cannot be used".to_owned(),
    };
    // A backtrace may follow.
    let problem = problem.lines().next().unwrap_or_default();
    Err(unavailable(
        name,
        problem,
        "Set ner_retriever.device to auto or cpu, or to a GPU that nvidia-smi lists on this machine.",
    ))
}

/// One stream for all threads: candle's default is a stream for each thread, and a batch passes through
/// several. Memory that a batch frees stays with the process: by default the driver would take it from each
/// batch at the next wait for the GPU, and give it back to the next.
#[cfg(feature = "cuda")]
fn open_cuda(ordinal: usize) -> candle_core::Result<Device> {
    use candle_core::cuda_backend::{
        WrapErr,
        cudarc::driver::{result, sys},
    };
    let device = Device::new_cuda_with_stream(ordinal)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: there is one stream, on which all uses of a tensor are in the order of their launches.
    unsafe { cuda.disable_event_tracking() };
    let threshold = u64::MAX;
    // SAFETY: the context that was just made is bound to this thread, and the pool is its device's; the
    // attribute is a 64-bit number.
    unsafe {
        let number = result::device::get(ordinal as i32).w()?;
        let mut pool = std::ptr::null_mut();
        sys::cuDeviceGetDefaultMemPool(&mut pool, number)
            .result()
            .w()?;
        sys::cuMemPoolSetAttribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw const threshold).cast_mut().cast(),
        )
        .result()
        .w()?;
    }
    Ok(device)
}

#[cfg(not(feature = "cuda"))]
fn cuda(_ordinal: usize, name: &str) -> Result<Device> {
    Err(unavailable(
        name,
        "this engine was built without CUDA",
        "Set ner_retriever.device to auto or cpu, or use the engine that make engine-cuda builds.",
    ))
}

fn unavailable(name: &str, problem: &str, hint: &str) -> EngineError {
    let message = format!("device \"{name}\" cannot be used: {problem}");
    EngineError::new(ErrorKind::DeviceUnavailable, message).hint(hint)
}

/// The numbers that `ner_retriever.dtype` names. `auto` is bf16 where the CPU has a matrix unit, and int8
/// where it has instructions for that: docs/performance.md has what they cost in quality.
///
/// # Errors
/// `InvalidSetting` for an unknown name, and for numbers that the device does not multiply.
pub fn numbers(name: &str, device: &Device) -> Result<Numbers> {
    match name {
        "auto" if device.is_cpu() && has_amx() => Ok(Numbers::Bf16),
        "auto" if device.is_cpu() && has_int8() => Ok(Numbers::Int8),
        "auto" => Ok(default_numbers(device)),
        "f32" => Ok(Numbers::F32),
        "f16" => Ok(Numbers::F16),
        "bf16" if !device.is_cpu() || has_amx() => Ok(Numbers::Bf16),
        "bf16" => Err(unavailable(
            "cpu",
            "it has no unit that multiplies bf16",
            "Set ner_retriever.dtype to auto, f32 or int8; bf16 needs a GPU or Intel AMX.",
        )),
        "int8" if device.is_cpu() && has_int8() => Ok(Numbers::Int8),
        "int8" if device.is_cpu() => Err(unavailable(
            "cpu",
            "it has no instructions that multiply int8",
            "Set ner_retriever.dtype to auto or f32; int8 needs AVX2 or an ARM CPU.",
        )),
        name if device.is_cpu() => Err(invalid(
            "dtype",
            name,
            "auto, f32, f16, bf16 or int8 on a CPU",
        )),
        name => Err(invalid("dtype", name, "auto, f32, f16 or bf16")),
    }
}

/// Refuses mention detectors that this engine does not have.
///
/// # Errors
/// `InvalidSetting`.
pub fn check_detector(name: &str) -> Result<()> {
    match name {
        "probe" => Ok(()),
        name => Err(invalid("detector", name, "probe")),
    }
}

/// A device as users write it.
pub fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

fn invalid(setting: &str, value: &str, accepted: &str) -> EngineError {
    EngineError::new(
        ErrorKind::InvalidSetting,
        format!("ner_retriever.{setting} is \"{value}\""),
    )
    .hint(format!("It may be {accepted}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_can_be_had_in_every_build() {
        assert!(select("cpu").unwrap().is_cpu());
    }

    #[test]
    fn a_device_that_does_not_exist_is_an_invalid_setting() {
        for name in ["", "tpu", "cuda:", "cuda:x", "cuda:-1", "cuda0", "CPU"] {
            let error = select(name).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidSetting, "{name}");
            assert!(error.message.contains(&format!("\"{name}\"")), "{error}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_cuda_automatic_is_the_cpu_and_a_gpu_an_error() {
        assert!(select("auto").unwrap().is_cpu());
        for name in ["cuda", "cuda:1"] {
            let error = select(name).unwrap_err();
            assert_eq!(error.kind, ErrorKind::DeviceUnavailable);
            assert!(error.message.contains(&format!("\"{name}\"")), "{error}");
            assert!(error.hint.unwrap().contains("make engine-cuda"));
        }
    }

    #[test]
    fn a_cpu_runs_in_the_numbers_that_it_multiplies() {
        let of = |name: &str| numbers(name, &Device::Cpu);
        assert_eq!(of("f32").unwrap(), Numbers::F32);
        let mut fastest = Numbers::F32;
        for (name, numbers, can) in [
            ("int8", Numbers::Int8, has_int8()),
            ("bf16", Numbers::Bf16, has_amx()),
        ] {
            if can {
                assert_eq!(of(name).unwrap(), numbers);
                fastest = numbers;
            } else {
                let error = of(name).unwrap_err();
                assert_eq!(error.kind, ErrorKind::DeviceUnavailable);
                assert!(error.hint.unwrap().contains("f32"));
            }
        }
        assert_eq!(of("auto").unwrap(), fastest);
        assert_eq!(of("tf32").unwrap_err().kind, ErrorKind::InvalidSetting);
    }
}
