//! What the stand-in engine answers: a function of the request and of nothing else.

use std::process;
use std::time::Duration;

use ner_retriever_protocol::{
    EngineError, ErrorKind, Mention, ModelInfo, Request, Response, Span, State, Status, TextRequest,
};

/// Dimensions of an embedding: enough to tell mentions apart, and quick to index.
pub const DIMS: usize = 16;
/// A text that has this word is refused for ever, as one that is too large for the real engine.
pub const POISON: &str = "POISON";
const FINGERPRINT: &str = "stand-in-engine";
/// A power of two in every number format: what is stored is what was sent.
const SCORE: f32 = 0.75;

/// The answer to a request for mentions or a type.
pub fn response(request: Request, max_text_bytes: usize) -> Response {
    match request {
        Request::Mentions { texts, embed, .. } => {
            let answers = texts
                .iter()
                .enumerate()
                .map(|(n, text)| mentions_of(text, n, texts.len(), embed, max_text_bytes))
                .collect::<Result<_, _>>();
            match answers {
                Ok(texts) => Response::Mentions {
                    fingerprint: FINGERPRINT.into(),
                    texts,
                },
                Err(error) => Response::Error(error),
            }
        }
        Request::Type { name } => Response::Type {
            fingerprint: FINGERPRINT.into(),
            embedding: embedding(&name, u32::MAX),
        },
        Request::Status => status(0, Duration::ZERO),
    }
}

/// The answer to a request for the engine's state: a model is always there.
pub fn status(requests: u64, uptime: Duration) -> Response {
    Response::Status(Box::new(Status {
        state: State::Ready,
        pid: process::id(),
        model: Some(ModelInfo {
            model: "none".into(),
            head: "stand-in".into(),
            fingerprint: FINGERPRINT.into(),
            device: "cpu".into(),
            block: 0,
            dims: DIMS as u32,
            dtype: "f32".into(),
        }),
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        requests,
        ..Status::default()
    }))
}

fn mentions_of(
    request: &TextRequest,
    number: usize,
    of: usize,
    embed: bool,
    max_text_bytes: usize,
) -> Result<Vec<Mention>, EngineError> {
    let text = &request.text;
    if text.len() > max_text_bytes || text.contains(POISON) {
        let what = match of {
            1 => "the text".to_owned(),
            _ => format!("text {}", number + 1),
        };
        let bytes = text.len();
        let message =
            format!("{what} has {bytes} bytes, more than the limit of {max_text_bytes} bytes");
        return Err(EngineError::new(ErrorKind::TextTooLarge, message)
            .hint("Split the text, or raise ner_retriever.max_text_size."));
    }
    let spans = request.spans.clone().unwrap_or_else(|| spans(text));
    spans
        .into_iter()
        .map(|span| mention(text, span, embed))
        .collect()
}

fn mention(text: &str, span: Span, embed: bool) -> Result<Mention, EngineError> {
    let length = span.end.saturating_sub(span.start) as usize;
    let words: String = text
        .chars()
        .skip(span.start as usize)
        .take(length)
        .collect();
    if length == 0 || words.chars().count() < length {
        let message = format!("span {}..{} is outside of its text", span.start, span.end);
        return Err(EngineError::new(ErrorKind::InvalidSpan, message));
    }
    Ok(Mention {
        embedding: if embed {
            embedding(&words, span.start)
        } else {
            Vec::new()
        },
        span,
        text: words,
        score: SCORE,
    })
}

/// The longest runs of ASCII words with a capital in front, one space between them.
fn spans(text: &str) -> Vec<Span> {
    let chars: Vec<char> = text.chars().collect();
    let mut spans: Vec<Span> = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let end = word_end(&chars, at);
        if chars[at].is_ascii_uppercase() {
            let (start, end) = (at as u32, end as u32);
            match spans.last_mut() {
                Some(last) if last.end + 1 == start && chars[at - 1] == ' ' => last.end = end,
                _ => spans.push(Span { start, end }),
            }
        }
        at = end.max(at + 1);
    }
    spans
}

/// Where the word that begins at `at` ends; `at` if none begins there.
fn word_end(chars: &[char], at: usize) -> usize {
    let length = chars[at..]
        .iter()
        .take_while(|c| c.is_alphanumeric())
        .count();
    at + length
}

/// A unit vector that another mention, or the same elsewhere in a text, does not have.
fn embedding(words: &str, position: u32) -> Vec<f32> {
    let mut state = words
        .bytes()
        .chain(position.to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    let mut vector: Vec<f32> = (0..DIMS)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            f32::from((state >> 48) as u16) / 32_768.0 - 1.0
        })
        .collect();
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}
