//! What is held out of the projection's training while its number of steps is looked for.

use rand::{Rng, rngs::StdRng, seq::SliceRandom};

use super::{TrainOptions, dataset::Dataset};

/// What the search for the number of steps trains on and is scored on.
pub struct Split {
    /// Types whose labels are trained on.
    pub types: Vec<usize>,
    /// The teaching's mentions that are trained on.
    pub taught: Vec<usize>,
    /// Types that are scored.
    pub scored: Vec<usize>,
    /// Their mentions.
    pub mentions: Vec<usize>,
}

impl Split {
    /// Labels are held out by type: what generalises is what helps types that nobody labelled.
    /// Distillation reads none, but would look better the more it repeats of what the teacher said of the
    /// mentions that are scored, so it holds out texts.
    pub fn new(dataset: &Dataset, options: &TrainOptions, random: &mut StdRng) -> Self {
        let mut types = present(dataset, |_| true);
        types.shuffle(random);
        let of = |types: &[usize], scores: &dyn Fn(usize) -> bool| -> Vec<usize> {
            let mentions = types.iter().flat_map(|&kind| &dataset.by_type[kind]);
            mentions
                .copied()
                .filter(|&mention| scores(mention))
                .collect()
        };
        let Some(teaching) = &dataset.teaching else {
            let held_out = (types.len() as f64 * options.held_out_types) as usize;
            let (scored, rest) = types.split_at(held_out.min(types.len().saturating_sub(2)));
            return Self {
                mentions: of(scored, &|_| true),
                scored: scored.to_vec(),
                types: rest.to_vec(),
                taught: Vec::new(),
            };
        };
        let count = dataset.texts.iter().chain(&teaching.texts).max();
        let held_out: Vec<bool> = (0..=count.copied().unwrap_or(0))
            .map(|_| random.random_bool(options.held_out_texts))
            .collect();
        let scores = |mention: usize| held_out[dataset.texts[mention]];
        let scored = present(dataset, scores);
        let taught = (0..teaching.texts.len()).filter(|&row| !held_out[teaching.texts[row]]);
        Self {
            mentions: of(&scored, &scores),
            scored,
            taught: taught.collect(),
            types,
        }
    }

    /// All there is to train on, and nothing to score.
    pub fn whole(dataset: &Dataset) -> Self {
        let rows = dataset
            .teaching
            .as_ref()
            .map_or(0, |teaching| teaching.texts.len());
        Self {
            types: present(dataset, |_| true),
            taught: (0..rows).collect(),
            scored: Vec::new(),
            mentions: Vec::new(),
        }
    }
}

/// The types of which there are such mentions.
fn present(dataset: &Dataset, such: impl Fn(usize) -> bool) -> Vec<usize> {
    let types = dataset.by_type.iter().enumerate();
    types
        .filter(|(_, mentions)| mentions.iter().any(|&mention| such(mention)))
        .map(|(kind, _)| kind)
        .collect()
}
