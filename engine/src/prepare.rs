//! Before the model: texts to windows of tokens.

use std::{ops::Range, sync::Arc};

use ner_retriever_protocol::{Span, TextRequest};

use crate::{
    backend::Input,
    embedder::Scored,
    error::{EngineError, ErrorKind, Result},
    head::Head,
    mentions::decode::{Thresholds, without_overlap},
    model::BaseModel,
    representation::{MAX_SUFFIX, longest_query},
    text::{Word, char_starts, token_at, trim, words},
    tokenizer::Encoded,
    window::{TokenWindow, windows},
};

/// A sequence of tokens that goes through the model in one piece.
pub struct Window {
    /// Token ids, the model's first token included.
    pub ids: Vec<u32>,
    /// Bytes of the text that they cover.
    pub bytes: Range<usize>,
    pub task: Task,
    pub embed: bool,
    /// The whole text, or a type's name.
    pub text: Arc<str>,
}

/// What is read from a window; tokens count from the window's first token.
pub enum Task {
    /// Find mentions among these words, whose bytes count from the start of the whole text. Only
    /// mentions whose last token is in `owned` belong to this window.
    Detect {
        words: Vec<Word>,
        owned: Range<usize>,
        thresholds: Thresholds,
    },
    /// Embed given spans: their bytes of the whole text, and the token that holds their end.
    Spans(Vec<(Range<usize>, usize)>),
    /// Embed what a companion finds in its own window of the same bytes; `offsets` are the bytes of the whole text
    /// that each token but the first covers.
    Follow {
        leader: Box<Window>,
        offsets: Vec<(usize, usize)>,
    },
    /// Embed a type's name.
    Type,
}

/// What [`finish`] needs to know of an input.
pub enum Prepared {
    Detect {
        text: Arc<str>,
    },
    /// For each given span: the window that embeds it, and its place among that window's spans.
    Spans {
        text: Arc<str>,
        spans: Vec<Span>,
        places: Vec<(usize, usize)>,
    },
    Type,
}

impl Window {
    /// What it takes of a batch.
    pub fn tokens(&self) -> usize {
        match &self.task {
            // They pass one after the other.
            Task::Follow { leader, .. } => self.ids.len().max(leader.ids.len()),
            _ => self.ids.len(),
        }
    }

    /// The mentions of a window of a text and the token that represents each: of the spans of words
    /// that the probe proposes with their probabilities, those without overlap that the window owns.
    pub fn mentions(&self, proposals: &[(Range<usize>, f32)]) -> (Scored, Vec<usize>) {
        match &self.task {
            Task::Detect {
                words,
                owned,
                thresholds,
            } => {
                let mut own: Vec<_> = without_overlap(proposals)
                    .into_iter()
                    .map(|index| &proposals[index])
                    .filter(|(span, _)| owned.contains(&words[span.end - 1].last))
                    .collect();
                let likeliest = own.iter().map(|(_, score)| *score).fold(0.0, f32::max);
                let least = thresholds.beside(likeliest);
                own.retain(|(_, score)| *score >= least);
                own.into_iter()
                    .map(|(span, score)| {
                        let (first, last) = (&words[span.start], &words[span.end - 1]);
                        ((first.bytes.start..last.bytes.end, *score), last.last)
                    })
                    .unzip()
            }
            Task::Spans(spans) => spans
                .iter()
                .map(|(bytes, end)| ((bytes.clone(), 1.0), *end))
                .unzip(),
            Task::Follow { .. } | Task::Type => Default::default(),
        }
    }
}

/// Tokenizes an input and cuts it into windows of at most `size` tokens.
///
/// # Errors
/// `InvalidSpan`, `TextTooLarge` for a type's name longer than a window, `HeadMismatch` if
/// detection is asked of a head without a detector.
pub fn prepare(
    model: &BaseModel,
    head: &Head,
    input: Input,
    size: usize,
) -> Result<(Prepared, Vec<Window>)> {
    match input {
        Input::Type { name } => Ok((Prepared::Type, vec![type_window(model, head, &name)?])),
        Input::Text {
            request,
            embed,
            threshold,
        } => match request {
            TextRequest { text, spans: None } => detect(model, head, text, threshold, embed, size),
            TextRequest {
                text,
                spans: Some(spans),
            } => given_spans(model, text, spans, embed, size),
        },
    }
}

