//! Training the probe that finds mentions.

use std::ops::Range;

use candle_core::{DType, Device, Tensor, Var};
use indicatif::ProgressBar;
use ner_retriever_protocol::Span;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::json;

use super::{TrainOptions, optimizer::Schedule, rounded};
use crate::{
    corpus::Document,
    error::{Result, compute},
    eval::detection::{DetectionCounts, DetectionScores},
    features::{Features, TextFeatures},
    mentions::{
        candidates::{Candidates, MAX_WORDS},
        decode::without_overlap,
        probe::Probe,
    },
    text::{Word, char_starts, words},
};

/// Texts in a batch.
const BATCH_TEXTS: usize = 32;
/// Texts from which the hidden states' mean and deviation are taken.
const STATISTICS_TEXTS: usize = 500;
/// One text in this many is held out to choose the threshold.
const HELD_OUT: usize = 10;

/// A trained probe.
pub struct Trained {
    pub probe: Probe,
    /// Least probability of a mention.
    pub threshold: f32,
    /// For the provenance: losses, and scores on held-out texts.
    pub summary: serde_json::Value,
}

/// A text with its words and labels.
struct Example<'a> {
    document: &'a Document,
    /// `[tokens + 1, hidden_size]`.
    hidden: &'a Tensor,
    words: Vec<Word>,
    /// Bytes of the labelled mentions.
    gold: Vec<Range<usize>>,
}

/// Trains a probe on labelled spans.
pub fn train(
    documents: &[Document],
    features: &Features,
    hidden_size: usize,
    options: &TrainOptions,
) -> Result<Trained> {
    let mut random = StdRng::seed_from_u64(options.seed);
    let mut examples: Vec<Example> = documents
        .iter()
        .zip(features.texts())
        .filter_map(|(d, f)| example(d, f))
        .collect();
    examples.shuffle(&mut random);
    let (held_out, examples) = examples.split_at_mut((documents.len() / HELD_OUT).max(1));
    let (probe, losses) = fit(examples, hidden_size, options, &mut random).map_err(compute)?;
    let curve = threshold_curve(held_out, &probe).map_err(compute)?;
    let best = curve.iter().max_by(|a, b| a.1.f1.total_cmp(&b.1.f1));
    let threshold = options.threshold.or(best.map(|best| best.0)).unwrap_or(0.5);
    eprintln!("threshold  precision  recall     F1  coverage  mentions/text  (held-out texts)");
    for (threshold, s) in &curve {
        eprintln!(
            "{threshold:>9.2}  {:>9.3}  {:>6.3}  {:>5.3}  {:>8.3}  {:>13.2}",
            s.precision, s.recall, s.f1, s.coverage, s.mentions_per_text
        );
    }
    let parameters: usize = probe.tensors().values().map(Tensor::elem_count).sum();
    let summary = json!({
        "parameters": parameters,
        "loss_by_epoch": losses.iter().map(|loss| rounded(*loss)).collect::<Vec<_>>(),
        "held_out_texts": held_out.len(),
        "best_held_out_f1": best.map(|(_, scores)| rounded(scores.f1)),
        "coverage_at_best_f1": best.map(|(_, scores)| rounded(scores.coverage)),
    });
    Ok(Trained {
        probe,
        threshold,
        summary,
    })
}

fn example<'a>(document: &'a Document, features: &'a TextFeatures) -> Option<Example<'a>> {
    let words = words(&document.text, &features.encoded)
        .into_iter()
        // Rows count the model's first token.
        .map(|word| Word {
            first: word.first + 1,
            last: word.last + 1,
            ..word
        })
        .collect();
    let starts = char_starts(&document.text);
    let gold = document
        .mentions
        .iter()
        .map(|m| starts[m.span.start as usize]..starts[m.span.end as usize])
        .collect();
    Some(Example {
        document,
        hidden: features.hidden.as_ref()?,
        words,
        gold,
    })
}

fn fit(
    examples: &mut [Example],
    hidden_size: usize,
    options: &TrainOptions,
    random: &mut StdRng,
) -> candle_core::Result<(Probe, Vec<f64>)> {
    let (probe, vars) = initial(examples, hidden_size, options.probe_units, random)?;
    let batches = examples.len().div_ceil(BATCH_TEXTS);
    let steps = batches * options.probe_epochs;
    let mut schedule = Schedule::new(
        vars,
        options.probe_learning_rate,
        options.weight_decay,
        steps,
    )?;
    let progress = ProgressBar::new(steps as u64);
    let mut losses = Vec::new();
    for epoch in 0..options.probe_epochs {
        examples.shuffle(random);
        let mut sum = 0.0;
        for batch in examples.chunks(BATCH_TEXTS) {
            let trust = if epoch == 0 {
                1.0
            } else {
                options.trust_unlabelled_below
            };
            let loss = loss(&probe, batch, trust)?;
            sum += f64::from(loss.to_scalar::<f32>()?);
            schedule.step(&loss)?;
            progress.inc(1);
        }
        losses.push(sum / batches as f64);
    }
    progress.finish_and_clear();
    Ok((probe, losses))
}

