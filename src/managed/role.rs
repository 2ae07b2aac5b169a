//! Acting with the rights of a table's owner.

use std::ffi::{CStr, c_int};
use std::ptr;

use pgrx::pg_sys::{self, Oid};

use crate::errors::Error;

/// What was before; restored when dropped, also by an error that unwinds.
struct Before {
    user: Oid,
    context: c_int,
    settings: c_int,
}

impl Drop for Before {
    fn drop(&mut self) {
        // SAFETY: undoes what `as_role` did, in the opposite order.
        unsafe {
            pg_sys::AtEOXact_GUC(false, self.settings);
            pg_sys::SetUserIdAndSecContext(self.user, self.context);
        }
    }
}

/// Runs `work` with the rights of `role`, which what is run there can neither leave nor outlive: it
/// cannot change the role, leave deferred triggers behind or keep settings (PostgreSQL's own sandbox
/// for maintenance of users' tables; CVE-2020-25695 says what for).
pub fn as_role<T>(role: Oid, work: impl FnOnce() -> T) -> T {
    let restricted =
        (pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_LOCAL_USERID_CHANGE) as c_int;
    let (mut user, mut context) = (Oid::INVALID, 0);
    // SAFETY: reads and sets variables of this process; `Before` restores them.
    let _before = unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        pg_sys::SetUserIdAndSecContext(role, context | restricted);
        Before {
            user,
            context,
            settings: pg_sys::NewGUCNestLevel(),
        }
    };
    // The catalogue's policies are for owners; the session may have said that none shall apply.
    set_for_now(c"row_security", c"on");
    work()
}

/// Whether the current role is a superuser.
fn is_superuser() -> bool {
    // SAFETY: a lookup in the catalogue's cache.
    unsafe { pg_sys::superuser() }
}

/// # Errors
/// `WorkerOnly` unless the current role is a superuser.
pub fn require_superuser() -> Result<(), Error> {
    if is_superuser() {
        Ok(())
    } else {
        Err(Error::WorkerOnly)
    }
}

/// Whether the current role may act as the owner of a relation.
pub fn owns(relation: Oid) -> bool {
    // SAFETY: look-ups in the catalogue's cache.
    owner(relation)
        .is_some_and(|owner| unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), owner) })
}

/// Runs `work`, which is the extension's own, with a superuser's rights.
pub fn as_superuser<T>(work: impl FnOnce() -> T) -> T {
    as_role(pg_sys::BOOTSTRAP_SUPERUSERID.into(), work)
}

/// Changes a setting until the settings' level ends that is open.
pub fn set_for_now(name: &CStr, value: &CStr) {
    // SAFETY: two strings, of a setting that every server has and a value that it takes.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
    }
}

/// The owner of a relation; `None` if there is no such relation.
pub fn owner(relation: Oid) -> Option<Oid> {
    // SAFETY: a lookup in the catalogue's cache; the tuple is released after its field was copied.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::RELOID as c_int,
            pg_sys::Datum::from(relation),
        );
        let tuple = ptr::NonNull::new(tuple)?;
        let form: *mut pg_sys::FormData_pg_class = pg_sys::GETSTRUCT(tuple.as_ptr()).cast();
        let owner = (*form).relowner;
        pg_sys::ReleaseSysCache(tuple.as_ptr());
        Some(owner)
    }
}
