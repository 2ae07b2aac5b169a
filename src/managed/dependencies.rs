//! Objects that go when another one is dropped.
#![expect(
    clippy::result_large_err,
    reason = "pgrx reports SQLSTATE and hint of an ErrorReport only, not of a box around one"
)]

use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;

use super::role::is_superuser;
use crate::errors::Error;

/// `ner_retriever.depend_on(oid, oid, oid, oid, integer, boolean)`
#[pg_extern]
fn ner_depend_on(
    class: Oid,
    object: Oid,
    referenced_class: Oid,
    referenced: Oid,
    referenced_column: i32,
    auto: bool,
) -> Result<(), pg_sys::panic::ErrorReport> {
    if !is_superuser() {
        return Err(Error::WorkerOnly.into());
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
