//! Work whose locks are released when it is done.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pgrx::pg_sys;
use pgrx::prelude::{PgSqlErrorCode, PgTryBuilder};

/// Runs `work`, which only reads, in a subtransaction and rolls that back: whatever tables `work` has
/// locked are free again. The engine computes for seconds, and nobody's ALTER TABLE shall wait for it.
pub fn without_keeping_locks<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: the calls stand in pairs, also when `work` unwinds; memory context and resource owner are
    // those from before, as PL/pgSQL restores them around its blocks.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let result = catch_unwind(AssertUnwindSafe(work));
        pg_sys::RollbackAndReleaseCurrentSubTransaction();
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// What comes of others who use or change the same tables at the same time, and of nothing else.
const CONFLICTS: [PgSqlErrorCode; 6] = [
    PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
    PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED,
    PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
    // A table that ner_reindex has replaced, by its name or the lack of one.
    PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
    PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
    PgSqlErrorCode::ERRCODE_SYNTAX_ERROR,
];

/// Runs `work` in a subtransaction. `None`, and as if it had not been run, if it came into conflict with others:
/// what can be done later as well shall not fail a user's statement.
pub fn unless_in_conflict<T>(work: impl FnOnce() -> T) -> Option<T> {
    // SAFETY: as in `without_keeping_locks`.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let work = AssertUnwindSafe(work);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let mut attempt = PgTryBuilder::new(AssertUnwindSafe(move || Some({ work }.0())));
            for code in CONFLICTS {
                attempt = attempt.catch_when(code, |_| None);
            }
            attempt.execute()
        }));
        match &caught {
            Ok(Some(_)) => pg_sys::ReleaseCurrentSubTransaction(),
            _ => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        caught.unwrap_or_else(|panic| resume_unwind(panic))
    }
}
