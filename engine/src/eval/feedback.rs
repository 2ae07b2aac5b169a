//! Relevance feedback over an index that is searched exactly.

use candle_core::Tensor;
use ner_retriever_feedback as feedback;

use crate::error::{Result, compute};

/// Types, `[types, dims]`, each after its nearest mentions among `[mentions, dims]`.
///
/// # Errors
/// `Internal` if the shapes do not fit.
pub fn refine(mentions: &Tensor, types: &Tensor) -> Result<Tensor> {
    let scores: Vec<Vec<f32>> = types
        .matmul(&mentions.t().map_err(compute)?)
        .and_then(|scores| scores.to_vec2())
        .map_err(compute)?;
    let refined = scores.into_iter().enumerate().map(|(number, scores)| {
        let mut nearest: Vec<u32> = (0..scores.len() as u32).collect();
        nearest.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
        nearest.truncate(feedback::CANDIDATES);
        let nearest = Tensor::new(nearest, mentions.device())?;
        let nearest: Vec<f32> = mentions
            .index_select(&nearest, 0)?
            .flatten_all()?
            .to_vec1()?;
        let query: Vec<f32> = types.get(number)?.to_vec1()?;
        Tensor::new(feedback::refine(&query, &nearest), mentions.device())
    });
    let refined = refined
        .collect::<candle_core::Result<Vec<_>>>()
        .map_err(compute)?;
    Tensor::stack(&refined, 0).map_err(compute)
}
