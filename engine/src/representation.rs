//! Which vectors of the forward pass stand for a mention.

use candle_core::{D, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    error::{self, compute},
    model::{
        BaseModel,
        llama::{Activations, Packed, Wanted},
    },
    suffixes::{Place, at_suffixes},
    tokenizer::Encoded,
};

/// Where a type's name goes in a query form.
pub const TYPE_PLACE: &str = "{type}";
/// Where the mention goes in a suffix.
pub const MENTION_PLACE: &str = "{mention}";
/// Longest suffix, tokens; of a longer one its end is used, which asks for the type.
pub const MAX_SUFFIX: usize = 64;

/// Words that query forms have of their own before a type's name.
const ARTICLES: [&str; 3] = ["a", "an", "the"];

/// Types of one pass, whose tokens are then of that order at most.
const TYPES: usize = 32;

/// One vector of a mention; a head may put several side by side. `block` is 0-based.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Representation {
    /// The paper's: V at the token that holds the mention's last character. A type is V at the last
    /// token of its query form alone.
    SpanEnd { block: usize, query_form: String },
    /// V at the last token of a suffix that names the mention, after the whole text: unlike the
    /// mention's own tokens, a causal model's state there knows what follows the mention, and the
    /// suffix asks for its type. One that ends with the mention is an echo of it (Springer et al. 2024,
    /// arXiv 2402.15449). The text's keys and values are computed once for all its suffixes, and a suffix
    /// that another begins with passes no token of its own.
    Suffix {
        block: usize,
        text: String,
        query_form: String,
    },
}

impl Representation {
    pub fn block(&self) -> usize {
        match self {
            Self::SpanEnd { block, .. } | Self::Suffix { block, .. } => *block,
        }
    }

    pub fn query_form(&self) -> &str {
        match self {
            Self::SpanEnd { query_form, .. } | Self::Suffix { query_form, .. } => query_form,
        }
    }

    /// What is embedded for a type: "a hotel" and "hotel" are the same one.
    fn query(&self, name: &str) -> String {
        let bare = match name.trim().split_once(char::is_whitespace) {
            Some((first, rest)) if ARTICLES.iter().any(|a| first.eq_ignore_ascii_case(a)) => {
                rest.trim_start()
            }
            _ => name,
        };
        self.query_form().replace(TYPE_PLACE, bare)
    }

    /// Whether it is read where a suffix repeats the mention.
    pub fn is_echo(&self) -> bool {
        matches!(self, Self::Suffix { text, .. } if text.ends_with(MENTION_PLACE))
    }

    /// All that a mention's vector depends on, for the keys of caches: query forms concern types only.
    pub fn of_mentions(&self) -> String {
        match self {
            Self::SpanEnd { block, .. } => format!("span end {block}\n"),
            Self::Suffix { block, text, .. } => format!("suffix {block} {text:?}\n"),
        }
    }

    /// What is wrong with it, if anything is.
    pub fn problem(&self) -> Option<String> {
        if !self.query_form().contains(TYPE_PLACE) {
            return Some(format!("its query form lacks {TYPE_PLACE}"));
        }
        match self {
            Self::Suffix { text, .. } if !text.contains(MENTION_PLACE) => {
                Some(format!("its suffix lacks {MENTION_PLACE}"))
            }
            _ => None,
        }
    }
}

/// The longest of what is embedded for a type, in tokens.
///
/// # Errors
/// The tokenizer's.
pub fn longest_query(
    model: &BaseModel,
    representations: &[Representation],
    name: &str,
) -> error::Result<Encoded> {
    let mut longest = model.tokenizer.encode(name)?;
    for representation in representations {
        let query = model.tokenizer.encode(&representation.query(name))?;
        if query.ids.len() > longest.ids.len() {
            longest = query;
        }
    }
    Ok(longest)
}

/// Adds what representations read of the pass over the texts to what else is wanted of it.
pub fn want(representations: &[Representation], wanted: &mut Wanted) {
    for representation in representations {
        match representation {
            Representation::SpanEnd { block, .. } => wanted.values.push(*block),
            Representation::Suffix { block, .. } => {
                wanted.cached_blocks = wanted.cached_blocks.max(*block);
            }
        }
    }
}

/// The suffixes' token ids for a mention.
pub fn mention_suffixes(
    model: &BaseModel,
    representations: &[Representation],
    mention: &str,
) -> error::Result<Vec<Vec<u32>>> {
    let suffixes = representations.iter().filter_map(|r| match r {
        Representation::SpanEnd { .. } => None,
        Representation::Suffix { text, .. } => Some(text.replace(MENTION_PLACE, mention)),
    });
    suffixes.map(|text| suffix_ids(model, &text)).collect()
}

