//! The projection's training data: mentions with their types, and the types' names.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{TrainOptions, hard_negatives, invalid};
use crate::{
    corpus::{Document, TypeNames},
    error::{Result, compute},
    features::Features,
    model::{
        BaseModel,
        llama::{Packed, Wanted},
    },
    representation::{Place, Representation, represent, span_end_query, type_suffixes, want},
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
            for (place, mention) in document.mentions.iter().enumerate() {
                let kind = number.get(mention.kind.as_str());
                if let (Some(&kind), Some(values)) = (kind, &features.values) {
                    rows.push(values.get(place).map_err(compute)?);
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
            type_values: type_values(model, &names, &options.representations())?,
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

/// The representations of the names, `[names, representations * kv_dim]`.
fn type_values(
    model: &BaseModel,
    names: &[String],
    representations: &[Representation],
) -> Result<Tensor> {
    let first = model.tokenizer.first();
    let mut sequences: Vec<Vec<u32>> = Vec::new();
    let mut places = Vec::new();
    let mut offset = 0;
    for name in names {
        let query = span_end_query(representations, name);
        let ids = model.tokenizer.encode(&query)?.ids;
        places.push(Place {
            end: offset + ids.len(),
            prefix: offset..offset + 1,
            suffixes: type_suffixes(model, representations, name)?,
        });
        offset += ids.len() + 1;
        sequences.push(std::iter::once(first).chain(ids).collect());
    }
    let packed = Packed::new(sequences.iter().map(Vec::as_slice));
    let mut wanted = Wanted::default();
    want(representations, &mut wanted);
    let activations = model.llama.forward(&packed, &wanted).map_err(compute)?;
    represent(model, representations, &activations, &places).map_err(compute)
}
