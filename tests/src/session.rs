//! What a session says: errors, mentions, the engine's status.

use std::fmt::Debug;

use pgvector::Vector;
use postgres::{Client, Row};

use crate::processes::ProcessId;

/// An error as a session sees it.
#[derive(Debug, PartialEq)]
pub struct Failure {
    pub sqlstate: String,
    pub message: String,
    pub hint: Option<String>,
}

/// The error of a call that must fail. Whatever it is, users must not see the extension's source
/// code or a Rust backtrace in it.
#[track_caller]
pub fn failure<T: Debug>(result: Result<T, postgres::Error>) -> Failure {
    let error = result.expect_err("the call must fail");
    let error = error.as_db_error().expect("an error of the server");
    for part in [
        Some(error.message()),
        error.hint(),
        error.detail(),
        error.where_(),
    ] {
        let part = part.unwrap_or_default();
        for internal in [".rs", "backtrace", "panicked"] {
            assert!(!part.contains(internal), "{error:?}");
        }
    }
    assert_eq!(error.detail(), None);
    Failure {
        sqlstate: error.code().code().to_owned(),
        message: error.message().to_owned(),
        hint: error.hint().map(str::to_owned),
    }
}

impl Failure {
    /// Checks the SQLSTATE and that message and hint contain what they should.
    #[track_caller]
    pub fn expect(&self, sqlstate: &str, message: &str, hint: &str) {
        let has_hint = self.hint.as_deref().is_some_and(|text| text.contains(hint));
        assert!(
            self.sqlstate == sqlstate && self.message.contains(message) && has_hint,
            "expected {sqlstate} with \"{message}\" and hint \"{hint}\", got {self:#?}"
        );
    }
}

/// A row of `ner_entity_embeddings`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mention {
    /// 1 for the functions of one text.
    pub doc: i32,
    pub entity: String,
    pub start: i32,
    pub end: i32,
    pub score: f32,
    pub embedding: Vec<f32>,
}

impl Mention {
    fn from_row(row: &Row) -> Self {
        let has_doc = row.columns().iter().any(|column| column.name() == "doc");
        Self {
            doc: if has_doc { row.get("doc") } else { 1 },
            entity: row.get("entity"),
            start: row.get("start_char"),
            end: row.get("end_char"),
            score: row.get("score"),
            embedding: row.get::<_, Vector>("embedding").into(),
        }
    }

    /// Whether both are the same mention with the same embedding, to `tolerance` in every element.
    pub fn agrees(&self, other: &Self, tolerance: f32) -> bool {
        (self.doc, self.start, self.end, &self.entity)
            == (other.doc, other.start, other.end, &other.entity)
            && distance(&self.embedding, &other.embedding) <= tolerance
    }
}

/// The largest difference of two vectors' elements; infinite if their dimensions differ.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// Detected mentions of one text.
pub fn mentions(client: &mut Client, text: &str) -> Result<Vec<Mention>, postgres::Error> {
    let rows = client.query("select * from ner_entity_embeddings($1::text)", &[&text])?;
    Ok(rows.iter().map(Mention::from_row).collect())
}

/// Detected mentions of many texts.
pub fn mentions_of_texts(
    client: &mut Client,
    texts: &[Option<&str>],
) -> Result<Vec<Mention>, postgres::Error> {
    let rows = client.query("select * from ner_entity_embeddings($1::text[])", &[&texts])?;
    Ok(rows.iter().map(Mention::from_row).collect())
}

/// Mentions of one text at `spans`, an array of `int4range` in PostgreSQL's notation.
pub fn mentions_at(
    client: &mut Client,
    text: &str,
    spans: &str,
) -> Result<Vec<Mention>, postgres::Error> {
    let sql = "select * from ner_entity_embeddings($1::text, $2::text::int4range[])";
    let rows = client.query(sql, &[&text, &spans])?;
    Ok(rows.iter().map(Mention::from_row).collect())
}

/// The embedding of a type's name.
pub fn type_embedding(client: &mut Client, name: &str) -> Result<Vec<f32>, postgres::Error> {
    let row = client.query_one("select ner_type_embedding($1)", &[&name])?;
    Ok(row.get::<_, Vector>(0).into())
}

/// A row of `ner_engine_status`.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineStatus {
    pub state: String,
    pub pid: Option<ProcessId>,
    pub model: Option<String>,
    pub head: Option<String>,
    pub fingerprint: Option<String>,
    pub device: Option<String>,
    pub dimensions: Option<i32>,
    pub requests: Option<i64>,
    pub tokens: Option<i64>,
    pub batches: Option<i64>,
    pub merged_requests: Option<i64>,
    pub queue_depth: Option<i64>,
    pub resident_bytes: Option<i64>,
    pub dtype: Option<String>,
}

/// What the engine is doing; starts nothing.
pub fn engine_status(client: &mut Client) -> EngineStatus {
    let row = client
        .query_one("select * from ner_engine_status()", &[])
        .expect("the status never fails");
    EngineStatus {
        state: row.get("state"),
        pid: row.get("pid"),
        model: row.get("model"),
        head: row.get("head"),
        fingerprint: row.get("fingerprint"),
        device: row.get("device"),
        dimensions: row.get("dimensions"),
        requests: row.get("requests"),
        tokens: row.get("tokens"),
        batches: row.get("batches"),
        merged_requests: row.get("merged_requests"),
        queue_depth: row.get("queue_depth"),
        resident_bytes: row.get("resident_bytes"),
        dtype: row.get("dtype"),
    }
}

/// The engine's process, which must run.
pub fn engine_pid(client: &mut Client) -> ProcessId {
    engine_status(client).pid.expect("the engine runs")
}

/// The session's own server process.
pub fn backend_pid(client: &mut Client) -> ProcessId {
    client
        .query_one("select pg_backend_pid()", &[])
        .expect("the session works")
        .get(0)
}