/// The token ids of a suffix, or of what stands in its place for a type.
fn suffix_ids(model: &BaseModel, text: &str) -> error::Result<Vec<u32>> {
    let mut ids = model.tokenizer.encode(text)?.ids;
    if ids.is_empty() {
        // Of characters that the model does not know; a sequence needs a token.
        ids.push(model.tokenizer.first());
    }
    Ok(ids.split_off(ids.len().saturating_sub(MAX_SUFFIX)))
}

/// The vectors of all representations of types side by side, `[names, representations * kv_dim]`. A
/// type's query forms continue nothing but the model's first token, so that one pass takes them all.
///
/// # Errors
/// `OutOfMemory`, `Internal`.
pub fn represent_types(
    model: &BaseModel,
    representations: &[Representation],
    names: &[impl AsRef<str>],
) -> error::Result<Tensor> {
    let parts = names
        .chunks(TYPES)
        .map(|names| query_forms(model, representations, names))
        .collect::<error::Result<Vec<_>>>()?;
    Tensor::cat(&parts, 0).map_err(compute)
}

fn query_forms(
    model: &BaseModel,
    representations: &[Representation],
    names: &[impl AsRef<str>],
) -> error::Result<Tensor> {
    let mut sequences = Vec::with_capacity(representations.len() * names.len());
    for representation in representations {
        for name in names {
            let mut ids = vec![model.tokenizer.first()];
            ids.extend(suffix_ids(model, &representation.query(name.as_ref()))?);
            sequences.push(ids);
        }
    }
    let packed = Packed::new(sequences.iter().map(Vec::as_slice));
    let wanted = Wanted {
        values: representations.iter().map(Representation::block).collect(),
        rows: Some(packed.ends()),
        ..Wanted::default()
    };
    let pass = || {
        let values = model.llama.forward(&packed, &wanted)?.values;
        let own = values
            .iter()
            .enumerate()
            .map(|(number, values)| values.narrow(0, number * names.len(), names.len()));
        Tensor::cat(&own.collect::<Result<Vec<_>>>()?, D::Minus1)
    };
    pass().map_err(compute)
}

/// The vectors of all representations side by side, `[places, representations * kv_dim]`.
/// `activations` come from the pass that the places are in, with what [`want`] asks for as the
/// last of [`Wanted::values`], a row for each place.
pub fn represent(
    model: &BaseModel,
    representations: &[Representation],
    activations: &Activations,
    places: &[Place],
) -> Result<Tensor> {
    Ok(represent_with_states(model, representations, activations, places, &[])?.0)
}

/// [`represent`], and the residual stream that enters each block of `states` at the end of the last
/// suffix, `[places, hidden_size]` each.
pub fn represent_with_states(
    model: &BaseModel,
    representations: &[Representation],
    activations: &Activations,
    places: &[Place],
    states: &[usize],
) -> Result<(Tensor, Vec<Tensor>)> {
    let blocks = representations.iter().filter_map(|r| match r {
        Representation::SpanEnd { .. } => None,
        Representation::Suffix { block, .. } => Some(*block),
    });
    let blocks: Vec<usize> = blocks.collect();
    let at_span_ends = representations.len() - blocks.len();
    let mut of_texts = activations.values[activations.values.len() - at_span_ends..].iter();
    let (of_suffixes, states) = if blocks.is_empty() {
        Default::default()
    } else {
        at_suffixes(model, &blocks, states, activations, places)?
    };
    let mut of_suffixes = of_suffixes.iter();
    let mut parts = Vec::with_capacity(representations.len());
    for representation in representations {
        let part = match representation {
            Representation::SpanEnd { .. } => of_texts.next(),
            Representation::Suffix { .. } => of_suffixes.next(),
        };
        let Some(part) = part else {
            candle_core::bail!("the pass has too few values");
        };
        parts.push(part);
    }
    Ok((Tensor::cat(&parts, D::Minus1)?, states))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_article_before_a_type_changes_nothing() {
        let representation = Representation::SpanEnd {
            block: 0,
            query_form: "A {type}, for example the".to_owned(),
        };
        for (name, query) in [
            ("hotel", "A hotel, for example the"),
            ("a hotel", "A hotel, for example the"),
            (" An  airport", "A airport, for example the"),
            ("the theatre of war", "A theatre of war, for example the"),
            (
                "anatomical structure",
                "A anatomical structure, for example the",
            ),
            ("a", "A a, for example the"),
        ] {
            assert_eq!(representation.query(name), query, "{name:?}");
        }
    }
}
