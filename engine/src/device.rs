//! The settings that say where and how the model runs.

use candle_core::{Device, DeviceLocation};

use crate::{
    error::{EngineError, ErrorKind, Result},
    model::Numbers,
};

/// The device that `ner_retriever.device` names.
///
/// # Errors
/// `DeviceUnavailable` for a GPU that this build cannot use, `InvalidSetting` for an unknown name.
pub fn select(name: &str) -> Result<Device> {
    match name {
        "auto" | "cpu" => Ok(Device::Cpu),
        name if name == "cuda" || name.starts_with("cuda:") => Err(EngineError::new(
            ErrorKind::DeviceUnavailable,
            format!("device \"{name}\" cannot be used: this engine was built without CUDA"),
        )
        .hint("Set ner_retriever.device to auto or cpu.")),
        name => Err(invalid("device", name, "auto, cpu, cuda or cuda:N")),
    }
}

/// The numbers that `ner_retriever.dtype` names; `None`: those that suit the device.
///
/// # Errors
/// `InvalidSetting` for an unknown name, and for numbers that the device does not multiply.
pub fn numbers(name: &str, device: &Device) -> Result<Option<Numbers>> {
    match name {
        "auto" => Ok(None),
        "f32" => Ok(Some(Numbers::F32)),
        "f16" => Ok(Some(Numbers::F16)),
        "bf16" if !device.is_cpu() => Ok(Some(Numbers::Bf16)),
        "int8" if device.is_cpu() => Ok(Some(Numbers::Int8)),
        name if device.is_cpu() => Err(invalid("dtype", name, "auto, f32, f16 or int8 on a CPU")),
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
