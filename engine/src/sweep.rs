//! Which block to use: the quality of every block's V vectors without any training.

use candle_core::Tensor;
use indicatif::ProgressBar;

use crate::{
    corpus::{Document, TypeNames},
    error::{Result, compute},
    eval::{auc::auc, queries::Queries, ranking::macro_average},
    model::{
        BaseModel,
        llama::{Packed, Wanted},
    },
    projection::normalize,
    text::{char_starts, token_at},
};

/// Texts of one forward pass.
const BATCH_TEXTS: usize = 64;

/// Most mentions of which all pairs are compared.
const MOST_PAIRED: usize = 2000;

/// How well a block's V vectors at the span end, without their mean, tell types.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockScore {
    /// Macro R-Precision against V of the bare type name, without its mean.
    pub r_precision: f64,
    /// Area under the ROC curve of the cosine of two mentions for "of the same type".
    pub auc: f64,
}

/// Scores every block (0-based) of a model with gold spans.
///
/// # Errors
/// The model's errors.
pub fn sweep(
    model: &BaseModel,
    documents: &[Document],
    names: &TypeNames,
) -> Result<Vec<BlockScore>> {
    let blocks: Vec<usize> = (0..=model.llama.last_block()).collect();
    let mut mentions: Vec<Vec<Tensor>> = vec![Vec::new(); blocks.len()];
    let (mut texts, mut kinds) = (Vec::new(), Vec::new());
    let progress = ProgressBar::new(documents.len() as u64);
    for (number, batch) in documents.chunks(BATCH_TEXTS).enumerate() {
        let mut spans = Vec::new();
        for (index, document) in batch.iter().enumerate() {
            let encoded = model.tokenizer.encode(&document.text)?;
            let starts = char_starts(&document.text);
            let mut ends = Vec::new();
            for mention in &document.mentions {
                if let Some(end) = token_at(&encoded, starts[mention.span.end as usize] - 1) {
                    ends.push(end);
                    texts.push(number * BATCH_TEXTS + index);
                    kinds.push(mention.kind.as_str());
                }
            }
            spans.push((encoded.ids, ends));
        }
        for (block, values) in blocks.iter().zip(values(model, &spans, &blocks)?) {
            mentions[*block].push(values);
        }
        progress.inc(batch.len() as u64);
    }
    progress.finish_and_clear();
    let queries = Queries::new(documents, names);
    let names: Vec<(Vec<u32>, Vec<usize>)> = queries
        .names
        .iter()
        .map(|name| {
            let ids = model.tokenizer.encode(name)?.ids;
            let last = ids.len().saturating_sub(1);
            Ok((ids, vec![last]))
        })
        .collect::<Result<_>>()?;
    let pairs = Pairs::new(&kinds, &queries);
    let names = values(model, &names, &blocks)?;
    let scores = mentions.iter().zip(names).map(|(mentions, names)| {
        let mentions = Tensor::cat(mentions, 0).and_then(|mentions| centred(&mentions));
        let mentions = mentions.map_err(compute)?;
        let by_type = queries.score(&texts, &mentions, &centred(&names).map_err(compute)?)?;
        Ok(BlockScore {
            r_precision: macro_average(&by_type),
            auc: pairs.auc(&mentions).map_err(compute)?,
        })
    });
    scores.collect()
}

/// The mentions of which all pairs are compared, with a number for each one's type.
struct Pairs {
    rows: Vec<u32>,
    types: Vec<usize>,
}

impl Pairs {
    /// Mentions of the queried types: those of the types without a name have nothing in common. Of
    /// more than [`MOST_PAIRED`], those evenly spread over the corpus.
    fn new(kinds: &[&str], queries: &Queries) -> Self {
        let named: Vec<(u32, usize)> = (0u32..)
            .zip(kinds)
            .filter_map(|(row, kind)| Some((row, queries.kinds.iter().position(|k| k == kind)?)))
            .collect();
        let every = named.len().div_ceil(MOST_PAIRED).max(1);
        let (rows, types) = named.into_iter().step_by(every).unzip();
        Self { rows, types }
    }

    /// How well the cosine of two mentions, `[mentions, dims]` of length 1, tells whether they are
    /// of one type.
    fn auc(&self, mentions: &Tensor) -> candle_core::Result<f64> {
        let rows = Tensor::new(self.rows.as_slice(), mentions.device())?;
        let mentions = mentions.index_select(&rows, 0)?;
        let cosines: Vec<Vec<f32>> = mentions.matmul(&mentions.t()?)?.to_vec2()?;
        let (mut same, mut different) = (Vec::new(), Vec::new());
        for (a, cosines) in cosines.iter().enumerate() {
            for (b, cosine) in cosines[..a].iter().enumerate() {
                if self.types[a] == self.types[b] {
                    same.push(*cosine);
                } else {
                    different.push(*cosine);
                }
            }
        }
        Ok(auc(&same, &different))
    }
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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::corpus::GoldMention;
    use ner_retriever_protocol::Span;

    #[test]
    fn only_mentions_of_named_types_are_paired() {
        let kinds = ["city", "other", "river", "city", "river"];
        let mention = |kind: &&str| GoldMention {
            span: Span { start: 0, end: 1 },
            kind: (*kind).to_owned(),
        };
        let documents = [Document {
            text: "x".to_owned(),
            mentions: kinds.iter().map(mention).collect(),
        }];
        let name = |kind: &str| (kind.to_owned(), Some(kind.to_owned()));
        let mut names = TypeNames::from([name("city"), name("river")]);
        names.insert("other".to_owned(), None);
        let pairs = Pairs::new(&kinds, &Queries::new(&documents, &names));
        assert_eq!(pairs.rows, [0, 2, 3, 4]);
        // The cities are one vector, the rivers two at a right angle, one of them the cities' own:
        // of the same type 1 and 0, of different types 1 twice and 0 twice.
        let (x, y) = ([1.0f32, 0.0], [0.0, 1.0]);
        let mentions = Tensor::new(&[x, y, x, x, y], &Device::Cpu).unwrap();
        assert_eq!(pairs.auc(&mentions).unwrap(), 0.5);
        // Told apart by type alone.
        let mentions = Tensor::new(&[x, x, y, x, y], &Device::Cpu).unwrap();
        assert_eq!(pairs.auc(&mentions).unwrap(), 1.0);
    }
}
