//! What capital letters tell of the mentions that a corpus does not label.
//!
//! A corpus that labels some types (Few-NERD INTER's files have 13 to 36 of 66) teaches the probe that
//! names of all other types are none. Where names are capitalized, a span without a capital letter is
//! surely no name and one with a capital letter may be one. So a first probe learns from the texts as they
//! are written and leaves the latter out of its loss; what it then finds among them counts as labelled,
//! also in lower case, where nothing shows a name.

use std::ops::Range;

use candle_core::Result;

use super::examples::{Example, Mark, mark, score};
use crate::{
    mentions::{decode::without_overlap, probe::Probe},
    text::Word,
};

/// Least probability that the first probe labels.
const LABELLED: f32 = 0.3;
/// Probability above which what it does not label is left out.
const UNSURE: f32 = 0.03;
/// Words after which another begins with a capital letter whatever it is.
const BEFORE_A_SENTENCE: &[&str] = &[".", "?", "!", ":", "(", "\"", "'", "`", "“", "‘"];

/// For each candidate of an example as it is written, whether it holds a capital letter that does not
/// just begin a sentence.
fn capitalized(example: &Example) -> Vec<bool> {
    let words = capitalized_words(&example.document.text, &example.words);
    let spans = example.candidates().into_iter();
    spans
        .map(|span| words[span.first_word..=span.last_word].contains(&true))
        .collect()
}

fn capitalized_words(text: &str, words: &[Word]) -> Vec<bool> {
    let mut begins = true;
    let capitals = words.iter().map(|word| {
        let word = &text[word.bytes.clone()];
        let capital = !begins && word.contains(char::is_uppercase);
        begins = BEFORE_A_SENTENCE.contains(&word);
        capital
    });
    capitals.collect()
}

/// Leaves capitalized candidates that nobody labelled out of the loss.
pub fn leave_out(written: &mut Example) {
    let capitalized = capitalized(written);
    for (mark, capitalized) in written.marks.iter_mut().zip(capitalized) {
        if *mark == Mark::Unlabelled && capitalized {
            *mark = Mark::Unsure;
        }
    }
}

/// Marks what a first probe finds among the candidates that were left out.
pub fn label(probe: &Probe, written: &mut [Example]) -> Result<()> {
    let scores = score(probe, written)?;
    for (example, scores) in written.iter_mut().zip(scores) {
        let spans = example.candidates();
        let places = spans.iter().map(|span| example.bytes(span));
        let places: Vec<Range<usize>> = places.collect();
        example.marks = marks(&example.marks, &places, &scores);
    }
    Ok(())
}

/// New marks of candidates at `places`, whose probabilities are `scores`.
fn marks(before: &[Mark], places: &[Range<usize>], scores: &[f32]) -> Vec<Mark> {
    let above: Vec<_> = places
        .iter()
        .zip(scores)
        .filter(|(_, score)| **score >= LABELLED)
        .map(|(place, score)| (place.clone(), *score))
        .collect();
    let best = without_overlap(&above).into_iter();
    let found: Vec<Range<usize>> = best
        .map(|index| above[index].0.clone())
        .filter(|found| {
            let at = places.iter().position(|place| place == found);
            at.is_some_and(|at| before[at] == Mark::Unsure)
        })
        .collect();
    let candidates = before.iter().zip(places).zip(scores);
    candidates
        .map(
            |((before, place), score)| match (before, mark(place, &found)) {
                (Mark::Mention | Mark::NoMention, _) => *before,
                (_, Mark::Unlabelled) if *before == Mark::Unsure && *score > UNSURE => Mark::Unsure,
                (_, found) => found,
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use unicode_segmentation::UnicodeSegmentation;

    use super::*;

    #[test]
    fn the_first_word_of_a_sentence_tells_nothing() {
        let text = "Rain fell . The Danube rose , \"Barges waited in McAlester .";
        let words: Vec<Word> = text
            .split_word_bound_indices()
            .filter(|(_, word)| !word.trim().is_empty())
            .map(|(start, word)| Word {
                bytes: start..start + word.len(),
                first: 0,
                last: 0,
                alphanumeric: true,
            })
            .collect();
        let capitals = capitalized_words(text, &words);
        let found: Vec<&str> = words
            .iter()
            .zip(capitals)
            .filter(|(_, capital)| *capital)
            .map(|(word, _)| &text[word.bytes.clone()])
            .collect();
        assert_eq!(found, ["Danube", "McAlester"]);
    }

    #[test]
    fn what_the_first_probe_finds_is_labelled() {
        let places = [0..4, 0..9, 5..9, 10..14, 15..19, 20..24, 25..29];
        let before = [
            Mark::Unsure,
            Mark::Unsure,
            Mark::Unsure,
            Mark::Unsure,
            Mark::Unsure,
            Mark::Unlabelled,
            Mark::Mention,
        ];
        let scores = [0.4, 0.8, 0.5, 0.1, 0.01, 0.9, 0.0];
        let expected = [
            Mark::NoMention,
            Mark::Mention,
            Mark::NoMention,
            Mark::Unsure,
            Mark::Unlabelled,
            Mark::Unlabelled,
            Mark::Mention,
        ];
        assert_eq!(marks(&before, &places, &scores), expected);
    }
}
