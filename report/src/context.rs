//! What the sections measure: a head, a corpus, and what is computed of them once for all sections.

use std::{cell::OnceCell, collections::BTreeMap};

use candle_core::{Device, Tensor};
use ner_retriever_engine::{
    corpus::{self, Document, TypeNames},
    embedder::Embedder,
    error::{Result, compute},
    eval::{
        self,
        index::Index,
        queries::Queries,
        ranking::{TypeScore, macro_average},
        report::Spans,
    },
    projection::Side,
    text::{char_starts, trim},
};

use crate::{minilm::Minilm, options::Options, section::score};

/// Scores of the types of a corpus, by the corpus's own names.
pub type ByType = BTreeMap<String, TypeScore>;

pub struct Context {
    pub options: Options,
    pub embedder: Embedder,
    pub documents: Vec<Document>,
    pub names: TypeNames,
    pub queries: Queries,
    pub minilm: Option<Minilm>,
    gold: OnceCell<Index>,
    detected: OnceCell<Index>,
    type_values: OnceCell<Tensor>,
}

impl Context {
    /// Loads what the options name.
    ///
    /// # Errors
    /// Those of the files; all are read before anything is computed.
    pub fn load(options: Options) -> Result<Self> {
        let documents = corpus::read(&options.corpus)?;
        let names = corpus::read_type_names(&options.types, &options.corpus)?;
        // Read where they are used; what is wrong with them is said before anything is computed.
        for later in options.ambiguous.iter().chain(&options.train_corpus) {
            corpus::read(later)?;
        }
        let documents = corpus::sample(documents, Some(options.limit), options.seed);
        let minilm = options.minilm.as_deref().map(Minilm::load).transpose()?;
        let embedder = Embedder::load(&options.sources, Device::Cpu, None)?;
        Ok(Self {
            queries: Queries::new(&documents, &names),
            options,
            embedder,
            documents,
            names,
            minilm,
            gold: OnceCell::new(),
            detected: OnceCell::new(),
            type_values: OnceCell::new(),
        })
    }

    /// The labelled mentions.
    pub fn gold(&self) -> Result<&Index> {
        once(&self.gold, || self.index(Spans::Gold))
    }

    /// The mentions that the head's detector finds; `None` if it has no detector.
    pub fn detected(&self) -> Result<Option<&Index>> {
        if !self.embedder.detects() {
            return Ok(None);
        }
        once(&self.detected, || self.index(Spans::Detected)).map(Some)
    }

    fn index(&self, spans: Spans) -> Result<Index> {
        Index::new(&self.embedder, &self.documents, spans, None)
    }

    /// The head's embeddings of an index's mentions, `[mentions, dims]`.
    pub fn embeddings(&self, index: &Index) -> Result<Tensor> {
        self.embedder.project(&index.values, Side::Mention)
    }

    /// The queried types before projection, `[types, input_dims]`.
    pub fn type_values(&self) -> Result<&Tensor> {
        once(&self.type_values, || {
            eval::type_values(&self.embedder, &self.queries.names)
        })
    }

    /// The head's embeddings of the queried types, `[types, dims]`.
    pub fn types(&self) -> Result<Tensor> {
        self.embedder.project(self.type_values()?, Side::Type)
    }

    /// The head's scores.
    pub fn score(&self, index: &Index) -> Result<ByType> {
        let mentions = self.embeddings(index)?;
        self.queries.score(&index.texts, &mentions, &self.types()?)
    }

    /// The scores of the same vectors without the head's projection.
    pub fn score_unprojected(&self, index: &Index) -> Result<ByType> {
        let mentions = self.embedder.unprojected(&index.values)?;
        let types = self.embedder.unprojected(self.type_values()?)?;
        self.queries.score(&index.texts, &mentions, &types)
    }

    /// The corpus's own name of the type of each of an index's mentions; `None` where no labelled
    /// mention stands at the same place.
    pub fn kinds(&self, index: &Index) -> Vec<Option<&str>> {
        let mentions = index.texts.iter().zip(&index.bytes);
        mentions
            .map(|(&text, bytes)| {
                let document = &self.documents[text];
                let starts = char_starts(&document.text);
                let labelled = document.mentions.iter().find(|mention| {
                    let (start, end) = (mention.span.start as usize, mention.span.end as usize);
                    trim(&document.text, starts[start]..starts[end]).as_ref() == Some(bytes)
                });
                labelled.map(|mention| mention.kind.as_str())
            })
            .collect()
    }

    /// The texts that a dense encoder finds for each query, by [`Queries::score_ranks`].
    pub fn score_minilm(&self) -> Result<Option<ByType>> {
        let Some(minilm) = &self.minilm else {
            return Ok(None);
        };
        eprintln!("embedding {} texts with MiniLM", self.documents.len());
        let texts = minilm.embed(self.documents.iter().map(|d| d.text.as_str()))?;
        let types = minilm.embed(self.queries.names.iter().map(String::as_str))?;
        let numbers: Vec<usize> = (0..self.documents.len()).collect();
        self.queries.score(&numbers, &texts, &types).map(Some)
    }
}

/// Rows of a matrix.
pub fn rows(matrix: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let rows: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
    Tensor::new(rows, matrix.device())
        .and_then(|rows| matrix.index_select(&rows, 0))
        .map_err(compute)
}

/// The macro average of scores that there are, as the tables show it.
pub fn macro_score(scores: Option<&ByType>) -> String {
    score(scores.map(macro_average))
}

/// `OnceCell::get_or_try_init`, which is not stable.
fn once<T>(cell: &OnceCell<T>, compute: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let value = compute()?;
            Ok(cell.get_or_init(|| value))
        }
    }
}
