//! Types that are shown by mentions which somebody picked, as `ner_refine_type` mixes them in.

use candle_core::Tensor;
use ner_retriever_feedback as feedback;
use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde::Serialize;

use super::{
    index::Index,
    queries::Queries,
    ranking::{best_per_text, r_precision},
};
use crate::{
    corpus::Document,
    error::{Result, compute},
    text::char_starts,
};

/// Macro R-Precision of types that are named and shown by a few mentions.
#[derive(Debug, Clone, Serialize)]
pub struct ExampleScores {
    /// Mentions that show a type, each of a text of its own.
    pub examples: usize,
    /// Types that at least twice as many texts mention; the others do not count.
    pub types: usize,
    /// By name and examples, over the texts that are no examples.
    pub macro_r_precision: f64,
    /// By name alone, over the same texts.
    pub by_name: f64,
}

/// Shows each type by one indexed mention of each of `count` of the texts that mention it, picked by
/// `seed`, and searches the other texts. `mentions` is `[mentions, dims]`, `types` `[types, dims]`.
///
/// # Errors
/// `Internal` if the shapes do not fit.
pub fn score(
    index: &Index,
    documents: &[Document],
    queries: &Queries,
    (mentions, types): (&Tensor, &Tensor),
    (count, seed): (usize, u64),
) -> Result<ExampleScores> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut named, mut shown) = (Vec::new(), Vec::new());
    for (number, (kind, gold)) in queries.kinds.iter().zip(&queries.gold).enumerate() {
        let mut pool: Vec<usize> = (0..gold.len()).filter(|&text| gold[text]).collect();
        if pool.len() / 2 < count {
            continue;
        }
        pool.shuffle(&mut random);
        let picked: Vec<usize> = pool
            .iter()
            .filter_map(|&text| index.mention_of(documents, text, kind))
            .take(count)
            .collect();
        if picked.len() < count {
            continue;
        }
        let name = types.get(number).map_err(compute)?;
        let query = refine(&name, mentions, &picked).map_err(compute)?;
        let mut left = gold.clone();
        for &mention in &picked {
            left[index.texts[mention]] = false;
        }
        let search = |query: &Tensor| -> candle_core::Result<f64> {
            let scores: Vec<f32> = mentions
                .matmul(&query.unsqueeze(1)?)?
                .flatten_all()?
                .to_vec1()?;
            let mut found = best_per_text(&index.texts, &scores);
            found.retain(|(text, _)| !picked.iter().any(|&mention| index.texts[mention] == *text));
            Ok(r_precision(found, &left).r_precision)
        };
        named.push(search(&name).map_err(compute)?);
        shown.push(search(&query).map_err(compute)?);
    }
    let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len().max(1) as f64;
    Ok(ExampleScores {
        examples: count,
        types: shown.len(),
        macro_r_precision: mean(&shown),
        by_name: mean(&named),
    })
}

/// A type's embedding `name`, `[dims]`, with the mentions of these rows.
fn refine(name: &Tensor, mentions: &Tensor, picked: &[usize]) -> candle_core::Result<Tensor> {
    let name: Vec<f64> = name.to_vec1::<f32>()?.into_iter().map(f64::from).collect();
    let mut sum = vec![0.0; name.len()];
    for &mention in picked {
        let mention: Vec<f32> = mentions.get(mention)?.to_vec1()?;
        for (sum, element) in sum.iter_mut().zip(mention) {
            *sum += f64::from(element);
        }
    }
    Tensor::new(feedback::shown(&name, &sum), mentions.device())
}

impl Index {
    /// The first indexed mention of a text that shares a character with a labelled one of type `kind`.
    fn mention_of(&self, documents: &[Document], text: usize, kind: &str) -> Option<usize> {
        let starts = char_starts(&documents[text].text);
        let labelled = documents[text].mentions.iter();
        let labelled: Vec<_> = labelled
            .filter(|mention| mention.kind == kind)
            .map(|mention| starts[mention.span.start as usize]..starts[mention.span.end as usize])
            .collect();
        self.of_text(text).find(|&mention| {
            let bytes = &self.bytes[mention];
            labelled
                .iter()
                .any(|label| label.start < bytes.end && bytes.start < label.end)
        })
    }
}
