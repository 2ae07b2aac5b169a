//! Positions in a text: characters, bytes, words and tokens.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

use crate::tokenizer::Encoded;

/// A word of a text: a mention begins and ends at word boundaries (UAX #29), which never cut a
/// grapheme.
#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    /// Bytes of the text.
    pub bytes: Range<usize>,
    /// Token that holds the word's first byte.
    pub first: usize,
    /// Token that holds the word's last byte.
    pub last: usize,
    /// Whether it has a letter or a digit: punctuation alone is no mention.
    pub alphanumeric: bool,
}

/// The words of a text, white space left out, with the tokens that hold them.
pub fn words(text: &str, encoded: &Encoded) -> Vec<Word> {
    text.split_word_bound_indices()
        .filter(|(_, word)| !word.trim().is_empty())
        .filter_map(|(start, word)| {
            let bytes = start..start + word.len();
            Some(Word {
                first: token_at(&encoded.offsets, bytes.start)?,
                last: token_at(&encoded.offsets, bytes.end - 1)?,
                alphanumeric: word.contains(char::is_alphanumeric),
                bytes,
            })
        })
        .collect()
}

/// The last token that covers a byte, of tokens that cover these bytes each; `None` if no token does.
pub fn token_at(offsets: &[(usize, usize)], byte: usize) -> Option<usize> {
    let after = offsets.partition_point(|(start, _)| *start <= byte);
    (0..after).rev().find(|&token| offsets[token].1 > byte)
}

/// Byte offset of every character of a text and of its end.
pub fn char_starts(text: &str) -> Vec<usize> {
    let mut starts: Vec<usize> = text.char_indices().map(|(byte, _)| byte).collect();
    starts.push(text.len());
    starts
}

/// The part of a range that is left without white space at its ends; `None` if nothing is.
pub fn trim(text: &str, bytes: Range<usize>) -> Option<Range<usize>> {
    let part = &text[bytes.clone()];
    let start = bytes.start + (part.len() - part.trim_start().len());
    let end = start + part.trim().len();
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token per byte range given.
    fn encoded(offsets: &[(usize, usize)]) -> Encoded {
        Encoded {
            ids: vec![0; offsets.len()],
            offsets: offsets.to_vec(),
        }
    }

    #[test]
    fn words_know_their_tokens() {
        // "Ötzi (Süd)" with tokens "Ö", "tzi", " (", "Süd", ")".
        let text = "Ötzi (Süd)";
        let tokens = encoded(&[(0, 2), (2, 5), (5, 7), (7, 11), (11, 12)]);
        let found: Vec<_> = words(text, &tokens)
            .into_iter()
            .map(|w| (text[w.bytes].to_owned(), w.first, w.last))
            .collect();
        let expected = [("Ötzi", 0, 1), ("(", 2, 2), ("Süd", 3, 3), (")", 4, 4)];
        assert_eq!(found, expected.map(|(w, a, b)| (w.to_owned(), a, b)));
    }

    #[test]
    fn words_keep_graphemes_whole() {
        let text = "👩‍🔬 cafe\u{301}s 🇩🇪";
        let tokens = encoded(&[(0, text.len())]);
        let found: Vec<_> = words(text, &tokens)
            .into_iter()
            .map(|w| text[w.bytes].to_owned())
            .collect();
        assert_eq!(found, ["👩‍🔬", "cafe\u{301}s", "🇩🇪"]);
    }

    #[test]
    fn a_character_of_several_tokens_ends_with_the_last_of_them() {
        let tokens = encoded(&[(0, 4), (0, 4), (0, 4), (4, 5)]);
        assert_eq!(token_at(&tokens.offsets, 3), Some(2));
        assert_eq!(token_at(&tokens.offsets, 4), Some(3));
        assert_eq!(token_at(&tokens.offsets, 5), None);
    }

    #[test]
    fn trimming_leaves_the_characters_between() {
        assert_eq!(trim("a  b ", 1..5), Some(3..4));
        assert_eq!(trim("a  b ", 1..3), None);
    }
}