fn detect(
    model: &BaseModel,
    head: &Head,
    text: String,
    threshold: Option<f32>,
    embed: bool,
    size: usize,
) -> Result<(Prepared, Vec<Window>)> {
    let Some(detector) = head.description.detector.as_ref() else {
        return Err(EngineError::new(
            ErrorKind::HeadMismatch,
            format!("head \"{}\" has no mention detector", head.description.name),
        )
        .hint(
            "Pass the spans: ner_entity_embeddings(text, int4range[]), name a companion in its \
             head.json, or use another head.",
        ));
    };
    let thresholds = detector.thresholds(threshold);
    let text: Arc<str> = text.into();
    let encoded = model.tokenizer.encode(&text)?;
    let words = words(&text, &encoded);
    let windows = windows(encoded.ids.len(), size)
        .into_iter()
        .filter_map(|window| {
            // Words are in the order of their tokens, so those of a window are contiguous.
            let from = words.partition_point(|word| word.first < window.tokens.start);
            let to = words.partition_point(|word| word.last < window.tokens.end);
            let token = |token: usize| token - window.tokens.start + 1;
            let words = &words[from..to.max(from)];
            // No mention is without a letter or a digit: the model need not see the window.
            if !words.iter().any(|word| word.alphanumeric) {
                return None;
            }
            let words = words.iter().map(|word| Word {
                bytes: word.bytes.clone(),
                first: token(word.first),
                last: token(word.last),
                alphanumeric: word.alphanumeric,
            });
            let task = Task::Detect {
                words: words.collect(),
                owned: token(window.owned.start)..token(window.owned.end),
                thresholds,
            };
            Some(sequence(model, &encoded, &window, task, embed, &text))
        })
        .collect();
    Ok((Prepared::Detect { text }, windows))
}

fn given_spans(
    model: &BaseModel,
    text: String,
    spans: Vec<Span>,
    embed: bool,
    size: usize,
) -> Result<(Prepared, Vec<Window>)> {
    let text: Arc<str> = text.into();
    let encoded = model.tokenizer.encode(&text)?;
    let starts = char_starts(&text);
    let token_windows = windows(encoded.ids.len(), size);
    let mut tasks = vec![Vec::new(); token_windows.len()];
    let mut places = Vec::with_capacity(spans.len());
    for span in &spans {
        let invalid = |problem: &str| {
            EngineError::new(
                ErrorKind::InvalidSpan,
                format!("span [{},{}) {problem}", span.start, span.end),
            )
            .hint(format!(
                "Spans count characters from 0, their end is exclusive; this text has {} \
                 characters.",
                starts.len() - 1
            ))
        };
        let (Some(&from), Some(&to)) = (
            starts.get(span.start as usize),
            starts.get(span.end as usize),
        ) else {
            return Err(invalid("lies outside its text"));
        };
        if from >= to {
            return Err(invalid("is empty"));
        }
        let bytes = trim(&text, from..to).ok_or_else(|| invalid("holds only white space"))?;
        let end = token_at(&encoded.offsets, bytes.end - 1)
            .ok_or_else(|| invalid("holds only characters that the model does not know"))?;
        let window = token_windows
            .iter()
            .position(|window| window.owned.contains(&end))
            .ok_or_else(|| invalid("lies outside its text"))?;
        places.push((window, tasks[window].len()));
        tasks[window].push((bytes, end - token_windows[window].tokens.start + 1));
    }
    // Windows without a span are left out, so places count those that stay.
    let mut kept = Vec::new();
    let mut number = vec![0; token_windows.len()];
    for (index, (window, spans)) in token_windows.iter().zip(tasks).enumerate() {
        if !spans.is_empty() {
            number[index] = kept.len();
            let task = Task::Spans(spans);
            kept.push(sequence(model, &encoded, window, task, embed, &text));
        }
    }
    for (window, _) in &mut places {
        *window = number[*window];
    }
    let prepared = Prepared::Spans {
        text,
        spans,
        places,
    };
    Ok((prepared, kept))
}

