//! A base model and a head together: texts to embedded mentions.

use std::{ops::Range, path::Path};

use candle_core::{Device, Tensor};
use ner_retriever_protocol::ModelInfo;

use crate::{
    backend::{Backend, Input, Output},
    device,
    error::{EngineError, Result, compute},
    head::{self, Head, HeadDescription},
    mentions::candidates::Candidates,
    model::{BaseModel, Checkpoint, llama::Packed},
    prepare::{Prepared, Task, Window, finish, prepare},
    projection::Side,
};

/// A loaded base model and head.
pub struct Embedder {
    model: BaseModel,
    head: Head,
    info: ModelInfo,
    device: Device,
}

/// What the model gave for a window.
pub struct WindowOutput {
    pub mentions: Vec<Found>,
}

/// A mention in a window.
pub struct Found {
    /// Bytes of the whole text; empty for a type's name.
    pub bytes: Range<usize>,
    /// Probability; 1 for a given span and for a type's name.
    pub score: f32,
    /// `[dims]`; empty if no embedding was asked for.
    pub embedding: Vec<f32>,
}

impl From<Vec<(Range<usize>, f32)>> for WindowOutput {
    /// Mentions without embeddings.
    fn from(found: Vec<(Range<usize>, f32)>) -> Self {
        let mentions = found.into_iter().map(|(bytes, score)| Found {
            bytes,
            score,
            embedding: Vec::new(),
        });
        Self {
            mentions: mentions.collect(),
        }
    }
}

/// The mentions of a batch before projection.
pub struct Represented {
    /// Per window: bytes and score of each mention.
    pub found: Vec<Vec<(Range<usize>, f32)>>,
    /// The mentions' representations in the same order, `[mentions, kv_dim]`; `None` if there are
    /// no mentions.
    pub values: Option<Tensor>,
}

impl Embedder {
    /// Loads a base model and a head.
    ///
    /// # Errors
    /// Every kind that names a model or a head.
    pub fn load(model: &Path, head: &Path, device: Device) -> Result<Self> {
        let description = HeadDescription::read(head)?;
        let checkpoint = Checkpoint::open(model, &device)?;
        let config = checkpoint.config();
        description.check_base_model(checkpoint.hash(), config.blocks, config.kv_dim())?;
        let head = Head::load(head, description, config.hidden_size, &device)?;
        let model_path = model.display().to_string();
        let model = checkpoint.load(head.description.last_block())?;
        Ok(Self {
            info: ModelInfo {
                model: model_path,
                head: head.description.name.clone(),
                fingerprint: head::fingerprint(&model.hash, &head.hash),
                device: device::name(&device),
                block: head.description.block as u32,
                dims: head.description.projection.dims as u32,
            },
            model,
            head,
            device,
        })
    }

    pub fn model(&self) -> &BaseModel {
        &self.model
    }

    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Runs the model over windows and reads mentions and their representations.
    ///
    /// # Errors
    /// `OutOfMemory`, `Internal`.
    pub fn represent(&self, windows: &[&Window]) -> Result<Represented> {
        if windows.is_empty() {
            return Ok(Represented {
                found: Vec::new(),
                values: None,
            });
        }
        self.try_represent(windows).map_err(compute)
    }

    /// Embeddings of a batch's mentions, in their order; type names are centred on their own mean.
    fn project_each(
        &self,
        values: &Tensor,
        windows: &[&Window],
        represented: &Represented,
    ) -> Result<Vec<Vec<f32>>> {
        let is_type = |window: &Window| matches!(window.task, Task::Type);
        let mut embeddings = Vec::new();
        if windows.iter().any(|window| !is_type(window)) {
            embeddings = self.project(values, Side::Mention)?;
        }
        if windows.iter().any(|window| is_type(window)) {
            let mut types = self.project(values, Side::Type)?;
            if embeddings.is_empty() {
                return Ok(types);
            }
            let mut row = 0;
            for (window, found) in windows.iter().zip(&represented.found) {
                if is_type(window) {
                    embeddings[row] = std::mem::take(&mut types[row]);
                }
                row += found.len();
            }
        }
        Ok(embeddings)
    }

