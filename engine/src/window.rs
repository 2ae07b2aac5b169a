//! Cutting the tokens of a long text into overlapping windows.

use std::ops::Range;

/// Tokens that a window shares with its neighbour: what lies near a window's edge is read from the
/// window in which it has more context.
pub const OVERLAP: usize = 128;

/// A window over the tokens of a text (first token not counted).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenWindow {
    /// Tokens in the window.
    pub tokens: Range<usize>,
    /// Tokens whose mentions are read from this window: a mention belongs to the window that owns
    /// its last token. The owned ranges of a text's windows are disjoint and cover it.
    pub owned: Range<usize>,
}

/// Windows of at most `size` tokens over `tokens` tokens.
pub fn windows(tokens: usize, size: usize) -> Vec<TokenWindow> {
    if tokens == 0 {
        return Vec::new();
    }
    let overlap = OVERLAP.min(size / 2);
    let stride = (size - overlap).max(1);
    let mut windows = Vec::new();
    let mut start = 0;
    loop {
        let end = (start + size).min(tokens);
        let owned_start = if start == 0 { 0 } else { start + overlap / 2 };
        let owned_end = if end == tokens {
            tokens
        } else {
            start + stride + overlap / 2
        };
        windows.push(TokenWindow {
            tokens: start..end,
            owned: owned_start..owned_end,
        });
        if end == tokens {
            return windows;
        }
        start += stride;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_owned_once_by_a_window_that_holds_it() {
        for size in [1, 2, 7, 511] {
            for tokens in [0, 1, size - 1, size, size + 1, 3 * size, 3 * size + 5] {
                let windows = windows(tokens, size);
                let mut next = 0;
                for window in &windows {
                    assert!(window.tokens.len() <= size);
                    assert_eq!(window.owned.start, next, "{size} {tokens}");
                    assert!(window.tokens.start <= window.owned.start);
                    assert!(window.owned.end <= window.tokens.end);
                    next = window.owned.end;
                }
                assert_eq!(next, tokens, "{size} {tokens}");
            }
        }
    }
}
