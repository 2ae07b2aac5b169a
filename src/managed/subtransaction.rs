//! Work whose locks are released when it is done.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use pgrx::pg_sys;

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
