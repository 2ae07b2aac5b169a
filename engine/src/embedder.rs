//! A base model and a head together: texts to embedded mentions.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use ner_retriever_protocol::ModelInfo;
use rayon::prelude::*;

use crate::{
    backend::{Backend, Input, Output},
    batches::parts,
    companion::Companion,
    device,
    download::Downloads,
    error::{EngineError, ErrorKind, Result, compute},
    finder::Finder,
    finish::finish,
    head::{self, Head, HeadDescription},
    model::{
        BaseModel, Checkpoint, MAX_WINDOW, Numbers, default_numbers,
        llama::{Packed, Wanted},
    },
    prepare::{Prepared, Task, Window, prepare},
    projection::Side,
    representation::{Representation, mention_suffixes, represent, want},
    sources::Sources,
    suffixes::Place,
};

/// Keeps all cores busy, and bounds both the memory of a pass and how long an interactive request waits
/// for the batch before it.
const CPU_BATCH_TOKENS: usize = 2048;
/// A GPU needs larger products to be busy, and is through with them as soon.
const GPU_BATCH_TOKENS: usize = 16_384;

/// Ranges (of bytes, or of words) with their probabilities.
pub type Scored = Vec<(Range<usize>, f32)>;

/// A loaded base model and head.
pub struct Embedder {
    model: BaseModel,
    head: Head,
    companion: Option<Companion>,
    info: ModelInfo,
    device: Device,
    downloads: Downloads,
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

impl From<Scored> for WindowOutput {
    /// Mentions without embeddings.
    fn from(found: Scored) -> Self {
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
    pub found: Vec<Scored>,
    /// The representations of the mentions in windows that ask for embeddings, in the same order,
    /// `[mentions, input_dims]`, the companion's beside them if its embeddings count; `None` if there are none.
    pub values: Option<Tensor>,
}

impl Embedder {
    /// Loads a base model and a head with its companion, to run in `numbers` or those that suit the device.
    ///
    /// # Errors
    /// Every kind that names a model or a head.
    pub fn load(sources: &Sources, device: Device, numbers: Option<Numbers>) -> Result<Self> {
        let description = HeadDescription::read(&sources.head)?;
        let mut checkpoint = Checkpoint::open(&sources.model, &device)?;
        if let Some(numbers) = numbers {
            checkpoint = checkpoint.in_numbers(numbers);
        }
        let config = checkpoint.config();
        description.check_base_model(checkpoint.hash(), config.blocks, config.kv_dim())?;
        let companion = description.companion.as_ref();
        let companion = companion
            .map(|companion| Companion::load(sources, companion, &device, numbers))
            .transpose()?;
        let head = Head::load(&sources.head, description, config.hidden_size, &device)?;
        let model = checkpoint.load(head.description.last_block())?;
        let representations = head
            .description
            .representations
            .iter()
            .map(Representation::block);
        let own = head::fingerprint(&model.hash, &head.hash);
        let fingerprint = match &companion {
            Some(companion) => companion.fingerprint(&own),
            None => own,
        };
        let embedding = companion.as_ref().and_then(Companion::embedding);
        let dims = head.description.projection.dims as u32;
        Ok(Self {
            info: ModelInfo {
                model: sources.model.display().to_string(),
                head: head.description.name.clone(),
                fingerprint,
                device: device::name(&device),
                block: representations.max().unwrap_or(0) as u32,
                dims: dims + embedding.map_or(0, |companion| companion.info.dims),
                dtype: numbers.unwrap_or(default_numbers(&device)).to_string(),
            },
            model,
            head,
            companion,
            device,
            downloads: Downloads::default(),
        })
    }

    pub fn model(&self) -> &BaseModel {
        &self.model
    }

    pub fn head(&self) -> &Head {
        &self.head
    }

    pub fn companion(&self) -> Option<&Companion> {
        self.companion.as_ref()
    }

