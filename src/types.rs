//! Queries: what a type's name, alone or with examples, is compared with the mentions by.
#![expect(
    clippy::result_large_err,
    reason = "pgrx reports SQLSTATE and hint of an ErrorReport only, not of a box around one"
)]

use std::cell::RefCell;

use ner_retriever_feedback::{SURROUNDINGS, TypeWords};
use ner_retriever_protocol::{Priority, Request, Response, Span, TextRequest};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::client;
use crate::errors::Error;
use crate::functions::{check_size, mentions};
use crate::text::{split_at_char, to_utf8};
use crate::type_cache::{self, TypeQuery};
use crate::vector::{self, Vector};

type TypeQueryRow = TableIterator<
    'static,
    (
        name!(embedding, Vec<f32>),
        name!(fingerprint, String),
        name!(dims, i32),
    ),
>;

/// `ner_type_embedding(text)`
#[pg_extern]
fn ner_type_embedding(name: &[u8]) -> Result<Vector, ErrorReport> {
    let (_, embedding) = type_embedding(type_name(name)?)?;
    Ok(Vector::new(embedding)?)
}

/// `ner_retriever.type_query(text)`
#[pg_extern]
fn ner_type_query(name: &[u8]) -> Result<TypeQueryRow, ErrorReport> {
    let (fingerprint, embedding) = type_embedding(type_name(name)?)?;
    let dims = i32::try_from(embedding.len()).unwrap_or(i32::MAX);
    Ok(TableIterator::once((embedding, fingerprint, dims)))
}

/// `ner_type_embedding(text, text[])`: NULL and blank examples are no examples.
#[pg_extern]
fn ner_type_embedding_of_examples(
    name: &[u8],
    examples: Array<'_, &[u8]>,
) -> Result<Vector, ErrorReport> {
    let mut query = TypeQuery {
        name: type_name(name)?,
        examples: Vec::new(),
    };
    for example in examples.iter().flatten() {
        check_size(example)?;
        let example = to_utf8(example)?;
        if !example.trim().is_empty() {
            query.examples.push(example.trim().to_owned());
        }
    }
    if let Some((_, embedding)) = type_cache::get(&query) {
        return Ok(Vector::new(embedding)?);
    }
    // Examples first: another model's answer empties the cache that the name may come from.
    let (of_examples, examples) = example_embeddings(&query.examples)?;
    let (fingerprint, name) = type_embedding(query.name.clone())?;
    if !examples.is_empty() && fingerprint != of_examples {
        return Err(Error::ModelChanged.into());
    }
    let mut refined = Refined::new(name);
    for example in &examples {
        refined.add(example)?;
    }
    let embedding = refined.embedding();
    let vector = Vector::new(embedding.clone())?;
    type_cache::insert(fingerprint, query, embedding);
    Ok(vector)
}

/// Transition function of the aggregate `ner_refine_type(text, vector)`. The state is that of
/// [`Refined`]; rows in which either argument is NULL are left out.
#[pg_extern]
fn ner_refine_type_add(
    state: Option<Array<'_, f64>>,
    name: Option<&[u8]>,
    example: Option<&[u8]>,
) -> Result<Option<Vec<f64>>, ErrorReport> {
    let (Some(name), Some(example)) = (name, example) else {
        return Ok(state.map(numbers).transpose()?);
    };
    let mut refined = match state {
        Some(state) => Refined::from_state(&numbers(state)?)?,
        None => Refined::new(type_embedding(type_name(name)?)?.1),
    };
    refined.add(&vector::elements(example)?)?;
    Ok(Some(refined.into_state()))
}

/// Final function of the aggregate `ner_refine_type(text, vector)`.
#[pg_extern]
fn ner_refine_type_final(state: Array<'_, f64>) -> Result<Vector, ErrorReport> {
    let refined = Refined::from_state(&numbers(state)?)?;
    Ok(Vector::new(refined.embedding())?)
}

/// Anyone may call the aggregate's functions with an array of their own.
fn numbers(state: Array<'_, f64>) -> Result<Vec<f64>, Error> {
    let numbers: Option<Vec<f64>> = state.iter().collect();
    numbers
        .filter(|numbers| numbers.iter().all(|number| number.is_finite()))
        .ok_or(Error::RefinementState)
}

fn type_name(name: &[u8]) -> Result<String, Error> {
    let name = to_utf8(name)?;
    if name.trim().is_empty() {
        return Err(Error::EmptyTypeName);
    }
    check_size(&*name)?;
    Ok(name.into_owned())
}

