//! Snapshots that statements read with.

use pgrx::pg_sys;

/// A snapshot that is active until this is dropped, also by an error that unwinds.
pub struct ActiveSnapshot;

impl ActiveSnapshot {
    /// What is committed now, whatever the transaction's isolation.
    pub fn latest() -> Self {
        // SAFETY: popped when dropped.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
        Self
    }

    /// The transaction's own, where no statement is running that has one.
    pub fn of_transaction() -> Self {
        // SAFETY: popped when dropped.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
        Self
    }
}

impl Drop for ActiveSnapshot {
    fn drop(&mut self) {
        // The end of a transaction that fails takes it away.
        if !std::thread::panicking() {
            // SAFETY: the one that has been pushed; those above it are gone.
            unsafe { pg_sys::PopActiveSnapshot() };
        }
    }
}
