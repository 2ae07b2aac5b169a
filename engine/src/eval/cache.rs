//! Indexed mentions on disk, so that another projection is scored without the base model's pass.

use std::{collections::HashMap, fs, ops::Range, path::Path};

use candle_core::{Device, Tensor, safetensors};
use sha2::{Digest, Sha256};

use super::{detection::DetectionCounts, index::Index, report::Spans};
use crate::{
    companion::Companion,
    corpus::Document,
    embedder::Embedder,
    error::{EngineError, ErrorKind, Result, compute},
    features::{unwritable, write},
    head::Head,
    model::identity::hex,
};

/// [`Index::new`], or what it has given before for the same texts, model and detector: read from
/// `folder`, or computed and kept there.
///
/// # Errors
/// As there, and `InvalidSetting` if the folder cannot be written.
pub fn index(
    folder: &Path,
    embedder: &Embedder,
    documents: &[Document],
    spans: Spans,
    threshold: Option<f32>,
) -> Result<Index> {
    let name = key(embedder, documents, spans, threshold).map_err(compute)?;
    let path = folder.join(format!("eval-{name}.safetensors"));
    if let Ok(tensors) = safetensors::load(&path, &Device::Cpu) {
        return read(tensors, documents, embedder.device()).map_err(|error| {
            let message = format!("\"{}\" is damaged: {error}", path.display());
            EngineError::new(ErrorKind::InvalidSetting, message)
                .hint("Delete the file; it is computed again.")
        });
    }
    fs::create_dir_all(folder).map_err(|e| unwritable(folder, &e))?;
    let index = Index::new(embedder, documents, spans, threshold)?;
    write(&tensors(&index).map_err(compute)?, &path)?;
    Ok(index)
}

fn tensors(index: &Index) -> candle_core::Result<HashMap<String, Tensor>> {
    let mentions = index.texts.iter().zip(&index.bytes);
    let places: Vec<i64> = mentions
        .flat_map(|(text, bytes)| [*text, bytes.start, bytes.end].map(|number| number as i64))
        .collect();
    let places = Tensor::from_vec(places, (index.texts.len(), 3), &Device::Cpu)?;
    let counts = index.detection.counts().map(|count| count as i64);
    Ok([
        ("values", index.values.clone()),
        ("places", places),
        ("detection", Tensor::new(&counts, &Device::Cpu)?),
    ]
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .into())
}

fn read(
    mut tensors: HashMap<String, Tensor>,
    documents: &[Document],
    device: &Device,
) -> candle_core::Result<Index> {
    let mut take = |name: &str| {
        let tensor = tensors.remove(name);
        tensor.ok_or_else(|| candle_core::Error::Msg(format!("it lacks \"{name}\"")))
    };
    let values = take("values")?.to_device(device)?;
    let places = take("places")?.to_vec2::<i64>()?;
    let places = places.iter().filter_map(|place| match place[..] {
        [text, start, end] => Some((text as usize, start as usize..end as usize)),
        _ => None,
    });
    let (texts, bytes): (Vec<_>, Vec<_>) = places.unzip();
    let counts = take("detection")?.to_vec1::<i64>()?;
    let counts = counts.into_iter().map(|count| count as usize);
    let Ok(counts) = counts.collect::<Vec<_>>().try_into() else {
        candle_core::bail!("its counts are of another kind");
    };
    let mut mentions = texts.iter().zip(&bytes);
    let fits = |(text, bytes): (&usize, &Range<usize>)| {
        let text = documents.get(*text);
        text.is_some_and(|document| document.text.get(bytes.clone()).is_some())
    };
    if values.dim(0)? != texts.len() || !mentions.all(fits) {
        candle_core::bail!("its mentions do not fit the texts");
    }
    Ok(Index {
        texts,
        bytes,
        values,
        detection: DetectionCounts::of(counts),
    })
}

/// A hash of all that an index depends on.
fn key(
    embedder: &Embedder,
    documents: &[Document],
    spans: Spans,
    threshold: Option<f32>,
) -> candle_core::Result<String> {
    let mut hasher = Sha256::new();
    let finder = embedder.companion().map(Companion::embedder);
    let embedding = embedder.companion().and_then(Companion::embedding);
    for embedder in std::iter::once(embedder).chain(embedding) {
        let model = embedder.model();
        hasher.update(format!("{} {}\n", model.hash, model.numbers));
        for representation in &embedder.head().description.representations {
            hasher.update(representation.of_mentions());
        }
    }
    match spans {
        Spans::Detected => {
            if let Some(finder) = finder {
                let model = finder.model();
                hasher.update(format!("{} {}\n", model.hash, model.numbers));
            }
            hash_detector(&mut hasher, finder.unwrap_or(embedder).head(), threshold)?;
        }
        Spans::Gold => hasher.update("labelled\n"),
    }
    for document in documents {
        hasher.update(format!("{document:?}\n"));
    }
    Ok(hex(&hasher.finalize())[..16].to_owned())
}

fn hash_detector(
    hasher: &mut Sha256,
    head: &Head,
    threshold: Option<f32>,
) -> candle_core::Result<()> {
    let (Some(detector), Some(probe)) = (&head.description.detector, &head.probe) else {
        return Ok(());
    };
    let thresholds = detector.thresholds(threshold);
    hasher.update(format!("detected {} {thresholds:?}\n", detector.block));
    let mut tensors: Vec<_> = probe.tensors().into_iter().collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, tensor) in tensors {
        let numbers = tensor.flatten_all()?.to_vec1::<f32>()?;
        hasher.update(format!("{name} {numbers:?}\n"));
    }
    Ok(())
}
