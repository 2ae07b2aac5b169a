//! The base model as teacher: what it takes a mention for, over thousands of types that no corpus
//! labels. After a suffix such as ` <mention> is a`, its next-token distribution over type nouns is
//! a soft label, and the projection learns to make its cosines agree with it.

use std::path::Path;

use candle_core::{D, DType, Tensor};
use candle_nn::ops;

use super::invalid;
use crate::{
    error::{Result, compute},
    features::Features,
    model::{BaseModel, readout::Readout},
};

/// Nouns that are one token, with that token.
pub struct Nouns {
    pub names: Vec<String>,
    tokens: Vec<u32>,
}

/// What the teacher says of all labelled mentions, whose labels it does not see.
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

impl Teaching {
    /// `noun_values` are the nouns' representations as types.
    pub fn new(
        features: &Features,
        nouns: &Nouns,
        noun_values: Tensor,
        readout: &Readout,
        temperature: f64,
    ) -> Result<Self> {
        let texts = features.texts().iter();
        let rows = texts.filter_map(|text| text.values.as_ref().zip(text.states.as_ref()));
        let (values, states): (Vec<_>, Vec<_>) = rows.unzip();
        let targets = || {
            let states = Tensor::cat(&states, 0)?.to_dtype(DType::F32)?;
            let logits = readout.logits(&states, &nouns.tokens)?;
            // How likely a noun is after any mention says nothing about this one.
            let own = logits.broadcast_sub(&logits.mean_keepdim(0)?)?;
            ops::softmax(&(own / temperature)?, D::Minus1)
        };
        Ok(Self {
            mention_values: Tensor::cat(&values, 0).map_err(compute)?,
            targets: targets().map_err(compute)?,
            noun_values,
        })
    }
}
