//! What training reads of the base model, computed once and kept on disk: the frozen model's pass
//! over a corpus takes most of a training run.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor, safetensors};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::{
    corpus::Document,
    error::{EngineError, ErrorKind, Result, compute},
    model::{
        BaseModel,
        identity::hex,
        llama::{Packed, Wanted},
        readout::Readout,
    },
    representation::{Place, Representation, mention_suffixes, represent_with_states, want},
    text::{char_starts, token_at},
    tokenizer::Encoded,
};

/// Texts in one file of the cache; an interrupted run loses at most this much work.
const SHARD_TEXTS: usize = 512;
/// Tokens of one forward pass.
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
                    let tensors = shard(model, readout, &texts, kept)?;
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
            let end = token_at(&encoded, bytes.end - 1);
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
}

fn shard(
    model: &BaseModel,
    readout: Option<&Readout>,
    texts: &[Labelled],
    kept: &Kept,
) -> Result<HashMap<String, Tensor>> {
    let representations = &kept.representations;
    let mut wanted = Wanted {
        hidden: kept.hidden.into_iter().collect(),
        ..Wanted::default()
    };
    want(representations, &mut wanted);
    let last = model.llama.config().blocks;
    let read: Vec<usize> = readout.map(|_| last).into_iter().collect();
    if readout.is_some() {
        wanted.cached_blocks = last;
    }
    let mut parts: [Vec<Tensor>; 3] = Default::default();
    let mut rest = texts;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|text| {
            tokens += text.encoded.ids.len() + 1;
            tokens <= BATCH_TOKENS
        });
        let (batch, after) = rest.split_at(fits.count().max(1));
        rest = after;
        let first = model.tokenizer.first();
        let sequences: Vec<Vec<u32>> = batch
            .iter()
            .map(|text| {
                std::iter::once(first)
                    .chain(text.encoded.ids.iter().copied())
                    .collect()
            })
            .collect();
        let mut places = Vec::new();
        let mut offset = 0;
        for (text, sequence) in batch.iter().zip(&sequences) {
            places.extend(
                text.ends
                    .iter()
                    .zip(&text.suffixes)
                    .map(|(end, suffixes)| Place {
                        end: offset + 1 + end,
                        prefix: offset..offset + sequence.len(),
                        suffixes: suffixes.clone(),
                    }),
            );
            offset += sequence.len();
        }
        let packed = Packed::new(sequences.iter().map(Vec::as_slice));
        let activations = model.llama.forward(&packed, &wanted).map_err(compute)?;
        let half = |tensor: Tensor| tensor.to_dtype(DType::F16);
        if !places.is_empty() && !representations.is_empty() {
            let (values, states) =
                represent_with_states(model, representations, &activations, &places, &read)
                    .map_err(compute)?;
            parts[0].push(values);
            for (state, readout) in states.into_iter().zip(readout) {
                let state = readout.normalize(&state).and_then(half).map_err(compute)?;
                parts[1].push(state);
            }
        }
        for hidden in activations.hidden {
            parts[2].push(half(hidden).map_err(compute)?);
        }
    }
    if parts[0].is_empty() && !representations.is_empty() {
        return Err(EngineError::new(
            ErrorKind::InvalidSetting,
            format!("{} texts in a row have no labelled mention", texts.len()),
        ));
    }
    ["values", "states", "hidden"]
        .into_iter()
        .zip(parts)
        .filter(|(_, parts)| !parts.is_empty())
        .map(|(name, parts)| Ok((name.to_owned(), Tensor::cat(&parts, 0).map_err(compute)?)))
        .collect()
}

/// Writes beside and renames, so that an interrupted run leaves no half file.
fn write(tensors: &HashMap<String, Tensor>, path: &Path) -> Result<()> {
    let part: PathBuf = path.with_extension("part");
    safetensors::save(tensors, &part).map_err(compute)?;
    fs::rename(&part, path).map_err(|e| unwritable(path, &e))
}

fn key(model: &BaseModel, states: bool, documents: &[Document], kept: &Kept) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{} {:?} {}\n", model.hash, kept.hidden, states));
    for representation in &kept.representations {
        // Query forms concern types only.
        hasher.update(match representation {
            Representation::SpanEnd { block, .. } => format!("span end {block}\n"),
            Representation::Suffix { block, text, .. } => format!("suffix {block} {text:?}\n"),
        });
    }
    for document in documents {
        hasher.update(format!("{document:?}\n"));
    }
    hex(&hasher.finalize())[..16].to_owned()
}

fn unwritable(path: &Path, error: &std::io::Error) -> EngineError {
    EngineError::new(
        ErrorKind::InvalidSetting,
        format!("cannot write \"{}\": {error}", path.display()),
    )
    .hint("Name a folder that can be written with --cache.")
}
