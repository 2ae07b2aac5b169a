//! Objects that go when another one is dropped.
#![expect(
    clippy::result_large_err,
    reason = "pgrx reports SQLSTATE and hint of an ErrorReport only, not of a box around one"
)]

use std::ffi::c_char;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

use super::role::require_superuser;

const AUTO: c_char = pg_sys::DependencyType::DEPENDENCY_AUTO as c_char;

/// `ner_retriever.depend_on(oid, oid, oid, oid, integer, boolean)`
#[pg_extern]
fn ner_depend_on(
    class: Oid,
    object: Oid,
    referenced_class: Oid,
    referenced: Oid,
    referenced_column: i32,
    auto: bool,
) -> Result<(), ErrorReport> {
    require_superuser()?;
    // A worker or an event trigger may know of a table that is gone by now.
    let tables = pg_sys::RelationRelationId;
    if (class == tables && !is_there(object))
        || (referenced_class == tables && !is_there(referenced))
    {
        return Ok(());
    }
    let address = |class, object, column| pg_sys::ObjectAddress {
        classId: class,
        objectId: object,
        objectSubId: column,
    };
    let dependent = address(class, object, 0);
    let on = address(referenced_class, referenced, referenced_column);
    let behavior = if auto {
        pg_sys::DependencyType::DEPENDENCY_AUTO
    } else {
        pg_sys::DependencyType::DEPENDENCY_NORMAL
    };
    // SAFETY: both addresses live as long as the call.
    unsafe { pg_sys::recordDependencyOn(&raw const dependent, &raw const on, behavior) };
    Ok(())
}

/// `ner_retriever.forget_dependency(oid, oid)`: of a table on another or its columns.
#[pg_extern]
fn ner_forget_dependency(table: Oid, referenced: Oid) -> Result<(), ErrorReport> {
    require_superuser()?;
    // SAFETY: a change of the catalogue by numbers; what no dependency fits is left alone. What follows
    // in the transaction has to see it.
    unsafe {
        let class = pg_sys::RelationRelationId;
        pg_sys::deleteDependencyRecordsForSpecific(class, table, AUTO, class, referenced);
        pg_sys::CommandCounterIncrement();
    }
    Ok(())
}

/// Whether a table is there and nobody is about to drop it; it stays until the transaction ends. Nobody is
/// waited for.
fn is_there(table: Oid) -> bool {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: a lock and a look-up by number.
    unsafe {
        pg_sys::ConditionalLockRelationOid(table, lock)
            && pg_sys::SearchSysCacheExists(
                pg_sys::SysCacheIdentifier::RELOID as i32,
                pg_sys::Datum::from(table),
                pg_sys::Datum::from(0),
                pg_sys::Datum::from(0),
                pg_sys::Datum::from(0),
            )
    }
}
