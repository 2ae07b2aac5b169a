//! Keyword search, the baseline of `eval` and the miner of `train`'s hard negatives.

use bm25::{Document, Language, SearchEngine, SearchEngineBuilder};

/// An index over texts: English stop words and stemmer, Okapi BM25.
pub struct KeywordIndex {
    engine: SearchEngine<u32>,
    texts: usize,
}

impl KeywordIndex {
    pub fn new<'a>(texts: impl Iterator<Item = &'a str>) -> Self {
        let documents: Vec<_> = (0u32..)
            .zip(texts)
            .map(|(id, text)| Document::new(id, text))
            .collect();
        let texts = documents.len();
        let engine = SearchEngineBuilder::with_documents(Language::English, documents).build();
        Self { engine, texts }
    }

    /// All texts that share a word with the query, with their scores, best first.
    pub fn search(&self, query: &str) -> Vec<(usize, f32)> {
        self.engine
            .search(query, self.texts)
            .into_iter()
            .map(|result| (result.document.id as usize, result.score))
            .collect()
    }
}
