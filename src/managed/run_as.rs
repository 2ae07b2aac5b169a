//! Statements of the workers that run with the rights of a table's owner.
#![expect(
    clippy::result_large_err,
    reason = "pgrx reports SQLSTATE and hint of an ErrorReport only, not of a box around one"
)]

use pgrx::pg_sys::Oid;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::role::{as_role, require_superuser};
use super::server_bytes::ServerBytes;
use crate::errors::Error;

/// `ner_retriever.execute_as(oid, text)`
#[pg_extern]
fn ner_execute_as(owner: Oid, statement: &[u8]) -> Result<i64, ErrorReport> {
    let (_, rows) = run_as(owner, statement, false)?;
    Ok(rows)
}

/// `ner_retriever.count_as(oid, text)`
#[pg_extern]
fn ner_count_as(owner: Oid, statement: &[u8]) -> Result<i64, ErrorReport> {
    let (value, _) = run_as(owner, statement, true)?;
    Ok(value.unwrap_or(0))
}

/// The first value of a query, if it gives a number, and how many rows a statement was about. Names in
/// it are in the database's encoding.
fn run_as(owner: Oid, statement: &[u8], has_value: bool) -> Result<(Option<i64>, i64), Error> {
    require_superuser()?;
    as_role(owner, || {
        Spi::connect_mut(|client| {
            // EXECUTE takes the bytes as they are; the library's strings are UTF-8.
            let sql = "SELECT value, processed FROM ner_retriever.run_statement($1, $2)";
            let statement = ServerBytes(statement.to_vec());
            let arguments = [statement.into(), has_value.into()];
            let row = client.update(sql, None, &arguments)?.first();
            Ok((row.get::<i64>(1)?, row.get::<i64>(2)?.unwrap_or(0)))
        })
    })
}
