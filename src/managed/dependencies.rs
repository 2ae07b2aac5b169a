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
fn ner_forget_dependency(object: Oid, referenced: Oid) -> Result<(), ErrorReport> {
    forget(pg_sys::RelationRelationId, object, referenced)
}

/// `ner_retriever.forget_trigger_dependency(oid, oid)`
#[pg_extern]
fn ner_forget_trigger_dependency(trigger: Oid, referenced: Oid) -> Result<(), ErrorReport> {
    forget(pg_sys::TriggerRelationId, trigger, referenced)
}

fn forget(class: Oid, object: Oid, table: Oid) -> Result<(), ErrorReport> {
    require_superuser()?;
    // SAFETY: a change of the catalogue by numbers; what no dependency fits is left alone. What follows
    // in the transaction has to see it.
    unsafe {
        let referenced = pg_sys::RelationRelationId;
        pg_sys::deleteDependencyRecordsForSpecific(class, object, AUTO, referenced, table);
        pg_sys::CommandCounterIncrement();
    }
    Ok(())
}
