//! Waiting the way a server process must: for its latch, for a descriptor and for time, all at once,
//! ending with the postmaster.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use pgrx::pg_sys;

/// What to wait for on a socket.
#[derive(Clone, Copy)]
pub enum Interest {
    /// Data, the peer's end of stream, or a connection to accept.
    Readable,
    /// Room to write, or something to read.
    Any,
}

/// Waits for the process's latch, for `socket`, or for `timeout`, whichever comes first, and resets
/// the latch. Returns whether the socket is ready. The process exits if the postmaster dies.
pub fn wait(socket: Option<(BorrowedFd<'_>, Interest)>, timeout: Option<Duration>) -> bool {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    let mut descriptor = -1;
    if let Some((socket, interest)) = socket {
        descriptor = socket.as_raw_fd();
        events |= match interest {
            Interest::Readable => pg_sys::WL_SOCKET_READABLE,
            Interest::Any => pg_sys::WL_SOCKET_READABLE | pg_sys::WL_SOCKET_WRITEABLE,
        };
    }
    let mut milliseconds = -1;
    if let Some(timeout) = timeout {
        events |= pg_sys::WL_TIMEOUT;
        // Rounded up: a wait that ends too early would be repeated at once, again and again.
        let rounded = timeout.as_micros().div_ceil(1000);
        milliseconds = i64::from(i32::try_from(rounded).unwrap_or(i32::MAX));
    }
    // SAFETY: `MyLatch` is this process's own latch from its start to its end; the descriptor is
    // open while it is borrowed.
    let ready = unsafe {
        let latch = pg_sys::MyLatch;
        let ready = pg_sys::WaitLatchOrSocket(
            latch,
            events as i32,
            descriptor,
            milliseconds,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(latch);
        ready
    };
    let socket_ready = pg_sys::WL_SOCKET_READABLE | pg_sys::WL_SOCKET_WRITEABLE;
    ready & socket_ready as i32 != 0
}

/// [`wait`] for sessions: cancel, `statement_timeout` and termination take effect here. They unwind
/// through the caller, which drops what it holds.
pub fn wait_interruptibly(
    socket: Option<(BorrowedFd<'_>, Interest)>,
    timeout: Option<Duration>,
) -> bool {
    let ready = wait(socket, timeout);
    pgrx::check_for_interrupts!();
    ready
}