/// Binary cross-entropy summed over a text's candidates, mean over texts. Unlabelled candidates
/// above the probability `trust` count neither way, unless they overlap a labelled mention.
fn loss(probe: &Probe, batch: &[Example], trust: f32) -> candle_core::Result<Tensor> {
    let (hidden, candidates) = pack(batch)?;
    let logits = probe.logits(&hidden, &candidates)?;
    let guess = logits.detach().to_vec1::<f32>()?;
    let limit = (trust / (1.0 - trust)).ln();
    let (mut labels, mut weights) = (Vec::new(), Vec::new());
    for (span, guess) in candidates.spans.iter().zip(guess) {
        let example = &batch[span.sequence];
        let bytes = bytes(example, span.first_word, span.last_word);
        let positive = example.gold.contains(&bytes);
        let overlaps = |gold: &Range<usize>| gold.start < bytes.end && bytes.start < gold.end;
        let trusted = positive || guess <= limit || example.gold.iter().any(overlaps);
        labels.push(f32::from(u8::from(positive)));
        weights.push(f32::from(u8::from(trusted)));
    }
    let labels = Tensor::new(labels, &Device::Cpu)?;
    let weights = Tensor::new(weights, &Device::Cpu)?;
    // max(x, 0) - x * y + log(1 + exp(-|x|)), which does not overflow.
    let log = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
    let entropy = ((logits.relu()? - (&logits * labels)?)? + log)?;
    (entropy * weights)?.sum_all()? / batch.len() as f64
}

/// Hidden states of a batch, `[tokens, hidden_size]` f32, and its candidates.
fn pack(batch: &[Example]) -> candle_core::Result<(Tensor, Candidates)> {
    let hidden: Vec<&Tensor> = batch.iter().map(|example| example.hidden).collect();
    let hidden = Tensor::cat(&hidden, 0)?.to_dtype(DType::F32)?;
    let mut candidates = Candidates::default();
    let mut offset = 0;
    for (sequence, example) in batch.iter().enumerate() {
        let rows = example.hidden.dim(0)?;
        candidates.add(sequence, &example.words, offset, rows);
        offset += rows;
    }
    Ok((hidden, candidates))
}

fn bytes(example: &Example, first: usize, last: usize) -> Range<usize> {
    example.words[first].bytes.start..example.words[last].bytes.end
}

/// Random weights; the output starts at zero. The variables share their storage with the probe's
/// tensors.
fn initial(
    examples: &[Example],
    hidden_size: usize,
    units: usize,
    random: &mut StdRng,
) -> candle_core::Result<(Probe, Vec<Var>)> {
    let rows: Vec<Tensor> = examples
        .iter()
        .take(STATISTICS_TEXTS)
        // Without the first token, an attention sink whose states are a thousand times larger.
        .map(|example| example.hidden.narrow(0, 1, example.hidden.dim(0)? - 1))
        .collect::<candle_core::Result<_>>()?;
    let rows = Tensor::cat(&rows, 0)?.to_dtype(DType::F32)?;
    let mean = rows.mean(0)?;
    let variance = rows.broadcast_sub(&mean)?.sqr()?.mean(0)?;
    let bound = 1.0 / (5.0 * hidden_size as f32).sqrt();
    let tokens: Vec<f32> = (0..5 * units * hidden_size)
        .map(|_| random.random_range(-bound..=bound))
        .collect();
    let vars = [
        Var::from_vec(tokens, (5 * units, hidden_size), &Device::Cpu)?,
        Var::zeros((MAX_WORDS, units), DType::F32, &Device::Cpu)?,
        Var::from_vec(
            (0..units)
                .map(|_| random.random_range(-0.1..=0.1))
                .collect::<Vec<f32>>(),
            (units, 1),
            &Device::Cpu,
        )?,
        // Few candidates are mentions.
        Var::from_vec(vec![-4.0f32], 1, &Device::Cpu)?,
    ];
    let probe = Probe {
        mean,
        scale: (variance + 1e-6)?.sqrt()?.recip()?,
        tokens: vars[0].as_tensor().clone(),
        width: vars[1].as_tensor().clone(),
        output: vars[2].as_tensor().clone(),
        bias: vars[3].as_tensor().clone(),
    };
    Ok((probe, vars.to_vec()))
}

/// Detection on held-out texts at thresholds from 0.05 to 0.95.
fn threshold_curve(
    examples: &[Example],
    probe: &Probe,
) -> candle_core::Result<Vec<(f32, DetectionScores)>> {
    let mut scored: Vec<Vec<(Range<usize>, f32)>> = vec![Vec::new(); examples.len()];
    for (number, batch) in examples.chunks(BATCH_TEXTS).enumerate() {
        let (hidden, candidates) = pack(batch)?;
        let scores = probe.score(&hidden, &candidates)?;
        let scores = scores.map_or(Ok(Vec::new()), |scores| scores.to_vec1())?;
        for (span, score) in candidates.spans.iter().zip(scores) {
            let bytes = bytes(&batch[span.sequence], span.first_word, span.last_word);
            scored[number * BATCH_TEXTS + span.sequence].push((bytes, score));
        }
    }
    let curve = (1..20).map(|step| {
        let threshold = step as f32 / 20.0;
        let mut counts = DetectionCounts::default();
        for (example, scored) in examples.iter().zip(&scored) {
            let above: Vec<_> = scored
                .iter()
                .filter(|(_, s)| *s >= threshold)
                .cloned()
                .collect();
            let starts = char_starts(&example.document.text);
            let character = |byte: usize| starts.partition_point(|&start| start < byte) as u32;
            let detected: Vec<Span> = without_overlap(&above)
                .into_iter()
                .map(|index| Span {
                    start: character(above[index].0.start),
                    end: character(above[index].0.end),
                })
                .collect();
            let gold: Vec<Span> = example.document.mentions.iter().map(|m| m.span).collect();
            counts.add(&example.document.text, &gold, &detected);
        }
        (threshold, counts.scores())
    });
    Ok(curve.collect())
}
