//! Cutting what goes through the model into batches, and those into parts.

use candle_core::Device;

/// Tokens of a part of a batch. On a CPU the parts of a batch run side by side, so that cores seldom wait
/// for each other at the end of a product; in smaller ones the weights are read too often. Of 256 to 2,048
/// the fastest in bf16.
const PART_TOKENS: usize = 512;

/// Items in a row in batches of at most `most` tokens, or of one item that has more.
pub fn batches<T>(
    items: &[T],
    most: usize,
    tokens: impl Fn(&T) -> usize,
) -> impl Iterator<Item = &[T]> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut of_batch = 0;
        let fits = rest.iter().take_while(|item| {
            of_batch += tokens(item);
            of_batch <= most
        });
        let (batch, after) = rest.split_at_checked(fits.count().max(1))?;
        rest = after;
        Some(batch)
    })
}

/// The parts of a batch that may run side by side: on a GPU it stays whole.
pub fn parts<'a, T>(batch: &'a [T], device: &Device, tokens: impl Fn(&T) -> usize) -> Vec<&'a [T]> {
    let most = if device.is_cpu() {
        PART_TOKENS
    } else {
        usize::MAX
    };
    batches(batch, most, tokens).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(tokens: &[usize], most: usize) -> Vec<&[usize]> {
        batches(tokens, most, |tokens| *tokens).collect()
    }

    #[test]
    fn batches_hold_as_many_as_fit_and_at_least_one() {
        assert_eq!(cut(&[], 4), [[0; 0]; 0]);
        assert_eq!(cut(&[1, 3, 1, 2], 4), [&[1, 3][..], &[1, 2]]);
        assert_eq!(cut(&[9, 4, 1, 9], 4), [[9], [4], [1], [9]]);
        assert_eq!(cut(&[2, 2], usize::MAX), [[2, 2]]);
    }

    #[test]
    fn parts_are_in_order() {
        let lengths = [300, 200, 100, 600, 1];
        let parts = parts(&lengths, &Device::Cpu, |tokens| *tokens);
        assert_eq!(parts, [&[300, 200][..], &[100], &[600], &[1]]);
    }
}
