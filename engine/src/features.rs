//! What training reads of the base model, computed once and kept on disk: the frozen model's pass
//! over a corpus takes most of a training run.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor, safetensors};
use indicatif::{ProgressBar, ProgressStyle};
use ner_retriever_protocol::Span;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{
    batches::{batches, parts},
    corpus::Document,
    error::{EngineError, ErrorKind, Result, compute},
    model::{
        BaseModel, Numbers,
        identity::hex,
        llama::{Chooser, Packed, Wanted},
        readout::Readout,
    },
    representation::{Representation, mention_suffixes, represent_with_states, want},
    suffixes::Place,
    text::{char_starts, token_at},
    tokenizer::Encoded,
};

/// Texts in one file of the cache; an interrupted run loses at most this much work.
const SHARD_TEXTS: usize = 512;
/// Tokens of texts that go through the model at a time.
const BATCH_TOKENS: usize = 2048;

/// Which activations are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// What represents the labelled mentions.
    pub representations: Vec<Representation>,
    /// 0-based block whose incoming hidden states are kept of every token.
    pub hidden: Option<usize>,
}

/// What the probe and the projection are trained on; rows of tokens count the model's first token.
pub struct Features {
    /// Per text.
    texts: Vec<TextFeatures>,
}

/// Activations of one text.
pub struct TextFeatures {
    pub encoded: Encoded,
    /// The labelled mentions' representations, `[mentions, representations * kv_dim]`, f32; `None`
    /// for a text without mentions.
    pub values: Option<Tensor>,
    /// Normalised for the output embeddings, `[mentions, hidden_size]`, f16.
    pub states: Option<Tensor>,
    /// `[tokens + 1, hidden_size]`, f16: the probe is trained in f32 from batches of them.
    pub hidden: Option<Tensor>,
}

impl Features {
    /// Reads the features of texts from `cache`, computing what is not there. With a `readout`, which
    /// needs all the model's blocks, the last state at the end of each mention's last suffix is kept
    /// too; its next token is what the mention is.
    ///
    /// # Errors
    /// `InvalidSetting` if the cache cannot be written, and the model's errors.
    pub fn compute(
        model: &BaseModel,
        readout: Option<&Readout>,
        documents: &[Document],
        kept: &Kept,
        cache: &Path,
    ) -> Result<Self> {
        let folder = cache.join(key(model, readout.is_some(), documents, kept));
        fs::create_dir_all(&folder).map_err(|e| unwritable(&folder, &e))?;
        let progress = ProgressBar::new(documents.len() as u64);
        if let Ok(style) =
            ProgressStyle::with_template("features {wide_bar} {pos}/{len} texts, {eta} left")
        {
            progress.set_style(style);
        }
        let reader = Reader::new(model, readout, kept);
        let mut all = Vec::with_capacity(documents.len());
        for (number, documents) in documents.chunks(SHARD_TEXTS).enumerate() {
            let texts: Vec<Labelled> = documents
                .iter()
                .map(|document| Labelled::new(model, document, kept))
                .collect::<Result<_>>()?;
            let path = folder.join(format!("{number:05}.safetensors"));
            let mut tensors = match safetensors::load(&path, &Device::Cpu) {
                Ok(tensors) => tensors,
                Err(_) => {
                    let tensors = reader.shard(&texts)?;
                    write(&tensors, &path)?;
                    tensors
                }
            };
            let mut take = |name: &str| {
                tensors.remove(name).ok_or_else(|| {
                    let message = format!("\"{}\" lacks \"{name}\"", path.display());
                    EngineError::new(ErrorKind::InvalidSetting, message)
                        .hint("Delete the file; it is computed again.")
                })
            };
            let mut wanted = |name: &str, want: bool| want.then(|| take(name)).transpose();
            let values = wanted("values", !kept.representations.is_empty())?;
            let states = wanted("states", readout.is_some())?;
            let hidden = wanted("hidden", kept.hidden.is_some())?;
            let (mut row, mut mention) = (0, 0);
            for text in texts {
                let (rows, mentions) = (text.encoded.ids.len() + 1, text.ends.len());
                let part = |t: &Option<Tensor>, from, count| {
                    let t = t.as_ref().filter(|_| count > 0);
                    t.map(|t| t.narrow(0, from, count).map_err(compute))
                        .transpose()
                };
                all.push(TextFeatures {
                    values: part(&values, mention, mentions)?,
                    states: part(&states, mention, mentions)?,
                    hidden: part(&hidden, row, rows)?,
                    encoded: text.encoded,
                });
                row += rows;
                mention += mentions;
            }
            progress.inc(documents.len() as u64);
        }
        progress.finish();
        Ok(Self { texts: all })
    }

