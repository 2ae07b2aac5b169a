//! The embeddings of a corpus for use outside, such as an index's recall over them (`bench/`).

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use candle_core::Tensor;

use super::index::Index;
use crate::{
    corpus::Document,
    error::{EngineError, ErrorKind, Result, compute},
};

/// Digits of a value: a `halfvec` has three.
const DECIMALS: usize = 5;

/// Writes a line for each mention, with tabs between: its text's number, from 1, its first character and the
/// one after its last, from 0, and its embedding, a row of `[mentions, dims]`, as pgvector writes it.
///
/// # Errors
/// `InvalidSetting` if the file cannot be written, `OutOfMemory`.
pub fn write(
    path: &Path,
    index: &Index,
    documents: &[Document],
    embeddings: &Tensor,
) -> Result<()> {
    let rows = embeddings.to_vec2::<f32>().map_err(compute)?;
    write_rows(path, index, documents, &rows).map_err(|error| {
        EngineError::new(
            ErrorKind::InvalidSetting,
            format!("cannot write {}: {error}", path.display()),
        )
    })
}

fn write_rows(
    path: &Path,
    index: &Index,
    documents: &[Document],
    rows: &[Vec<f32>],
) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for ((&number, bytes), row) in index.texts.iter().zip(&index.bytes).zip(rows) {
        let text = &documents[number].text;
        let [start, end] = [bytes.start, bytes.end].map(|byte| text[..byte].chars().count());
        write!(file, "{}\t{start}\t{end}\t", number + 1)?;
        for (index, value) in row.iter().enumerate() {
            let separator = if index == 0 { '[' } else { ',' };
            write!(file, "{separator}{value:.DECIMALS$}")?;
        }
        writeln!(file, "]")?;
    }
    file.flush()
}
