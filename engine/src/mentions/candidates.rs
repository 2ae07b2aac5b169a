//! The spans among which the probe chooses.

use crate::text::Word;

/// Longest mention, words. 99.9% of Few-NERD's and MultiCoNER's mentions are shorter.
pub const MAX_WORDS: usize = 16;
/// Tokens of a candidate that the probe reads.
pub const PARTS: usize = 5;

/// Candidate spans of one or more packed sequences, as rows of the packed tokens.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    /// Per candidate, its sequence and the indices of its first and last word.
    pub spans: Vec<CandidateSpan>,
    /// Rows of each candidate's tokens: before the first, first, last, and the two after the last.
    /// A row that lies outside the sequence, or on its first token, is `None`.
    pub rows: Vec<[Option<u32>; PARTS]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CandidateSpan {
    pub sequence: usize,
    pub first_word: usize,
    pub last_word: usize,
}

impl Candidates {
    /// Adds all spans of up to [`MAX_WORDS`] words of a sequence that are not punctuation alone.
    ///
    /// `words` count tokens within the sequence (the first token is token 0), `offset` is the row
    /// of the sequence's first token, `length` its number of tokens.
    pub fn add(&mut self, sequence: usize, words: &[Word], offset: usize, length: usize) {
        let row = |token: usize| {
            // The first token is an attention sink whose activations are a thousand times larger.
            (1..length)
                .contains(&token)
                .then(|| (offset + token) as u32)
        };
        for (first_word, first) in words.iter().enumerate() {
            let ends = words.iter().enumerate().skip(first_word).take(MAX_WORDS);
            let mut alphanumeric = false;
            for (last_word, last) in ends {
                alphanumeric |= last.alphanumeric;
                if !alphanumeric {
                    continue;
                }
                self.spans.push(CandidateSpan {
                    sequence,
                    first_word,
                    last_word,
                });
                self.rows.push([
                    row(first.first.saturating_sub(1)),
                    row(first.first),
                    row(last.last),
                    row(last.last + 1),
                    row(last.last + 2),
                ]);
            }
        }
    }
}

#[cfg(test)]
impl Candidates {
    /// Those of sequences of as many one-token words, and the sequences' tokens together.
    pub fn of_words(words: &[usize]) -> (Self, usize) {
        let mut candidates = Self::default();
        let mut offset = 0;
        for (sequence, count) in words.iter().enumerate() {
            let words: Vec<Word> = (0..*count)
                .map(|word| Word {
                    bytes: word..word + 1,
                    first: word + 1,
                    last: word + 1,
                    alphanumeric: true,
                })
                .collect();
            candidates.add(sequence, &words, offset, count + 1);
            offset += count + 1;
        }
        (candidates, offset)
    }
}