    /// The texts' features, in the order of the texts.
    pub fn texts(&self) -> &[TextFeatures] {
        &self.texts
    }
}

/// A text's tokens, cut to one window (training texts are sentences), and its labelled mentions.
struct Labelled {
    encoded: Encoded,
    /// Token that holds the end of each mention.
    ends: Vec<usize>,
    suffixes: Vec<Vec<Vec<u32>>>,
}

impl Labelled {
    fn new(model: &BaseModel, document: &Document, kept: &Kept) -> Result<Self> {
        let mut encoded = model.tokenizer.encode(&document.text)?;
        encoded.ids.truncate(model.window_size());
        encoded.offsets.truncate(model.window_size());
        let starts = char_starts(&document.text);
        let (mut ends, mut suffixes) = (Vec::new(), Vec::new());
        for mention in &document.mentions {
            let bytes = starts[mention.span.start as usize]..starts[mention.span.end as usize];
            // A mention beyond the window stands at its end; there is none in a corpus of sentences.
            let end = token_at(&encoded.offsets, bytes.end - 1);
            ends.push(end.unwrap_or(encoded.ids.len().saturating_sub(1)));
            let mention = &document.text[bytes];
            suffixes.push(mention_suffixes(model, &kept.representations, mention)?);
        }
        Ok(Self {
            encoded,
            ends,
            suffixes,
        })
    }

    /// Tokens of a pass, the first one included.
    fn tokens(&self) -> usize {
        self.encoded.ids.len() + 1
    }
}

/// What is kept of a text, and what a pass has to give for it.
struct Reader<'a> {
    model: &'a BaseModel,
    readout: Option<&'a Readout>,
    representations: &'a [Representation],
    wanted: Wanted,
}

/// The rows of the labelled mentions' last tokens.
struct Known(Vec<u32>);

impl Chooser for Known {
    fn see(&mut self, _: &[Tensor]) -> candle_core::Result<()> {
        Ok(())
    }

    fn rows(&mut self) -> candle_core::Result<Vec<u32>> {
        Ok(std::mem::take(&mut self.0))
    }
}

/// Values, states and hidden states of texts, where they are kept.
type Parts = [Option<Tensor>; 3];

impl<'a> Reader<'a> {
    fn new(model: &'a BaseModel, readout: Option<&'a Readout>, kept: &'a Kept) -> Self {
        let mut wanted = Wanted {
            hidden: kept.hidden.into_iter().collect(),
            ..Wanted::default()
        };
        want(&kept.representations, &mut wanted);
        if readout.is_some() {
            wanted.cached_blocks = model.llama.config().blocks;
        }
        Self {
            model,
            readout,
            representations: &kept.representations,
            wanted,
        }
    }

