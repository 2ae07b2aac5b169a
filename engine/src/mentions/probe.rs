//! The trained probe: a probability for every candidate span from one block's hidden states.
//!
//! After ToMMeR (arXiv 2510.19410), a span is scored from its tokens' features of one block. Here
//! the score is a small network over the span's first and last token and the tokens around them: a
//! causal model's state at a token does not know what follows, so the two tokens after the span
//! tell whether it ends there.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor, bail};
use candle_nn::ops;

use super::{
    candidates::{Candidates, MAX_WORDS, PARTS},
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
            tokens: tensors.take("tokens", &[PARTS * units, hidden_size])?,
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

    /// One probe whose log-odds are the mean of those of `probes`, which share their mean and deviation: their
    /// units side by side.
    pub fn mean(probes: &[Self]) -> Result<Self> {
        let [first, ..] = probes else {
            bail!("the mean of no probes")
        };
        let tensors = |of: fn(&Self) -> &Tensor| probes.iter().map(of).collect::<Vec<_>>();
        let of_tokens = probes.iter().map(|probe| {
            let (rows, hidden_size) = probe.tokens.dims2()?;
            probe.tokens.reshape((PARTS, rows / PARTS, hidden_size))
        });
        let of_tokens: Vec<Tensor> = of_tokens.collect::<Result<_>>()?;
        let share = 1.0 / probes.len() as f64;
        Ok(Self {
            mean: first.mean.clone(),
            scale: first.scale.clone(),
            tokens: Tensor::cat(&of_tokens, 1)?.flatten(0, 1)?.contiguous()?,
            width: Tensor::cat(&tensors(|probe| &probe.width), 1)?.contiguous()?,
            output: (Tensor::cat(&tensors(|probe| &probe.output), 0)? * share)?,
            bias: Tensor::cat(&tensors(|probe| &probe.bias), 0)?.mean_keepdim(0)?,
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_probes_gives_the_mean_of_their_log_odds() -> Result<()> {
        let cpu = Device::Cpu;
        let random = |rows: usize, columns: usize| Tensor::randn(0f32, 1.0, (rows, columns), &cpu);
        let hidden_size = 7;
        let (mean, scale) = (
            random(1, hidden_size)?.squeeze(0)?,
            random(1, hidden_size)?.squeeze(0)?,
        );
        let probe = |units: usize| {
            Ok(Probe {
                mean: mean.clone(),
                scale: scale.clone(),
                tokens: random(PARTS * units, hidden_size)?,
                width: random(MAX_WORDS, units)?,
                output: random(units, 1)?,
                bias: random(1, 1)?.squeeze(0)?,
            })
        };
        let probes: Vec<Probe> = [3, 5, 16].into_iter().map(probe).collect::<Result<_>>()?;

        let (candidates, tokens) = Candidates::of_words(&[6]);
        let hidden = random(tokens, hidden_size)?;
        let of_each = probes
            .iter()
            .map(|probe| probe.logits(&hidden, &candidates));
        let expected = Tensor::stack(&of_each.collect::<Result<Vec<_>>>()?, 0)?.mean(0)?;
        let ours = Probe::mean(&probes)?.logits(&hidden, &candidates)?;
        let difference = (ours - expected)?.abs()?.max(0)?.to_scalar::<f32>()?;
        assert!(difference < 1e-4, "{difference}");
        Ok(())
    }
}
