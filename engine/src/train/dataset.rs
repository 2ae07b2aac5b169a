//! The projection's training data: mentions with their types, and the types' names.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::{TrainOptions, hard_negatives, invalid};
use crate::{
    corpus::{Document, TypeNames},
    error::{Result, compute},
    features::Features,
    model::{BaseModel, llama::Packed},
    text::{char_starts, token_at},
    train::ProjectionForm,
};

/// Mentions of the named types.
pub struct Dataset {
    names: Vec<String>,
    /// The representation of each type's name, `[types, kv_dim]`.
    pub type_values: Tensor,
    /// The representation of each mention, `[mentions, kv_dim]`.
    pub mention_values: Tensor,
    /// Each mention's type.
    pub types: Vec<usize>,
    /// The mentions of each type.
    pub by_type: Vec<Vec<usize>>,
    /// For each type, mentions of other types in texts that keyword search finds for its name.
    pub hard: Vec<Vec<usize>>,
    /// Each mention's text.
    pub texts: Vec<usize>,
}

impl Dataset {
    pub fn new(
        model: &BaseModel,
        documents: &[Document],
        names: &TypeNames,
        features: &Features,
        options: &TrainOptions,
    ) -> Result<Self> {
        let named: Vec<(&str, &str)> = names
            .iter()
            .filter_map(|(kind, name)| Some((kind.as_str(), name.as_deref()?)))
            .collect();
        let number: BTreeMap<&str, usize> = named
            .iter()
            .enumerate()
            .map(|(index, (kind, _))| (*kind, index))
            .collect();
        let (mut rows, mut types, mut texts) = (Vec::new(), Vec::new(), Vec::new());
        for (text, (document, features)) in documents.iter().zip(features.texts()).enumerate() {
            let starts = char_starts(&document.text);
            for mention in &document.mentions {
                let Some(&kind) = number.get(mention.kind.as_str()) else {
                    continue;
                };
                let end = starts[mention.span.end as usize] - 1;
                // A mention beyond the first window of an unusually long text is left out.
                if let Some(token) = token_at(&features.encoded, end) {
                    rows.push(features.values.get(token + 1).map_err(compute)?);
                    types.push(kind);
                    texts.push(text);
                }
            }
        }
        let mut by_type = vec![Vec::new(); named.len()];
        for (mention, &kind) in types.iter().enumerate() {
            by_type[kind].push(mention);
        }
        if by_type
            .iter()
            .filter(|mentions| !mentions.is_empty())
            .count()
            < 2
        {
            return Err(invalid(
                "training needs mentions of at least two named types".to_owned(),
            ));
        }
        let names: Vec<String> = named.iter().map(|(_, name)| (*name).to_owned()).collect();
        let hard = if options.hard_negatives > 0.0 {
            hard_negatives::mine(documents, &names, &types, &texts)
        } else {
            vec![Vec::new(); names.len()]
        };
        Ok(Self {
            type_values: type_values(model, &names, options.block)?,
            mention_values: Tensor::stack(&rows, 0).map_err(compute)?,
            names,
            types,
            by_type,
            hard,
            texts,
        })
    }

    pub fn mentions(&self) -> usize {
        self.types.len()
    }

    pub fn type_names(&self) -> &[String] {
        &self.names
    }

    /// Dimensions before and after the projection.
    pub fn dims(&self, options: &TrainOptions) -> (usize, usize) {
        let input = self.type_values.dims()[1];
        match options.projection {
            ProjectionForm::Mlp => (input, options.dims),
            ProjectionForm::Residual => (input, input),
        }
    }
}

/// V at the last token of each bare name, `[names, kv_dim]`.
fn type_values(model: &BaseModel, names: &[String], block: usize) -> Result<Tensor> {
    let sequences: Vec<Vec<u32>> = names
        .iter()
        .map(|name| {
            let encoded = model.tokenizer.encode(name)?;
            Ok(std::iter::once(model.tokenizer.first())
                .chain(encoded.ids)
                .collect())
        })
        .collect::<Result<_>>()?;
    let packed = Packed::new(sequences.iter().map(Vec::as_slice));
    let mut end = 0;
    let ends: Vec<u32> = packed
        .lengths
        .iter()
        .map(|length| {
            end += *length as u32;
            end - 1
        })
        .collect();
    let activations = model
        .llama
        .forward(&packed, &[], &[block])
        .map_err(compute)?;
    let values = activations.values.into_iter().next();
    let values = values.ok_or_else(|| invalid(format!("block {block} was not loaded")))?;
    Tensor::new(ends, &Device::Cpu)
        .and_then(|ends| values.index_select(&ends, 0))
        .map_err(compute)
}
