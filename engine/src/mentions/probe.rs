//! The trained probe: a probability for every candidate span from one block's hidden states.
//!
//! After ToMMeR (arXiv 2510.19410), a span is scored from its tokens' features of one block. Here
//! the score is a small network over the span's first and last token and the tokens around them: a
//! causal model's state at a token does not know what follows, so the two tokens after the span
//! tell whether it ends there.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};
use candle_nn::ops;

use super::{
    candidates::{Candidates, MAX_WORDS},
    span_network::SpanNetwork,
};
use crate::tensor_map::TensorMap;

/// The probe's parameters, for hidden states of width `h` and `u` hidden units.
#[derive(Clone)]
pub struct Probe {
    /// Mean of the hidden states, `[h]`.
    pub mean: Tensor,
    /// One over their standard deviation, `[h]`.
    pub scale: Tensor,
    /// For each of the five tokens of a candidate, `[5 * u, h]`.
    pub tokens: Tensor,
    /// For each number of words, `[MAX_WORDS, u]`.
    pub width: Tensor,
    /// `[u, 1]`.
    pub output: Tensor,
    /// `[1]`.
    pub bias: Tensor,
}

impl Probe {
    /// Takes the tensors out of a file; `Err` names what is missing or of a wrong shape.
    pub fn from_tensors(
        mut tensors: TensorMap,
        hidden_size: usize,
    ) -> std::result::Result<Self, String> {
        let units = tensors.elements("output");
        Ok(Self {
            mean: tensors.take("mean", &[hidden_size])?,
            scale: tensors.take("scale", &[hidden_size])?,
            tokens: tensors.take("tokens", &[5 * units, hidden_size])?,
            width: tensors.take("width", &[MAX_WORDS, units])?,
            output: tensors.take("output", &[units, 1])?,
            bias: tensors.take("bias", &[1])?,
        })
    }

    /// The probe's tensors by name.
    pub fn tensors(&self) -> HashMap<String, Tensor> {
        [
            ("mean", &self.mean),
            ("scale", &self.scale),
            ("tokens", &self.tokens),
            ("width", &self.width),
            ("output", &self.output),
            ("bias", &self.bias),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor.clone()))
        .into()
    }

    pub fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(Self {
            mean: self.mean.to_device(device)?,
            scale: self.scale.to_device(device)?,
            tokens: self.tokens.to_device(device)?,
            width: self.width.to_device(device)?,
            output: self.output.to_device(device)?,
            bias: self.bias.to_device(device)?,
        })
    }

    /// Log-odds of every candidate, `[candidates]`; `hidden` is `[tokens, h]`.
    pub fn logits(&self, hidden: &Tensor, candidates: &Candidates) -> Result<Tensor> {
        let parts = self.standardized(hidden)?.matmul(&self.tokens.t()?)?;
        self.of_parts(&parts, candidates)
    }

    /// Hidden states `[tokens, h]` less their mean, over their deviation.
    pub fn standardized(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.broadcast_sub(&self.mean)?.broadcast_mul(&self.scale)
    }

    /// Log-odds of every candidate, `[candidates]`, of the tokens' parts `[tokens, 5 * u]`.
    pub fn of_parts(&self, parts: &Tensor, candidates: &Candidates) -> Result<Tensor> {
        let network = SpanNetwork::new(candidates);
        parts
            .apply_op3(&self.width, &self.output, network)?
            .broadcast_add(&self.bias)
    }

    /// Probability of every candidate, in their order, `[candidates]`; of none, nothing.
    pub fn score(&self, hidden: &Tensor, candidates: &Candidates) -> Result<Option<Tensor>> {
        if candidates.spans.is_empty() {
            return Ok(None);
        }
        #[cfg(feature = "cuda")]
        if hidden.device().is_cuda() {
            return crate::model::cuda::span_scores(self, hidden, candidates).map(Some);
        }
        ops::sigmoid(&self.logits(hidden, candidates)?).map(Some)
    }
}
