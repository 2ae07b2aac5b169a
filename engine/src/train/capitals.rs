//! What capital letters tell of the mentions that a corpus does not label.
//!
//! A corpus that labels some types (Few-NERD INTER's files have 13 to 36 of 66) teaches the probe that
//! names of all other types are none. Where names are capitalized, a span without a capital letter is
//! surely no name and one with a capital letter may be one. So a first probe learns from the texts as they
//! are written and leaves the latter out of its loss; what it then finds among them counts as labelled,
//! also in lower case, where nothing shows a name.

use std::ops::Range;

use candle_core::Result;

use super::examples::{Example, Mark, detected, mark, score};
use crate::{mentions::probe::Probe, text::Word};

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
        let found = detected(example, &scores, LABELLED);
        let spans = example.candidates();
        let places: Vec<_> = spans.iter().map(|span| example.bytes(span)).collect();
        example.marks = marks(&example.marks, &places, &scores, found);
    }
    Ok(())
}

/// New marks of candidates at `places`, whose probabilities are `scores` and of which `found` were detected.
fn marks(
    before: &[Mark],
    places: &[Range<usize>],
    scores: &[f32],
    mut found: Vec<Range<usize>>,
) -> Vec<Mark> {
    found.retain(|found| {
        let at = places.iter().position(|place| place == found);
        at.is_some_and(|at| before[at] == Mark::Unsure)
    });
    let candidates = before.iter().zip(places).zip(scores);
    candidates
        .map(
            |((before, place), score)| match (before, mark(place, &found)) {
                (Mark::Mention | Mark::NoMention, _) => *before,
                (Mark::Unsure, Mark::Unlabelled) if *score > UNSURE => Mark::Unsure,
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
        use Mark::{Mention, NoMention, Unlabelled, Unsure};
        let candidates = [
            (0..4, Unsure, 0.4, NoMention),
            (0..9, Unsure, 0.8, Mention),
            (5..9, Unsure, 0.5, NoMention),
            (10..14, Unsure, 0.1, Unsure),
            (15..19, Unsure, 0.01, Unlabelled),
            (20..24, Unlabelled, 0.9, Unlabelled),
            (25..29, Mention, 0.0, Mention),
        ];
        let places = candidates.clone().map(|(place, ..)| place);
        let before = candidates.clone().map(|(_, before, ..)| before);
        let scores = candidates.clone().map(|(_, _, score, _)| score);
        let expected = candidates.map(|(.., expected)| expected);
        assert_eq!(
            marks(&before, &places, &scores, vec![0..9, 20..24]),
            expected
        );
    }
}
