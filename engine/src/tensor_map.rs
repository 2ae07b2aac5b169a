//! Named tensors of a head's file, taken out one by one and checked.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor, pickle};

/// A file's tensors by name.
pub struct TensorMap(HashMap<String, Tensor>);

impl TensorMap {
    /// Reads a safetensors file, or a PyTorch state dict if the name ends in `.pth`; `Err` says
    /// what is wrong with the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let tensors = if path.extension().is_some_and(|extension| extension == "pth") {
            pickle::read_all(path).map(|tensors| tensors.into_iter().collect())
        } else {
            candle_core::safetensors::load(path, &Device::Cpu)
        };
        tensors.map(Self).map_err(|e| e.to_string())
    }

    /// Elements of a tensor; 0 if it is not there.
    pub fn elements(&self, name: &str) -> usize {
        self.0.get(name).map_or(0, Tensor::elem_count)
    }

    /// Takes a tensor; `Err` says that it is missing or not f32 of this shape.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, String> {
        let tensor = self
            .0
            .remove(name)
            .ok_or_else(|| format!("tensor \"{name}\" is missing"))?;
        if tensor.dims() == shape && tensor.dtype() == DType::F32 {
            Ok(tensor)
        } else {
            Err(format!(
                "tensor \"{name}\" is {:?} {:?}, not F32 {shape:?}",
                tensor.dtype(),
                tensor.dims()
            ))
        }
    }
}
