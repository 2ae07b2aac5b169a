//! Embedding rows: reads their texts, asks the engine, replaces their mentions.
#![expect(
    clippy::result_large_err,
    reason = "pgrx reports SQLSTATE and hint of an ErrorReport only, not of a box around one"
)]

use std::collections::HashMap;

use ner_retriever_protocol::{Mention, Priority, TextRequest};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

use super::role::{as_role, is_superuser};
use super::statements::{Statements, WriteStatements, statements, write_statements};
use crate::errors::Error;
use crate::functions::{check_size, mentions};

/// Bytes of texts in one request: what a pass takes at once, so that a batch of long texts neither
/// outgrows a frame nor makes interactive calls wait for its tokenization.
const REQUEST_BYTES: usize = 128 * 1024;

/// `ner_retriever.embed_rows(integer, text[])`
#[pg_extern]
fn ner_embed_rows(index: i32, keys: Array<'_, &str>) -> Result<Vec<i32>, ErrorReport> {
    if !is_superuser() {
        return Err(Error::WorkerOnly.into());
    }
    let Some(statements) = statements(index)? else {
        return Ok(Vec::new());
    };
    let keys: Vec<String> = keys.iter().flatten().map(str::to_owned).collect();
    Ok(embed(index, &statements, &keys)?)
}

/// `ner_retriever.execute_as(oid, text)`
#[pg_extern]
fn ner_execute_as(owner: Oid, statement: &str) -> Result<i64, ErrorReport> {
    if !is_superuser() {
        return Err(Error::WorkerOnly.into());
    }
    let rows = as_role(owner, || {
        Spi::connect_mut(|client| {
            client.update(statement, None, &[])?;
            // SAFETY: reads a variable of this process that the statement has just set.
            Ok::<_, Error>(unsafe { pg_sys::SPI_processed })
        })
    })?;
    Ok(i64::try_from(rows).unwrap_or(i64::MAX))
}

/// A row that is there: its number among the keys (from 1) and its text.
struct Row {
    number: i32,
    text: Option<Vec<u8>>,
}

/// Replaces the mentions of rows. `keys` holds the columns of all their keys one after the other, as
/// text. Returns the numbers (from 1) of the keys whose rows someone else was changing meanwhile: they
/// are to be embedded again.
///
/// # Errors
/// Those of the engine, `ForeignModel`, and PostgreSQL's own.
pub fn embed(index: i32, statements: &Statements, keys: &[String]) -> Result<Vec<i32>, Error> {
    check_row_security(statements)?;
    let rows = as_role(statements.owner, || read(statements, keys))?;
    let (fingerprint, found) = detect(&rows)?;
    as_role(statements.owner, || {
        let tables = tables(index, fingerprint.as_deref())?;
        let (same, again) = lock(statements, keys, &rows)?;
        if !same.is_empty() {
            for table in &tables {
                replace(table, keys, &same, &rows, &found)?;
            }
        }
        Ok(again)
    })
}

/// Rows that are hidden from their owner would look as if they were gone.
fn check_row_security(statements: &Statements) -> Result<(), Error> {
    Spi::run_with_args(
        "SELECT ner_retriever.check_row_security($1)",
        &[statements.base.into()],
    )?;
    Ok(())
}

fn read(statements: &Statements, keys: &[String]) -> Result<Vec<Row>, Error> {
    Spi::connect_mut(|client| {
        let rows = client.update(&statements.read, None, &[keys.to_vec().into()])?;
        rows.map(|row| {
            Ok(Row {
                number: row.get(1)?.unwrap_or(0),
                text: row.get(2)?,
            })
        })
        .collect()
    })
}

/// The mentions of each row, and the fingerprint of what found them if anything was asked.
fn detect(rows: &[Row]) -> Result<(Option<String>, Vec<Vec<Mention>>), Error> {
    let mut fingerprint: Option<String> = None;
    let mut found: Vec<Vec<Mention>> = rows.iter().map(|_| Vec::new()).collect();
    let mut waiting: Vec<usize> = Vec::new();
    let mut bytes = 0;
    for (index, row) in rows.iter().enumerate() {
        let Some(text) = row.text.as_ref().filter(|text| !text.is_empty()) else {
            continue;
        };
        check_size(text)?;
        if bytes + text.len() > REQUEST_BYTES {
            ask(rows, &mut waiting, &mut fingerprint, &mut found)?;
            bytes = 0;
        }
        bytes += text.len();
        waiting.push(index);
    }
    ask(rows, &mut waiting, &mut fingerprint, &mut found)?;
    Ok((fingerprint, found))
}

