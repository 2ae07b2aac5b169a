//! Ranking by what a search finds, as `ner_search` and the engine's `eval` do it. Here relevance feedback: a
//! type's embedding moves towards the mentions that are nearest to it, Rocchio's method (1971) without
//! anybody's judgement, the found mentions weighted by how near they are; with it ([`shown`]) as
//! `ner_refine_type` does it.

mod smoothing;
mod words;

pub use smoothing::{FEWEST, FOR_EACH, MOST, smooth};
pub use words::{SURROUNDINGS, TypeWords, surroundings};

/// Nearest mentions that are looked at. More hardly count: their weights vanish.
pub const CANDIDATES: usize = 100;

/// Of the weights `exp(cosine / TEMPERATURE)`. Low enough that a type of a handful of mentions is not
/// drowned in others, high enough that one wrong mention does not lead astray (docs/training.md).
const TEMPERATURE: f32 = 0.04;

/// How much the nearest mentions weigh against the type for each unit of their cosine. Where nothing is
/// like the type, what is nearest hardly moves it.
const WEIGHT: f32 = 1.5;

/// A type's embedding `query`, `[dims]`, of length 1 after its nearest mentions, `[candidates, dims]` one
/// after the other, each of length 1.
pub fn refine(query: &[f32], candidates: &[f32]) -> Vec<f32> {
    let mentions = || candidates.chunks_exact(query.len().max(1));
    let nearest = mentions()
        .map(|mention| cosine(query, mention))
        .fold(f32::NEG_INFINITY, f32::max);
    let mut sum = vec![0.0; query.len()];
    for mention in mentions() {
        let weight = ((cosine(query, mention) - nearest) / TEMPERATURE).exp();
        for (sum, element) in sum.iter_mut().zip(mention) {
            *sum += weight * element;
        }
    }
    let mean: Vec<f32> = unit(&sum).collect();
    let weight = WEIGHT * cosine(query, &mean).max(0.0);
    let mixed = query
        .iter()
        .zip(&mean)
        .map(|(query, mean)| query + weight * mean);
    unit(&mixed.collect::<Vec<_>>()).collect()
}

/// The embedding, `[dims]`, of a type by its name's, of length 1, and the sum of mentions that somebody picked.
/// The name and all examples together weigh the same: few examples do not drown the name, and many add
/// little that a few have not said.
pub fn shown(name: &[f64], sum_of_examples: &[f64]) -> Vec<f32> {
    let of_examples = length(sum_of_examples);
    let both = name.iter().zip(sum_of_examples);
    let mixed: Vec<f64> = both.map(|(name, sum)| name + sum / of_examples).collect();
    let length = length(&mixed);
    mixed
        .iter()
        .map(|element| (element / length) as f32)
        .collect()
}

/// Of a vector that is divided by it.
fn length(vector: &[f64]) -> f64 {
    let squares = vector.iter().map(|element| element * element);
    squares.sum::<f64>().sqrt().max(f64::MIN_POSITIVE)
}

/// Of vectors of length 1.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn unit(vector: &[f32]) -> impl Iterator<Item = f32> {
    let length = cosine(vector, vector).sqrt().max(f32::MIN_POSITIVE);
    vector.iter().map(move |element| element / length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: &[f32], b: [f32; 2]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3)
    }

    #[test]
    fn a_query_moves_towards_what_is_near() {
        assert!(close(&refine(&[1.0, 0.0], &[]), [1.0, 0.0]));
        let half = 0.5f32.sqrt();
        // 1.5 cos(45°) of the only mention: [1 + 0.75, 0.75].
        let towards = [1.75 / 1.9039, 0.75 / 1.9039];
        assert!(close(&refine(&[1.0, 0.0], &[half, half]), towards));
        // The far ones hardly count, however many they are.
        let mut mentions = vec![half, half];
        mentions.extend([0.0, 1.0].repeat(50));
        assert!(close(&refine(&[1.0, 0.0], &mentions), towards));
    }

    #[test]
    fn examples_weigh_as_much_as_the_name_however_many_they_are() {
        let half = 0.5f32.sqrt();
        assert!(close(&shown(&[1.0, 0.0], &[0.0, 1.0]), [half, half]));
        assert!(close(&shown(&[1.0, 0.0], &[0.0, 20.0]), [half, half]));
        assert!(close(&shown(&[1.0, 0.0], &[0.0, 0.0]), [1.0, 0.0]));
    }

    #[test]
    fn what_cannot_be_compared_changes_nothing() {
        assert!(close(&refine(&[1.0, 0.0], &[0.0, 0.0]), [1.0, 0.0]));
        assert!(close(&refine(&[1.0, 0.0], &[0.0, 1.0]), [1.0, 0.0]));
        assert!(close(&refine(&[1.0, 0.0], &[-1.0, 0.0]), [1.0, 0.0]));
        assert_eq!(refine(&[0.0, 0.0], &[0.0, 0.0]), [0.0, 0.0]);
        assert!(refine(&[], &[1.0]).is_empty());
    }
}
