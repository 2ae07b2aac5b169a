//! A head: a folder with what was trained for one base model.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    error::{EngineError, ErrorKind, Result, compute, head_damaged},
    mentions::{decode::Thresholds, probe::Probe},
    model::identity::hex,
    projection::{Projection, ProjectionKind},
    representation::Representation,
    tensor_map::TensorMap,
};

/// The file in the folder that describes the head.
pub const DESCRIPTION: &str = "head.json";

/// `head.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeadDescription {
    pub name: String,
    pub base_model: BaseModelReference,
    /// What represents a mention: one vector, or several side by side.
    pub representations: Vec<Representation>,
    pub projection: ProjectionDescription,
    /// Absent, without a companion: the head works with spans given by the caller only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detector: Option<DetectorDescription>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub companion: Option<CompanionDescription>,
    /// Where the head comes from and how well it does, for people.
    #[serde(default)]
    pub provenance: serde_json::Value,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseModelReference {
    pub name: String,
    /// [`crate::model::identity::hash`]; absent: any model whose dimensions fit.
    pub hash: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProjectionDescription {
    pub kind: ProjectionKind,
    /// safetensors, or a PyTorch state dict (`.pth`).
    pub file: String,
    pub input_dims: usize,
    /// Dimensions of an embedding.
    pub dims: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DetectorDescription {
    /// 0-based block whose incoming hidden states the probe reads.
    pub block: usize,
    pub file: String,
    /// Least probability of a mention beside likely ones.
    pub threshold: f32,
    /// The same in a window of text where none reaches the threshold, which no search could find; beside a
    /// likelier one the same share of its probability, up to the threshold. Absent: the threshold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<f32>,
}

/// Another head, for another base model, that finds the mentions and is asked as well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompanionDescription {
    /// Its folder, from this head's folder.
    pub head: String,
    /// The share of its cosines in those of both; 0: it finds the mentions alone.
    pub weight: f64,
}

impl DetectorDescription {
    /// The threshold and the floor; one that is `asked` for is both.
    pub fn thresholds(&self, asked: Option<f32>) -> Thresholds {
        let threshold = asked.unwrap_or(self.threshold);
        let floor = self.floor.filter(|_| asked.is_none());
        Thresholds {
            threshold,
            floor: floor.map_or(threshold, |floor| floor.min(threshold)),
        }
    }
}

/// A loaded head.
pub struct Head {
    pub description: HeadDescription,
    pub projection: Projection,
    pub probe: Option<Probe>,
    /// SHA-256 of everything that changes embeddings or mentions.
    pub hash: String,
}

impl HeadDescription {
    /// Reads a folder's `head.json`.
    ///
    /// # Errors
    /// `HeadNotFound`, `HeadDamaged`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(DESCRIPTION);
        let text = std::fs::read_to_string(&path).map_err(|e| not_found(&path, &e))?;
        let description: Self = serde_json::from_str(&text).map_err(|e| head_damaged(&path, e))?;
        if description.representations.is_empty() {
            return Err(head_damaged(&path, "it has no representation"));
        }
        if let Some(companion) = &description.companion {
            if description.detector.is_some() {
                return Err(head_damaged(&path, "it has a detector and a companion"));
            }
            if !(0.0..1.0).contains(&companion.weight) {
                return Err(head_damaged(
                    &path,
                    "its companion's weight is not from 0 to below 1",
                ));
            }
        }
        match description
            .representations
            .iter()
            .find_map(Representation::problem)
        {
            Some(problem) => Err(head_damaged(&path, problem)),
            None => Ok(description),
        }
    }

    /// Refuses a base model that the head was not trained for.
    ///
    /// # Errors
    /// `HeadMismatch`.
    pub fn check_base_model(&self, hash: &str, blocks: usize, kv_dim: usize) -> Result<()> {
        let mismatch = |problem: String| {
            Err(EngineError::new(
                ErrorKind::HeadMismatch,
                format!("head \"{}\" does not fit the model: {problem}", self.name),
            )
            .hint(format!(
                "Set ner_retriever.model to the base model that the head was trained for ({}), or \
                 ner_retriever.head to a head for this model.",
                self.base_model.name
            )))
        };
        if let Some(expected) = self
            .base_model
            .hash
            .as_deref()
            .filter(|expected| *expected != hash)
        {
            return mismatch(format!(
                "it was trained for base model {} and this is {}",
                short(expected),
                short(hash)
            ));
        }
        let last = self.last_block();
        if last >= blocks {
            return mismatch(format!(
                "it uses block {last} of a model with {blocks} blocks"
            ));
        }
        let parts = self.representations.len();
        if self.projection.input_dims != parts * kv_dim {
            return mismatch(format!(
                "it projects vectors of {} dimensions and the model gives {parts} of {kv_dim}",
                self.projection.input_dims
            ));
        }
        Ok(())
    }

    /// 0-based number of the highest block that the head reads.
    pub fn last_block(&self) -> usize {
        let probe = self.detector.iter().map(|detector| detector.block);
        let representations = self.representations.iter().map(Representation::block);
        representations.chain(probe).max().unwrap_or(0)
    }
}

impl Head {
    /// Reads a head's tensors for a base model with hidden states of `hidden_size`.
    ///
    /// # Errors
    /// `HeadNotFound`, `HeadDamaged`.
    pub fn load(
        folder: &Path,
        description: HeadDescription,
        hidden_size: usize,
        device: &Device,
    ) -> Result<Self> {
        let mut hasher = Sha256::new();
        let mut read = |file: &str| -> Result<(PathBuf, TensorMap)> {
            let path = folder.join(file);
            hasher.update(std::fs::read(&path).map_err(|e| not_found(&path, &e))?);
            let tensors = TensorMap::read(&path).map_err(|e| head_damaged(&path, e))?;
            Ok((path, tensors))
        };
        let of = &description.projection;
        let parts = description.representations.len();
        let (path, tensors) = read(&of.file)?;
        let projection = Projection::from_tensors(of.kind, tensors, of.input_dims, of.dims, parts)
            .map_err(|e| head_damaged(&path, e))?;
        let mut probe = None;
        if let Some(detector) = &description.detector {
            let (path, tensors) = read(&detector.file)?;
            let loaded =
                Probe::from_tensors(tensors, hidden_size).map_err(|e| head_damaged(&path, e))?;
            probe = Some(loaded.to_device(device).map_err(compute)?);
        }
        // The name and the provenance change nothing.
        hasher.update(format!(
            "{:?} {:?} {:?}",
            description.representations, description.projection, description.detector,
        ));
        Ok(Self {
            projection: projection.to_device(device).map_err(compute)?,
            probe,
            hash: hex(&hasher.finalize()),
            description,
        })
    }
}

/// What is stored with every set of embeddings: the first 16 hex digits of the hash of base model
/// and head.
pub fn fingerprint(model_hash: &str, head_hash: &str) -> String {
    let hash = Sha256::digest(format!("{model_hash} {head_hash}"));
    short(&hex(&hash)).to_owned()
}

fn short(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}

fn not_found(path: &Path, error: &std::io::Error) -> EngineError {
    EngineError::new(
        ErrorKind::HeadNotFound,
        format!("cannot read head file \"{}\": {error}", path.display()),
    )
    .hint(
        "Set ner_retriever.head to a head's folder (head.json and its safetensors) that the \
         server's operating system user can read.",
    )
}
