//! A base model, the projection's own or a larger one, as teacher: what it takes a mention for, over
//! thousands of types that no corpus labels. After a suffix such as ` <mention> is a`, its next-token
//! distribution over type nouns is a soft label, and the projection learns to make its cosines agree
//! with it.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

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
    nouns: Nouns,
    /// How much likelier each noun is after each mention than after the others, `[mentions, nouns]`.
    log_odds: Tensor,
    temperature: f64,
}

/// What the projection learns from its teachers.
pub struct Teaching {
    /// The mentions' representations, `[mentions, representations * kv_dim]`.
    pub mention_values: Tensor,
    /// The nouns' representations, `[nouns, representations * kv_dim]`.
    pub noun_values: Tensor,
    /// Probability of each noun for each mention, `[mentions, nouns]`.
    pub targets: Tensor,
    /// Each mention's text.
    pub texts: Vec<usize>,
}

impl Nouns {
    /// Reads a file of one noun a line and keeps those that are one token of the model after a
    /// space.
    ///
    /// # Errors
    /// `InvalidSetting` if it cannot be read.
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
        let log_odds = || {
            let states = Tensor::cat(&states, 0)?.to_dtype(DType::F32)?;
            let logits = readout.logits(&states, &nouns.tokens)?;
            // How likely a noun is after any mention says nothing about this one.
            logits.broadcast_sub(&logits.mean_keepdim(0)?)
        };
        Ok(Self {
            hash: model.hash.clone(),
            log_odds: log_odds().map_err(compute)?,
            nouns,
            temperature: options.teacher_temperature,
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

    /// Probability of each of some of its nouns for each mention, `[mentions, nouns]`.
    fn targets(&self, nouns: &[String]) -> candle_core::Result<Tensor> {
        let columns: HashMap<&str, u32> = self
            .nouns
            .names
            .iter()
            .map(String::as_str)
            .zip(0..)
            .collect();
        let columns: Vec<u32> = nouns
            .iter()
            .filter_map(|noun| columns.get(noun.as_str()).copied())
            .collect();
        let columns = Tensor::new(columns, &Device::Cpu)?;
        let log_odds = self.log_odds.index_select(&columns, 1)?;
        ops::softmax(&(log_odds / self.temperature)?, D::Minus1)
    }
}

/// The nouns that are one token of all teachers.
///
/// # Errors
/// `InvalidSetting` if there are fewer than two.
pub fn common_nouns(teachers: &[Teacher]) -> Result<Vec<String>> {
    let names =
        |teacher: &Teacher| -> HashSet<String> { teacher.nouns.names.iter().cloned().collect() };
    let known: Vec<HashSet<String>> = teachers.iter().map(names).collect();
    let nouns = teachers.first().map_or(&[][..], |first| &first.nouns.names);
    let common: Vec<String> = nouns
        .iter()
        .filter(|noun| known.iter().all(|nouns| nouns.contains(*noun)))
        .cloned()
        .collect();
    if common.len() < 2 {
        let problem = "the file of --type-nouns has no two nouns of one token of all teachers";
        return Err(invalid(problem.to_owned()));
    }
    Ok(common)
}

impl Teaching {
    /// For a model whose `features` are of the teachers' mentions; `noun_values` are the representations
    /// of `nouns`, which all teachers know, as types.
    pub fn new(
        teachers: &[Teacher],
        features: &Features,
        noun_values: Tensor,
        nouns: &[String],
    ) -> Result<Self> {
        let (mut values, mut texts) = (Vec::new(), Vec::new());
        for (text, features) in features.texts().iter().enumerate() {
            if let Some(of_text) = &features.values {
                texts.resize(texts.len() + of_text.dims()[0], text);
                values.push(of_text);
            }
        }
        let targets = || {
            let targets = teachers.iter().map(|teacher| teacher.targets(nouns));
            let targets = targets.collect::<candle_core::Result<Vec<_>>>()?;
            Tensor::stack(&targets, 0)?.mean(0)
        };
        Ok(Self {
            mention_values: Tensor::cat(&values, 0).map_err(compute)?,
            texts,
            targets: targets().map_err(compute)?,
            noun_values,
        })
    }
}
