//! What the probe learns from: texts with their words, and what each candidate span counts as.

use std::ops::Range;

use candle_core::{DType, Tensor};

use crate::{
    corpus::Document,
    features::TextFeatures,
    mentions::{
        candidates::{CandidateSpan, Candidates},
        decode::without_overlap,
        probe::Probe,
    },
    text::{Word, char_starts, words},
};

/// Texts in a batch.
pub const BATCH_TEXTS: usize = 32;

/// What the loss takes a candidate for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Mention,
    /// It overlaps a mention, whose boundaries are known.
    NoMention,
    /// Nobody labelled it: no mention, unless the probe is sure that it is one.
    Unlabelled,
    /// It counts neither way.
    Unsure,
}

/// A text with its candidates.
pub struct Example<'a> {
    pub document: &'a Document,
    /// `[tokens + 1, hidden_size]`.
    pub hidden: &'a Tensor,
    pub words: Vec<Word>,
    /// Of each candidate, in the order of [`Candidates::add`].
    pub marks: Vec<Mark>,
}

impl<'a> Example<'a> {
    /// `None` for a text whose hidden states were not kept.
    pub fn new(document: &'a Document, features: &'a TextFeatures) -> Option<Self> {
        let words = words(&document.text, &features.encoded)
            .into_iter()
            // Rows count the model's first token.
            .map(|word| Word {
                first: word.first + 1,
                last: word.last + 1,
                ..word
            });
        let mut example = Self {
            document,
            hidden: features.hidden.as_ref()?,
            words: words.collect(),
            marks: Vec::new(),
        };
        let starts = char_starts(&document.text);
        let mentions = document.mentions.iter();
        let gold: Vec<Range<usize>> = mentions
            .map(|m| starts[m.span.start as usize]..starts[m.span.end as usize])
            .collect();
        let spans = example.candidates();
        example.marks = spans
            .iter()
            .map(|s| mark(&example.bytes(s), &gold))
            .collect();
        Some(example)
    }

    /// Its candidates; a candidate's `sequence` is 0.
    pub fn candidates(&self) -> Vec<CandidateSpan> {
        candidates(&[self]).spans
    }

    pub fn bytes(&self, span: &CandidateSpan) -> Range<usize> {
        self.words[span.first_word].bytes.start..self.words[span.last_word].bytes.end
    }
}

/// What labels say of a candidate.
pub fn mark(bytes: &Range<usize>, labelled: &[Range<usize>]) -> Mark {
    if labelled.contains(bytes) {
        Mark::Mention
    } else if labelled.iter().any(|other| overlap(other, bytes)) {
        Mark::NoMention
    } else {
        Mark::Unlabelled
    }
}

pub fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Hidden states of a batch and the candidates in them.
pub fn batch(examples: &[&Example]) -> candle_core::Result<(Tensor, Candidates)> {
    let hidden: Vec<&Tensor> = examples.iter().map(|example| example.hidden).collect();
    let hidden = Tensor::cat(&hidden, 0)?.to_dtype(DType::F32)?;
    Ok((hidden, candidates(examples)))
}

/// Candidates of examples that are packed one after the other.
fn candidates(examples: &[&Example]) -> Candidates {
    let mut candidates = Candidates::default();
    let mut offset = 0;
    for (sequence, example) in examples.iter().enumerate() {
        let rows = example.hidden.dims()[0];
        candidates.add(sequence, &example.words, offset, rows);
        offset += rows;
    }
    candidates
}

/// Probability of each candidate of each example, in their order.
pub fn score(probe: &Probe, examples: &[Example]) -> candle_core::Result<Vec<Vec<f32>>> {
    let mut all = Vec::with_capacity(examples.len());
    let examples: Vec<&Example> = examples.iter().collect();
    for examples in examples.chunks(BATCH_TEXTS) {
        let (hidden, candidates) = batch(examples)?;
        let scores = probe.score(&hidden, &candidates)?;
        let mut scores = scores.map_or(Ok(Vec::new()), |scores| scores.to_vec1())?;
        for example in examples {
            let rest = scores.split_off(example.marks.len());
            all.push(std::mem::replace(&mut scores, rest));
        }
    }
    Ok(all)
}

/// Bytes of the mentions that probabilities of at least `threshold` give, in the order of the text.
pub fn detected(example: &Example, scores: &[f32], threshold: f32) -> Vec<Range<usize>> {
    let spans = example.candidates();
    let scored = spans.iter().zip(scores);
    let above: Vec<_> = scored
        .filter(|(_, score)| **score >= threshold)
        .map(|(span, score)| (example.bytes(span), *score))
        .collect();
    let taken = without_overlap(&above).into_iter();
    taken.map(|index| above[index].0.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_a_label_is_no_mention() {
        let labelled = [4..9, 12..15];
        assert_eq!(mark(&(4..9), &labelled), Mark::Mention);
        assert_eq!(mark(&(4..15), &labelled), Mark::NoMention);
        assert_eq!(mark(&(8..10), &labelled), Mark::NoMention);
        assert_eq!(mark(&(9..12), &labelled), Mark::Unlabelled);
    }
}
