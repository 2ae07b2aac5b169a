//! `ner_retriever.on_change()`: what the triggers of a managed index run, for every row that a statement
//! changes, after a TRUNCATE, and in mode `immediate` at the end of a statement.

use std::ffi::{CStr, c_int};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pg_sys::{self, Datum, HeapTuple, Oid};
use pgrx::prelude::*;

use super::before_update;
use super::changes::{self, Key};
use super::columns::{self, Columns, of_trigger};
use super::fixed_settings::with_fixed_settings;
use super::server_bytes::ServerBytes;
use crate::errors::Error;

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_ner_on_change() -> &'static pg_sys::Pg_finfo_record {
    const VERSION_1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &VERSION_1
}

/// The function's entry point. An AFTER trigger's result is ignored.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ner_on_change(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: PostgreSQL calls a function with a valid `fcinfo`, whose context is a `TriggerData`
    // if its tag says so.
    let data = unsafe {
        let context: *mut pg_sys::Node = (*fcinfo).context;
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
            ErrorReport::from(Error::NotATrigger).report(PgLogLevel::ERROR);
        }
        Change(context.cast())
    };
    if let Err(error) = data.handle() {
        ErrorReport::from(error).report(PgLogLevel::ERROR);
    }
    Datum::from(0)
}

/// What a trigger is told. The pointer is valid while its function runs.
struct Change(*mut pg_sys::TriggerData);

impl Change {
    fn data(&self) -> &pg_sys::TriggerData {
        // SAFETY: see the type.
        unsafe { &*self.0 }
    }

    fn row_type(&self) -> pg_sys::TupleDesc {
        // SAFETY: the relation is open while its trigger runs.
        unsafe { (*self.data().tg_relation).rd_att }
    }

    fn relation(&self) -> Oid {
        // SAFETY: as above.
        unsafe { (*self.data().tg_relation).rd_id }
    }

    /// The trigger's arguments: the index's number and its mode.
    fn arguments(&self) -> Option<(i32, &CStr)> {
        // SAFETY: `tgargs` are as many NUL-terminated strings as `tgnargs` says.
        unsafe {
            let trigger = &*self.data().tg_trigger;
            if trigger.tgnargs != 2 {
                return None;
            }
            let index = CStr::from_ptr(*trigger.tgargs);
            let mode = CStr::from_ptr(*trigger.tgargs.add(1));
            Some((index.to_str().ok()?.parse().ok()?, mode))
        }
    }

    fn handle(&self) -> Result<(), Error> {
        let (index, mode) = self.arguments().ok_or(Error::NotATrigger)?;
        if columns::forget_stale() && before_update::is_to_come()? {
            columns::keep_stale();
            // SAFETY: the pointer is valid while the trigger runs.
            return unsafe { before_update::enqueue(index, self.0) };
        }
        // SAFETY: the row type is the relation's.
        let columns = unsafe { of_trigger(index, self.relation(), self.row_type())? };
        // A partition that was detached, a table that was restored without the extension's rows, a trigger
        // of someone's own: nothing to tell, and no reason to refuse the change.
        let Some(columns) = columns else {
            return Ok(());
        };
        let immediate = mode == c"immediate";
        let event = self.data().tg_event;
        if event & pg_sys::TRIGGER_EVENT_ROW == 0 {
            return match event & pg_sys::TRIGGER_EVENT_OPMASK {
                pg_sys::TRIGGER_EVENT_TRUNCATE => {
                    if !columns.is_whole || !changes::forget_all(index, columns.owner)? {
                        changes::add_all(index, columns.owner);
                    }
                    Ok(())
                }
                _ => changes::tell_now(index),
            };
        }
        let (old, new) = self.rows()?;
        let add = |row: HeapTuple, is_gone: bool| {
            let key = self.key(&columns, row)?;
            changes::add(index, columns.owner, immediate, key, is_gone);
            Ok::<_, Error>(())
        };
        match (old, new) {
            (None, Some(new)) => add(new, false),
            (Some(old), None) => add(old, true),
            (Some(old), Some(new)) => {
                let same = |column| self.is_same(column, old, new);
                if !columns.key.iter().all(same) {
                    add(old, true)?;
                    add(new, false)
                } else if columns.text_is_virtual || !same(&columns.text) {
                    add(new, false)
                } else {
                    Ok(())
                }
            }
            (None, None) => Err(Error::NotATrigger),
        }
    }

    /// The row before and after.
    fn rows(&self) -> Result<(Option<HeapTuple>, Option<HeapTuple>), Error> {
        let data = self.data();
        let row = |tuple: HeapTuple| (!tuple.is_null()).then_some(tuple);
        match data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => Ok((None, row(data.tg_trigtuple))),
            pg_sys::TRIGGER_EVENT_UPDATE => Ok((row(data.tg_trigtuple), row(data.tg_newtuple))),
            pg_sys::TRIGGER_EVENT_DELETE => Ok((row(data.tg_trigtuple), None)),
            _ => Err(Error::NotATrigger),
        }
    }

    fn is_same(&self, column: &super::columns::Column, old: HeapTuple, new: HeapTuple) -> bool {
        column.is_same(
            self.value(old, column.number),
            self.value(new, column.number),
        )
    }

    fn value(&self, row: HeapTuple, number: c_int) -> Option<Datum> {
        let mut is_null = false;
        // SAFETY: the row is of the relation's row type, which has a column of this number.
        let value =
            unsafe { pg_sys::SPI_getbinval(row, self.row_type(), number, &raw mut is_null) };
        (!is_null).then_some(value)
    }

    fn key(&self, columns: &Columns, row: HeapTuple) -> Result<Key, Error> {
        if columns.key.iter().all(|column| column.plain) {
            return self.key_as_text(columns, row);
        }
        with_fixed_settings(|| self.key_as_text(columns, row))
    }

    fn key_as_text(&self, columns: &Columns, row: HeapTuple) -> Result<Key, Error> {
        let values = columns.key.iter().map(|column| {
            // SAFETY: as in `value`. What comes back is a new string, or NULL for a value that is none.
            unsafe {
                let text = pg_sys::SPI_getvalue(row, self.row_type(), column.number);
                if text.is_null() {
                    // A key that may be NULL now names no row.
                    return Ok(ServerBytes(Vec::new()));
                }
                let value = ServerBytes(CStr::from_ptr(text).to_bytes().to_vec());
                pg_sys::pfree(text.cast());
                Ok(value)
            }
        });
        values.collect()
    }
}
