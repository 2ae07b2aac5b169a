//! `ner_retriever.on_change()`: what the triggers of a managed index run, once a statement (once a
//! row on partitioned tables).

use std::ffi::{CStr, c_int};

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

use super::role::as_role;
use super::rows::embed;
use super::statements::{TriggerStatements, of_trigger};
use super::wake;
use crate::errors::Error;

/// Rows that are embedded and written together, which bounds the memory of a large statement.
const ROWS: usize = 1000;

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_ner_on_change() -> &'static pg_sys::Pg_finfo_record {
    const VERSION_1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &VERSION_1
}

/// The function's entry point. An AFTER trigger's result is ignored.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ner_on_change(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
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
    pg_sys::Datum::from(0)
}

/// What a trigger is told. The pointer is valid while its function runs.
struct Change(*mut pg_sys::TriggerData);

#[derive(PartialEq)]
enum Event {
    Insert,
    Update,
    Truncate,
}

impl Change {
    fn data(&self) -> &pg_sys::TriggerData {
        // SAFETY: see the type.
        unsafe { &*self.0 }
    }

    fn event(&self) -> Result<Event, Error> {
        match self.data().tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => Ok(Event::Insert),
            pg_sys::TRIGGER_EVENT_UPDATE => Ok(Event::Update),
            pg_sys::TRIGGER_EVENT_TRUNCATE => Ok(Event::Truncate),
            _ => Err(Error::NotATrigger),
        }
    }

    fn for_each_row(&self) -> bool {
        self.data().tg_event & pg_sys::TRIGGER_EVENT_ROW != 0
    }

    fn relation(&self) -> Oid {
        // SAFETY: the relation is open while its trigger runs.
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
        let Some(known) = of_trigger(index, self.relation())? else {
            // Restored without the extension's own rows, or a trigger of someone's own.
            return Err(Error::NotManaged);
        };
        let owner = known.statements.owner;
        if self.event()? == Event::Truncate {
            return as_role(owner, || forget_rows(index));
        }
        if mode == c"immediate" {
            let keys = self.keys(&known)?;
            return self.embed(index, &known, &keys);
        }
        let enqueued = if self.for_each_row() {
            let key = self.row_key(&known.statements.key_names)?;
            as_role(owner, || enqueue_row(index, key))?
        } else {
            as_role(owner, || self.enqueue(&known))?
        };
        if enqueued > 0 {
            wake::at_commit();
        }
        Ok(())
    }

    /// Enqueues the rows of a statement. Returns their number.
    fn enqueue(&self, known: &TriggerStatements) -> Result<u64, Error> {
        let (name, statement) = match self.event()? {
            Event::Insert => ("insert", &known.statements.enqueue_inserted),
            _ => ("update", &known.statements.enqueue_updated),
        };
        Spi::connect_mut(|client| {
            self.register_transition_tables();
            let plan = known.plan(name, || {
                Ok(client.prepare_mut(statement.as_str(), &[])?.keep())
            })?;
            client.update(&*plan, None, &[])?;
            // SAFETY: reads a variable of this process that the statement has just set.
            Ok(unsafe { pg_sys::SPI_processed })
        })
    }

    /// The columns of the changed rows' keys, one after the other.
    fn keys(&self, known: &TriggerStatements) -> Result<Vec<String>, Error> {
        let statements = &known.statements;
        if self.for_each_row() {
            return self.row_key(&statements.key_names);
        }
        let keys = match self.event()? {
            Event::Insert => &statements.keys_inserted,
            _ => &statements.keys_updated,
        };
        as_role(statements.owner, || {
            Spi::connect_mut(|client| {
                self.register_transition_tables();
                let mut all = Vec::new();
                for row in client.update(keys.as_str(), None, &[])? {
                    all.extend(row.get::<Vec<String>>(1)?.unwrap_or_default());
                }
                Ok(all)
            })
        })
    }

    fn embed(&self, index: i32, known: &TriggerStatements, keys: &[String]) -> Result<(), Error> {
        let statements = &known.statements;
        let width = statements.key_names.len();
        for keys in keys.chunks(ROWS * width) {
            for number in embed(index, statements, keys)? {
                // Changed by another trigger of this statement.
                let position = usize::try_from(number - 1).ok();
                if let Some(key) = position.and_then(|at| keys.chunks(width).nth(at)) {
                    as_role(statements.owner, || enqueue_row(index, key.to_vec()))?;
                    wake::at_commit();
                }
            }
        }
        Ok(())
    }

    fn register_transition_tables(&self) {
        // SAFETY: within an SPI connection, which forgets them when it ends; the tables live as long
        // as the trigger runs.
        unsafe { pg_sys::SPI_register_trigger_data(self.0) };
    }

    /// The key of the row that a row trigger is for, as text. A partition may have its columns in
    /// another order than its parent.
    fn row_key(&self, names: &[String]) -> Result<Vec<String>, Error> {
        let data = self.data();
        let values = names.iter().map(|name| {
            let name = std::ffi::CString::new(name.as_str()).map_err(|_| Error::NotManaged)?;
            // SAFETY: an UPDATE has its new row in `tg_newtuple`, an INSERT in `tg_trigtuple`; both
            // are of the relation's row type. The value is a new string.
            unsafe {
                let tuple = if self.event()? == Event::Update {
                    data.tg_newtuple
                } else {
                    data.tg_trigtuple
                };
                let row_type = (*data.tg_relation).rd_att;
                let number: c_int = pg_sys::SPI_fnumber(row_type, name.as_ptr());
                if number <= 0 {
                    return Err(Error::NotManaged);
                }
                let value = pg_sys::SPI_getvalue(tuple, row_type, number);
                if value.is_null() {
                    return Err(Error::NotManaged);
                }
                Ok(CStr::from_ptr(value).to_string_lossy().into_owned())
            }
        });
        values.collect()
    }
}

fn enqueue_row(index: i32, key: Vec<String>) -> Result<u64, Error> {
    Spi::run_with_args(
        "INSERT INTO ner_retriever.pending (index_id, key) VALUES ($1, $2)",
        &[index.into(), key.into()],
    )?;
    Ok(1)
}

/// A table without rows has none that wait or failed.
fn forget_rows(index: i32) -> Result<(), Error> {
    for table in ["pending", "failed_row"] {
        let statement = format!("DELETE FROM ner_retriever.{table} WHERE index_id = $1");
        Spi::run_with_args(&statement, &[index.into()])?;
    }
    Ok(())
}
