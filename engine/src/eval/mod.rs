//! Retrieval and detection quality on a corpus with gold spans (the paper's protocol): every
//! mention is indexed, a type's query ranks texts by their best mention.

pub mod auc;
pub mod bm25;
mod cache;
pub mod detection;
pub mod examples;
mod export;
mod feedback;
pub mod index;
pub mod queries;
pub mod ranking;
pub mod report;

use std::path::Path;

use candle_core::Tensor;

use crate::{
    backend::{Backend, Input},
    corpus::{Document, TypeNames},
    embedder::Embedder,
    error::Result,
    projection::Side,
};
use bm25::KeywordIndex;
use index::Index;
use queries::Queries;
use ranking::macro_average;
use report::{Baselines, Report, Spans, TypeReport};

/// What of a corpus is indexed, and how it is asked.
#[derive(Debug, Clone, Copy)]
pub struct Protocol<'a> {
    pub spans: Spans,
    /// Least probability of a detected mention instead of the head's own.
    pub threshold: Option<f32>,
    /// From this text on only mentions that share a letter with a labelled one are indexed.
    pub labelled_from: Option<usize>,
    /// How many mentions show a type beside its name; 0: none, and no scores of that.
    pub examples: usize,
    /// Of the choice of examples.
    pub seed: u64,
    /// The file that the mentions' embeddings are written to.
    pub export: Option<&'a Path>,
    /// The folder that keeps what the base model gives for the texts.
    pub cache: Option<&'a Path>,
}

/// Scores a head on a corpus with gold spans.
///
/// # Errors
/// The model's errors; `InvalidSetting` if the corpus has no mention or the export cannot be written.
pub fn evaluate(
    embedder: &Embedder,
    documents: &[Document],
    names: &TypeNames,
    protocol: Protocol,
) -> Result<Report> {
    let spans = protocol.spans;
    let started = std::time::Instant::now();
    let queries = Queries::new(documents, names);
    queries::check(&queries.names)?;
    let index = match protocol.cache {
        Some(folder) => cache::index(folder, embedder, documents, spans, protocol.threshold)?,
        None => Index::new(embedder, documents, spans, protocol.threshold)?,
    };
    let index = match protocol.labelled_from {
        Some(text) => index.of_labelled_from(text, documents)?,
        None => index,
    };
    let values = type_values(embedder, &queries.names)?;
    let mentions = embedder.project(&index.values, Side::Mention)?;
    if let Some(path) = protocol.export {
        export::write(path, &index, documents, &mentions)?;
    }
    let types = embedder.project(&values, Side::Type)?;
    let by_head = queries.score(&index.texts, &mentions, &types)?;
    let by_feedback = feedback::score(&queries, &index, documents, (&mentions, &types))?;
    let with_examples = (protocol.examples > 0)
        .then(|| {
            let embeddings = (&mentions, &types);
            let picked = (protocol.examples, protocol.seed);
            examples::score(&index, documents, &queries, embeddings, picked)
        })
        .transpose()?;
    let by_raw = queries.score(
        &index.texts,
        &embedder.unprojected(&index.values)?,
        &embedder.unprojected(&values)?,
    )?;
    let keywords = KeywordIndex::new(documents.iter().map(|d| d.text.as_str()));
    let by_keyword = queries.score_ranks(|query| keywords.search(query));
    let macro_r_precision = macro_average(&by_head);
    let macro_r_precision_with_feedback = macro_average(&by_feedback);
    let types = by_head.into_iter().zip(by_feedback).zip(&queries.names);
    Ok(Report {
        fingerprint: embedder.info().fingerprint.clone(),
        spans,
        texts: documents.len(),
        mentions: index.texts.len(),
        macro_r_precision,
        macro_r_precision_with_feedback,
        with_examples,
        baselines: Baselines {
            bm25: macro_average(&by_keyword),
            unprojected: macro_average(&by_raw),
        },
        types: types
            .map(|(((kind, score), (_, with_feedback)), query)| {
                let report = TypeReport {
                    query: query.clone(),
                    score,
                    with_feedback: with_feedback.r_precision,
                };
                (kind, report)
            })
            .collect(),
        detection: matches!(spans, Spans::Detected).then(|| index.detection.scores()),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The unprojected representations of types' names, `[names, input_dims]`.
///
/// # Errors
/// The model's errors; `InvalidSetting` for a name that the model cannot read.
pub fn type_values(embedder: &Embedder, names: &[String]) -> Result<Tensor> {
    queries::check(names)?;
    let mut windows = Vec::with_capacity(names.len());
    for name in names {
        windows.extend(embedder.prepare(Input::Type { name: name.clone() })?.1);
    }
    embedder.represent_types(&windows.iter().collect::<Vec<_>>())
}
