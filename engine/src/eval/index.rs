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
    text::char_starts,
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
                tokens += prepared.1.iter().map(Window::tokens).sum::<usize>();
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

    /// Without mentions that share no letter with a labelled one, from a text on.
    ///
    /// # Errors
    /// `InvalidSetting` if none is left; `OutOfMemory`, `Internal`.
    pub fn of_labelled_from(self, text: usize, documents: &[Document]) -> Result<Self> {
        let labelled: Vec<Vec<Range<usize>>> = documents.iter().map(labelled_bytes).collect();
        let kept = |mention: &usize| {
            let (of, bytes) = (self.texts[*mention], &self.bytes[*mention]);
            of < text || labelled[of].iter().any(|label| overlap(label, bytes))
        };
        let kept: Vec<usize> = (0..self.texts.len()).filter(kept).collect();
        if kept.is_empty() {
            return Err(EngineError::new(
                ErrorKind::InvalidSetting,
                "no mention in the corpora shares a letter with a labelled one",
            ));
        }
        let rows: Vec<u32> = kept.iter().map(|&mention| mention as u32).collect();
        let values = Tensor::new(rows, self.values.device())
            .and_then(|rows| self.values.index_select(&rows, 0))
            .map_err(compute)?;
        let bytes = kept.iter().map(|&mention| self.bytes[mention].clone());
        Ok(Self {
            bytes: bytes.collect(),
            texts: kept.iter().map(|&mention| self.texts[mention]).collect(),
            values,
            detection: self.detection,
        })
    }

    /// For each mention, whether it shares a byte with one of another index of the same corpus.
    pub fn overlapping(&self, other: &Index) -> Vec<bool> {
        let mentions = self.texts.iter().zip(&self.bytes);
        let overlaps = mentions.map(|(&text, a)| {
            let mut others = other.bytes[other.of_text(text)].iter();
            others.any(|b| overlap(a, b))
        });
        overlaps.collect()
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

fn labelled_bytes(document: &Document) -> Vec<Range<usize>> {
    let starts = char_starts(&document.text);
    let spans = document.mentions.iter().map(|mention| mention.span);
    spans
        .map(|span| starts[span.start as usize]..starts[span.end as usize])
        .collect()
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
    use crate::corpus::GoldMention;

    fn index(mentions: &[(usize, Range<usize>)]) -> Index {
        Index {
            texts: mentions.iter().map(|(text, _)| *text).collect(),
            bytes: mentions.iter().map(|(_, bytes)| bytes.clone()).collect(),
            values: Tensor::zeros((mentions.len(), 2), DType::F32, &Device::Cpu).unwrap(),
            detection: DetectionCounts::default(),
        }
    }

    #[test]
    fn mentions_without_a_label_are_left_out_from_a_text_on() {
        let document = |text: &str, start, end| Document {
            text: text.to_owned(),
            mentions: vec![GoldMention {
                span: Span { start, end },
                kind: String::new(),
            }],
        };
        let documents = [
            document("Rome, Bern", 0, 4),
            document("Zürich, Genève", 8, 14),
        ];
        // "Zürich" ends at byte 7, and "Genève" is bytes 9 to 16.
        let detected = index(&[(0, 0..4), (0, 6..10), (1, 0..7), (1, 9..11), (1, 15..16)]);
        let found = detected.of_labelled_from(1, &documents).unwrap();
        assert_eq!(found.texts, [0, 0, 1, 1]);
        assert_eq!(found.bytes, [0..4, 6..10, 9..11, 15..16]);
        assert_eq!(found.values.dims(), [4, 2]);
        let without_a_label = index(&[(1, 0..7)]);
        assert!(without_a_label.of_labelled_from(0, &documents).is_err());
    }

    #[test]
    fn mentions_overlap_those_of_their_own_text_alone() {
        let labelled = index(&[(0, 0..4), (2, 5..9), (2, 10..12)]);
        let detected = index(&[(0, 3..6), (1, 0..4), (2, 9..10), (2, 10..11)]);
        assert_eq!(labelled.overlapping(&detected), [true, false, true]);
        assert_eq!(detected.overlapping(&labelled), [true, false, false, true]);
    }
}
