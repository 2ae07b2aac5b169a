//! Rotary position embeddings: cosine and sine tables.

use candle_core::{Device, Result, Tensor};

use super::{
    config::{LlamaConfig, RopeScaling},
    rows::rows,
};

/// Cosines and sines of all positions of a window.
pub struct Rope {
    /// `[context, head_dim / 2]`.
    cos: Tensor,
    /// `[context, head_dim / 2]`.
    sin: Tensor,
}

impl Rope {
    /// Tables for positions `0..context`, in f32.
    pub fn new(config: &LlamaConfig, context: usize, device: &Device) -> Result<Self> {
        let frequencies = inverse_frequencies(config);
        let half = frequencies.len();
        let angles: Vec<f32> = (0..context)
            .flat_map(|position| {
                frequencies
                    .iter()
                    .map(move |frequency| (position as f64 * frequency) as f32)
            })
            .collect();
        let angles = Tensor::from_vec(angles, (context, half), &Device::Cpu)?;
        Ok(Self {
            cos: angles.cos()?.to_device(device)?,
            sin: angles.sin()?.to_device(device)?,
        })
    }

    /// The rows of the tokens of packed sequences, `positions` being `[tokens]` u32: cosines and
    /// sines, each `[tokens, head_dim / 2]`.
    pub fn rows(&self, positions: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok((rows(&self.cos, positions)?, rows(&self.sin, positions)?))
    }
}

/// Radians per position of each rotated pair, `[head_dim / 2]`.
fn inverse_frequencies(config: &LlamaConfig) -> Vec<f64> {
    (0..config.head_dim / 2)
        .map(|i| {
            let frequency = config
                .rope_theta
                .powf(-((2 * i) as f64) / config.head_dim as f64);
            match &config.rope_scaling {
                None => frequency,
                Some(RopeScaling::Linear { factor }) => frequency / factor,
                Some(RopeScaling::Divisors(divisors)) => {
                    frequency / f64::from(divisors.get(i).copied().unwrap_or(1.0))
                }
                Some(RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_context,
                }) => {
                    // transformers 4.43, modeling_rope_utils.py, _compute_llama3_parameters:
                    // long wavelengths are stretched, short ones kept, those between interpolated.
                    let wavelength = 2.0 * std::f64::consts::PI / frequency;
                    let smooth = (original_context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    let smooth = smooth.clamp(0.0, 1.0);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        })
        .collect()
}
