//! The projection's training data: mentions with their types, and the types' names.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::{
    TrainOptions, hard_negatives, invalid,
    teacher::{Teacher, Teaching, common_nouns},
};
use crate::{
    corpus::{Document, TypeNames},
    error::{Result, compute},
    features::Features,
    model::BaseModel,
    representation::represent_types,
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
    /// Of the loss by distillation.
    pub teaching: Option<Teaching>,
}

impl Dataset {
    pub fn new(
        model: &BaseModel,
        documents: &[Document],
        names: &TypeNames,
        features: &Features,
        teachers: &[Teacher],
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
        let represent =
            |names: &[String]| represent_types(model, &options.representations(), names);
        let teaching = (!teachers.is_empty()).then(|| {
            let nouns = common_nouns(teachers)?;
            Teaching::new(teachers, features, represent(&nouns)?, &nouns)
        });
        Ok(Self {
            teaching: teaching.transpose()?,
            type_values: represent(&names)?,
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
