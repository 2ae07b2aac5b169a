//! The types that a corpus is asked for.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::ranking::{TypeScore, best_per_text, r_precision};
use crate::{
    corpus::{Document, TypeNames},
    error::{EngineError, ErrorKind, Result, compute},
};

/// The named types that a corpus mentions, in the order of the corpus's own names of them.
pub struct Queries {
    /// The corpus's own name of each type.
    pub kinds: Vec<String>,
    /// What is asked for each.
    pub names: Vec<String>,
    /// For each, whether each text mentions it.
    pub gold: Vec<Vec<bool>>,
}

/// Refuses a corpus that cannot be asked for any type.
///
/// # Errors
/// `InvalidSetting`.
pub fn check(names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Err(EngineError::new(
            ErrorKind::InvalidSetting,
            "no mention of the corpus has a type with a name",
        )
        .hint("Name the corpus's types in the file of --types; null means not queried."));
    }
    Ok(())
}

impl Queries {
    pub fn new(documents: &[Document], names: &TypeNames) -> Self {
        let mut queries = Self {
            kinds: Vec::new(),
            names: Vec::new(),
            gold: Vec::new(),
        };
        for (kind, name) in names {
            let gold = documents.iter().map(|document| {
                document
                    .mentions
                    .iter()
                    .any(|mention| mention.kind == *kind)
            });
            let gold: Vec<bool> = gold.collect();
            if let Some(name) = name.as_ref().filter(|_| gold.contains(&true)) {
                queries.kinds.push(kind.clone());
                queries.names.push(name.clone());
                queries.gold.push(gold);
            }
        }
        queries
    }

    /// R-Precision of each type when texts are ranked by their best mention: `texts[mention]` is a
    /// mention's text, `mentions` `[mentions, dims]` and `types` `[types, dims]` are compared by
    /// their inner product.
    ///
    /// # Errors
    /// `Internal` if the shapes do not fit.
    pub fn score(
        &self,
        texts: &[usize],
        mentions: &Tensor,
        types: &Tensor,
    ) -> Result<BTreeMap<String, TypeScore>> {
        let scores: Vec<Vec<f32>> = types
            .t()
            .and_then(|types| mentions.matmul(&types)?.t()?.to_vec2())
            .map_err(compute)?;
        let mut scores = scores.into_iter();
        Ok(self.score_ranks(|_| best_per_text(texts, &scores.next().unwrap_or_default())))
    }

    /// R-Precision of each type by the texts that `search` finds for its name, with their scores.
    pub fn score_ranks(
        &self,
        mut search: impl FnMut(&str) -> Vec<(usize, f32)>,
    ) -> BTreeMap<String, TypeScore> {
        let types = self.kinds.iter().zip(&self.names).zip(&self.gold);
        types
            .map(|((kind, name), gold)| (kind.clone(), r_precision(search(name), gold)))
            .collect()
    }
}