    /// Whether it finds mentions.
    pub fn detects(&self) -> bool {
        self.head.probe.is_some() || self.companion.is_some()
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What a pass has to give for the head: with `detects` for its detector, with `embeds` for its
    /// representations.
    fn wanted(&self, detects: bool, embeds: bool) -> Wanted {
        let description = &self.head.description;
        let mut wanted = Wanted::default();
        if let Some(detector) = description.detector.as_ref().filter(|_| detects) {
            wanted.hidden.push(detector.block);
        }
        if embeds {
            want(&description.representations, &mut wanted);
        }
        wanted
    }

    /// The largest pass that there can be: windows of the model's whole context.
    fn rehearse(&self, tokens: usize) -> Result<()> {
        let window = vec![self.model.tokenizer.first(); MAX_WINDOW.min(tokens)];
        let windows = (0..tokens / window.len()).map(|_| window.as_slice());
        let packed = Packed::new(windows);
        let pass = || {
            let activations = self
                .model
                .llama
                .forward(&packed, &self.wanted(true, true))?;
            self.device.synchronize()?;
            Ok(activations)
        };
        pass().map(drop).map_err(compute)?;
        match &self.companion {
            Some(companion) => companion.embedder().rehearse(tokens),
            None => Ok(()),
        }
    }

    /// Runs the model over windows of texts and reads mentions, and the representations of those in
    /// windows that ask for embeddings.
    ///
    /// # Errors
    /// `OutOfMemory`, `Internal`.
    pub fn represent(&self, windows: &[&Window]) -> Result<Represented> {
        match &self.companion {
            Some(companion) => companion.represent(self, windows),
            None => self.represent_alone(windows),
        }
    }

    /// [`Self::represent`] without the companion.
    ///
    /// # Errors
    /// `OutOfMemory`, `Internal`.
    pub fn represent_alone(&self, windows: &[&Window]) -> Result<Represented> {
        let parts = parts(windows, &self.device, |window| window.ids.len());
        let parts = parts.into_par_iter().map(|part| self.pass(part));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let values: Vec<&Tensor> = parts.iter().filter_map(|p| p.values.as_ref()).collect();
        let values = (!values.is_empty()).then(|| Tensor::cat(&values, 0));
        Ok(Represented {
            values: values.transpose().map_err(compute)?,
            found: parts.into_iter().flat_map(|part| part.found).collect(),
        })
    }

    /// Runs the model over the windows of one part of a batch.
    fn pass(&self, windows: &[&Window]) -> Result<Represented> {
        let description = &self.head.description;
        let representations = &description.representations;
        let detector = self.head.probe.as_ref().zip(description.detector.as_ref());
        let detects = windows
            .iter()
            .any(|w| matches!(w.task, Task::Detect { .. }));
        let wanted = self.wanted(
            detects && detector.is_some(),
            windows.iter().any(|window| window.embed),
        );
        let packed = Packed::new(windows.iter().map(|window| window.ids.as_slice()));
        let mut finder = Finder::new(windows, detector.map(|(probe, _)| probe), &self.downloads);
        let activations = self
            .model
            .llama
            .forward_choosing(&packed, &wanted, &mut finder)
            .map_err(compute)?;
        let found = finder.found;
        let mut places = Vec::new();
        let mut offset = 0;
        for (window, spans) in windows.iter().zip(&found) {
            if window.embed {
                for (bytes, _) in spans {
                    places.push(self.place(window, offset, bytes)?);
                }
            }
            offset += window.ids.len();
        }
        let values = if places.is_empty() {
            None
        } else {
            let values = represent(&self.model, representations, &activations, &places);
            Some(values.map_err(compute)?)
        };
        Ok(Represented { found, values })
    }

    /// What a pass knows a mention by, which is in a window whose rows begin at `offset`.
    fn place(&self, window: &Window, offset: usize, bytes: &Range<usize>) -> Result<Place> {
        let representations = &self.head.description.representations;
        let mention = &window.text[bytes.clone()];
        Ok(Place {
            prefix: offset..offset + window.ids.len(),
            suffixes: mention_suffixes(&self.model, representations, mention)?,
        })
    }

    fn texts(&self, windows: &[&Window]) -> Result<Vec<WindowOutput>> {
        let represented = self.represent(windows)?;
        let mut embeddings = match &represented.values {
            Some(values) => self.rows(values, Side::Mention)?,
            None => Vec::new(),
        }
        .into_iter();
        let outputs = windows
            .iter()
            .zip(represented.found)
            .map(|(window, found)| {
                let mentions = found.into_iter().map(|(bytes, score)| Found {
                    bytes,
                    score,
                    embedding: if window.embed {
                        embeddings.next().unwrap_or_default()
                    } else {
                        Vec::new()
                    },
                });
                WindowOutput {
                    mentions: mentions.collect(),
                }
            });
        Ok(outputs.collect())
    }

    fn types(&self, windows: &[&Window]) -> Result<Vec<WindowOutput>> {
        if windows.is_empty() {
            return Ok(Vec::new());
        }
        let embeddings = self.rows(&self.represent_types(windows)?, Side::Type)?;
        let outputs = embeddings.into_iter().map(|embedding| WindowOutput {
            mentions: vec![Found {
                bytes: 0..0,
                score: 1.0,
                embedding,
            }],
        });
        Ok(outputs.collect())
    }

    fn rows(&self, values: &Tensor, side: Side) -> Result<Vec<Vec<f32>>> {
        self.project(values, side)?.to_vec2().map_err(compute)
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
        let size = self.model.window_size();
        match (&self.companion, &input) {
            (None, _) => prepare(&self.model, &self.head, input, size),
            (Some(companion), Input::Text { .. }) => companion.prepare(&self.model, input),
            (Some(companion), Input::Type { .. }) => {
                if let Some(companion) = companion.embedding() {
                    // Its query forms must fit as well.
                    companion.prepare(input.clone())?;
                }
                prepare(&self.model, &self.head, input, size)
            }
        }
    }

    fn batch_tokens(&self, wanted: usize) -> Result<usize, EngineError> {
        if self.device.is_cpu() {
            return Ok(if wanted == 0 {
                CPU_BATCH_TOKENS
            } else {
                wanted
            });
        }
        let mut tokens = if wanted == 0 {
            GPU_BATCH_TOKENS
        } else {
            wanted
        };
        loop {
            match self.rehearse(tokens) {
                Err(error) if error.kind == ErrorKind::OutOfMemory && tokens > MAX_WINDOW => {
                    tokens /= 2;
                }
                result => return result.map(|()| tokens),
            }
        }
    }

    fn is_lost(&self) -> bool {
        let asks = || Tensor::zeros(1, DType::F32, &self.device)?.to_vec1::<f32>();
        asks().is_err()
    }

    fn tokens(&self, window: &Window) -> usize {
        window.tokens()
    }

    fn forward(&self, windows: &[&Window]) -> Result<Vec<WindowOutput>, EngineError> {
        let is_type = |window: &Window| matches!(window.task, Task::Type);
        let (types, texts): (Vec<&Window>, Vec<&Window>) =
            windows.iter().partition(|window| is_type(window));
        let mut types = self.types(&types)?.into_iter();
        let mut texts = self.texts(&texts)?.into_iter();
        let outputs = windows.iter().filter_map(|window| {
            if is_type(window) {
                types.next()
            } else {
                texts.next()
            }
        });
        Ok(outputs.collect())
    }

    fn finish(&self, prepared: Prepared, outputs: Vec<WindowOutput>) -> Result<Output> {
        finish(prepared, outputs)
    }
}
