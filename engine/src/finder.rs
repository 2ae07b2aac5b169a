//! Finds the mentions of a batch while it is on its way through the model.

use candle_core::{Result, Tensor};

use crate::{
    download::{Download, Downloads},
    embedder::Scored,
    mentions::{candidates::Candidates, probe::Probe},
    model::llama::Chooser,
    prepare::{Task, Window},
};

/// Names the tokens that stand for the mentions of windows: given spans, and what a probe finds.
pub struct Finder<'a> {
    windows: &'a [&'a Window],
    probe: Option<&'a Probe>,
    downloads: &'a Downloads,
    candidates: Candidates,
    /// The candidates' probabilities.
    scores: Option<Download>,
    /// Per window, once all is found: bytes and score of each mention.
    pub found: Vec<Scored>,
}

impl<'a> Finder<'a> {
    pub fn new(
        windows: &'a [&'a Window],
        probe: Option<&'a Probe>,
        downloads: &'a Downloads,
    ) -> Self {
        Self {
            windows,
            probe,
            downloads,
            candidates: Candidates::default(),
            scores: None,
            found: Vec::new(),
        }
    }

    /// Per window, the spans of words that the probe takes for mentions, with their probabilities.
    fn proposals(&mut self) -> Result<Vec<Scored>> {
        let mut proposals = vec![Vec::new(); self.windows.len()];
        let Some(scores) = self.scores.take() else {
            return Ok(proposals);
        };
        let scores = self.downloads.finish(scores)?;
        for (span, score) in self.candidates.spans.iter().zip(scores) {
            if let Task::Detect { thresholds, .. } = &self.windows[span.sequence].task
                && score >= thresholds.floor
            {
                let words = span.first_word..span.last_word + 1;
                proposals[span.sequence].push((words, score));
            }
        }
        Ok(proposals)
    }
}

impl Chooser for Finder<'_> {
    fn see(&mut self, hidden: &[Tensor]) -> Result<()> {
        let (Some(probe), Some(hidden)) = (self.probe, hidden.first()) else {
            return Ok(());
        };
        let mut offset = 0;
        for (index, window) in self.windows.iter().enumerate() {
            if let Task::Detect { words, .. } = &window.task {
                self.candidates.add(index, words, offset, window.ids.len());
            }
            offset += window.ids.len();
        }
        let scores = probe.score(hidden, &self.candidates)?;
        self.scores = scores
            .map(|scores| self.downloads.start(&scores))
            .transpose()?;
        Ok(())
    }

    /// The last token of each mention in windows that ask for embeddings.
    fn rows(&mut self) -> Result<Vec<u32>> {
        let proposals = self.proposals()?;
        let mut rows = Vec::new();
        let mut offset = 0;
        for (window, proposals) in self.windows.iter().zip(&proposals) {
            let (spans, ends) = window.mentions(proposals);
            if window.embed {
                rows.extend(ends.iter().map(|end| (offset + end) as u32));
            }
            self.found.push(spans);
            offset += window.ids.len();
        }
        Ok(rows)
    }
}
