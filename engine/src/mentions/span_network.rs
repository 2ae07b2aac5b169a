//! The probe's hidden units and output on the CPU: every candidate's log-odds from its tokens' parts, in
//! one pass, forwards and backwards. As tensor operations they take more than ten passes over `[candidates, u]`,
//! which does not fit the caches: a sentence of 25 words has 280 candidates.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::candidates::{Candidates, MAX_WORDS, PARTS};
use crate::model::{
    fused::{cpu_numbers, numbers},
    lanes::exp,
};

/// Sums are kept in as many parts, which need no order: they fill one or more registers.
const LANES: usize = 16;

/// Rows of a candidate's tokens, and its number of words less one.
type Candidate = ([Option<u32>; PARTS], usize);

/// Log-odds without the bias, `[candidates]`, of the tokens' parts `[tokens, 5 * u]`, the widths' units
/// `[MAX_WORDS, u]` and the output weights `[u, 1]`.
pub struct SpanNetwork {
    candidates: Vec<Candidate>,
    /// Per sequence, which candidates are its, and the rows of its tokens.
    sequences: Vec<(Range<usize>, Range<usize>)>,
}

impl SpanNetwork {
    pub fn new(candidates: &Candidates) -> Self {
        let spans = &candidates.spans;
        let rows = candidates.rows.iter().copied();
        let widths = spans.iter().map(|span| span.last_word - span.first_word);
        let mut sequences: Vec<(Range<usize>, Range<usize>)> = Vec::new();
        let mut from = 0;
        for part in spans.chunk_by(|a, b| a.sequence == b.sequence) {
            let range = from..from + part.len();
            from = range.end;
            let rows = || candidates.rows[range.clone()].iter().flatten().flatten();
            let before = sequences.last().map_or(0, |(_, rows)| rows.end);
            let first = rows().min().map_or(before, |row| *row as usize);
            let end = rows().max().map_or(first, |row| *row as usize + 1);
            sequences.push((range.clone(), first..end));
        }
        Self {
            candidates: rows.zip(widths).collect(),
            sequences,
        }
    }
}

/// What a pass reads; see [`SpanNetwork`].
#[derive(Clone, Copy)]
struct Inputs<'a> {
    parts: &'a [f32],
    width: &'a [f32],
    output: &'a [f32],
}

impl<'a> Inputs<'a> {
    fn new(parts: &'a [f32], width: &'a [f32], output: &'a [f32], last_row: usize) -> Result<Self> {
        let units = output.len();
        if units == 0 || width.len() != MAX_WORDS * units || parts.len() < last_row * PARTS * units
        {
            bail!(
                "{} parts and {} widths of {units} units",
                parts.len(),
                width.len()
            );
        }
        Ok(Self {
            parts,
            width,
            output,
        })
    }

    fn units(&self) -> usize {
        self.output.len()
    }

    /// The units' inputs of a candidate.
    #[inline(always)]
    fn sum(&self, (rows, width): &Candidate, sum: &mut [f32]) {
        let units = self.units();
        sum.copy_from_slice(&self.width[width * units..][..units]);
        for (part, row) in rows.iter().enumerate() {
            if let Some(row) = row {
                let from = (*row as usize * PARTS + part) * units;
                add(sum, &self.parts[from..][..units]);
            }
        }
    }
}

#[inline(always)]
fn add(sum: &mut [f32], numbers: &[f32]) {
    for (sum, number) in sum.iter_mut().zip(numbers) {
        *sum += number;
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Log-odds of some candidates.
struct Forward<'a> {
    inputs: Inputs<'a>,
    candidates: &'a [Candidate],
    logits: &'a mut [f32],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    // This and all it calls is inlined, so that it is compiled for the caller's registers.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let mut sum = vec![0.0; self.inputs.units()];
        for (candidate, logit) in self.candidates.iter().zip(self.logits) {
            self.inputs.sum(candidate, &mut sum);
            let mut sums = [0.0; LANES];
            let (whole, rest) = sum.as_chunks::<LANES>();
            let (weights, rest_weights) = self.inputs.output.as_chunks::<LANES>();
            for (x, weight) in whole.iter().zip(weights) {
                for lane in 0..LANES {
                    sums[lane] += x[lane] * sigmoid(x[lane]) * weight[lane];
                }
            }
            let rest = rest.iter().zip(rest_weights);
            let rest: f32 = rest.map(|(x, weight)| x * sigmoid(*x) * weight).sum();
            *logit = sums.iter().sum::<f32>() + rest;
        }
    }
}

