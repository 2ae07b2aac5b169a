//! Matrices that are filled tile by tile on all threads: with few tokens, the outputs are what there is to
//! share.

use std::{marker::PhantomData, ops::Range};

use candle_core::Result;
use rayon::prelude::*;

/// A part of a matrix `[tokens, outputs]` of which nothing is initialised yet.
pub struct Tile<'a> {
    pub tokens: Range<usize>,
    pub outputs: Range<usize>,
    /// The tile's first number.
    first: *mut f32,
    /// Numbers from one token's to the next one's.
    stride: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

impl Tile<'_> {
    /// Where the tile's first number goes; those of an output are side by side, those of a token
    /// [`Self::stride`] apart.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.first
    }

    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Fills the tile with `[tokens, outputs]`.
    pub fn copy_from(&mut self, numbers: &[f32]) {
        let width = self.outputs.len();
        assert_eq!(numbers.len(), self.tokens.len() * width);
        for (token, row) in self.tokens.clone().zip(numbers.chunks_exact(width.max(1))) {
            self.write(token, self.outputs.start, row);
        }
    }

    /// Writes numbers of one token from one of the tile's outputs on.
    pub fn write(&mut self, token: usize, output: usize, numbers: &[f32]) {
        assert!(self.tokens.contains(&token) && self.outputs.start <= output);
        assert!(numbers.len() <= self.outputs.end - output);
        let at = (token - self.tokens.start) * self.stride + output - self.outputs.start;
        // SAFETY: the numbers are some of the tile's, which nothing else refers to.
        unsafe {
            std::ptr::copy_nonoverlapping(numbers.as_ptr(), self.first.add(at), numbers.len());
        }
    }
}

/// The first number of a matrix.
struct First(*mut f32);

// SAFETY: the threads write through it to tiles that do not overlap.
unsafe impl Sync for First {}

/// A matrix `[tokens, outputs]` that `fill` fills in tiles of at most `size` tokens and outputs.
///
/// # Safety
/// `fill` must write every number of the tile unless it fails.
pub unsafe fn in_tiles(
    tokens: usize,
    outputs: usize,
    size: (usize, usize),
    fill: impl Fn(Tile) -> Result<()> + Sync,
) -> Result<Vec<f32>> {
    let mut numbers = Vec::with_capacity(tokens * outputs);
    let all = First(numbers.as_mut_ptr());
    let parts = |of: usize, step: usize| (0..of).step_by(step).map(move |at| at..of.min(at + step));
    let tiles: Vec<_> = parts(tokens, size.0)
        .flat_map(|tokens| parts(outputs, size.1).map(move |outputs| (tokens.clone(), outputs)))
        .collect();
    let all = &all;
    tiles.into_par_iter().try_for_each(|(tokens, part)| {
        // SAFETY: the ranges lie in the matrix that there is room for, and no two tiles overlap.
        let first = unsafe { all.0.add(tokens.start * outputs + part.start) };
        fill(Tile {
            tokens,
            outputs: part,
            first,
            stride: outputs,
            matrix: PhantomData,
        })
    })?;
    // SAFETY: the tiles cover the matrix, and all of them have been written.
    unsafe { numbers.set_len(tokens * outputs) };
    Ok(numbers)
}
