//! Embedding rows: reads their texts, asks the engine, replaces their mentions and remembers what was
//! embedded.
//!
//! Nothing of the users' tables is locked while the engine computes. Who writes the mentions of a row holds
//! the lock of the row that remembers it, and compares the text once more under that lock: a text that
//! has changed meanwhile is left to the hint of that change.
#![expect(
    clippy::result_large_err,
    reason = "pgrx reports SQLSTATE and hint of an ErrorReport only, not of a box around one"
)]

use std::collections::{HashMap, HashSet};

use ner_retriever_protocol::{Mention, Priority, Span, TextRequest};
use pgrx::pg_sys::Oid;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::changes::Key;
use super::role::{as_role, require_superuser};
use super::server_bytes::ServerBytes;
use super::subtransaction::without_keeping_locks;
use crate::errors::Error;
use crate::functions::{check_size, mentions};

/// Bytes of texts in one request: what a pass takes at once, so that a batch of long texts neither
/// outgrows a frame nor makes interactive calls wait for its tokenization.
const REQUEST_BYTES: usize = 128 * 1024;

/// `ner_retriever.embed_rows(integer, text[])`
#[pg_extern]
fn ner_embed_rows(index: i32, keys: Array<'_, &[u8]>) -> Result<Vec<i32>, ErrorReport> {
    require_superuser()?;
    let Some((owner, width)) = target(index)? else {
        return Ok(Vec::new());
    };
    let parts: Vec<ServerBytes> = keys
        .iter()
        .flatten()
        .map(|part| ServerBytes(part.to_vec()))
        .collect();
    let keys: Vec<Key> = parts.chunks(width).map(<[_]>::to_vec).collect();
    Ok(as_role(owner, || embed(index, &keys, false))?)
}

/// The owner of an index's table, and the number of columns of its key.
fn target(index: i32) -> Result<Option<(Oid, usize)>, Error> {
    Spi::connect_mut(|client| {
        let sql = "SELECT owner, width FROM ner_retriever.target($1)";
        let row = client.update(sql, None, &[index.into()])?.first();
        let width = usize::try_from(row.get::<i32>(2)?.unwrap_or(0)).unwrap_or(0);
        Ok(row
            .get::<Oid>(1)?
            .filter(|_| width > 0)
            .map(|owner| (owner, width)))
    })
}

/// Whether an index can be written to now: its table has a key, and a restore has loaded what it needs.
///
/// # Errors
/// PostgreSQL's own.
pub fn is_whole(index: i32) -> Result<bool, Error> {
    let sql = "SELECT is_whole FROM ner_retriever.target($1)";
    Ok(Spi::get_one_with_args(sql, &[index.into()])?.unwrap_or(false))
}

/// What is written to: an index, and its tables of mentions when the work began.
struct Index {
    number: i32,
    tables: Vec<Oid>,
}

fn tables(index: i32) -> Result<Vec<Oid>, Error> {
    Spi::connect_mut(|client| {
        let sql = "SELECT mentions FROM ner_retriever.generations($1)";
        let rows = client.update(sql, None, &[index.into()])?;
        rows.map(|row| Ok(row.get::<Oid>(1)?.unwrap_or(Oid::INVALID)))
            .collect()
    })
}

/// A row as it is in the table.
struct Row {
    /// Among the keys, from 1.
    number: i32,
    /// Of its text; `None` if there is no such row.
    hash: Option<Vec<u8>>,
    /// UTF-8, if it is to be embedded.
    text: Option<Vec<u8>>,
    /// Its mentions are those of this text already.
    is_known: bool,
    /// Another row has this text.
    has_donor: bool,
}

/// Mentions by the hash of the text that they are in.
type Found = HashMap<Vec<u8>, Vec<Mention>>;

/// Replaces the mentions of rows, as the role that owns the table. With `wait` it waits for others that write
/// the same rows. Returns the numbers (from 1) of the keys that are to be looked at again.
///
/// # Errors
/// Those of the engine, `ForeignModel`, and PostgreSQL's own.
pub fn embed(index: i32, keys: &[Key], wait: bool) -> Result<Vec<i32>, Error> {
    let keys: Vec<ServerBytes> = keys.iter().flatten().cloned().collect();
    let index = &Index {
        number: index,
        tables: tables(index)?,
    };
    let (rows, mut found) = without_keeping_locks(|| {
        let rows = read(index, &keys)?;
        let found = of_other_rows(index, &rows)?;
        Ok::<_, Error>((rows, found))
    })?;
    detect(index, &rows, &mut found)?;
    let mut again = Vec::new();
    let mut ready: Vec<&Row> = Vec::new();
    for row in &rows {
        match &row.hash {
            // A user does not see what a worker has written of a row that was there until now.
            None if row.is_known && wait => again.push(row.number),
            _ if row.is_known => {}
            // Another row had its text and has it no more.
            Some(hash) if !hash.is_empty() && !found.contains_key(hash) => again.push(row.number),
            _ => ready.push(row),
        }
    }
    if ready.is_empty() {
        return Ok(again);
    }
    let claimed = claim(index, &keys, &ready, wait)?;
    let (claimed, taken): (Vec<&Row>, Vec<&Row>) =
        ready.iter().partition(|row| claimed.contains(&row.number));
    again.extend(taken.iter().map(|row| row.number));
    let same = without_keeping_locks(|| compare(index, &keys, &claimed))?;
    let (same, changed): (Vec<&Row>, Vec<&Row>) =
        claimed.iter().partition(|row| same.contains(&row.number));
    again.extend(changed.iter().map(|row| row.number));
    if !same.is_empty() {
        write(index, &keys, &same, &found)?;
    }
    Ok(again)
}

