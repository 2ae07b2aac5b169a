//! Training the probe that finds mentions.

use std::path::Path;

use candle_core::{DType, Device, Tensor, Var, backprop::GradStore};
use indicatif::ProgressBar;
use ner_retriever_protocol::Span;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde_json::json;

use super::{
    TrainOptions, capitals,
    examples::{BATCH_TEXTS, Example, Mark, batch, detected, score},
    invalid,
    optimizer::{Schedule, dropout},
    rounded,
};
use crate::{
    corpus::{Document, GoldMention},
    error::{Result, compute},
    eval::detection::{DetectionCounts, DetectionScores},
    features::Features,
    head::{Head, HeadDescription},
    mentions::{
        candidates::{MAX_WORDS, PARTS},
        probe::Probe,
    },
    model::BaseModel,
    text::char_starts,
};

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

/// The probe of another head for the same base model, with its threshold if the options have none.
///
/// # Errors
/// The head's; `HeadMismatch` for one of another model; `InvalidSetting` if it has no probe, or one that reads
/// another block.
pub fn of_head(
    folder: &Path,
    model: &BaseModel,
    block: usize,
    options: &TrainOptions,
) -> Result<Trained> {
    let description = HeadDescription::read(folder)?;
    let config = model.llama.config();
    description.check_base_model(&model.hash, config.blocks, config.kv_dim())?;
    let head = Head::load(folder, description, config.hidden_size, &Device::Cpu)?;
    let HeadDescription {
        name,
        detector,
        provenance,
        ..
    } = head.description;
    let (Some(probe), Some(detector)) = (head.probe, detector) else {
        return Err(invalid(format!("head \"{name}\" has no probe")));
    };
    if detector.block != block {
        return Err(invalid(format!(
            "the probe of head \"{name}\" reads block {}, not {block}",
            detector.block
        )));
    }
    Ok(Trained {
        probe,
        threshold: options.threshold.unwrap_or(detector.threshold),
        summary: json!({
            "head": name,
            "command": provenance["command"],
            "probe": provenance["probe"],
        }),
    })
}

/// Texts as they are written, and those that are lower-cased as they then are.
pub struct Texts<'a> {
    pub written: (&'a [Document], &'a Features),
    /// In the order of the others, of which they are some.
    pub lower: (&'a [Document], &'a Features),
    /// Of each text, whether it is one of them.
    pub lowered: &'a [bool],
}

/// An example as its text is written, and in lower case if it is learned from so.
type Forms<'a> = (Example<'a>, Option<Example<'a>>);

/// Trains a probe on labelled spans.
///
/// # Errors
/// `InvalidSetting` for fewer than two texts; `OutOfMemory`, `Internal`.
pub fn train(texts: &Texts, hidden_size: usize, options: &TrainOptions) -> Result<Trained> {
    let mut random = StdRng::seed_from_u64(options.seed);
    let mut forms = forms(texts);
    forms.shuffle(&mut random);
    if forms.len() < 2 {
        return Err(invalid("the probe needs two texts at least".to_owned()));
    }
    let rest = forms.split_off((forms.len() / HELD_OUT).max(1));
    let both = options.probe_both_forms;
    let held_out: Vec<Example> = forms
        .into_iter()
        .flat_map(|forms| read(forms, both))
        .collect();
    let (mut written, mut lower): (Vec<_>, Vec<_>) = rest.into_iter().unzip();
    if options.names_are_capitalized {
        label_by_capitals(&mut written, &mut lower, hidden_size, options, &mut random)
            .map_err(compute)?;
    }
    let examples: Vec<Example> = written
        .into_iter()
        .zip(lower)
        .flat_map(|forms| read(forms, both))
        .collect();
    let fits = (0..options.probe_networks.get())
        .map(|_| fit(&examples, hidden_size, options, &mut random));
    let fits = fits
        .collect::<candle_core::Result<Vec<_>>>()
        .map_err(compute)?;
    let (probes, losses): (Vec<Probe>, Vec<Vec<f64>>) = fits.into_iter().unzip();
    let probe = Probe::mean(&probes).map_err(compute)?;
    let curve = threshold_curve(&held_out, &probe).map_err(compute)?;
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
        "loss_by_epoch": losses,
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

/// The texts with what a probe finds in them beside their labels, as mentions of no type: those
/// whose probability is at least `threshold`.
///
/// # Errors
/// `OutOfMemory`, `Internal`.
pub fn with_detected(
    probe: &Probe,
    threshold: f32,
    documents: &[Document],
    features: &Features,
) -> Result<Vec<Document>> {
    let texts = documents.iter().zip(features.texts());
    let examples: Vec<Example> = texts.filter_map(|(d, f)| Example::new(d, f)).collect();
    let scores = score(probe, &examples).map_err(compute)?;
    let documents = examples.iter().zip(scores).map(|(example, scores)| {
        let mut document = example.document.clone();
        for span in spans(example, &scores, threshold) {
            let overlaps = |m: &GoldMention| m.span.start < span.end && span.start < m.span.end;
            if !example.document.mentions.iter().any(overlaps) {
                let kind = String::new();
                document.mentions.push(GoldMention { span, kind });
            }
        }
        document
    });
    Ok(documents.collect())
}

fn forms<'a>(texts: &Texts<'a>) -> Vec<Forms<'a>> {
    let examples = |(documents, features): (&'a [Document], &'a Features)| {
        let texts = documents.iter().zip(features.texts());
        texts.map(|(document, features)| Example::new(document, features))
    };
    let mut lower = examples(texts.lower);
    let written = examples(texts.written).zip(texts.lowered);
    written
        .filter_map(|(written, lowered)| {
            let lower = lowered.then(|| lower.next().flatten()).flatten();
            Some((written?, lower))
        })
        .collect()
}