/// Gradients from one sequence's candidates.
struct Backward<'a> {
    inputs: Inputs<'a>,
    candidates: &'a [Candidate],
    /// Of the log-odds.
    gradients: &'a [f32],
    /// Of the parts, from row `first` on.
    parts: &'a mut [f32],
    first: usize,
}

/// Gradients of the widths' units and the output weights.
type Shared = (Vec<f32>, Vec<f32>);

impl WithSimd for Backward<'_> {
    type Output = Shared;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Shared {
        let units = self.inputs.units();
        let (mut widths, mut outputs) = (vec![0.0; MAX_WORDS * units], vec![0.0; units]);
        let mut sum = vec![0.0; units];
        for (candidate, gradient) in self.candidates.iter().zip(self.gradients) {
            if *gradient == 0.0 {
                continue;
            }
            self.inputs.sum(candidate, &mut sum);
            let units_of = sum.iter_mut().zip(self.inputs.output).zip(&mut outputs);
            for ((x, weight), output) in units_of {
                let sigmoid = sigmoid(*x);
                *output += gradient * *x * sigmoid;
                *x = gradient * weight * sigmoid * (1.0 + *x * (1.0 - sigmoid));
            }
            let (rows, width) = candidate;
            add(&mut widths[width * units..][..units], &sum);
            for (part, row) in rows.iter().enumerate() {
                if let Some(row) = row {
                    let from = ((*row as usize - self.first) * PARTS + part) * units;
                    add(&mut self.parts[from..][..units], &sum);
                }
            }
        }
        (widths, outputs)
    }
}

impl SpanNetwork {
    fn last_row(&self) -> usize {
        self.sequences.last().map_or(0, |(_, rows)| rows.end)
    }

    fn forward(&self, inputs: Inputs) -> Vec<f32> {
        let mut logits = vec![0.0; self.candidates.len()];
        let size = self
            .candidates
            .len()
            .div_ceil(4 * rayon::current_num_threads())
            .max(1);
        let tasks = logits
            .par_chunks_mut(size)
            .zip(self.candidates.par_chunks(size));
        tasks.for_each(|(logits, candidates)| {
            Arch::new().dispatch(Forward {
                inputs,
                candidates,
                logits,
            });
        });
        logits
    }

    /// Gradients of the parts, and of what all candidates share; the latter are added in the order of the
    /// sequences, so that the same run gives the same bytes.
    fn backward(&self, inputs: Inputs, gradients: &[f32]) -> (Vec<f32>, Shared) {
        let row = PARTS * inputs.units();
        let mut parts = vec![0.0; inputs.parts.len()];
        let (mut tasks, mut rest, mut at) = (Vec::new(), &mut parts[..], 0);
        for (range, rows) in &self.sequences {
            let (own, others) = rest
                .split_at_mut((rows.start - at) * row)
                .1
                .split_at_mut(rows.len() * row);
            tasks.push((range, rows.start, own));
            (rest, at) = (others, rows.end);
        }
        let shared: Vec<Shared> = tasks
            .into_par_iter()
            .map(|(range, first, parts)| {
                Arch::new().dispatch(Backward {
                    inputs,
                    candidates: &self.candidates[range.clone()],
                    gradients: &gradients[range.clone()],
                    parts,
                    first,
                })
            })
            .collect();
        let units = inputs.units();
        let mut sum = (vec![0.0; MAX_WORDS * units], vec![0.0; units]);
        for (widths, outputs) in shared {
            add(&mut sum.0, &widths);
            add(&mut sum.1, &outputs);
        }
        (parts, sum)
    }
}

