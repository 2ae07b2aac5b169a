//! A base model, the projection's own or a larger one, as teacher: what it takes a mention for, over
//! thousands of types that no corpus labels. After a suffix such as ` <mention> is a`, its next-token
//! distribution over type nouns is a soft label, and the projection learns to make its cosines agree
//! with it.

use std::path::Path;

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops;

use super::{TrainOptions, invalid};
use crate::{
    corpus::Document,
    device,
    error::{Result, compute},
    features::{Features, Kept},
    model::{BaseModel, Checkpoint, readout::Readout},
    representation::Representation,
};

/// Nouns that are one token, with that token.
pub struct Nouns {
    pub names: Vec<String>,
    tokens: Vec<u32>,
}

/// What a base model says of all labelled mentions, whose labels it does not see.
pub struct Teacher {
    /// The base model's.
    pub hash: String,
    pub nouns: Nouns,
    /// Probability of each noun for each mention, `[mentions, nouns]`.
    targets: Tensor,
}

/// What the projection learns from a teacher.
pub struct Teaching {
    /// The mentions' representations, `[mentions, representations * kv_dim]`.
    pub mention_values: Tensor,
    /// The nouns' representations, `[nouns, representations * kv_dim]`.
    pub noun_values: Tensor,
    /// Probability of each noun for each mention, `[mentions, nouns]`.
    pub targets: Tensor,
}

impl Nouns {
    /// Reads a file of one noun a line and keeps those that are one token of the model after a
    /// space.
    ///
    /// # Errors
    /// `InvalidSetting` if it cannot be read or fewer than two are left.
    pub fn read(path: &Path, model: &BaseModel) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| invalid(format!("cannot read \"{}\": {e}", path.display())))?;
        let mut nouns = Self {
            names: Vec::new(),
            tokens: Vec::new(),
        };
        for noun in text.lines().map(str::trim).filter(|noun| !noun.is_empty()) {
            if let [token] = model.tokenizer.encode(&format!(" {noun}"))?.ids[..] {
                nouns.names.push(noun.to_owned());
                nouns.tokens.push(token);
            }
        }
        if nouns.names.len() < 2 {
            let path = path.display();
            return Err(invalid(format!("\"{path}\" has no two nouns of one token")));
        }
        Ok(nouns)
    }
}

impl Teacher {
    /// Of a model whose `features` have states, over the file `nouns`.
    pub fn new(
        model: &BaseModel,
        readout: &Readout,
        features: &Features,
        nouns: &Path,
        options: &TrainOptions,
    ) -> Result<Self> {
        let nouns = Nouns::read(nouns, model)?;
        let states = features.texts().iter();
        let states: Vec<_> = states.filter_map(|text| text.states.as_ref()).collect();
        let targets = || {
            let states = Tensor::cat(&states, 0)?.to_dtype(DType::F32)?;
            let logits = readout.logits(&states, &nouns.tokens)?;
            // How likely a noun is after any mention says nothing about this one.
            let own = logits.broadcast_sub(&logits.mean_keepdim(0)?)?;
            ops::softmax(&(own / options.teacher_temperature)?, D::Minus1)
        };
        Ok(Self {
            hash: model.hash.clone(),
            targets: targets().map_err(compute)?,
            nouns,
        })
    }

    /// Of another model than the one that is trained for, in the same texts after the same suffix.
    pub fn other(
        path: &Path,
        documents: &[Document],
        nouns: &Path,
        options: &TrainOptions,
    ) -> Result<Self> {
        let checkpoint = Checkpoint::open(path, &Device::Cpu)?;
        let numbers = device::numbers(&options.teacher_dtype, &Device::Cpu)?;
        let checkpoint = checkpoint.in_numbers(numbers);
        let readout = checkpoint.readout()?;
        let blocks = checkpoint.config().blocks;
        let model = checkpoint.load(blocks)?;
        let after_suffix = Representation::Suffix {
            block: blocks - 1,
            text: options.suffix.clone(),
            query_form: options.suffix_query_form.clone(),
        };
        let kept = Kept {
            representations: vec![after_suffix],
            hidden: None,
        };
        let features = Features::compute(&model, Some(&readout), documents, &kept, &options.cache)?;
        Self::new(&model, &readout, &features, nouns, options)
    }

    /// For a model whose `features` are of the same mentions; `noun_values` are the nouns'
    /// representations as types.
    pub fn teaching(self, features: &Features, noun_values: Tensor) -> Result<Teaching> {
        let values = features.texts().iter();
        let values: Vec<_> = values.filter_map(|text| text.values.as_ref()).collect();
        Ok(Teaching {
            mention_values: Tensor::cat(&values, 0).map_err(compute)?,
            targets: self.targets,
            noun_values,
        })
    }
}