/// The forms that are learned from: that in lower case, if there is one, or both.
fn read<'a>((written, lower): Forms<'a>, both: bool) -> impl Iterator<Item = Example<'a>> {
    let written = (both || lower.is_none()).then_some(written);
    written.into_iter().chain(lower)
}

/// Marks what a first probe, of the texts as they are written, finds among capitalized words.
fn label_by_capitals(
    written: &mut [Example],
    lower: &mut [Option<Example>],
    hidden_size: usize,
    options: &TrainOptions,
    random: &mut StdRng,
) -> candle_core::Result<()> {
    written.iter_mut().for_each(capitals::leave_out);
    let (first, _) = fit(written, hidden_size, options, random)?;
    capitals::label(&first, written)?;
    for (written, lower) in written.iter().zip(lower) {
        // The same words; only a letter that lower case splits could make others.
        let lower = lower.as_mut();
        if let Some(lower) = lower.filter(|lower| lower.marks.len() == written.marks.len()) {
            lower.marks.clone_from(&written.marks);
        }
    }
    Ok(())
}

fn fit(
    examples: &[Example],
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
    let mut examples: Vec<&Example> = examples.iter().collect();
    for epoch in 0..options.probe_epochs {
        examples.shuffle(random);
        let mut sum = 0.0;
        for batch in examples.chunks(BATCH_TEXTS) {
            let trust = if epoch == 0 {
                1.0
            } else {
                options.trust_unlabelled_below
            };
            let (loss, gradients) = gradients(&probe, batch, trust, options, random)?;
            sum += loss;
            schedule.step(&gradients)?;
            progress.inc(1);
        }
        losses.push(rounded(sum / batches as f64));
    }
    progress.finish_and_clear();
    Ok((probe, losses))
}

/// A batch's loss and its gradients.
fn gradients(
    probe: &Probe,
    examples: &[&Example],
    trust: f32,
    options: &TrainOptions,
    random: &mut StdRng,
) -> candle_core::Result<(f64, GradStore)> {
    let (hidden, candidates) = batch(examples)?;
    let mut states = probe.standardized(&hidden)?;
    if options.probe_dropout > 0.0 {
        states = dropout(&states, options.probe_dropout, random)?;
    }
    // As a variable of their own: the library would compute the frozen states' gradient as well.
    let parts = Var::from_tensor(&states.matmul(&probe.tokens.t()?)?)?;
    let loss = loss(&probe.of_parts(&parts, &candidates)?, examples, trust)?;
    let mut gradients = loss.backward()?;
    if let Some(of_parts) = gradients.remove(&parts) {
        gradients.insert(&probe.tokens, of_parts.t()?.matmul(&states)?);
    }
    Ok((f64::from(loss.to_scalar::<f32>()?), gradients))
}

/// Binary cross-entropy of log-odds summed over a text's candidates, mean over texts. Unlabelled
/// candidates above the probability `trust` count neither way.
fn loss(logits: &Tensor, examples: &[&Example], trust: f32) -> candle_core::Result<Tensor> {
    let guess = logits.detach().to_vec1::<f32>()?;
    let limit = (trust / (1.0 - trust)).ln();
    let marks = examples.iter().flat_map(|example| &example.marks);
    let counted = marks.zip(guess).map(|(mark, guess)| match mark {
        Mark::Mention => (1.0, 1.0),
        Mark::NoMention => (0.0, 1.0),
        Mark::Unlabelled => (0.0, f32::from(u8::from(guess <= limit))),
        Mark::Unsure => (0.0, 0.0),
    });
    let (labels, weights): (Vec<f32>, Vec<f32>) = counted.unzip();
    let labels = Tensor::new(labels, &Device::Cpu)?;
    let weights = Tensor::new(weights, &Device::Cpu)?;
    // max(x, 0) - x * y + log(1 + exp(-|x|)), which does not overflow.
    let log = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
    let entropy = ((logits.relu()? - (logits * labels)?)? + log)?;
    (entropy * weights)?.sum_all()? / examples.len() as f64
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
    let bound = 1.0 / ((PARTS * hidden_size) as f32).sqrt();
    let tokens: Vec<f32> = (0..PARTS * units * hidden_size)
        .map(|_| random.random_range(-bound..=bound))
        .collect();
    let vars = [
        Var::from_vec(tokens, (PARTS * units, hidden_size), &Device::Cpu)?,
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
    let scores = score(probe, examples)?;
    let curve = (1..20).map(|step| {
        let threshold = step as f32 / 20.0;
        let mut counts = DetectionCounts::default();
        for (example, scores) in examples.iter().zip(&scores) {
            let gold: Vec<Span> = example.document.mentions.iter().map(|m| m.span).collect();
            let detected = spans(example, scores, threshold);
            counts.add(&example.document.text, &gold, &detected);
        }
        (threshold, counts.scores())
    });
    Ok(curve.collect())
}

/// What is detected, in characters.
fn spans(example: &Example, scores: &[f32], threshold: f32) -> Vec<Span> {
    let starts = char_starts(&example.document.text);
    let character = |byte: usize| starts.partition_point(|&start| start < byte) as u32;
    let detected = detected(example, scores, threshold).into_iter();
    detected
        .map(|bytes| Span {
            start: character(bytes.start),
            end: character(bytes.end),
        })
        .collect()
}