impl CustomOp3 for SpanNetwork {
    fn name(&self) -> &'static str {
        "span-network"
    }

    fn cpu_fwd(
        &self,
        parts: &CpuStorage,
        parts_layout: &Layout,
        width: &CpuStorage,
        width_layout: &Layout,
        output: &CpuStorage,
        output_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = Inputs::new(
            cpu_numbers(parts, parts_layout)?,
            cpu_numbers(width, width_layout)?,
            cpu_numbers(output, output_layout)?,
            self.last_row(),
        )?;
        let logits = self.forward(inputs);
        let count = logits.len();
        Ok((CpuStorage::F32(logits), count.into()))
    }

    fn bwd(
        &self,
        parts: &Tensor,
        width: &Tensor,
        output: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.to_vec1::<f32>()?;
        let (p, p_layout) = parts.storage_and_layout();
        let (w, w_layout) = width.storage_and_layout();
        let (o, o_layout) = output.storage_and_layout();
        let (p, w, o) = (
            numbers(&p, p_layout)?,
            numbers(&w, w_layout)?,
            numbers(&o, o_layout)?,
        );
        let (of_parts, (of_width, of_output)) =
            self.backward(Inputs::new(p, w, o, self.last_row())?, &gradient);
        let like = |numbers, tensor: &Tensor| {
            Tensor::from_vec(numbers, tensor.shape(), tensor.device()).map(Some)
        };
        Ok((
            like(of_parts, parts)?,
            like(of_width, width)?,
            like(of_output, output)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};
    use candle_nn::ops;

    use super::*;

    /// The same by tensor operations.
    fn reference(
        parts: &Tensor,
        width: &Tensor,
        output: &Tensor,
        candidates: &Candidates,
    ) -> Result<Tensor> {
        let (tokens, units) = (parts.dim(0)?, output.dim(0)?);
        let parts = parts.pad_with_zeros(0, 0, 1)?;
        let spans = candidates.spans.iter();
        let widths: Vec<u32> = spans.map(|s| (s.last_word - s.first_word) as u32).collect();
        let mut sum = width.index_select(&Tensor::new(widths, &Device::Cpu)?, 0)?;
        for part in 0..PARTS {
            let rows = candidates.rows.iter();
            let rows: Vec<u32> = rows.map(|r| r[part].unwrap_or(tokens as u32)).collect();
            let of_part = parts.narrow(1, part * units, units)?.contiguous()?;
            sum = (sum + of_part.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)?;
        }
        ops::silu(&sum)?.matmul(output)?.squeeze(1)
    }

    #[test]
    fn log_odds_and_gradients_are_those_of_tensor_operations() -> Result<()> {
        for (words, units) in [(&[3, 1, 20][..], 40), (&[1], 16), (&[2, 7], 5)] {
            let (candidates, tokens) = Candidates::of_words(words);
            let var = |rows: usize, columns: usize| {
                Var::from_tensor(&Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu)?)
            };
            let parts = var(tokens, PARTS * units)?;
            let (width, output) = (var(MAX_WORDS, units)?, var(units, 1)?);
            let count = candidates.spans.len();
            let gradient = Tensor::randn(0f32, 1.0, count, &Device::Cpu)?;
            let of = |logits: Tensor| {
                let gradients = (&logits * &gradient)?.sum_all()?.backward()?;
                let of = |var: &Var| gradients.get(var).cloned().unwrap();
                Ok::<_, candle_core::Error>([logits, of(&parts), of(&width), of(&output)])
            };
            let network = SpanNetwork::new(&candidates);
            let ours = of(parts.apply_op3(&width, &output, network)?)?;
            let expected = of(reference(&parts, &width, &output, &candidates)?)?;
            for (ours, expected) in ours.iter().zip(&expected) {
                assert_eq!(ours.dims(), expected.dims());
                let difference = (ours - expected)?.abs()?.flatten_all()?.max(0)?;
                let difference = difference.to_dtype(DType::F32)?.to_scalar::<f32>()?;
                assert!(difference < 1e-4, "{words:?} {units}: {difference}");
            }
        }
        Ok(())
    }
}
