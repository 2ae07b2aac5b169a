//! How far an index is, now and not when the transaction began.
#![expect(
    clippy::result_large_err,
    reason = "pgrx reports SQLSTATE and hint of an ErrorReport only, not of a box around one"
)]

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::server_bytes::ServerBytes;
use super::snapshot::ActiveSnapshot;
use crate::errors::Error;

type Rows = TableIterator<
    'static,
    (
        name!(state, Option<String>),
        name!(rows_waiting, Option<i64>),
        name!(last_error, Option<ServerBytes>),
    ),
>;

/// `ner_retriever.progress(integer)`
#[pg_extern]
fn ner_progress(index: i32) -> Result<Rows, ErrorReport> {
    let _latest = ActiveSnapshot::latest();
    // A query that may write takes a snapshot of its own, the transaction's; `connect` reads with ours.
    let row = Spi::connect(|client| {
        let table = client.select(
            "SELECT state, rows_waiting, last_error FROM ner_retriever.progress_now($1)",
            None,
            &[index.into()],
        )?;
        let rows: Vec<_> = table
            .map(|row| {
                Ok::<_, Error>((
                    row.get::<String>(1)?,
                    row.get::<i64>(2)?,
                    row.get::<Vec<u8>>(3)?.map(ServerBytes),
                ))
            })
            .collect::<Result<_, _>>()?;
        Ok::<_, Error>(rows)
    })?;
    Ok(TableIterator::new(row))
}
