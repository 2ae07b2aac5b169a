//! The triggers of version 0.2.0, between the installation of this library and `ALTER EXTENSION ... UPDATE`:
//! they enqueue as they did, and the update takes the queue along. Nothing is embedded meanwhile.

use std::ffi::{CStr, CString};

use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

use super::role::{as_role, owner};
use super::server_bytes::ServerBytes;
use crate::errors::Error;

/// Whether the database still has the SQL of 0.2.0.
///
/// # Errors
/// PostgreSQL's own.
pub fn is_to_come() -> Result<bool, Error> {
    let sql =
        "SELECT pg_catalog.to_regprocedure('ner_retriever.trigger_columns(integer,oid)') IS NULL";
    Ok(Spi::get_one(sql)?.unwrap_or(false))
}

/// Enqueues the rows of a change.
///
/// # Safety
/// `data` is what a trigger is told, while it runs.
///
/// # Errors
/// PostgreSQL's own.
pub unsafe fn enqueue(index: i32, data: *mut pg_sys::TriggerData) -> Result<(), Error> {
    // SAFETY: as the caller says.
    let (relation, event, is_row) = unsafe {
        let event = (*data).tg_event;
        let is_row = event & pg_sys::TRIGGER_EVENT_ROW != 0;
        (
            (*(*data).tg_relation).rd_id,
            event & pg_sys::TRIGGER_EVENT_OPMASK,
            is_row,
        )
    };
    let tables: Option<Vec<Oid>> = Spi::get_one_with_args(
        "SELECT ARRAY[$1] OPERATOR(pg_catalog.||) ARRAY(SELECT relid::pg_catalog.oid FROM pg_catalog.pg_partition_ancestors($1))",
        &[relation.into()],
    )?;
    for table in tables.unwrap_or_default() {
        let Some(owner) = owner(table) else { continue };
        let done = as_role(owner, || -> Result<bool, Error> {
            let Some(found) = statements(index)?.filter(|found| found.base == table) else {
                return Ok(false);
            };
            match (event, is_row) {
                (pg_sys::TRIGGER_EVENT_TRUNCATE, _) => {}
                // SAFETY: as the caller says.
                (_, true) => unsafe { enqueue_row(index, data, &found.key)? },
                (pg_sys::TRIGGER_EVENT_INSERT, _) => unsafe { run(data, &found.inserted)? },
                _ => unsafe { run(data, &found.updated)? },
            }
            Ok(true)
        })?;
        if done {
            return Ok(());
        }
    }
    Ok(())
}

struct Statements {
    base: Oid,
    key: Vec<String>,
    inserted: String,
    updated: String,
}

fn statements(index: i32) -> Result<Option<Statements>, Error> {
    Spi::connect_mut(|client| {
        let sql = "SELECT base, key_names, enqueue_inserted, enqueue_updated FROM ner_retriever.statements($1)";
        let row = client.update(sql, None, &[index.into()])?.first();
        let Some(base) = row.get::<Oid>(1)? else {
            return Ok(None);
        };
        Ok(Some(Statements {
            base,
            key: row.get(2)?.unwrap_or_default(),
            inserted: row.get(3)?.unwrap_or_default(),
            updated: row.get(4)?.unwrap_or_default(),
        }))
    })
}

/// Runs a statement on the transition tables.
unsafe fn run(data: *mut pg_sys::TriggerData, statement: &str) -> Result<(), Error> {
    Spi::connect_mut(|client| {
        // SAFETY: within an SPI connection, which forgets them when it ends.
        unsafe { pg_sys::SPI_register_trigger_data(data) };
        client.update(statement, None, &[])?;
        Ok(())
    })
}

unsafe fn enqueue_row(
    index: i32,
    data: *mut pg_sys::TriggerData,
    names: &[String],
) -> Result<(), Error> {
    let mut key = Vec::new();
    for name in names {
        let Ok(name) = CString::new(name.as_str()) else {
            return Ok(());
        };
        // SAFETY: an UPDATE has its new row in `tg_newtuple`, an INSERT in `tg_trigtuple`; both are of the
        // relation's row type. The value is a new string.
        let value = unsafe {
            let row = if (*data).tg_newtuple.is_null() {
                (*data).tg_trigtuple
            } else {
                (*data).tg_newtuple
            };
            let row_type = (*(*data).tg_relation).rd_att;
            let number = pg_sys::SPI_fnumber(row_type, name.as_ptr());
            let value = pg_sys::SPI_getvalue(row, row_type, number);
            if value.is_null() {
                return Ok(());
            }
            CStr::from_ptr(value).to_bytes().to_vec()
        };
        key.push(ServerBytes(value));
    }
    Spi::run_with_args(
        "INSERT INTO ner_retriever.pending (index_id, key) VALUES ($1, $2)",
        &[index.into(), key.into()],
    )?;
    Ok(())
}
