//! Which block to use: the quality of every block's V vectors without any training.

use candle_core::Tensor;
use indicatif::ProgressBar;

use crate::{
    corpus::{Document, TypeNames},
    error::{EngineError, ErrorKind, Result, compute},
    eval::{
        auc::auc,
        queries::{self, Queries},
        ranking::macro_average,
    },
    model::{
        BaseModel,
        llama::{Continuation, Packed, Wanted},
    },
    projection::normalize,
    representation::{Representation, TYPE_PLACE, mention_suffixes},
    text::{char_starts, token_at},
};

/// Texts of one forward pass.
const BATCH_TEXTS: usize = 64;

/// Most mentions of which all pairs are compared.
const MOST_PAIRED: usize = 2000;

/// Where V vectors are read.
#[derive(Debug, Clone, Copy)]
pub struct Form<'a> {
    /// Mentions: at the last token of this suffix after the whole text; `None`: at the span's last token.
    pub suffix: Option<&'a str>,
    /// Types: at the last token of this, with the type's name in the place of [`TYPE_PLACE`].
    pub query: &'a str,
}

impl Default for Form<'_> {
    /// The paper's: span ends, and the bare name.
    fn default() -> Self {
        Self {
            suffix: None,
            query: TYPE_PLACE,
        }
    }
}

/// How well a block's V vectors, without their mean, tell types.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockScore {
    /// Macro R-Precision against V of the type names, without its mean.
    pub r_precision: f64,
    /// Area under the ROC curve of the cosine of two mentions for "of the same type".
    pub auc: f64,
}

/// Scores every block (0-based) of a model with gold spans.
///
/// # Errors
/// The model's errors; `InvalidSetting` for a form that lacks its place or a corpus without named types.
pub fn sweep(
    model: &BaseModel,
    documents: &[Document],
    names: &TypeNames,
    form: Form,
) -> Result<Vec<BlockScore>> {
    let block = model.llama.last_block();
    let query_form = form.query.to_owned();
    let representation = match form.suffix.map(str::to_owned) {
        None => Representation::SpanEnd { block, query_form },
        Some(text) => Representation::Suffix {
            block,
            text,
            query_form,
        },
    };
    if let Some(problem) = representation.problem() {
        return Err(EngineError::new(ErrorKind::InvalidSetting, problem));
    }
    let queries = Queries::new(documents, names);
    queries::check(&queries.names)?;
    let mut mentions: Vec<Vec<Tensor>> = vec![Vec::new(); block + 1];
    let (mut texts, mut kinds) = (Vec::new(), Vec::new());
    let progress = ProgressBar::new(documents.len() as u64);
    for (number, batch) in documents.chunks(BATCH_TEXTS).enumerate() {
        let mut sequences = Vec::new();
        for (index, document) in batch.iter().enumerate() {
            let (sequence, found) = sequence(model, document, &representation)?;
            texts.resize(texts.len() + found.len(), number * BATCH_TEXTS + index);
            kinds.extend(found);
            sequences.push(sequence);
        }
        if sequences.iter().any(|sequence| !sequence.ends.is_empty()) {
            for (mentions, values) in mentions.iter_mut().zip(values(model, &sequences)?) {
                mentions.push(values);
            }
        }
        progress.inc(batch.len() as u64);
    }
    progress.finish_and_clear();
    let pairs = Pairs::new(&kinds, &queries);
    let forms = queries.names.iter().map(|name| {
        let ids = model
            .tokenizer
            .encode(&form.query.replace(TYPE_PLACE, name))?
            .ids;
        let ends = vec![ids.len().saturating_sub(1)];
        Ok(Sequence {
            ids,
            ends,
            suffixes: Vec::new(),
        })
    });
    let names = values(model, &forms.collect::<Result<Vec<_>>>()?)?;
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

/// A text or a type's form.
struct Sequence {
    /// Without the model's first token.
    ids: Vec<u32>,
    /// The token of `ids` that holds the end of each mention.
    ends: Vec<usize>,
    /// The token ids of each mention's suffix; empty where values are read at the ends.
    suffixes: Vec<Vec<u32>>,
}

/// A text's tokens, and the types of its mentions.
fn sequence<'a>(
    model: &BaseModel,
    document: &'a Document,
    representation: &Representation,
) -> Result<(Sequence, Vec<&'a str>)> {
    let encoded = model.tokenizer.encode(&document.text)?;
    let starts = char_starts(&document.text);
    let (mut ends, mut suffixes, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
    for mention in &document.mentions {
        let bytes = starts[mention.span.start as usize]..starts[mention.span.end as usize];
        if let Some(end) = token_at(&encoded.offsets, bytes.end - 1) {
            ends.push(end);
            kinds.push(mention.kind.as_str());
            suffixes.push(mention_suffixes(
                model,
                std::slice::from_ref(representation),
                &document.text[bytes],
            )?);
        }
    }
    let sequence = Sequence {
        ids: encoded.ids,
        ends,
        suffixes: suffixes.into_iter().flatten().collect(),
    };
    Ok((sequence, kinds))
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

/// Per block, V at the end of each mention's suffix or, without suffixes, at its own end.
fn values(model: &BaseModel, sequences: &[Sequence]) -> Result<Vec<Tensor>> {
    let blocks: Vec<usize> = (0..=model.llama.last_block()).collect();
    let first = model.tokenizer.first();
    let ids = sequences
        .iter()
        .map(|sequence| [&[first], sequence.ids.as_slice()].concat());
    let ids: Vec<Vec<u32>> = ids.collect();
    let (mut ends, mut prefixes, mut suffixes) = (Vec::new(), Vec::new(), Vec::new());
    let mut offset = 0;
    for (sequence, ids) in sequences.iter().zip(&ids) {
        ends.extend(sequence.ends.iter().map(|end| (offset + 1 + end) as u32));
        for suffix in &sequence.suffixes {
            prefixes.push(offset..offset + ids.len());
            suffixes.push(suffix.as_slice());
        }
        offset += ids.len();
    }
    let packed = Packed::new(ids.iter().map(Vec::as_slice));
    let pass = || {
        if suffixes.is_empty() {
            let wanted = Wanted {
                values: blocks,
                ..Wanted::default()
            };
            let values = model.llama.forward(&packed, &wanted)?.values;
            let ends = Tensor::new(ends, values[0].device())?;
            return values.iter().map(|v| v.index_select(&ends, 0)).collect();
        }
        let wanted = Wanted {
            cached_blocks: model.llama.last_block(),
            ..Wanted::default()
        };
        let activations = model.llama.forward(&packed, &wanted)?;
        let packed = Packed::new(suffixes);
        let wanted = Wanted {
            values: blocks,
            rows: Some(packed.ends()),
            ..Wanted::default()
        };
        let continuation = Continuation {
            packed,
            prefixes,
            cache: &activations.cache,
        };
        Ok(model.llama.extend(&continuation, &wanted)?.values)
    };
    pass().map_err(compute)
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
