//! Training the projection.

use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::ops;
use indicatif::ProgressBar;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;

use super::{
    Loss, ProjectionForm, TrainOptions,
    dataset::Dataset,
    optimizer::{Schedule, dropout},
    rounded,
    split::Split,
};
use crate::{
    error::{Result, compute},
    eval::ranking::{best_per_text, r_precision},
    projection::{Centers, Linear, Projection, Side, normalize},
};

/// Steps between two measurements on what is held out.
const CHECK_EVERY: usize = 25;

/// A trained projection.
pub struct Trained {
    pub projection: Projection,
    /// For the provenance: steps and scores.
    pub summary: serde_json::Value,
}

/// Finds on what it has not seen how many steps generalise best, then trains on all for as many.
pub fn train(dataset: &Dataset, options: &TrainOptions) -> Result<Trained> {
    let mut random = StdRng::seed_from_u64(options.seed);
    let split = Split::new(dataset, options, &mut random);
    let mut best = (0, f64::NEG_INFINITY);
    let mut untrained = None;
    if split.mentions.is_empty() {
        best.0 = options.steps;
    } else {
        fit(
            dataset,
            &split,
            options,
            options.steps,
            &mut |step, projection| {
                let score = score(dataset, &split, projection)?;
                eprintln!("step {step:>5}: held out {score:.4}");
                untrained.get_or_insert(score);
                if score > best.1 {
                    best = (step, score);
                }
                Ok(())
            },
        )
        .map_err(compute)?;
    }
    let whole = Split::whole(dataset);
    let projection = fit(dataset, &whole, options, best.0, &mut |_, _| Ok(())).map_err(compute)?;
    let scored = split.scored.iter();
    let summary = json!({
        "steps": best.0,
        "held_out_types": scored.map(|&kind| &dataset.type_names()[kind]).collect::<Vec<_>>(),
        "held_out_macro_r_precision": untrained.map(|_| rounded(best.1)),
        "held_out_macro_r_precision_untrained": untrained.map(rounded),
    });
    Ok(Trained {
        projection,
        summary,
    })
}

