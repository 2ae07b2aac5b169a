//! The model's own next-token distribution: the last norm and the output embeddings.

use candle_core::{Result, Tensor};
use candle_nn::ops;

use super::weights::Weights;
use crate::error;

/// What turns the residual stream after the last block into log-odds of tokens.
pub struct Readout {
    norm: Tensor,
    eps: f32,
    /// `[vocab_size, hidden_size]`; the input embeddings where the checkpoint ties the two.
    embeddings: Tensor,
}

impl Readout {
    /// Reads the last norm and the output embeddings.
    ///
    /// # Errors
    /// `ModelDamaged`.
    pub fn load(weights: &Weights) -> error::Result<Self> {
        let config = weights.config();
        Ok(Self {
            norm: weights.output_norm(&[config.hidden_size])?,
            eps: config.rms_norm_eps as f32,
            embeddings: weights.output(&[config.vocab_size, config.hidden_size])?,
        })
    }

    /// The residual stream after the last block, `[n, hidden_size]`, normalised.
    pub fn normalize(&self, hidden: &Tensor) -> Result<Tensor> {
        ops::rms_norm(&hidden.contiguous()?, &self.norm, self.eps)
    }

    /// Log-odds of tokens after normalised states `[n, hidden_size]`, up to a constant of each
    /// state: `[n, tokens]`.
    pub fn logits(&self, states: &Tensor, tokens: &[u32]) -> Result<Tensor> {
        let tokens = Tensor::new(tokens, states.device())?;
        states.matmul(&self.embeddings.index_select(&tokens, 0)?.t()?)
    }
}
