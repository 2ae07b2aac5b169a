//! The embeddings of a corpus for use outside, such as an index's recall over them (`bench/`).

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use candle_core::Tensor;

use crate::error::{EngineError, ErrorKind, Result, compute};

/// Digits of a value: a `halfvec` has three.
const DECIMALS: usize = 5;

/// Writes a line for each mention: its text's number, from 1, a tab and its embedding, a row of
/// `[mentions, dims]`, as pgvector writes it.
///
/// # Errors
/// `InvalidSetting` if the file cannot be written, `OutOfMemory`.
pub fn write(path: &Path, texts: &[usize], embeddings: &Tensor) -> Result<()> {
    let rows = embeddings.to_vec2::<f32>().map_err(compute)?;
    write_rows(path, texts, &rows).map_err(|error| {
        EngineError::new(
            ErrorKind::InvalidSetting,
            format!("cannot write {}: {error}", path.display()),
        )
    })
}

fn write_rows(path: &Path, texts: &[usize], rows: &[Vec<f32>]) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for (text, row) in texts.iter().zip(rows) {
        write!(file, "{}\t", text + 1)?;
        for (index, value) in row.iter().enumerate() {
            let separator = if index == 0 { '[' } else { ',' };
            write!(file, "{separator}{value:.DECIMALS$}")?;
        }
        writeln!(file, "]")?;
    }
    file.flush()
}
