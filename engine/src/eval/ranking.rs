//! R-Precision: of the R texts that mention a type, how many are among the first R found.

use std::collections::BTreeMap;

use serde::Serialize;

/// One type's result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TypeScore {
    pub r_precision: f64,
    /// Texts with at least one gold mention of the type (R).
    pub gold_texts: usize,
}

/// R-Precision of one query: `scores` holds the best score of each text that was found at all,
/// `gold[text]` whether it mentions the type. Texts that were not found rank last and do not count.
pub fn r_precision(mut scores: Vec<(usize, f32)>, gold: &[bool]) -> TypeScore {
    let relevant = gold.iter().filter(|gold| **gold).count();
    scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let hits = scores
        .iter()
        .take(relevant)
        .filter(|(text, _)| gold[*text])
        .count();
    TypeScore {
        r_precision: hits as f64 / relevant.max(1) as f64,
        gold_texts: relevant,
    }
}

/// Mean over types.
pub fn macro_average(types: &BTreeMap<String, TypeScore>) -> f64 {
    types.values().map(|score| score.r_precision).sum::<f64>() / types.len().max(1) as f64
}

/// The best score of each text from the scores of its mentions, `texts[mention]` being a mention's
/// text.
pub fn best_per_text(texts: &[usize], scores: &[f32]) -> Vec<(usize, f32)> {
    let mut best: BTreeMap<usize, f32> = BTreeMap::new();
    for (&text, &score) in texts.iter().zip(scores) {
        let entry = best.entry(text).or_insert(f32::NEG_INFINITY);
        *entry = entry.max(score);
    }
    best.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_counts_by_its_best_mention() {
        let best = best_per_text(&[0, 0, 2, 1], &[0.1, 0.9, 0.5, 0.4]);
        assert_eq!(best, [(0, 0.9), (1, 0.4), (2, 0.5)]);
        // R = 2: texts 0 and 2 come first, 0 and 1 are gold.
        let score = r_precision(best, &[true, true, false, false]);
        assert_eq!(
            score,
            TypeScore {
                r_precision: 0.5,
                gold_texts: 2
            }
        );
    }

    #[test]
    fn texts_that_are_not_found_are_misses() {
        let score = r_precision(vec![(3, 0.2)], &[true, true, false, true]);
        assert_eq!(score.r_precision, 1.0 / 3.0);
    }
}
