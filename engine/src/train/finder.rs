//! What finds mentions for the new head: a probe of its own, or another head's.

use std::path::Path;

use candle_core::Device;
use serde_json::json;

use super::{TrainOptions, hidden, invalid, probe, train_probe};
use crate::{
    corpus::Document,
    error::Result,
    head::{CompanionDescription, DetectorDescription, Head, HeadDescription},
    mentions::probe::Probe,
    model::{BaseModel, Checkpoint, Numbers},
};

pub(super) enum Finder {
    Own { probe: probe::Trained, block: usize },
    OfCompanion(Box<Companion>),
}

/// Another head, for another base model.
pub(super) struct Companion {
    model: BaseModel,
    head: Head,
    description: CompanionDescription,
}

impl Finder {
    /// Trains a probe, or takes what the options name instead.
    ///
    /// # Errors
    /// The heads' and models' errors; `InvalidSetting` for one that finds no mentions.
    pub(super) fn new(
        model: &BaseModel,
        documents: &[Document],
        numbers: Numbers,
        options: &TrainOptions,
    ) -> Result<Self> {
        if let (Some(head), Some(model)) = (&options.companion, &options.companion_model) {
            let companion = Companion::load(head, model, numbers, options.companion_weight)?;
            return Ok(Self::OfCompanion(Box::new(companion)));
        }
        let block = options.probe_block.unwrap_or(0);
        let probe = match &options.probe_of {
            Some(head) => probe::of_head(head, model, block, options)?,
            None => train_probe(model, documents, block, options)?,
        };
        Ok(Self::Own { probe, block })
    }

    /// Documents with what is found in them beside their labelled mentions.
    ///
    /// # Errors
    /// The model's; `InvalidSetting` if the cache cannot be written.
    pub(super) fn detect(
        &self,
        model: &BaseModel,
        documents: &[Document],
        options: &TrainOptions,
    ) -> Result<Vec<Document>> {
        let (model, block, probe, threshold) = match self {
            Self::Own { probe, block } => (model, *block, &probe.probe, probe.threshold),
            Self::OfCompanion(companion) => {
                let (block, probe, threshold) = companion.detector()?;
                (&companion.model, block, probe, threshold)
            }
        };
        let threshold = options.distil_threshold.unwrap_or(threshold);
        let features = hidden(model, documents, block, options)?;
        probe::with_detected(probe, threshold, documents, &features)
    }

    /// The new head's own detector, for its description.
    pub(super) fn detector(&self, options: &TrainOptions) -> Option<DetectorDescription> {
        match self {
            Self::Own { probe, block } => Some(DetectorDescription {
                block: *block,
                file: "mentions.safetensors".to_owned(),
                threshold: probe.threshold,
                floor: options.floor,
            }),
            Self::OfCompanion(_) => None,
        }
    }

    pub(super) fn companion(&self) -> Option<CompanionDescription> {
        match self {
            Self::Own { .. } => None,
            Self::OfCompanion(companion) => Some(companion.description.clone()),
        }
    }

    /// For the provenance.
    pub(super) fn summary(&self) -> serde_json::Value {
        match self {
            Self::Own { probe, .. } => probe.summary.clone(),
            Self::OfCompanion(companion) => {
                let head = &companion.head.description;
                json!({"head": head.name, "command": head.provenance["command"]})
            }
        }
    }
}

impl Companion {
    fn load(folder: &Path, model: &Path, numbers: Numbers, weight: f64) -> Result<Self> {
        let description = HeadDescription::read(folder)?;
        let checkpoint = Checkpoint::open(model, &Device::Cpu)?.in_numbers(numbers);
        let config = checkpoint.config();
        description.check_base_model(checkpoint.hash(), config.blocks, config.kv_dim())?;
        let head = Head::load(folder, description, config.hidden_size, &Device::Cpu)?;
        let name = folder.file_name().and_then(|name| name.to_str());
        let name = name
            .ok_or_else(|| invalid(format!("--companion {} names no folder", folder.display())))?;
        let companion = Self {
            model: checkpoint.load(head.description.last_block())?,
            description: CompanionDescription {
                head: format!("../{name}"),
                weight,
            },
            head,
        };
        companion.detector()?;
        Ok(companion)
    }

    /// The block that its probe reads, the probe, and the least probability of a mention.
    fn detector(&self) -> Result<(usize, &Probe, f32)> {
        match (&self.head.description.detector, &self.head.probe) {
            (Some(detector), Some(probe)) => Ok((detector.block, probe, detector.threshold)),
            _ => Err(invalid(format!(
                "head \"{}\" has no probe",
                self.head.description.name
            ))),
        }
    }
}
