//! How well detected spans agree with the labelled ones.

use ner_retriever_protocol::Span;
use serde::Serialize;

/// Counts over a corpus.
#[derive(Debug, Clone, Default)]
pub struct DetectionCounts {
    texts: usize,
    gold: usize,
    detected: usize,
    exact: usize,
    covered: usize,
}

/// Figures over a corpus. A corpus that labels only some types makes precision a lower bound.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DetectionScores {
    /// Same first and last character.
    pub precision: f64,
    pub recall: f64,
    pub f1: f64,
    /// Share of labelled mentions with a lenient match ([`lenient`]).
    pub coverage: f64,
    pub mentions_per_text: f64,
}

impl DetectionCounts {
    pub fn add(&mut self, text: &str, gold: &[Span], detected: &[Span]) {
        self.texts += 1;
        self.gold += gold.len();
        self.detected += detected.len();
        self.exact += gold.iter().filter(|span| detected.contains(span)).count();
        let chars: Vec<char> = text.chars().collect();
        self.covered += gold
            .iter()
            .filter(|gold| detected.iter().any(|span| lenient(&chars, **gold, *span)))
            .count();
    }

    /// Texts, labelled and detected mentions, those of both, labelled ones with a lenient match.
    pub fn counts(&self) -> [usize; 5] {
        [
            self.texts,
            self.gold,
            self.detected,
            self.exact,
            self.covered,
        ]
    }

    /// From [`Self::counts`].
    pub fn of([texts, gold, detected, exact, covered]: [usize; 5]) -> Self {
        Self {
            texts,
            gold,
            detected,
            exact,
            covered,
        }
    }

    pub fn scores(&self) -> DetectionScores {
        let ratio = |a: usize, b: usize| a as f64 / b.max(1) as f64;
        let precision = ratio(self.exact, self.detected);
        let recall = ratio(self.exact, self.gold);
        DetectionScores {
            precision,
            recall,
            f1: 2.0 * precision * recall / (precision + recall).max(f64::MIN_POSITIVE),
            coverage: ratio(self.covered, self.gold),
            mentions_per_text: ratio(self.detected, self.texts),
        }
    }
}

/// The paper's lenient match (the authors' `fuzzy_span_recall.py`, `is_match`): one span's words
/// contain the other's, or four fifths of their words are the same. Theirs compares strings; here
/// the spans are compared where they stand, which is stricter.
fn lenient(text: &[char], a: Span, b: Span) -> bool {
    let (start, end) = (a.start.max(b.start), a.end.min(b.end));
    if start >= end {
        return false;
    }
    let contains = |x: Span, y: Span| x.start <= y.start && y.end <= x.end;
    let words = |start: u32, end: u32| {
        let part: String = text[start as usize..end as usize].iter().collect();
        part.split_whitespace().count()
    };
    let union = words(a.start.min(b.start), a.end.max(b.end));
    contains(a, b) || contains(b, a) || words(start, end) * 5 >= union * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u32, end: u32) -> Span {
        Span { start, end }
    }

    #[test]
    fn exact_and_lenient_matches_are_counted_apart() {
        let text = "the old river Danube in Vienna";
        let mut counts = DetectionCounts::default();
        // Danube is found as "river Danube", Vienna is missed, "old" is not a mention.
        counts.add(
            text,
            &[span(14, 20), span(24, 30)],
            &[span(8, 20), span(4, 7)],
        );
        // A text whose mention is found exactly.
        counts.add("Rome", &[span(0, 4)], &[span(0, 4)]);
        let scores = counts.scores();
        assert_eq!(scores.precision, 1.0 / 3.0);
        assert_eq!(scores.recall, 1.0 / 3.0);
        assert_eq!(scores.coverage, 2.0 / 3.0);
        assert_eq!(scores.mentions_per_text, 1.5);
    }

    #[test]
    fn spans_that_only_overlap_do_not_match() {
        let text: Vec<char> = "alpha beta gamma".chars().collect();
        assert!(!lenient(&text, span(0, 10), span(6, 16)));
    }
}