/// The fingerprint and the embedding of a type's name alone.
fn type_embedding(name: String) -> Result<(String, Vec<f32>), Error> {
    let query = TypeQuery {
        name,
        examples: Vec::new(),
    };
    if let Some(known) = type_cache::get(&query) {
        return Ok(known);
    }
    let name = query.name.clone();
    match client::ask(&Request::Type { name })? {
        Response::Type {
            fingerprint,
            embedding,
        } => {
            type_cache::insert(fingerprint.clone(), query, embedding.clone());
            Ok((fingerprint, embedding))
        }
        other => Err(client::unexpected(&other)),
    }
}

/// The fingerprint and the embedding of each example as a mention that is its whole text.
fn example_embeddings(examples: &[String]) -> Result<(String, Vec<Vec<f32>>), Error> {
    let texts = examples.iter().map(|example| TextRequest {
        text: example.clone(),
        spans: Some(vec![Span {
            start: 0,
            // Its bytes were checked against a limit below 4 GB.
            end: example.chars().count() as u32,
        }]),
    });
    let (fingerprint, texts) = mentions(texts.collect(), true, None, Priority::Interactive)?;
    let embeddings = texts.into_iter().flatten().map(|mention| mention.embedding);
    Ok((fingerprint, embeddings.collect()))
}

/// `ner_retriever.feedback(real[], vector[])`
#[pg_extern]
fn ner_feedback(query: Array<'_, f32>, nearest: Array<'_, &[u8]>) -> Result<Vec<f32>, ErrorReport> {
    let query: Vec<f32> = query.iter().flatten().collect();
    let mentions = elements_of_all(&nearest)?;
    Ok(ner_retriever_feedback::refine(&query, &mentions))
}

/// `ner_retriever.smooth(real[], vector[])`
#[pg_extern]
fn ner_smooth(
    similarities: Array<'_, f32>,
    mentions: Array<'_, &[u8]>,
) -> Result<Vec<f32>, ErrorReport> {
    let similarities: Vec<f32> = similarities.iter().flatten().collect();
    let mentions = elements_of_all(&mentions)?;
    Ok(ner_retriever_feedback::smooth(&similarities, &mentions))
}

/// `ner_retriever.words_near(text, text, integer, integer)`. A candidate is never worth an error: in a
/// database that is not in UTF-8 words match by their ASCII letters.
#[pg_extern]
fn ner_words_near(type_name: &[u8], text: &[u8], start_char: i32, end_char: i32) -> f32 {
    let [start, end] = [start_char, end_char].map(|char| usize::try_from(char).unwrap_or(0));
    let first = start.saturating_sub(SURROUNDINGS);
    let (_, rest) = split_at_char(text, first);
    let (near, _) = split_at_char(rest, (end + SURROUNDINGS).saturating_sub(first));
    // A search asks for one type after the other, each for hundreds of rows.
    LAST_WORDS.with_borrow_mut(|(of, words)| {
        if of != type_name {
            *words = TypeWords::new(&String::from_utf8_lossy(type_name));
            *of = type_name.to_vec();
        }
        words.bonus(&String::from_utf8_lossy(near))
    })
}

thread_local! {
    /// The type's name that was last asked for, and its words.
    static LAST_WORDS: RefCell<(Vec<u8>, TypeWords)> = RefCell::new((Vec::new(), TypeWords::new("")));
}

/// Of vectors, one after the other.
fn elements_of_all(vectors: &Array<'_, &[u8]>) -> Result<Vec<f32>, Error> {
    let mut all = Vec::new();
    for vector in vectors.iter().flatten() {
        all.extend(vector::elements(vector)?);
    }
    Ok(all)
}

/// A type's embedding with the examples that refine it.
struct Refined {
    name: Vec<f64>,
    /// Sum of the examples.
    sum: Vec<f64>,
}

impl Refined {
    fn new(name: Vec<f32>) -> Self {
        Self {
            sum: vec![0.0; name.len()],
            name: name.into_iter().map(f64::from).collect(),
        }
    }

    fn add(&mut self, example: &[f32]) -> Result<(), Error> {
        if example.len() != self.name.len() {
            return Err(Error::ExampleDimensions {
                example: example.len(),
                name: self.name.len(),
            });
        }
        for (sum, element) in self.sum.iter_mut().zip(example) {
            *sum += f64::from(*element);
        }
        Ok(())
    }

    fn embedding(&self) -> Vec<f32> {
        ner_retriever_feedback::shown(&self.name, &self.sum)
    }

    /// `[name, sum]`.
    fn into_state(self) -> Vec<f64> {
        self.name.into_iter().chain(self.sum).collect()
    }

    fn from_state(state: &[f64]) -> Result<Self, Error> {
        if state.is_empty() || !state.len().is_multiple_of(2) {
            return Err(Error::RefinementState);
        }
        let (name, sum) = state.split_at(state.len() / 2);
        Ok(Self {
            name: name.to_vec(),
            sum: sum.to_vec(),
        })
    }
}
