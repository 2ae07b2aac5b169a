//! Ranking as `ner_search` does it, over an index that is searched exactly.

use std::collections::BTreeMap;

use candle_core::Tensor;
use ner_retriever_feedback as feedback;

use super::{
    index::Index,
    queries::Queries,
    ranking::{TypeScore, best_per_text},
};
use crate::{
    corpus::Document,
    error::{Result, compute},
};

/// R-Precision of each type after its nearest mentions, among as many texts as mention it: `mentions` are the
/// index's embeddings, `[mentions, dims]`, `types` `[types, dims]`.
///
/// # Errors
/// `Internal` if the shapes do not fit.
pub fn score(
    queries: &Queries,
    index: &Index,
    documents: &[Document],
    (mentions, types): (&Tensor, &Tensor),
) -> Result<BTreeMap<String, TypeScore>> {
    let refined = refine(mentions, types).map_err(compute)?;
    let similarities = similarities(&refined, mentions).map_err(compute)?;
    let asked = similarities.iter().zip(&queries.gold).zip(&queries.names);
    let found = asked.map(|((similarities, gold), name)| {
        let relevant = gold.iter().filter(|gold| **gold).count();
        let words = feedback::TypeWords::new(name);
        let bonus = |mention: usize| {
            let text = &documents[index.texts[mention]].text;
            words.bonus(feedback::surroundings(text, &index.bytes[mention]))
        };
        search(&index.texts, mentions, similarities, bonus, relevant).map_err(compute)
    });
    let mut found = found.collect::<Result<Vec<_>>>()?.into_iter();
    Ok(queries.score_ranks(|_| found.next().unwrap_or_default()))
}

/// `[types, mentions]`
fn similarities(types: &Tensor, mentions: &Tensor) -> candle_core::Result<Vec<Vec<f32>>> {
    types.matmul(&mentions.t()?)?.to_vec2()
}

/// Types, `[types, dims]`, each after its nearest mentions.
fn refine(mentions: &Tensor, types: &Tensor) -> candle_core::Result<Tensor> {
    let similarities = similarities(types, mentions)?;
    let refined = similarities.iter().enumerate().map(|(number, of_type)| {
        let mut nearest = from_near_to_far(of_type);
        nearest.truncate(feedback::CANDIDATES);
        let query: Vec<f32> = types.get(number)?.to_vec1()?;
        let refined = feedback::refine(&query, &embeddings(mentions, &nearest)?);
        Tensor::new(refined, mentions.device())
    });
    Tensor::stack(&refined.collect::<candle_core::Result<Vec<_>>>()?, 0)
}

/// At least `wanted` texts with their scores, if the index has so many.
fn search(
    texts: &[usize],
    mentions: &Tensor,
    similarities: &[f32],
    bonus: impl Fn(usize) -> f32,
    wanted: usize,
) -> candle_core::Result<Vec<(usize, f32)>> {
    let all = from_near_to_far(similarities);
    let mut looked_at = feedback::FEWEST.max(wanted * feedback::FOR_EACH);
    loop {
        let candidates = &all[..looked_at.min(all.len())];
        let own: Vec<f32> = candidates
            .iter()
            .map(|&c| similarities[c as usize])
            .collect();
        let near = candidates.len().min(feedback::MOST);
        let mut scores =
            feedback::smooth(&own[..near], &embeddings(mentions, &candidates[..near])?);
        for (score, &candidate) in scores.iter_mut().zip(candidates) {
            *score += bonus(candidate as usize);
        }
        // Behind those, whose scores are at least -1.
        scores.extend(own[near..].iter().map(|similarity| similarity - 2.0));
        let of_text: Vec<usize> = candidates.iter().map(|&c| texts[c as usize]).collect();
        let found = best_per_text(&of_text, &scores);
        if found.len() >= wanted || candidates.len() == all.len() {
            return Ok(found);
        }
        looked_at *= feedback::FOR_EACH;
    }
}

fn from_near_to_far(similarities: &[f32]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..similarities.len() as u32).collect();
    order.sort_by(|&a, &b| similarities[b as usize].total_cmp(&similarities[a as usize]));
    order
}

/// Of some mentions, one after the other.
fn embeddings(mentions: &Tensor, which: &[u32]) -> candle_core::Result<Vec<f32>> {
    let which = Tensor::new(which, mentions.device())?;
    mentions.index_select(&which, 0)?.flatten_all()?.to_vec1()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn as_many_texts_are_found_as_are_wanted() {
        // More mentions of one text than a search looks at first, all nearer than the other's.
        let near = feedback::FEWEST + 1;
        let texts: Vec<usize> = [vec![7; near], vec![3]].concat();
        let similarities: Vec<f32> = [vec![0.9; near], vec![0.1]].concat();
        let mentions = [[1.0f32, 0.0].repeat(near), vec![0.0, 1.0]].concat();
        let mentions = Tensor::from_vec(mentions, (near + 1, 2), &Device::Cpu).unwrap();
        let found = |wanted| search(&texts, &mentions, &similarities, |_| 0.0, wanted).unwrap();
        let only_one = found(1);
        assert_eq!(only_one.len(), 1);
        assert!((only_one[0].1 - 0.9).abs() < 1e-3);
        let both: Vec<usize> = found(2).into_iter().map(|(text, _)| text).collect();
        assert_eq!(both, [3, 7]);
        // No more than there are.
        assert_eq!(found(5).len(), 2);
        // What is near the far mention raises it alone.
        let bonus = |mention| if mention == near { 2.0 } else { 0.0 };
        let raised = search(&texts, &mentions, &similarities, bonus, 2).unwrap();
        let by: Vec<f32> = raised
            .iter()
            .zip(found(2))
            .map(|(raised, plain)| raised.1 - plain.1)
            .collect();
        assert!((by[0] - 2.0).abs() < 1e-5 && by[1] == 0.0, "{by:?}");
    }
}
