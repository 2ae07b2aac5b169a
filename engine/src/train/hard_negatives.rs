//! The paper's hard negatives: mentions of other types in texts that keyword search takes for a
//! type's.

use crate::{corpus::Document, eval::bm25::KeywordIndex};

/// Texts of each type's keyword search that are mined.
const DEPTH: usize = 200;

/// For each type, mentions of other types in the first [`DEPTH`] texts found for its name that do
/// not mention it.
pub fn mine(
    documents: &[Document],
    names: &[String],
    types: &[usize],
    texts: &[usize],
) -> Vec<Vec<usize>> {
    let index = KeywordIndex::new(documents.iter().map(|d| d.text.as_str()));
    let mut mentions = vec![Vec::new(); documents.len()];
    for (mention, &text) in texts.iter().enumerate() {
        mentions[text].push(mention);
    }
    let hard = names.iter().enumerate().map(|(kind, name)| {
        let found = index.search(name);
        found
            .into_iter()
            .map(|(text, _)| &mentions[text])
            .filter(|mentions| mentions.iter().all(|&mention| types[mention] != kind))
            .take(DEPTH)
            .flatten()
            .copied()
            .collect()
    });
    hard.collect()
}