    /// The tensors of a file of the cache.
    fn shard(&self, texts: &[Labelled]) -> Result<HashMap<String, Tensor>> {
        let mut all: [Vec<Tensor>; 3] = Default::default();
        for batch in batches(texts, BATCH_TOKENS, Labelled::tokens) {
            let parts = parts(batch, &Device::Cpu, Labelled::tokens);
            let parts = parts.into_par_iter().map(|part| self.pass(part));
            for part in parts.collect::<Result<Vec<_>>>()? {
                for (all, part) in all.iter_mut().zip(part) {
                    all.extend(part);
                }
            }
        }
        if all[0].is_empty() && !self.representations.is_empty() {
            return Err(EngineError::new(
                ErrorKind::InvalidSetting,
                format!("{} texts in a row have no labelled mention", texts.len()),
            ));
        }
        ["values", "states", "hidden"]
            .into_iter()
            .zip(all)
            .filter(|(_, parts)| !parts.is_empty())
            .map(|(name, parts)| Ok((name.to_owned(), Tensor::cat(&parts, 0).map_err(compute)?)))
            .collect()
    }

    fn pass(&self, texts: &[Labelled]) -> Result<Parts> {
        let first = self.model.tokenizer.first();
        let (mut ids, mut places, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let mut sequences = Vec::with_capacity(texts.len());
        for text in texts {
            let offset = ids.len();
            ids.push(first);
            ids.extend_from_slice(&text.encoded.ids);
            sequences.push(offset..ids.len());
            ends.extend(text.ends.iter().map(|end| (offset + 1 + end) as u32));
            places.extend(text.suffixes.iter().map(|suffixes| Place {
                prefix: offset..ids.len(),
                suffixes: suffixes.clone(),
            }));
        }
        let packed = Packed::new(sequences.into_iter().map(|sequence| &ids[sequence]));
        let llama = &self.model.llama;
        let activations = llama.forward_choosing(&packed, &self.wanted, &mut Known(ends));
        let activations = activations.map_err(compute)?;
        let half = |tensor: &Tensor| tensor.to_dtype(DType::F16);
        let (mut values, mut kept_states) = (None, None);
        if !places.is_empty() && !self.representations.is_empty() {
            let last = self.model.llama.config().blocks;
            let read: Vec<usize> = self.readout.map(|_| last).into_iter().collect();
            let (found, states) = represent_with_states(
                self.model,
                self.representations,
                &activations,
                &places,
                &read,
            )
            .map_err(compute)?;
            values = Some(found);
            if let (Some(readout), Some(state)) = (self.readout, states.first()) {
                let state = readout.normalize(state).and_then(|state| half(&state));
                kept_states = Some(state.map_err(compute)?);
            }
        }
        let hidden = activations.hidden.first().map(half).transpose();
        Ok([values, kept_states, hidden.map_err(compute)?])
    }
}

/// Writes a file of a cache: beside and renamed, so that an interrupted run leaves no half file.
///
/// # Errors
/// `InvalidSetting` if it cannot be written.
pub fn write(tensors: &HashMap<String, Tensor>, path: &Path) -> Result<()> {
    let part: PathBuf = path.with_extension("part");
    safetensors::save(tensors, &part).map_err(compute)?;
    fs::rename(&part, path).map_err(|e| unwritable(path, &e))
}

/// A hash of all that features depend on. Where mentions are is part of it if something of them is kept, what
/// type they are labelled with never: texts that are labelled anew need no other pass.
fn key(model: &BaseModel, states: bool, documents: &[Document], kept: &Kept) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{} {:?} {}\n", model.hash, kept.hidden, states));
    if model.numbers != Numbers::F32 {
        hasher.update(format!("{}\n", model.numbers));
    }
    for representation in &kept.representations {
        hasher.update(representation.of_mentions());
    }
    for Document { text, mentions } in documents {
        hasher.update(format!("{text:?}\n"));
        if !kept.representations.is_empty() {
            let spans: Vec<Span> = mentions.iter().map(|mention| mention.span).collect();
            hasher.update(format!("{spans:?}\n"));
        }
    }
    hex(&hasher.finalize())[..16].to_owned()
}

/// What to say of a cache that cannot be written.
pub fn unwritable(path: &Path, error: &std::io::Error) -> EngineError {
    EngineError::new(
        ErrorKind::InvalidSetting,
        format!("cannot write \"{}\": {error}", path.display()),
    )
    .hint("Name a folder that can be written with --cache.")
}