    fn try_represent(&self, windows: &[&Window]) -> candle_core::Result<Represented> {
        let description = &self.head.description;
        let probe = self.head.probe.as_ref().zip(description.detector.as_ref());
        let detects = windows
            .iter()
            .any(|w| matches!(w.task, Task::Detect { .. }));
        let hidden_at: Vec<usize> = probe
            .iter()
            .filter(|_| detects)
            .map(|(_, detector)| detector.block)
            .collect();
        let packed = Packed::new(windows.iter().map(|window| window.ids.as_slice()));
        let activations = self
            .model
            .llama
            .forward(&packed, &hidden_at, &[description.block])?;
        let mut candidates = Candidates::default();
        let mut offset = 0;
        for (index, window) in windows.iter().enumerate() {
            if let Task::Detect { words, .. } = &window.task {
                candidates.add(index, words, offset, window.ids.len());
            }
            offset += window.ids.len();
        }
        let (scores, threshold) = match (probe, activations.hidden.first()) {
            (Some((probe, detector)), Some(hidden)) => {
                (probe.score(hidden, &candidates)?, detector.threshold)
            }
            _ => (Vec::new(), 1.0),
        };
        let mut proposals: Vec<Vec<(Range<usize>, f32)>> = vec![Vec::new(); windows.len()];
        for (span, score) in candidates.spans.iter().zip(scores) {
            if score >= threshold {
                let words = span.first_word..span.last_word + 1;
                proposals[span.sequence].push((words, score));
            }
        }
        let mut found = Vec::with_capacity(windows.len());
        let mut ends: Vec<u32> = Vec::new();
        let mut offset = 0;
        for (window, proposals) in windows.iter().zip(&proposals) {
            let (spans, tokens) = window.mentions(proposals);
            found.push(spans);
            ends.extend(tokens.into_iter().map(|token| (offset + token) as u32));
            offset += window.ids.len();
        }
        let values = match activations.values.first() {
            Some(values) if !ends.is_empty() => {
                Some(values.index_select(&Tensor::new(ends, &self.device)?, 0)?)
            }
            _ => None,
        };
        Ok(Represented { found, values })
    }

    /// Embeddings of representations `[n, kv_dim]`.
    ///
    /// # Errors
    /// `OutOfMemory`, `Internal`.
    pub fn project(&self, values: &Tensor, side: Side) -> Result<Vec<Vec<f32>>> {
        self.head
            .projection
            .apply(values, side)
            .and_then(|embeddings| embeddings.to_vec2())
            .map_err(compute)
    }
}

impl Backend for Embedder {
    type Prepared = Prepared;
    type Window = Window;
    type WindowOutput = WindowOutput;

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn prepare(&self, input: Input) -> Result<(Prepared, Vec<Window>)> {
        prepare(&self.model, &self.head, input)
    }

    fn tokens(&self, window: &Window) -> usize {
        window.ids.len()
    }

    fn forward(&self, windows: &[&Window]) -> Result<Vec<WindowOutput>, EngineError> {
        let represented = self.represent(windows)?;
        // A request for mentions alone may share its batch with one for embeddings; projecting its
        // few mentions as well costs less than sorting them out.
        let mut embeddings = match &represented.values {
            Some(values) => self.project_each(values, windows, &represented)?,
            None => Vec::new(),
        }
        .into_iter();
        let outputs = windows
            .iter()
            .zip(represented.found)
            .map(|(window, found)| {
                let mentions = found.into_iter().map(|(bytes, score)| {
                    let embedding = embeddings.next().unwrap_or_default();
                    Found {
                        bytes,
                        score,
                        embedding: if window.embed { embedding } else { Vec::new() },
                    }
                });
                WindowOutput {
                    mentions: mentions.collect(),
                }
            });
        Ok(outputs.collect())
    }

    fn finish(&self, prepared: Prepared, outputs: Vec<WindowOutput>) -> Result<Output> {
        finish(prepared, outputs)
    }
}