fn ask(
    rows: &[Row],
    waiting: &mut Vec<usize>,
    fingerprint: &mut Option<String>,
    found: &mut [Vec<Mention>],
) -> Result<(), Error> {
    if waiting.is_empty() {
        return Ok(());
    }
    let texts = waiting.iter().map(|&index| {
        let text = rows[index].text.clone().unwrap_or_default();
        let text = String::from_utf8(text).map_err(|_| Error::InvalidText)?;
        Ok(TextRequest { text, spans: None })
    });
    let texts = texts.collect::<Result<_, Error>>()?;
    let (of, answers) = mentions(texts, true, None, Priority::Bulk)?;
    if fingerprint.as_ref().is_some_and(|known| *known != of) {
        return Err(Error::ModelChanged);
    }
    *fingerprint = Some(of);
    for (index, answer) in waiting.drain(..).zip(answers) {
        found[index] = answer;
    }
    Ok(())
}

/// The tables whose mentions are of this model; all of them if there are none to add.
fn tables(index: i32, fingerprint: Option<&str>) -> Result<Vec<WriteStatements>, Error> {
    let mut tables = write_statements(index)?;
    if let Some(fingerprint) = fingerprint {
        let known = tables
            .first()
            .map(|table| table.fingerprint.clone())
            .unwrap_or_default();
        tables.retain(|table| table.fingerprint == fingerprint);
        if tables.is_empty() {
            return Err(Error::ForeignModel {
                index: known,
                engine: fingerprint.to_owned(),
            });
        }
    }
    Ok(tables)
}

/// The positions among `rows` of those that still have their text and are locked now, and the
/// numbers of those that have not, or could not be locked.
fn lock(
    statements: &Statements,
    keys: &[String],
    rows: &[Row],
) -> Result<(Vec<usize>, Vec<i32>), Error> {
    let last = rows.iter().map(|row| row.number).max().unwrap_or(0);
    let mut texts: Vec<Option<&[u8]>> = vec![None; usize::try_from(last).unwrap_or(0)];
    for row in rows {
        if let Some(slot) = usize::try_from(row.number - 1)
            .ok()
            .and_then(|at| texts.get_mut(at))
        {
            *slot = row.text.as_deref();
        }
    }
    let locked: HashMap<i32, bool> = Spi::connect_mut(|client| {
        let locked = client.update(
            &statements.lock,
            None,
            &[keys.to_vec().into(), texts.into()],
        )?;
        locked
            .map(|row| Ok((row.get(1)?.unwrap_or(0), row.get(2)?.unwrap_or(false))))
            .collect::<Result<_, Error>>()
    })?;
    let mut same = Vec::new();
    let mut again = Vec::new();
    let mut missing = false;
    for (position, row) in rows.iter().enumerate() {
        match locked.get(&row.number) {
            Some(true) => same.push(position),
            Some(false) => again.push(row.number),
            None => missing = true,
        }
    }
    if missing {
        // Deleted, with its mentions; or being changed.
        let there = read(statements, keys)?;
        let unlocked = there
            .into_iter()
            .map(|row| row.number)
            .filter(|number| !locked.contains_key(number));
        again.extend(unlocked);
    }
    Ok((same, again))
}

fn replace(
    table: &WriteStatements,
    keys: &[String],
    same: &[usize],
    rows: &[Row],
    found: &[Vec<Mention>],
) -> Result<(), Error> {
    let numbers: Vec<i32> = same.iter().map(|&position| rows[position].number).collect();
    let of_mention = || {
        same.iter().flat_map(|&position| {
            let number = rows[position].number;
            found[position].iter().map(move |mention| (number, mention))
        })
    };
    Spi::connect_mut(|client| {
        client.update(&table.remove, None, &[keys.to_vec().into(), numbers.into()])?;
        if of_mention().next().is_none() {
            return Ok(());
        }
        let mut embeddings: Vec<f32> = Vec::with_capacity(of_mention().count() * table.dims);
        for (_, mention) in of_mention() {
            if mention.embedding.len() != table.dims {
                let problem = format!("an embedding of {} dimensions", mention.embedding.len());
                return Err(Error::BadAnswer(problem));
            }
            embeddings.extend(&mention.embedding);
        }
        let position = |character: u32| character.cast_signed();
        let rows: Vec<i32> = of_mention().map(|(number, _)| number).collect();
        let texts: Vec<&[u8]> = of_mention().map(|(_, m)| m.text.as_bytes()).collect();
        let starts: Vec<i32> = of_mention().map(|(_, m)| position(m.span.start)).collect();
        let ends: Vec<i32> = of_mention().map(|(_, m)| position(m.span.end)).collect();
        let scores: Vec<f32> = of_mention().map(|(_, m)| m.score).collect();
        client.update(
            &table.add,
            None,
            &[
                keys.to_vec().into(),
                rows.into(),
                texts.into(),
                starts.into(),
                ends.into(),
                scores.into(),
                embeddings.into(),
            ],
        )?;
        Ok(())
    })
}
