//! After the model: what was found in the windows of a text back to its characters.

use ner_retriever_protocol::{Mention, Span};

use crate::{
    backend::Output,
    embedder::{Found, WindowOutput},
    error::{EngineError, ErrorKind, Result},
    mentions::decode::without_overlap,
    prepare::Prepared,
    text::char_starts,
};

/// Joins what was found in an input's windows.
///
/// # Errors
/// `Internal` if an output is missing.
pub fn finish(prepared: Prepared, outputs: Vec<WindowOutput>) -> Result<Output> {
    let missing = || EngineError::new(ErrorKind::Internal, "the model left out a mention");
    match prepared {
        Prepared::Type => outputs
            .into_iter()
            .flat_map(|output| output.mentions)
            .next()
            .map(|found| Output::Type(found.embedding))
            .ok_or_else(missing),
        Prepared::Detect { text } => Ok(Output::Mentions(join(&text, outputs))),
        Prepared::Spans {
            text,
            spans,
            places,
        } => {
            let starts = char_starts(&text);
            let mut found: Vec<Vec<Option<Found>>> = outputs
                .into_iter()
                .map(|output| output.mentions.into_iter().map(Some).collect())
                .collect();
            let mentions = spans
                .into_iter()
                .zip(places)
                .map(|(span, (window, place))| {
                    let slot = found
                        .get_mut(window)
                        .and_then(|window| window.get_mut(place));
                    let found = slot.and_then(Option::take).ok_or_else(missing)?;
                    let bytes = starts[span.start as usize]..starts[span.end as usize];
                    Ok(Mention {
                        span,
                        text: text[bytes].to_owned(),
                        score: found.score,
                        embedding: found.embedding,
                    })
                });
            mentions.collect::<Result<_>>().map(Output::Mentions)
        }
    }
}

/// Mentions of all windows in the order of the text. Neighbouring windows may have found different
/// spans around the border between them; the more probable one stays.
fn join(text: &str, outputs: Vec<WindowOutput>) -> Vec<Mention> {
    let mut found: Vec<Found> = outputs
        .into_iter()
        .flat_map(|output| output.mentions)
        .collect();
    let spans: Vec<_> = found
        .iter()
        .map(|found| (found.bytes.clone(), found.score))
        .collect();
    let starts = char_starts(text);
    let character = |byte: usize| starts.partition_point(|&start| start < byte) as u32;
    without_overlap(&spans)
        .into_iter()
        .map(|index| {
            let found = &mut found[index];
            Mention {
                span: Span {
                    start: character(found.bytes.start),
                    end: character(found.bytes.end),
                },
                text: text[found.bytes.clone()].to_owned(),
                score: found.score,
                embedding: std::mem::take(&mut found.embedding),
            }
        })
        .collect()
}