fn read(index: &Index, keys: &[ServerBytes]) -> Result<Vec<Row>, Error> {
    Spi::connect_mut(|client| {
        let rows = client.update(
            "SELECT number, hash, body, known, donor FROM ner_retriever.read_rows($1, $2, $3)",
            None,
            &[
                index.number.into(),
                index.tables.clone().into(),
                keys.to_vec().into(),
            ],
        )?;
        rows.map(|row| {
            Ok(Row {
                number: row.get(1)?.unwrap_or(0),
                hash: row.get(2)?,
                text: row.get(3)?,
                is_known: row.get(4)?.unwrap_or(false),
                has_donor: row.get(5)?.unwrap_or(false),
            })
        })
        .collect()
    })
}

/// The mentions of texts that other rows have.
fn of_other_rows(index: &Index, rows: &[Row]) -> Result<Found, Error> {
    let hashes: HashSet<Vec<u8>> = rows
        .iter()
        .filter(|row| row.has_donor && !row.is_known)
        .filter_map(|row| row.hash.clone())
        .collect();
    let hashes: Vec<Vec<u8>> = hashes.into_iter().collect();
    let mut found = Found::new();
    if hashes.is_empty() {
        return Ok(found);
    }
    Spi::connect_mut(|client| {
        let rows = client.update(
            "SELECT number, mention, start_char, end_char, score, embedding
             FROM ner_retriever.known_mentions($1, $2, $3)",
            None,
            &[
                index.number.into(),
                index.tables.clone().into(),
                hashes.clone().into(),
            ],
        )?;
        for row in rows {
            let at = usize::try_from(row.get::<i32>(1)?.unwrap_or(0) - 1).ok();
            let Some(hash) = at.and_then(|at| hashes.get(at)) else {
                continue;
            };
            let mentions = found.entry(hash.clone()).or_default();
            let Some(text) = row.get::<Vec<u8>>(2)? else {
                continue;
            };
            mentions.push(Mention {
                span: Span {
                    start: row.get::<i32>(3)?.unwrap_or(0).cast_unsigned(),
                    end: row.get::<i32>(4)?.unwrap_or(0).cast_unsigned(),
                },
                text: utf8(text)?,
                score: row.get(5)?.unwrap_or(0.0),
                embedding: row.get(6)?.unwrap_or_default(),
            });
        }
        Ok(found)
    })
}

/// Asks the engine for the mentions of the texts that nobody has embedded yet, each text once.
fn detect(index: &Index, rows: &[Row], found: &mut Found) -> Result<(), Error> {
    let mut fingerprint: Option<String> = None;
    let mut waiting: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut seen: HashSet<&[u8]> = HashSet::new();
    let mut bytes = 0;
    for row in rows {
        let (Some(hash), Some(text)) = (&row.hash, &row.text) else {
            continue;
        };
        if text.is_empty() {
            found.insert(hash.clone(), Vec::new());
            continue;
        }
        if found.contains_key(hash) || !seen.insert(hash) {
            continue;
        }
        check_size(text)?;
        if bytes + text.len() > REQUEST_BYTES {
            ask(&mut waiting, &mut fingerprint, found)?;
            bytes = 0;
        }
        bytes += text.len();
        waiting.push((hash.clone(), text.clone()));
    }
    ask(&mut waiting, &mut fingerprint, found)?;
    match fingerprint {
        Some(fingerprint) => check_model(index, fingerprint),
        None => Ok(()),
    }
}

fn ask(
    waiting: &mut Vec<(Vec<u8>, Vec<u8>)>,
    fingerprint: &mut Option<String>,
    found: &mut Found,
) -> Result<(), Error> {
    if waiting.is_empty() {
        return Ok(());
    }
    let (hashes, texts): (Vec<_>, Vec<_>) = std::mem::take(waiting).into_iter().unzip();
    let texts = texts.into_iter().map(|text| {
        let text = utf8(text)?;
        Ok(TextRequest { text, spans: None })
    });
    let texts = texts.collect::<Result<_, Error>>()?;
    let (of, answers) = mentions(texts, true, None, Priority::Bulk)?;
    if fingerprint.as_ref().is_some_and(|known| *known != of) {
        return Err(Error::ModelChanged);
    }
    *fingerprint = Some(of);
    found.extend(hashes.into_iter().zip(answers));
    Ok(())
}