/// Trains on what a split trains on; `check` sees the projection every [`CHECK_EVERY`] steps.
fn fit(
    dataset: &Dataset,
    split: &Split,
    options: &TrainOptions,
    steps: usize,
    check: &mut dyn FnMut(usize, &Projection) -> candle_core::Result<()>,
) -> candle_core::Result<Projection> {
    let types = &split.types;
    let mut random = StdRng::seed_from_u64(options.seed);
    let (projection, vars) = initial(dataset, types, options, &mut random)?;
    // The rate's decay ends where the search ended, so that the final run repeats its first steps.
    let mut schedule = Schedule::new(
        vars,
        options.learning_rate,
        options.weight_decay,
        options.steps,
    )?;
    let progress = ProgressBar::new(steps as u64);
    for step in 0..=steps {
        if step % CHECK_EVERY == 0 {
            check(step, &projection)?;
        }
        if step < steps {
            let loss = match options.loss {
                Loss::Triplet => triplet_loss(dataset, types, &projection, options, &mut random)?,
                Loss::Contrastive => {
                    contrastive_loss(dataset, types, &projection, options, &mut random)?
                }
                Loss::Distillation => {
                    distillation_loss(dataset, &split.taught, &projection, options, &mut random)?
                }
            };
            schedule.step(&loss.backward()?)?;
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    Ok(projection)
}

/// Random weights; a residual projection's last layer is zero. The variables share their storage
/// with the projection's tensors.
fn initial(
    dataset: &Dataset,
    types: &[usize],
    options: &TrainOptions,
    random: &mut StdRng,
) -> candle_core::Result<(Projection, Vec<Var>)> {
    let (input, dims) = dataset.dims(options);
    let residual = options.projection == ProjectionForm::Residual;
    let mut uniform = |out: usize, inputs: usize, zero: bool| {
        // torch's default for Linear: uniform within one over the square root of the inputs.
        let bound = if zero {
            0.0
        } else {
            1.0 / (inputs as f32).sqrt()
        };
        let mut draw = |count: usize| -> Vec<f32> {
            (0..count)
                .map(|_| random.random_range(-1.0..=1.0) * bound)
                .collect()
        };
        let weight = Var::from_vec(draw(out * inputs), (out, inputs), &Device::Cpu)?;
        let bias = Var::from_vec(draw(out), out, &Device::Cpu)?;
        Ok::<_, candle_core::Error>((weight, bias))
    };
    let first = uniform(options.units, input, false)?;
    let second = uniform(dims, options.units, residual)?;
    let linear = |(weight, bias): &(Var, Var)| Linear {
        weight: weight.as_tensor().clone(),
        bias: bias.as_tensor().clone(),
    };
    let mentions = types.iter().flat_map(|&kind| &dataset.by_type[kind]);
    let centers = Centers {
        parts: options.representations().len(),
        mentions: select(&dataset.mention_values, mentions.copied())?.mean(0)?,
        types: select(&dataset.type_values, types.iter().copied())?.mean(0)?,
    };
    let projection = Projection {
        kind: options.projection.into(),
        first: linear(&first),
        second: linear(&second),
        centers: residual.then_some(centers),
    };
    Ok((projection, vec![first.0, first.1, second.0, second.1]))
}

/// Cross-entropy of each mention over the names of all types, and of each name over the batch's
/// mentions: as many mentions of every type as a batch has room for.
fn contrastive_loss(
    dataset: &Dataset,
    types: &[usize],
    projection: &Projection,
    options: &TrainOptions,
    random: &mut StdRng,
) -> candle_core::Result<Tensor> {
    let each = (options.batch / types.len()).max(1);
    let mut mentions = Vec::with_capacity(each * types.len());
    for &kind in types {
        for _ in 0..each {
            mentions.extend(dataset.by_type[kind].choose(random));
        }
    }
    let m = train_mode(
        projection,
        &select(&dataset.mention_values, mentions)?,
        Side::Mention,
        options,
        random,
    )?;
    let t = select(&dataset.type_values, types.iter().copied())?;
    let t = train_mode(projection, &t, Side::Type, options, random)?;
    // [types * each, types]: the mentions of type k are rows k * each and following.
    let logits = (m.matmul(&t.t()?)? / options.temperature)?;
    let targets: Vec<u32> = (0..types.len() as u32)
        .flat_map(|k| std::iter::repeat_n(k, each))
        .collect();
    let targets = Tensor::new(targets, &Device::Cpu)?;
    let by_mention = candle_nn::loss::cross_entropy(&logits, &targets)?;
    let by_type = ops::log_softmax(&logits.t()?.contiguous()?, D::Minus1)?
        .reshape((types.len(), types.len(), each))?
        .mean(D::Minus1)?;
    let diagonal = Tensor::eye(types.len(), DType::F32, &Device::Cpu)?;
    let by_type = ((by_type * diagonal)?.sum_all()? / -(types.len() as f64))?;
    (by_mention + by_type)? / 2.0
}

/// Cross-entropy of each mention's cosines with the nouns against what the base model says of it
/// (Hinton et al., arXiv 1503.02531): no label is read.
fn distillation_loss(
    dataset: &Dataset,
    taught: &[usize],
    projection: &Projection,
    options: &TrainOptions,
    random: &mut StdRng,
) -> candle_core::Result<Tensor> {
    let Some(teaching) = &dataset.teaching else {
        candle_core::bail!("there is no teacher");
    };
    let batch: Vec<usize> = (0..options.batch)
        .filter_map(|_| taught.choose(random).copied())
        .collect();
    let m = select(&teaching.mention_values, batch.iter().copied())?;
    let m = train_mode(projection, &m, Side::Mention, options, random)?;
    let t = train_mode(
        projection,
        &teaching.noun_values,
        Side::Type,
        options,
        random,
    )?;
    let logits = (m.matmul(&t.t()?)? / options.temperature)?;
    let targets = select(&teaching.targets, batch)?;
    let entropy = (ops::log_softmax(&logits, D::Minus1)? * targets)?;
    entropy.sum_all()? / -(options.batch as f64)
}

/// The paper's loss: a mention of the anchor's type must be nearer to the type's name than a
/// mention of another type, by a margin of cosine distance.
fn triplet_loss(
    dataset: &Dataset,
    types: &[usize],
    projection: &Projection,
    options: &TrainOptions,
    random: &mut StdRng,
) -> candle_core::Result<Tensor> {
    let (mut anchors, mut positives, mut negatives) = (Vec::new(), Vec::new(), Vec::new());
    while anchors.len() < options.batch {
        let (Some(&kind), Some(&other)) = (types.choose(random), types.choose(random)) else {
            break;
        };
        if kind == other {
            continue;
        }
        let hard = random.random_bool(options.hard_negatives);
        let hard = hard.then(|| dataset.hard[kind].choose(random)).flatten();
        // A mined mention may be of a type that is held out.
        let hard = hard.filter(|&&mention| types.contains(&dataset.types[mention]));
        let negative = hard.or_else(|| dataset.by_type[other].choose(random));
        if let (Some(&positive), Some(&negative)) = (dataset.by_type[kind].choose(random), negative)
        {
            anchors.push(kind);
            positives.push(positive);
            negatives.push(negative);
        }
    }
    let a = train_mode(
        projection,
        &select(&dataset.type_values, anchors)?,
        Side::Type,
        options,
        random,
    )?;
    let p = select(&dataset.mention_values, positives)?;
    let p = train_mode(projection, &p, Side::Mention, options, random)?;
    let n = select(&dataset.mention_values, negatives)?;
    let n = train_mode(projection, &n, Side::Mention, options, random)?;
    let cosine = |x: &Tensor| (&a * x)?.sum(D::Minus1);
    // distance(a, p) - distance(a, n) = cosine(a, n) - cosine(a, p).
    ((cosine(&n)? - cosine(&p)?)? + options.margin)?
        .relu()?
        .mean_all()
}

/// Embeddings with dropout.
fn train_mode(
    projection: &Projection,
    x: &Tensor,
    side: Side,
    options: &TrainOptions,
    random: &mut StdRng,
) -> candle_core::Result<Tensor> {
    let mut dropout = |hidden: Tensor| dropout(&hidden, options.dropout, random);
    normalize(&projection.unnormalized(x, side, &mut dropout)?)
}

/// Macro R-Precision over a split's scored types, with their scored mentions indexed.
fn score(dataset: &Dataset, split: &Split, projection: &Projection) -> candle_core::Result<f64> {
    let (types, mentions) = (&split.scored, &split.mentions);
    let m = select(&dataset.mention_values, mentions.iter().copied())?;
    let m = projection.apply(&m, Side::Mention)?;
    let t = select(&dataset.type_values, types.iter().copied())?;
    let scores = m.matmul(&projection.apply(&t, Side::Type)?.t()?)?;
    let texts: Vec<usize> = mentions
        .iter()
        .map(|&mention| dataset.texts[mention])
        .collect();
    let count = dataset.texts.iter().max().map_or(0, |text| text + 1);
    let mut sum = 0.0;
    for (column, &kind) in types.iter().enumerate() {
        let mut gold = vec![false; count];
        for &mention in mentions
            .iter()
            .filter(|&&mention| dataset.types[mention] == kind)
        {
            gold[dataset.texts[mention]] = true;
        }
        let scores: Vec<f32> = scores.get_on_dim(1, column)?.to_vec1()?;
        sum += r_precision(best_per_text(&texts, &scores), &gold).r_precision;
    }
    Ok(sum / types.len() as f64)
}

fn select(rows: &Tensor, indices: impl IntoIterator<Item = usize>) -> candle_core::Result<Tensor> {
    let indices: Vec<u32> = indices.into_iter().map(|index| index as u32).collect();
    rows.index_select(&Tensor::new(indices, &Device::Cpu)?, 0)
}
