//! Suffixes that name a text's mentions go through the model after the text, in passes of their own.

use std::{collections::HashMap, ops::Range};

use candle_core::{Result, Tensor};

use crate::model::{
    BaseModel,
    llama::{Activations, Continuation, Packed, Wanted},
    rows,
};

/// Tokens of the suffixes of one pass, as many as of a large batch of texts: a long list of names
/// would otherwise need gigabytes.
const MAX_TOKENS: usize = 4096;

/// A mention in a packed pass.
pub struct Place {
    /// Rows that its suffixes continue: its text's.
    pub prefix: Range<usize>,
    /// Token ids of its suffix for each suffix representation, in their order.
    pub suffixes: Vec<Vec<u32>>,
}

impl Place {
    /// The suffixes that no other begins with, of equal ones the first.
    fn passed(&self) -> impl Iterator<Item = &[u32]> {
        let numbered = self.suffixes.iter().enumerate();
        let passed = numbered.filter(|(number, suffix)| {
            let mut others = self.suffixes.iter().enumerate();
            !others.any(|(other, longer)| {
                longer.starts_with(suffix) && (longer.len() > suffix.len() || other < *number)
            })
        });
        passed.map(|(_, suffix)| suffix.as_slice())
    }
}

/// For each suffix, of which there is one at least, the values of its block at its end, `[places, kv_dim]`, and
/// the hidden states at the end of the last, `[places, hidden_size]` each. `activations` are those of the pass that
/// the places are in.
pub fn at_suffixes(
    model: &BaseModel,
    blocks: &[usize],
    states: &[usize],
    activations: &Activations,
    places: &[Place],
) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let (distinct, rows) = distinct(places);
    let chunks = chunks(&distinct)
        .map(|places| pass(model, blocks, states, activations, places))
        .collect::<Result<Vec<_>>>()?;
    let whole = |part: usize| {
        let chunks: Vec<&Tensor> = chunks.iter().map(|chunk| &chunk[part]).collect();
        select(&Tensor::cat(&chunks, 0)?, rows.iter().copied())
    };
    let values = (0..blocks.len()).map(whole).collect::<Result<_>>()?;
    let hidden = (blocks.len()..blocks.len() + states.len()).map(whole);
    Ok((values, hidden.collect::<Result<_>>()?))
}

/// The values for each suffix and then the hidden states, of places that one pass takes.
fn pass(
    model: &BaseModel,
    blocks: &[usize],
    states: &[usize],
    activations: &Activations,
    places: &[&Place],
) -> Result<Vec<Tensor>> {
    let continued = Continued::new(places, blocks.len());
    let wanted = Wanted {
        values: blocks.to_vec(),
        hidden: states.to_vec(),
        rows: Some(continued.ends.concat()),
        ..Wanted::default()
    };
    let continuation = Continuation {
        packed: Packed::new(continued.ids),
        prefixes: continued.prefixes,
        cache: &activations.cache,
    };
    let extended = model.llama.extend(&continuation, &wanted)?;
    let at_end = |of: &Tensor, suffix: usize| of.narrow(0, suffix * places.len(), places.len());
    let values = (0..).zip(&extended.values);
    let values = values.map(|(suffix, values)| at_end(values, suffix));
    let hidden = extended.hidden.iter().map(|h| at_end(h, blocks.len() - 1));
    values.chain(hidden).collect()
}

/// What goes through the model after texts: a suffix that another one of the same place begins with is read on
/// its way.
struct Continued<'a> {
    ids: Vec<&'a [u32]>,
    prefixes: Vec<Range<usize>>,
    /// For each suffix the row at each place's end of it.
    ends: Vec<Vec<u32>>,
}

impl<'a> Continued<'a> {
    fn new(places: &[&'a Place], suffixes: usize) -> Self {
        let (mut ids, mut prefixes, mut row) = (Vec::new(), Vec::new(), 0);
        let mut ends = vec![Vec::with_capacity(places.len()); suffixes];
        for place in places {
            let first = row;
            for suffix in place.passed() {
                ids.push(suffix);
                prefixes.push(place.prefix.clone());
                row += suffix.len();
            }
            for (suffix, ends) in place.suffixes.iter().zip(&mut ends) {
                let before = place
                    .passed()
                    .take_while(|passed| !passed.starts_with(suffix));
                let start = first + before.map(<[u32]>::len).sum::<usize>();
                ends.push((start + suffix.len() - 1) as u32);
            }
        }
        Self {
            ids,
            prefixes,
            ends,
        }
    }
}

/// The places whose suffixes differ, or that are in different texts, and for each place the one of them that
/// has its vector: a name that a text repeats is asked about once.
fn distinct(places: &[Place]) -> (Vec<&Place>, Vec<usize>) {
    let mut distinct = Vec::new();
    let mut seen = HashMap::new();
    let rows = places.iter().map(|place| {
        *seen
            .entry((&place.prefix, &place.suffixes))
            .or_insert_with(|| {
                distinct.push(place);
                distinct.len() - 1
            })
    });
    let rows = rows.collect();
    (distinct, rows)
}

/// Places in groups whose suffixes have at most [`MAX_TOKENS`] tokens together.
fn chunks<'a, 'b>(mut places: &'a [&'b Place]) -> impl Iterator<Item = &'a [&'b Place]> {
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = places.iter().take_while(|place| {
            tokens += place.passed().map(<[u32]>::len).sum::<usize>();
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
            suffixes: vec![suffix.to_vec()],
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
        let (distinct, rows) = distinct(&places);
        assert_eq!(rows, [0, 1, 0, 2, 3]);
        let prefixes: Vec<Range<usize>> = distinct.iter().map(|p| p.prefix.clone()).collect();
        assert_eq!(prefixes, [0..5, 0..5, 5..9, 5..6]);
    }

    #[test]
    fn a_suffix_that_another_begins_with_is_read_on_its_way() {
        let places = [
            (0..5, vec![vec![7, 8], vec![7, 8, 1, 2]]),
            (0..5, vec![vec![7, 8], vec![9, 8, 1]]),
            (5..9, vec![vec![7], vec![7]]),
            (5..9, vec![vec![7, 8, 1], vec![7]]),
        ]
        .map(|(prefix, suffixes)| Place { prefix, suffixes });
        let places: Vec<&Place> = places.iter().collect();
        let continued = Continued::new(&places, 2);
        let passed: [&[u32]; 5] = [&[7, 8, 1, 2], &[7, 8], &[9, 8, 1], &[7], &[7, 8, 1]];
        assert_eq!(continued.ids, passed);
        assert_eq!(continued.prefixes, [0..5, 0..5, 0..5, 5..9, 5..9]);
        assert_eq!(continued.ends, [[1, 5, 9, 12], [3, 8, 9, 10]]);
    }

    #[test]
    fn suffixes_go_through_in_chunks_that_lose_none() {
        let places: Vec<Place> = (0..200).map(|n| place(0..1, &vec![n; 64])).collect();
        let places: Vec<&Place> = places.iter().collect();
        let sizes: Vec<usize> = chunks(&places).map(<[_]>::len).collect();
        assert_eq!(sizes, [64, 64, 64, 8]);
        assert_eq!(chunks(&[]).count(), 0);
    }
}
