//! `ner_retriever.around_alter()`: reads from a statement what no event says of it.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pg_sys::{self, AlterTableType, Datum, Node, NodeTag, Oid, RangeVar};
use pgrx::prelude::*;

use super::extension::is_installed;
use super::role::{as_superuser, owns};
use crate::errors::Error;

#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_ner_around_alter() -> &'static pg_sys::Pg_finfo_record {
    const VERSION_1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &VERSION_1
}

/// The function's entry point. An event trigger's result is ignored.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ner_around_alter(fcinfo: pg_sys::FunctionCallInfo) -> Datum {
    // SAFETY: PostgreSQL calls a function with a valid `fcinfo`, whose context is an `EventTriggerData`
    // if its tag says so; the event is a string, and the statement lives as long as the call.
    let statement = unsafe {
        let context: *mut Node = (*fcinfo).context;
        if context.is_null() || (*context).type_ != NodeTag::T_EventTriggerData {
            ErrorReport::from(Error::NotATrigger).report(PgLogLevel::ERROR);
        }
        let data: *mut pg_sys::EventTriggerData = context.cast();
        let event = std::ffi::CStr::from_ptr((*data).event);
        Statement::read((*data).parsetree, event == c"ddl_command_start")
    };
    if let Some(statement) = statement
        && let Err(error) = statement.follow()
    {
        ErrorReport::from(error).report(PgLogLevel::ERROR);
    }
    Datum::from(0)
}

/// What a statement does to a table that its indexes have to know.
struct Statement {
    table: Oid,
    is_begin: bool,
    changes_type: bool,
    drops_column: bool,
    changes_tree: bool,
}

impl Statement {
    /// # Safety
    /// `node` is a statement's parse tree.
    unsafe fn read(node: *mut Node, is_begin: bool) -> Option<Self> {
        // SAFETY: a node's tag says of which type it is.
        unsafe {
            match node.as_ref()?.type_ {
                NodeTag::T_AlterTableStmt => {
                    let alter: *mut pg_sys::AlterTableStmt = node.cast();
                    let mut statement = Self::of((*alter).relation, is_begin)?;
                    if let Some(commands) = (*alter).cmds.as_ref() {
                        let count = usize::try_from(commands.length).unwrap_or(0);
                        for cell in std::slice::from_raw_parts(commands.elements, count) {
                            let command: *mut pg_sys::AlterTableCmd = cell.ptr_value.cast();
                            statement.note((*command).subtype);
                        }
                    }
                    Some(statement)
                }
                NodeTag::T_CreateStmt => {
                    let create: *mut pg_sys::CreateStmt = node.cast();
                    if (*create).partbound.is_null() {
                        return None;
                    }
                    let mut statement = Self::of((*create).relation, is_begin)?;
                    statement.changes_tree = true;
                    Some(statement)
                }
                _ => None,
            }
        }
    }

    unsafe fn of(relation: *mut RangeVar, is_begin: bool) -> Option<Self> {
        let flags = pg_sys::RVROption::RVR_MISSING_OK;
        // SAFETY: a range variable of the statement; without a lock, for the statement takes its own.
        let table = unsafe {
            pg_sys::RangeVarGetRelidExtended(
                relation,
                pg_sys::NoLock as pg_sys::LOCKMODE,
                flags,
                None,
                std::ptr::null_mut(),
            )
        };
        (table != Oid::INVALID).then_some(Self {
            table,
            is_begin,
            changes_type: false,
            drops_column: false,
            changes_tree: false,
        })
    }

    fn note(&mut self, command: AlterTableType::Type) {
        match command {
            AlterTableType::AT_AlterColumnType => self.changes_type = true,
            AlterTableType::AT_DropColumn => self.drops_column = true,
            AlterTableType::AT_AttachPartition
            | AlterTableType::AT_DetachPartition
            | AlterTableType::AT_DetachPartitionFinalize => self.changes_tree = true,
            _ => {}
        }
    }

    fn follow(&self) -> Result<(), Error> {
        // Nothing of somebody else's table is touched for a statement that is about to be refused.
        if !is_installed() || !owns(self.table) {
            return Ok(());
        }
        let call = |function: &str| {
            let sql = format!("SELECT ner_retriever.{function}($1)");
            as_superuser(|| Spi::run_with_args(&sql, &[self.table.into()]))
        };
        if self.is_begin {
            if self.changes_type || self.drops_column {
                call("before_column_change")?;
            }
            if self.changes_type {
                call("before_type_change")?;
            }
            return Ok(());
        }
        if self.changes_type || self.drops_column {
            call("after_column_change")?;
        }
        if self.changes_tree {
            call("after_tree_change")?;
        }
        Ok(())
    }
}

/// `ner_retriever.is_logical_worker()`
#[pg_extern]
fn ner_is_logical_worker() -> bool {
    // SAFETY: reads a variable of this process.
    unsafe { pg_sys::IsLogicalWorker() }
}
