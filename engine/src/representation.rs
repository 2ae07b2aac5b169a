//! Which vectors of the forward pass stand for a mention.

use std::{collections::HashMap, ops::Range};

use candle_core::{D, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    error::{self, compute},
    model::{
        BaseModel,
        llama::{Activations, Continuation, Packed, Wanted},
        rows,
    },
    tokenizer::Encoded,
};

/// Where a type's name goes in a query form.
pub const TYPE_PLACE: &str = "{type}";
/// Where the mention goes in a suffix.
pub const MENTION_PLACE: &str = "{mention}";
/// Longest suffix, tokens; of a longer one its end is used, which asks for the type.
pub const MAX_SUFFIX: usize = 64;

/// Tokens of the suffixes of one pass, as many as of a large batch of texts: a long list of names
/// would otherwise need gigabytes.
const MAX_TOKENS: usize = 4096;
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
    /// suffix asks for its type. The text's keys and values are computed once for all its suffixes.
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
        let query = representation.query_form().replace(TYPE_PLACE, name);
        let query = model.tokenizer.encode(&query)?;
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

/// A mention in a packed pass.
pub struct Place {
    /// Rows that its suffixes continue: its text's.
    pub prefix: Range<usize>,
    /// Token ids of its suffix for each suffix representation, in their order.
    pub suffixes: Vec<Vec<u32>>,
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
            let query = representation
                .query_form()
                .replace(TYPE_PLACE, name.as_ref());
            let mut ids = vec![model.tokenizer.first()];
            ids.extend(suffix_ids(model, &query)?);
            sequences.push(ids);
        }
    }
    let wanted = Wanted {
        values: representations.iter().map(Representation::block).collect(),
        ends_only: true,
        ..Wanted::default()
    };
    let packed = Packed::new(sequences.iter().map(Vec::as_slice));
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
    let at_span_ends = representations
        .iter()
        .filter(|r| matches!(r, Representation::SpanEnd { .. }))
        .count();
    let mut values = activations.values[activations.values.len() - at_span_ends..].iter();
    let mut suffixes = 0..;
    let mut parts = Vec::new();
    let mut kept = Vec::new();
    for representation in representations {
        match representation {
            Representation::SpanEnd { .. } => {
                let Some(values) = values.next() else {
                    candle_core::bail!("the pass has too few values");
                };
                parts.push(values.clone());
            }
            Representation::Suffix { block, .. } => {
                let number = suffixes.next().unwrap_or(0);
                let wanted = Wanted {
                    values: vec![*block],
                    hidden: states.to_vec(),
                    ends_only: true,
                    ..Wanted::default()
                };
                let (distinct, rows) = distinct(places, number);
                let chunks = chunks(&distinct, number)
                    .map(|places| at_suffixes(model, &wanted, number, activations, places))
                    .collect::<Result<Vec<_>>>()?;
                let whole = |part: usize| {
                    let chunks: Vec<&Tensor> = chunks.iter().map(|chunk| &chunk[part]).collect();
                    select(&Tensor::cat(&chunks, 0)?, rows.iter().copied())
                };
                parts.push(whole(0)?);
                kept = (1..=states.len()).map(whole).collect::<Result<_>>()?;
            }
        }
    }
    Ok((Tensor::cat(&parts, D::Minus1)?, kept))
}

/// The values and then the hidden states of `wanted` at the last token of each place's suffix,
/// `[places, ...]` each.
fn at_suffixes(
    model: &BaseModel,
    wanted: &Wanted,
    number: usize,
    activations: &Activations,
    places: &[&Place],
) -> Result<Vec<Tensor>> {
    let ids = places.iter().map(|place| place.suffixes[number].as_slice());
    let continuation = Continuation {
        packed: Packed::new(ids),
        prefixes: places.iter().map(|place| place.prefix.clone()).collect(),
        cache: &activations.cache,
    };
    let extended = model.llama.extend(&continuation, wanted)?;
    Ok([extended.values, extended.hidden].concat())
}

/// The places whose suffixes of this number differ, or that are in different texts, and for each
/// place the one of them that has its vector: a name that a text repeats is asked about once.
fn distinct(places: &[Place], number: usize) -> (Vec<&Place>, Vec<usize>) {
    let mut distinct = Vec::new();
    let mut seen = HashMap::new();
    let rows = places.iter().map(|place| {
        let same = (&place.prefix, place.suffixes[number].as_slice());
        *seen.entry(same).or_insert_with(|| {
            distinct.push(place);
            distinct.len() - 1
        })
    });
    let rows = rows.collect();
    (distinct, rows)
}

/// Places in groups whose suffixes have at most [`MAX_TOKENS`] tokens together.
fn chunks<'a, 'b>(
    mut places: &'a [&'b Place],
    number: usize,
) -> impl Iterator<Item = &'a [&'b Place]> {
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = places.iter().take_while(|place| {
            tokens += place.suffixes[number].len();
            tokens <= MAX_TOKENS
        });
        let (chunk, rest) = places.split_at(fits.count().max(1).min(places.len()));
        places = rest;
        (!chunk.is_empty()).then_some(chunk)
    })
}

fn select(values: &Tensor, rows: impl Iterator<Item = usize>) -> Result<Tensor> {
    let rows: Vec<u32> = rows.map(|row| row as u32).collect();
    rows::rows(values, &Tensor::new(rows, values.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(prefix: Range<usize>, suffix: &[u32]) -> Place {
        Place {
            prefix,
            suffixes: vec![vec![0], suffix.to_vec()],
        }
    }

    #[test]
    fn a_name_that_a_text_repeats_is_asked_about_once() {
        let places = [
            place(0..5, &[1, 2]),
            place(0..5, &[3]),
            place(0..5, &[1, 2]),
            place(5..9, &[1, 2]),
            place(5..6, &[1, 2]),
        ];
        let (distinct, rows) = distinct(&places, 1);
        assert_eq!(rows, [0, 1, 0, 2, 3]);
        let prefixes: Vec<Range<usize>> = distinct.iter().map(|p| p.prefix.clone()).collect();
        assert_eq!(prefixes, [0..5, 0..5, 5..9, 5..6]);
        assert_eq!(super::distinct(&places, 0).1, [0, 0, 0, 1, 2]);
    }

    #[test]
    fn suffixes_go_through_in_chunks_that_lose_none() {
        let places: Vec<Place> = (0..200).map(|n| place(0..1, &vec![n; 64])).collect();
        let places: Vec<&Place> = places.iter().collect();
        let sizes: Vec<usize> = chunks(&places, 1).map(<[_]>::len).collect();
        assert_eq!(sizes, [64, 64, 64, 8]);
        assert_eq!(chunks(&[], 1).count(), 0);
    }
}
