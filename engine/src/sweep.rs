//! Which block to use: the quality of every block's V vectors without any training.

use std::collections::BTreeMap;

use candle_core::Tensor;
use indicatif::ProgressBar;

use crate::{
    corpus::{Document, TypeNames},
    error::{Result, compute},
    eval::ranking::{best_per_text, macro_average, r_precision},
    model::{
        BaseModel,
        llama::{Packed, Wanted},
    },
    projection::normalize,
    text::{char_starts, token_at},
};

/// Texts of one forward pass.
const BATCH_TEXTS: usize = 64;

/// Macro R-Precision per block (0-based) of V at the span end against V of the bare type name,
/// both without their mean, with gold spans.
pub fn sweep(model: &BaseModel, documents: &[Document], names: &TypeNames) -> Result<Vec<f64>> {
    let blocks: Vec<usize> = (0..=model.llama.last_block()).collect();
    let mut mentions: Vec<Vec<Tensor>> = vec![Vec::new(); blocks.len()];
    let mut texts = Vec::new();
    let progress = ProgressBar::new(documents.len() as u64);
    for (number, batch) in documents.chunks(BATCH_TEXTS).enumerate() {
        let mut spans = Vec::new();
        for (index, document) in batch.iter().enumerate() {
            let encoded = model.tokenizer.encode(&document.text)?;
            let starts = char_starts(&document.text);
            let ends: Vec<usize> = document
                .mentions
                .iter()
                .filter_map(|m| token_at(&encoded, starts[m.span.end as usize] - 1))
                .collect();
            texts.extend(std::iter::repeat_n(
                number * BATCH_TEXTS + index,
                ends.len(),
            ));
            spans.push((encoded.ids, ends));
        }
        for (block, values) in blocks.iter().zip(values(model, &spans, &blocks)?) {
            mentions[*block].push(values);
        }
        progress.inc(batch.len() as u64);
    }
    progress.finish_and_clear();
    let queried: Vec<(&str, &str)> = names
        .iter()
        .filter_map(|(kind, name)| Some((kind.as_str(), name.as_deref()?)))
        .filter(|(kind, _)| {
            documents
                .iter()
                .flat_map(|d| &d.mentions)
                .any(|m| m.kind == *kind)
        })
        .collect();
    let queries: Vec<(Vec<u32>, Vec<usize>)> = queried
        .iter()
        .map(|(_, name)| {
            let ids = model.tokenizer.encode(name)?.ids;
            let last = ids.len().saturating_sub(1);
            Ok((ids, vec![last]))
        })
        .collect::<Result<_>>()?;
    let queries = values(model, &queries, &blocks)?;
    let scores = mentions.iter().zip(queries).map(|(mentions, queries)| {
        let mentions = centred(&Tensor::cat(mentions, 0)?)?;
        let scores = mentions.matmul(&centred(&queries)?.t()?)?;
        let mut types = BTreeMap::new();
        for (column, (kind, _)) in queried.iter().enumerate() {
            let gold: Vec<bool> = documents
                .iter()
                .map(|d| d.mentions.iter().any(|m| m.kind == *kind))
                .collect();
            let scores: Vec<f32> = scores.get_on_dim(1, column)?.to_vec1()?;
            types.insert(
                (*kind).to_owned(),
                r_precision(best_per_text(&texts, &scores), &gold),
            );
        }
        Ok(macro_average(&types))
    });
    scores.collect::<candle_core::Result<_>>().map_err(compute)
}

/// Per block, V at the given tokens (the first token not counted) of all sequences.
fn values(
    model: &BaseModel,
    sequences: &[(Vec<u32>, Vec<usize>)],
    blocks: &[usize],
) -> Result<Vec<Tensor>> {
    let ids: Vec<Vec<u32>> = sequences
        .iter()
        .map(|(ids, _)| {
            std::iter::once(model.tokenizer.first())
                .chain(ids.iter().copied())
                .collect()
        })
        .collect();
    let mut rows = Vec::new();
    let mut offset = 1;
    for (ids, ends) in sequences {
        rows.extend(ends.iter().map(|end| (offset + end) as u32));
        offset += ids.len() + 1;
    }
    let packed = Packed::new(ids.iter().map(Vec::as_slice));
    let wanted = Wanted {
        values: blocks.to_vec(),
        ..Wanted::default()
    };
    let activations = model.llama.forward(&packed, &wanted).map_err(compute)?;
    let select = |values: &Tensor| {
        let rows = Tensor::new(rows.as_slice(), values.device())?;
        values.index_select(&rows, 0)
    };
    activations
        .values
        .iter()
        .map(select)
        .collect::<candle_core::Result<_>>()
        .map_err(compute)
}

fn centred(x: &Tensor) -> candle_core::Result<Tensor> {
    normalize(&x.broadcast_sub(&x.mean(0)?)?)
}