fn type_window(model: &BaseModel, head: &Head, name: &str) -> Result<Window> {
    let name: Arc<str> = name.trim().into();
    let encoded = longest_query(model, &head.description.representations, &name)?;
    let count = encoded.ids.len();
    let of_name = model.tokenizer.encode(&name)?.ids.len();
    if of_name == 0 {
        return Err(EngineError::new(
            ErrorKind::InvalidSetting,
            "the type's name holds no character that the model knows",
        )
        .hint("Name an entity type, such as dinosaur or political party."));
    }
    // A suffix in a type's place has no more room, and cut off it would ask for something else.
    let most = MAX_SUFFIX.min(model.window_size());
    if count > most {
        return Err(EngineError::new(
            ErrorKind::TextTooLarge,
            format!("the type's name has {of_name} tokens"),
        )
        .hint(format!(
            "Name an entity type in at most {} tokens.",
            (most + of_name).saturating_sub(count)
        )));
    }
    Ok(whole(model, &encoded, Task::Type, true, &name))
}

/// The one window of a text that fits into it.
pub fn whole(
    model: &BaseModel,
    encoded: &Encoded,
    task: Task,
    embed: bool,
    text: &Arc<str>,
) -> Window {
    let tokens = 0..encoded.ids.len();
    let window = TokenWindow {
        tokens: tokens.clone(),
        owned: tokens,
    };
    sequence(model, encoded, &window, task, embed, text)
}

fn sequence(
    model: &BaseModel,
    encoded: &Encoded,
    window: &TokenWindow,
    task: Task,
    embed: bool,
    text: &Arc<str>,
) -> Window {
    let mut ids = Vec::with_capacity(window.tokens.len() + 1);
    ids.push(model.tokenizer.first());
    ids.extend_from_slice(&encoded.ids[window.tokens.clone()]);
    let offsets = &encoded.offsets[window.tokens.clone()];
    let start = offsets.first().map_or(0, |first| first.0);
    Window {
        ids,
        bytes: start..offsets.last().map_or(start, |last| last.1),
        task,
        embed,
        text: Arc::clone(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window of one-token words "w0 w1 ...", of which it owns those from the second on.
    fn window(words: usize, threshold: f32, floor: f32) -> Window {
        let words = (0..words).map(|word| Word {
            bytes: 3 * word..3 * word + 2,
            first: word + 1,
            last: word + 1,
            alphanumeric: true,
        });
        let words: Vec<Word> = words.collect();
        let owned = 2..words.len() + 1;
        Window {
            ids: Vec::new(),
            bytes: 0..0,
            task: Task::Detect {
                words,
                owned,
                thresholds: Thresholds { threshold, floor },
            },
            embed: true,
            text: "".into(),
        }
    }

    #[test]
    fn the_likeliest_of_its_own_mentions_tells_which_count_in_a_window() {
        let window = window(5, 0.1, 0.02);
        let (of_neighbour, nested) = ((0..1, 0.9), (1..3, 0.03));
        let unsure = [of_neighbour, (1..2, 0.05), nested, (4..5, 0.02)];
        let (found, ends) = window.mentions(&unsure);
        assert_eq!(found, [(3..5, 0.05), (12..14, 0.02)]);
        assert_eq!(ends, [2, 5]);
        let surer = [(1..2, 0.05), (2..4, 0.2), (4..5, 0.03)];
        let (found, ends) = window.mentions(&surer);
        assert_eq!(found, [(3..5, 0.05), (6..11, 0.2)]);
        assert_eq!(ends, [2, 4]);
    }
}
