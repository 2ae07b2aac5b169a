//! Corpora with gold spans: JSON lines, gzip or plain, `{"text": str, "entities": [[start, end,
//! type], ...]}`, offsets in characters, `end` exclusive.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use flate2::read::MultiGzDecoder;
use ner_retriever_protocol::Span;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use serde::Deserialize;

use crate::error::{EngineError, ErrorKind, Result};

/// A text and its labelled mentions.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub text: String,
    pub mentions: Vec<GoldMention>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct GoldMention {
    pub span: Span,
    /// The corpus's own name of the type.
    pub kind: String,
}

/// From a corpus's types to the names that serve as queries; `None`: indexed, but not queried.
pub type TypeNames = BTreeMap<String, Option<String>>;

#[derive(Deserialize)]
struct Line {
    text: String,
    entities: Vec<(u32, u32, String)>,
}

/// Reads a corpus.
///
/// # Errors
/// `InvalidSetting` naming the file and line that is not of this form.
pub fn read(path: &Path) -> Result<Vec<Document>> {
    let wrong = |problem: String| bad_file(path, &problem);
    let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
    let mut magic = [0; 2];
    let gzip = File::open(path)
        .and_then(|mut f| f.read_exact(&mut magic))
        .is_ok()
        && magic == [0x1f, 0x8b];
    let reader: Box<dyn Read> = if gzip {
        Box::new(MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let mut documents = Vec::new();
    for (number, line) in BufReader::new(reader).lines().enumerate() {
        let line = line.map_err(|e| wrong(e.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let line: Line =
            serde_json::from_str(&line).map_err(|e| wrong(format!("line {}: {e}", number + 1)))?;
        let chars = line.text.chars().count() as u32;
        let mentions: Vec<_> = line
            .entities
            .into_iter()
            .map(|(start, end, kind)| GoldMention {
                span: Span { start, end },
                kind,
            })
            .collect();
        if let Some(m) = mentions
            .iter()
            .find(|m| m.span.start >= m.span.end || m.span.end > chars)
        {
            return Err(wrong(format!(
                "line {}: span {:?} is out of range",
                number + 1,
                m.span
            )));
        }
        documents.push(Document {
            text: line.text,
            mentions,
        });
    }
    Ok(documents)
}

/// Reads a JSON object from corpus type to query name or null. A file that holds one such object
/// per corpus is accepted as well; then `corpus` picks the one whose key its file name starts with.
pub fn read_type_names(path: &Path, corpus: &Path) -> Result<TypeNames> {
    let text = std::fs::read_to_string(path).map_err(|e| bad_file(path, &e.to_string()))?;
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| bad_file(path, &e.to_string()))?;
    let stem = corpus
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("");
    let nested = value
        .as_object()
        .and_then(|object| {
            object
                .iter()
                .find(|(key, v)| v.is_object() && stem.starts_with(*key))
        })
        .map(|(_, names)| names.clone());
    serde_json::from_value(nested.unwrap_or(value)).map_err(|e| bad_file(path, &e.to_string()))
}

/// A random subset in random order; all documents if there are not more than `limit`.
pub fn sample(mut documents: Vec<Document>, limit: Option<usize>, seed: u64) -> Vec<Document> {
    let Some(limit) = limit.filter(|limit| *limit < documents.len()) else {
        return documents;
    };
    documents.shuffle(&mut StdRng::seed_from_u64(seed));
    documents.truncate(limit);
    documents
}

/// Lower-cases a share of the documents, so that a head does not depend on capitals.
pub fn lower_case(documents: &mut [Document], share: f64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    for document in documents {
        let lower = document.text.to_lowercase();
        // Some characters become two; then the offsets would no longer hold.
        let same_length = lower.chars().count() == document.text.chars().count();
        if random.random_bool(share) && same_length {
            document.text = lower;
        }
    }
}

fn bad_file(path: &Path, problem: &str) -> EngineError {
    EngineError::new(
        ErrorKind::InvalidSetting,
        format!("cannot read \"{}\": {problem}", path.display()),
    )
}
