//! Type embeddings of this session. `ner_type_embedding` in ORDER BY is evaluated for every row when
//! the planner chooses a sequential scan; only the first evaluation may cost a round trip.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;

use pgrx::pg_sys;
use rustix::process::Pid;

use crate::{gucs, paths};

/// More types than a session asks for by hand; 2 MB at 500 dimensions.
const MAX_ENTRIES: usize = 1024;
/// Bytes of names and examples: examples may be long.
const MAX_QUERY_BYTES: usize = 1 << 20;

/// What a type's embedding is made from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TypeQuery {
    pub name: String,
    pub examples: Vec<String>,
}

thread_local! {
    static CACHE: RefCell<TypeCache> = RefCell::default();
}

#[derive(Default)]
struct TypeCache {
    /// By the type's name and its examples.
    embeddings: HashMap<TypeQuery, Vec<f32>>,
    /// Of all entries' names and examples.
    query_bytes: usize,
    fingerprint: String,
    source: Source,
    /// Start of the statement that last compared `source` with what is.
    checked_in: pg_sys::TimestampTz,
}

/// What the entries come from. An engine that just ended may have answered after a reload that
/// changed the model, so the settings alone do not tell.
#[derive(Default, PartialEq)]
struct Source {
    model: Option<OsString>,
    head: Option<OsString>,
    /// A GPU gives slightly other numbers than the CPU, or none where it is asked for in vain.
    device: OsString,
    engine: Option<Pid>,
}

impl Source {
    fn current() -> Self {
        Self {
            model: gucs::model(),
            head: gucs::head(),
            device: gucs::device(),
            engine: paths::engine_pid(),
        }
    }

    /// Whether the next engine would give what `self` gave: an engine that has ended leaves no
    /// doubt unless another has taken its place.
    fn still_holds(&self, current: &Self) -> bool {
        self.model == current.model
            && self.head == current.head
            && self.device == current.device
            && (current.engine.is_none() || self.engine == current.engine)
    }
}

/// The fingerprint and a type's embedding, if this session has asked for it before and nothing has
/// changed since.
pub fn get(query: &TypeQuery) -> Option<(String, Vec<f32>)> {
    CACHE.with_borrow_mut(|cache| {
        cache.check();
        let embedding = cache.embeddings.get(query)?.clone();
        Some((cache.fingerprint.clone(), embedding))
    })
}

/// Keeps what the engine just answered.
pub fn insert(fingerprint: String, query: TypeQuery, embedding: Vec<f32>) {
    CACHE.with_borrow_mut(|cache| {
        let source = Source::current();
        let same = cache.fingerprint == fingerprint && cache.source == source;
        let bytes = query.name.len() + query.examples.iter().map(String::len).sum::<usize>();
        let full = cache.embeddings.len() >= MAX_ENTRIES
            || cache.query_bytes.saturating_add(bytes) > MAX_QUERY_BYTES;
        if !same || full {
            cache.clear();
        }
        cache.query_bytes += bytes;
        cache.fingerprint = fingerprint;
        cache.source = source;
        cache.embeddings.insert(query, embedding);
    });
}

/// Drops all entries if they are another model's than the one that just answered.
pub fn saw_fingerprint(fingerprint: &str) {
    CACHE.with_borrow_mut(|cache| {
        if cache.fingerprint != fingerprint {
            cache.clear();
        }
    });
}

impl TypeCache {
    fn clear(&mut self) {
        self.embeddings.clear();
        self.query_bytes = 0;
    }

    /// Once a statement: within one, a stable function gives one result.
    fn check(&mut self) {
        // SAFETY: reads a variable of this process.
        let statement = unsafe { pg_sys::GetCurrentStatementStartTimestamp() };
        if self.checked_in != statement && !self.embeddings.is_empty() {
            if !self.source.still_holds(&Source::current()) {
                self.clear();
            }
            self.checked_in = statement;
        }
    }
}
