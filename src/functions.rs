//! The SQL functions; sql/ declares them.
#![expect(
    clippy::result_large_err,
    reason = "pgrx reports SQLSTATE and hint of an ErrorReport only, not of a box around one"
)]

use ner_retriever_protocol::{Mention, Priority, Request, Response, Span, TextRequest};
use pgrx::datum::RangeBound;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::errors::Error;
use crate::text::{ServerText, to_utf8};
use crate::vector::Vector;
use crate::{client, gucs, type_cache};

type EmbeddingRows = TableIterator<
    'static,
    (
        name!(entity, ServerText),
        name!(start_char, i32),
        name!(end_char, i32),
        name!(score, f32),
        name!(embedding, Vector),
    ),
>;

type DocumentRows = TableIterator<
    'static,
    (
        name!(doc, i32),
        name!(entity, ServerText),
        name!(start_char, i32),
        name!(end_char, i32),
        name!(score, f32),
        name!(embedding, Vector),
    ),
>;

type EntityRows = TableIterator<
    'static,
    (
        name!(entity, ServerText),
        name!(start_char, i32),
        name!(end_char, i32),
        name!(score, f32),
    ),
>;

/// `ner_entity_embeddings(text)`
#[pg_extern]
fn ner_entity_embeddings(text: &[u8]) -> Result<EmbeddingRows, ErrorReport> {
    let text = text_request(text, None)?;
    embedding_rows(mentions_of_one(text, true)?)
}

/// `ner_entity_embeddings(text, int4range[])`
#[pg_extern]
fn ner_entity_embeddings_of_spans(
    text: &[u8],
    spans: Array<'_, Range<i32>>,
) -> Result<EmbeddingRows, ErrorReport> {
    let spans = spans
        .iter()
        .enumerate()
        .map(|(index, range)| span(index + 1, range))
        .collect::<Result<Vec<_>, _>>()?;
    let text = text_request(text, Some(spans))?;
    embedding_rows(mentions_of_one(text, true)?)
}

/// `ner_entity_embeddings(text[])`: an array of several dimensions counts in storage order, as
/// `unnest` does.
#[pg_extern]
fn ner_entity_embeddings_of_texts(texts: Array<'_, &[u8]>) -> Result<DocumentRows, ErrorReport> {
    let mut numbers = Vec::new();
    let mut requests = Vec::new();
    for (number, text) in (1..).zip(texts.iter()) {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            numbers.push(number);
            requests.push(text_request(text, None)?);
        }
    }
    let (_, answers) = mentions(requests, true, gucs::detection_threshold(), Priority::Bulk)?;
    let mut rows = Vec::with_capacity(answers.iter().map(Vec::len).sum());
    for (number, mentions) in numbers.into_iter().zip(answers) {
        for mention in mentions {
            rows.push((number, Embedded::new(mention)?));
        }
    }
    Ok(TableIterator::new(rows.into_iter().map(
        |(
            number,
            Embedded {
                entity,
                start,
                end,
                score,
                vector,
            },
        )| { (number, entity, start, end, score, vector) },
    )))
}

/// `ner_entities(text)`
#[pg_extern]
fn ner_entities(text: &[u8]) -> Result<EntityRows, ErrorReport> {
    let text = text_request(text, None)?;
    let mentions = mentions_of_one(text, false)?;
    Ok(TableIterator::new(mentions.into_iter().map(|mention| {
        let (start, end) = offsets(mention.span);
        (ServerText(mention.text), start, end, mention.score)
    })))
}

/// A mention as a row; made before the first row is returned, so that a bad answer is an error of
/// the whole call.
struct Embedded {
    entity: ServerText,
    start: i32,
    end: i32,
    score: f32,
    vector: Vector,
}

impl Embedded {
    fn new(mention: Mention) -> Result<Self, Error> {
        let (start, end) = offsets(mention.span);
        Ok(Self {
            entity: ServerText(mention.text),
            start,
            end,
            score: mention.score,
            vector: Vector::new(mention.embedding)?,
        })
    }
}

fn embedding_rows(mentions: Vec<Mention>) -> Result<EmbeddingRows, ErrorReport> {
    let rows = mentions
        .into_iter()
        .map(Embedded::new)
        .collect::<Result<Vec<_>, _>>()?;
    Ok(TableIterator::new(rows.into_iter().map(
        |Embedded {
             entity,
             start,
             end,
             score,
             vector,
         }| (entity, start, end, score, vector),
    )))
}

/// A text has less than 1 GB, so its offsets fit.
fn offsets(span: Span) -> (i32, i32) {
    (span.start.cast_signed(), span.end.cast_signed())
}

fn text_request(text: &[u8], spans: Option<Vec<Span>>) -> Result<TextRequest, Error> {
    check_size(text)?;
    let text = to_utf8(text)?.into_owned();
    Ok(TextRequest { text, spans })
}

/// The engine checks this as well; here it saves converting and sending what it would refuse.
pub fn check_size(text: impl AsRef<[u8]>) -> Result<(), Error> {
    let (bytes, limit) = (text.as_ref().len(), gucs::max_text_bytes());
    if bytes > limit {
        return Err(Error::TextTooLarge { bytes, limit });
    }
    Ok(())
}

/// Characters from 0, as `int4range` has them after normalisation: start included, end excluded.
fn span(number: usize, range: Option<Range<i32>>) -> Result<Span, Error> {
    let bounds = range.and_then(Range::into_inner);
    let Some((RangeBound::Inclusive(start), RangeBound::Exclusive(end))) = bounds else {
        return Err(Error::SpanWithoutText(number));
    };
    match (u32::try_from(start), u32::try_from(end)) {
        (Ok(start), Ok(end)) => Ok(Span { start, end }),
        _ => Err(Error::SpanBeforeText(number)),
    }
}

fn mentions_of_one(text: TextRequest, embed: bool) -> Result<Vec<Mention>, Error> {
    let nothing_to_do = match &text.spans {
        Some(spans) => spans.is_empty(),
        None => text.text.is_empty(),
    };
    if nothing_to_do {
        return Ok(Vec::new());
    }
    let (_, mut answers) = mentions(
        vec![text],
        embed,
        gucs::detection_threshold(),
        Priority::Interactive,
    )?;
    Ok(answers.pop().unwrap_or_default())
}

/// The fingerprint and one list of mentions per text, in order, with `threshold` or the head's own
/// least probability. No texts, no request.
pub fn mentions(
    texts: Vec<TextRequest>,
    embed: bool,
    threshold: Option<f32>,
    priority: Priority,
) -> Result<(String, Vec<Vec<Mention>>), Error> {
    if texts.is_empty() {
        return Ok(Default::default());
    }
    let asked = texts.len();
    let request = Request::Mentions {
        texts,
        embed,
        threshold,
        priority,
    };
    match client::ask(&request)? {
        Response::Mentions { fingerprint, texts } if texts.len() == asked => {
            type_cache::saw_fingerprint(&fingerprint);
            Ok((fingerprint, texts))
        }
        Response::Mentions { texts, .. } => {
            let answered = texts.len();
            let problem = format!("mentions of {answered} texts, {asked} were asked for");
            Err(Error::BadAnswer(problem))
        }
        other => Err(client::unexpected(&other)),
    }
}
