//! What a text says of its mention in so many words: in "the hotel Adlon" one that is asked for a hotel needs
//! no model. The words of the type's name, where they stand near a mention, raise its score.

use std::ops::Range;

use rust_stemmers::{Algorithm, Stemmer};
use unicode_segmentation::UnicodeSegmentation;

/// Characters before and after a mention that are read.
pub const SURROUNDINGS: usize = 50;

/// What all words of a type's name are worth, against similarities (docs/training.md has others).
const WEIGHT: f32 = 0.08;

/// Words of descriptions, such as "a politician from Scotland", that name no type.
const FUNCTION_WORDS: &[&str] = &[
    "a", "an", "and", "any", "as", "at", "by", "for", "from", "in", "into", "is", "of", "on", "or",
    "that", "the", "to", "which", "who", "with",
];

/// The words of a type's name, without the endings of English. Words of other languages lose what looks like
/// one, in name and text alike.
pub struct TypeWords {
    stemmer: Stemmer,
    stems: Vec<String>,
}

impl TypeWords {
    /// Of a type's name or description.
    pub fn new(name: &str) -> Self {
        let stemmer = Stemmer::create(Algorithm::English);
        let words = name.unicode_words().map(str::to_lowercase);
        let mut stems: Vec<String> = words
            .filter(|word| !FUNCTION_WORDS.contains(&word.as_str()))
            .map(|word| stemmer.stem(&word).into_owned())
            .collect();
        stems.sort();
        stems.dedup();
        Self { stemmer, stems }
    }

    /// What the words that are among a mention's surroundings add to its score.
    pub fn bonus(&self, surroundings: &str) -> f32 {
        let mut there = vec![false; self.stems.len()];
        for word in surroundings.unicode_words() {
            let word = word.to_lowercase();
            // A stem begins as its word does: most words need no stemming.
            if !self.stems.iter().any(|stem| begin_alike(stem, &word)) {
                continue;
            }
            if let Ok(place) = self.stems.binary_search(&self.stemmer.stem(&word).into()) {
                there[place] = true;
            }
        }
        let found = there.iter().filter(|there| **there).count();
        WEIGHT * found as f32 / self.stems.len().max(1) as f32
    }
}

fn begin_alike(a: &str, b: &str) -> bool {
    a.chars().next() == b.chars().next()
}

/// A mention, bytes of its text, with what is before and after it.
pub fn surroundings<'a>(text: &'a str, mention: &Range<usize>) -> &'a str {
    let before = text[..mention.start].char_indices().rev();
    let start = before
        .take(SURROUNDINGS)
        .last()
        .map_or(mention.start, |(at, _)| at);
    let mut after = text[mention.end..].char_indices().skip(SURROUNDINGS);
    let end = after.next().map_or(text.len(), |(at, _)| mention.end + at);
    &text[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mention_is_raised_by_the_share_of_words_near_it() {
        let bonus = |name: &str, text: &str| TypeWords::new(name).bonus(text) / WEIGHT;
        assert_eq!(bonus("hotel", "at the Hotel Adlon"), 1.0);
        assert_eq!(bonus("Hotels", "two hotels, one HOTEL"), 1.0);
        assert_eq!(bonus("hotel", "at the Adlon, a hostel"), 0.0);
        assert_eq!(bonus("political party", "the Labour Party"), 0.5);
        assert_eq!(
            bonus("political party", "both parties' political ends"),
            1.0
        );
        assert_eq!(
            bonus("a politician from Scotland", "a man from Scotland"),
            0.5
        );
        assert_eq!(bonus("Fußballverein", "der Fußballverein Union"), 1.0);
        assert_eq!(bonus("恐竜", "恐竜の化石"), 1.0);
    }

    #[test]
    fn names_without_a_word() {
        for name in ["", "the", "🦕", "--"] {
            assert_eq!(TypeWords::new(name).bonus("the 🦕 -- of"), 0.0, "{name}");
        }
        assert_eq!(TypeWords::new("hotel").bonus(""), 0.0);
    }

    #[test]
    fn surroundings_are_cut_between_characters() {
        let text = format!("{}é{}", "🦕".repeat(60), "ß".repeat(60));
        let mention = 240..242;
        assert_eq!(&text[mention.clone()], "é");
        let cut = surroundings(&text, &mention);
        assert_eq!(cut, format!("{}é{}", "🦕".repeat(50), "ß".repeat(50)));
        assert_eq!(surroundings("in Rome", &(3..7)), "in Rome");
        assert_eq!(surroundings("Rome", &(0..4)), "Rome");
    }
}
