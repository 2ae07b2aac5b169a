//! Retrieval and detection quality on a corpus with gold spans (the paper's protocol): every
//! mention is indexed, a type's query ranks texts by their best mention.

pub mod bm25;
pub mod detection;
pub mod ranking;
pub mod report;

use std::collections::BTreeMap;

use candle_core::Tensor;
use indicatif::{ProgressBar, ProgressStyle};
use ner_retriever_protocol::{Span, TextRequest};

use crate::{
    backend::{Backend, Input, Output},
    corpus::{Document, TypeNames},
    embedder::Embedder,
    error::{EngineError, ErrorKind, Result, compute},
    prepare::Window,
    projection::{Side, normalize},
};
use bm25::KeywordIndex;
use detection::DetectionCounts;
use ranking::{TypeScore, best_per_text, macro_average, r_precision};
use report::{Baselines, Report, Spans, TypeReport};

/// Tokens of one forward pass.
const BATCH_TOKENS: usize = 2048;

/// The indexed mentions of a corpus.
struct Index {
    /// Each mention's text.
    texts: Vec<usize>,
    /// Before projection, `[mentions, kv_dim]`.
    values: Tensor,
    detection: DetectionCounts,
}

/// Scores a head on a corpus with gold or with detected spans; `threshold` is the least probability
/// of a detected mention instead of the head's own.
///
/// # Errors
/// The model's errors; `InvalidSetting` if the corpus has no mention.
pub fn evaluate(
    embedder: &Embedder,
    documents: &[Document],
    names: &TypeNames,
    spans: Spans,
    threshold: Option<f32>,
) -> Result<Report> {
    let started = std::time::Instant::now();
    let index = index(embedder, documents, spans, threshold)?;
    let queries: BTreeMap<&str, &str> = names
        .iter()
        .filter_map(|(kind, name)| Some((kind.as_str(), name.as_deref()?)))
        .filter(|(kind, _)| gold_texts(documents, kind).contains(&true))
        .collect();
    let projected = embeddings(embedder, &index.values, Side::Mention)?;
    let raw = unprojected(embedder, &index.values)?;
    let keywords = KeywordIndex::new(documents.iter().map(|d| d.text.as_str()));
    let mut types = BTreeMap::new();
    let (mut by_raw, mut by_keyword) = (BTreeMap::new(), BTreeMap::new());
    for (kind, query) in queries {
        let gold = gold_texts(documents, kind);
        let value = type_value(embedder, query)?;
        let rank = |mentions: &Tensor, query: Tensor| -> Result<TypeScore> {
            let scores = mentions
                .matmul(&query.t().map_err(compute)?)
                .and_then(|scores| scores.squeeze(1)?.to_vec1())
                .map_err(compute)?;
            Ok(r_precision(best_per_text(&index.texts, &scores), &gold))
        };
        let score = rank(&projected, embeddings(embedder, &value, Side::Type)?)?;
        let raw_score = rank(&raw, unprojected(embedder, &value)?)?;
        by_raw.insert(kind.to_owned(), raw_score);
        by_keyword.insert(kind.to_owned(), r_precision(keywords.search(query), &gold));
        let query = query.to_owned();
        types.insert(kind.to_owned(), TypeReport { query, score });
    }
    let scores = types
        .iter()
        .map(|(kind, report)| (kind.clone(), report.score.clone()));
    Ok(Report {
        fingerprint: embedder.info().fingerprint.clone(),
        spans,
        texts: documents.len(),
        mentions: index.texts.len(),
        macro_r_precision: macro_average(&scores.collect()),
        baselines: Baselines {
            bm25: macro_average(&by_keyword),
            unprojected: macro_average(&by_raw),
        },
        types,
        detection: matches!(spans, Spans::Detected).then(|| index.detection.scores()),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Whether each document mentions a type.
fn gold_texts(documents: &[Document], kind: &str) -> Vec<bool> {
    documents
        .iter()
        .map(|document| document.mentions.iter().any(|mention| mention.kind == kind))
        .collect()
}

fn index(
    embedder: &Embedder,
    documents: &[Document],
    spans: Spans,
    threshold: Option<f32>,
) -> Result<Index> {
    let mut texts = Vec::new();
    let mut values = Vec::new();
    let mut detection = DetectionCounts::default();
    let progress = ProgressBar::new(documents.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("eval {wide_bar} {pos}/{len} texts, {eta} left")
    {
        progress.set_style(style);
    }
    let mut next = 0;
    while next < documents.len() {
        let mut batch = Vec::new();
        let mut tokens = 0;
        while next + batch.len() < documents.len() && tokens < BATCH_TOKENS {
            let prepared = prepare(embedder, &documents[next + batch.len()], spans, threshold)?;
            tokens += prepared.1.iter().map(|w| w.ids.len()).sum::<usize>();
            batch.push(prepared);
        }
        let windows: Vec<&Window> = batch.iter().flat_map(|(_, windows)| windows).collect();
        let represented = embedder.represent(&windows)?;
        values.extend(represented.values);
        let mut found = represented.found.into_iter();
        for (document, (prepared, windows)) in documents[next..].iter().zip(batch) {
            let outputs: Vec<_> = found.by_ref().take(windows.len()).collect();
            let mentions = outputs.iter().map(Vec::len).sum::<usize>();
            texts.extend(std::iter::repeat_n(next, mentions));
            if matches!(spans, Spans::Detected) {
                let outputs = outputs.into_iter().map(Into::into).collect();
                let detected = detected_spans(embedder.finish(prepared, outputs)?);
                let gold: Vec<Span> = document.mentions.iter().map(|m| m.span).collect();
                detection.add(&document.text, &gold, &detected);
            }
            next += 1;
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    if values.is_empty() {
        return Err(EngineError::new(
            ErrorKind::InvalidSetting,
            "the corpus has no mention",
        ));
    }
    Ok(Index {
        texts,
        values: Tensor::cat(&values, 0).map_err(compute)?,
        detection,
    })
}

type PreparedText = (<Embedder as Backend>::Prepared, Vec<Window>);

fn prepare(
    embedder: &Embedder,
    document: &Document,
    spans: Spans,
    threshold: Option<f32>,
) -> Result<PreparedText> {
    let spans = match spans {
        Spans::Gold => Some(
            document
                .mentions
                .iter()
                .map(|mention| mention.span)
                .collect(),
        ),
        Spans::Detected => None,
    };
    let text = document.text.clone();
    let request = TextRequest { text, spans };
    embedder.prepare(Input::Text {
        request,
        embed: true,
        threshold,
    })
}

fn detected_spans(output: Output) -> Vec<Span> {
    match output {
        Output::Mentions(mentions) => mentions.into_iter().map(|mention| mention.span).collect(),
        Output::Type(_) => Vec::new(),
    }
}

/// The unprojected representation of a type's name, `[1, kv_dim]`.
fn type_value(embedder: &Embedder, name: &str) -> Result<Tensor> {
    let name = name.to_owned();
    let (_, windows) = embedder.prepare(Input::Type { name })?;
    let windows: Vec<&Window> = windows.iter().collect();
    embedder
        .represent(&windows)?
        .values
        .ok_or_else(|| EngineError::new(ErrorKind::Internal, "the model gave no vector for a type"))
}

fn embeddings(embedder: &Embedder, values: &Tensor, side: Side) -> Result<Tensor> {
    embedder
        .head()
        .projection
        .apply(values, side)
        .map_err(compute)
}

/// V vectors as they come from the model, without the training mentions' mean where the head knows
/// it, of length 1: what the projection is measured against.
fn unprojected(embedder: &Embedder, values: &Tensor) -> Result<Tensor> {
    match &embedder.head().projection.centers {
        Some(centers) => centers.center(values, Side::Mention).map_err(compute),
        None => normalize(values).map_err(compute),
    }
}