fn utf8(text: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(text).map_err(|_| Error::InvalidText)
}

/// The mentions must be of the model whose mentions the table is to have.
fn check_model(index: &Index, engine: String) -> Result<(), Error> {
    let known: Option<String> = Spi::connect_mut(|client| {
        let sql = "SELECT fingerprint FROM ner_retriever.generations($1)";
        let row = client.update(sql, Some(1), &[index.number.into()])?.first();
        Ok::<_, Error>(row.get(1)?)
    })?;
    match known {
        Some(known) if known != engine => Err(Error::ForeignModel {
            index: known,
            engine,
        }),
        _ => Ok(()),
    }
}

fn numbers_of(rows: &[&Row]) -> Vec<i32> {
    rows.iter().map(|row| row.number).collect()
}

fn hashes_of(rows: &[&Row]) -> Vec<Option<Vec<u8>>> {
    rows.iter().map(|row| row.hash.clone()).collect()
}

/// The numbers of the rows that are this transaction's to write now.
fn claim(
    index: &Index,
    keys: &[ServerBytes],
    rows: &[&Row],
    wait: bool,
) -> Result<HashSet<i32>, Error> {
    let sql = "SELECT n FROM ner_retriever.claim_rows($1, $2, $3, $4, $5) AS c (n)";
    let numbers = numbers_of(rows);
    collect_numbers(
        sql,
        &[
            index.number.into(),
            index.tables.clone().into(),
            keys.to_vec().into(),
            numbers.into(),
            wait.into(),
        ],
    )
}

/// The numbers of the rows whose texts are still those that were embedded.
fn compare(index: &Index, keys: &[ServerBytes], rows: &[&Row]) -> Result<HashSet<i32>, Error> {
    let sql = "SELECT n FROM ner_retriever.compare_rows($1, $2, $3, $4) AS c (n)";
    let (numbers, hashes) = (numbers_of(rows), hashes_of(rows));
    collect_numbers(
        sql,
        &[
            index.number.into(),
            keys.to_vec().into(),
            numbers.into(),
            hashes.into(),
        ],
    )
}

fn collect_numbers(
    sql: &str,
    arguments: &[pgrx::datum::DatumWithOid<'_>],
) -> Result<HashSet<i32>, Error> {
    Spi::connect_mut(|client| {
        let rows = client.update(sql, None, arguments)?;
        rows.map(|row| Ok(row.get::<i32>(1)?.unwrap_or(0)))
            .collect()
    })
}

/// Writes mentions and memory of rows that are claimed.
fn write(index: &Index, keys: &[ServerBytes], rows: &[&Row], found: &Found) -> Result<(), Error> {
    let of_row = |row: &Row| -> &[Mention] {
        let mentions = row.hash.as_ref().and_then(|hash| found.get(hash));
        mentions.map_or(&[], Vec::as_slice)
    };
    let of_mention = || {
        rows.iter()
            .flat_map(|row| of_row(row).iter().map(|mention| (row.number, mention)))
    };
    let position = |character: u32| character.cast_signed();
    Spi::connect_mut(|client| {
        client.update(
            "SELECT ner_retriever.remove_mentions($1, $2, $3, $4)",
            None,
            &[
                index.number.into(),
                index.tables.clone().into(),
                keys.to_vec().into(),
                numbers_of(rows).into(),
            ],
        )?;
        if of_mention().next().is_some() {
            let dims = of_mention().next().map_or(0, |(_, m)| m.embedding.len());
            if of_mention().any(|(_, m)| m.embedding.len() != dims) {
                let problem = "embeddings of different dimensions".to_owned();
                return Err(Error::BadAnswer(problem));
            }
            let embeddings: Vec<f32> = of_mention()
                .flat_map(|(_, m)| m.embedding.iter().copied())
                .collect();
            let of: Vec<i32> = of_mention().map(|(number, _)| number).collect();
            let texts: Vec<&[u8]> = of_mention().map(|(_, m)| m.text.as_bytes()).collect();
            let starts: Vec<i32> = of_mention().map(|(_, m)| position(m.span.start)).collect();
            let ends: Vec<i32> = of_mention().map(|(_, m)| position(m.span.end)).collect();
            let scores: Vec<f32> = of_mention().map(|(_, m)| m.score).collect();
            client.update(
                "SELECT ner_retriever.add_mentions($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                None,
                &[
                    index.number.into(),
                    index.tables.clone().into(),
                    keys.to_vec().into(),
                    of.into(),
                    texts.into(),
                    starts.into(),
                    ends.into(),
                    scores.into(),
                    embeddings.into(),
                ],
            )?;
        }
        client.update(
            "SELECT ner_retriever.remember_rows($1, $2, $3, $4, $5)",
            None,
            &[
                index.number.into(),
                index.tables.clone().into(),
                keys.to_vec().into(),
                numbers_of(rows).into(),
                hashes_of(rows).into(),
            ],
        )?;
        Ok(())
    })
}
