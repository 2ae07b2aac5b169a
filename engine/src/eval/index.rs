//! The indexed mentions of a corpus.

use std::ops::Range;

use candle_core::Tensor;
use indicatif::{ProgressBar, ProgressStyle};
use ner_retriever_protocol::{Span, TextRequest};

use super::{detection::DetectionCounts, report::Spans};
use crate::{
    backend::{Backend, Input, Output},
    corpus::Document,
    embedder::Embedder,
    error::{EngineError, ErrorKind, Result, compute},
    prepare::Window,
};

/// Tokens of one forward pass.
const BATCH_TOKENS: usize = 2048;

/// Every mention of a corpus, before projection.
pub struct Index {
    /// Each mention's text, by its place in the corpus.
    pub texts: Vec<usize>,
    /// Each mention's bytes of its text, white space at its ends left out.
    pub bytes: Vec<Range<usize>>,
    /// What represents each mention, `[mentions, input_dims]`.
    pub values: Tensor,
    /// Agreement with the labelled spans; counts nothing if those were given.
    pub detection: DetectionCounts,
}

impl Index {
    /// Runs the model over a corpus with its labelled spans or with those that the head's detector
    /// finds; `threshold` is the least probability of a detected mention instead of the head's own.
    ///
    /// # Errors
    /// The model's errors; `InvalidSetting` if the corpus has no mention.
    pub fn new(
        embedder: &Embedder,
        documents: &[Document],
        spans: Spans,
        threshold: Option<f32>,
    ) -> Result<Self> {
        let (mut texts, mut bytes) = (Vec::new(), Vec::new());
        let mut values = Vec::new();
        let mut detection = DetectionCounts::default();
        let progress = ProgressBar::new(documents.len() as u64);
        if let Ok(style) =
            ProgressStyle::with_template("eval {wide_bar} {pos}/{len} texts, {eta} left")
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
                let mentions = outputs.iter().flatten().map(|(bytes, _)| bytes.clone());
                bytes.extend(mentions);
                texts.resize(bytes.len(), next);
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
                match spans {
                    Spans::Gold => "the corpus has no labelled mention",
                    Spans::Detected => "the head's detector finds no mention in the corpus",
                },
            ));
        }
        Ok(Self {
            texts,
            bytes,
            values: Tensor::cat(&values, 0).map_err(compute)?,
            detection,
        })
    }
}

impl Index {
    /// The mentions of a text.
    pub(super) fn of_text(&self, text: usize) -> Range<usize> {
        // Mentions are in the order of their texts.
        let from = self.texts.partition_point(|&of| of < text);
        from..self.texts.partition_point(|&of| of <= text)
    }

    /// For each mention, whether it shares a byte with one of another index of the same corpus.
    pub fn overlapping(&self, other: &Index) -> Vec<bool> {
        let mentions = self.texts.iter().zip(&self.bytes);
        let overlaps = mentions.map(|(&text, a)| {
            let mut others = other.bytes[other.of_text(text)].iter();
            others.any(|b| a.start < b.end && b.start < a.end)
        });
        overlaps.collect()
    }
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn index(mentions: &[(usize, Range<usize>)]) -> Index {
        Index {
            texts: mentions.iter().map(|(text, _)| *text).collect(),
            bytes: mentions.iter().map(|(_, bytes)| bytes.clone()).collect(),
            values: Tensor::zeros((mentions.len(), 2), DType::F32, &Device::Cpu).unwrap(),
            detection: DetectionCounts::default(),
        }
    }

    #[test]
    fn mentions_overlap_those_of_their_own_text_alone() {
        let labelled = index(&[(0, 0..4), (2, 5..9), (2, 10..12)]);
        let detected = index(&[(0, 3..6), (1, 0..4), (2, 9..10), (2, 10..11)]);
        assert_eq!(labelled.overlapping(&detected), [true, false, true]);
        assert_eq!(detected.overlapping(&labelled), [true, false, false, true]);
    }
}
