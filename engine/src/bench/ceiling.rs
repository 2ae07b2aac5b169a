//! How fast this machine multiplies matrices in the libraries whose kernels the model uses.

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::{NdTensor, prelude::*};

use crate::{
    error::{Result, compute},
    model::{Numbers, config::LlamaConfig},
};

/// Operations/s of the widest product of a block on a CPU, that of gate and up, in gemm (f32) or rten-gemm
/// (int8) alone; `None` for bf16, whose kernel is ours, and f16.
pub fn operations_per_s(
    config: &LlamaConfig,
    tokens: usize,
    numbers: Numbers,
    seconds: f64,
) -> Result<Option<f64>> {
    let (inputs, outputs) = (config.hidden_size, 2 * config.intermediate_size);
    let per_s = match numbers {
        Numbers::F32 => {
            let random = |rows, columns| {
                Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).map_err(compute)
            };
            let (x, weight) = (random(tokens, inputs)?, random(inputs, outputs)?);
            products_per_s(seconds, || x.matmul(&weight).map(drop).map_err(compute))?
        }
        Numbers::Int8 => {
            let kernel = GemmExecutor::<u8, i8, i32>::default();
            let x = NdTensor::full([tokens, inputs], 3);
            let weight = kernel.prepack_b(NdTensor::full([inputs, outputs], 5).view());
            let mut sums = vec![0; tokens * outputs];
            products_per_s(seconds, || {
                let (x, weight) = (GemmInputA::Unpacked(x.view()), GemmInputB::Packed(&weight));
                let options = GemmOptions::default();
                let product = kernel.gemm(&mut sums, x, weight, options);
                product.map_err(candle_core::Error::wrap).map_err(compute)
            })?
        }
        Numbers::Bf16 | Numbers::F16 => return Ok(None),
    };
    Ok(Some(per_s * (2 * tokens * inputs * outputs) as f64))
}

fn products_per_s(seconds: f64, mut product: impl FnMut() -> Result<()>) -> Result<f64> {
    product()?;
    let (mut products, started) = (0, Instant::now());
    while products == 0 || started.elapsed() < Duration::from_secs_f64(seconds) {
        product()?;
        products += 1;
    }
    Ok(f64::from(products) / started.elapsed().as_secs_f64())
}
