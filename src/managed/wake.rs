//! Having a worker look at the queue: it is told through a socket of its own, and started if there
//! is none to tell. Where none can be started, word is left for the supervisor, which looks at it again and
//! again: no message has to arrive.
#![expect(
    clippy::result_large_err,
    reason = "pgrx reports SQLSTATE and hint of an ErrorReport only, not of a box around one"
)]

use std::cell::Cell;
use std::fs::{self, File};

use ner_retriever_protocol::SOCKET_DIR;
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::pg_sys::{self, Oid};
use pgrx::prelude::*;
use pgrx::{PgXactCallbackEvent, register_xact_callback};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sendto, socket_with,
};

use super::failures::Failures;
use crate::errors::Error;
use crate::paths;
use crate::start::open_lock;

const UNFINISHED: &str = ".unfinished";
/// Rows of a first step where nothing is known of the rows or the engine.
pub const FEW_ROWS: u16 = 8;

/// Which of a database's workers a worker is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct WorkerId {
    pub database: Oid,
    /// 0 is the one that is told; it starts the others when there is much to do.
    pub number: u16,
}

impl WorkerId {
    pub fn first_of(database: Oid) -> Self {
        Self {
            database,
            number: 0,
        }
    }

    /// With the number of rows of the worker's first step.
    pub fn from_argument(argument: pg_sys::Datum) -> (Self, u16) {
        let argument = argument.value() as u64;
        let id = Self {
            database: Oid::from(argument as u32),
            number: (argument >> 32) as u16,
        };
        (id, (argument >> 48) as u16)
    }

    fn argument(self, rows: u16) -> pg_sys::Datum {
        let (rows, number) = (u64::from(rows) << 48, u64::from(self.number) << 32);
        let argument = rows | number | u64::from(self.database.to_u32());
        pg_sys::Datum::from(argument as usize)
    }

    /// Locked as long as the worker runs; has its process id.
    pub fn lock_file(self) -> String {
        format!(
            "{SOCKET_DIR}/queue-{}-{}.lock",
            self.database.to_u32(),
            self.number
        )
    }

    /// Whether the worker runs.
    pub fn is_running(self) -> bool {
        open_lock(&self.lock_file()).is_ok_and(|lock| lock.try_lock().is_err())
    }

    /// What the database's workers are told through.
    pub fn socket(self) -> String {
        format!("{SOCKET_DIR}/queue-{}.sock", self.database.to_u32())
    }

    /// There from the first worker's start to its end with an empty queue, and whenever somebody has to look.
    pub fn unfinished_file(self) -> String {
        format!("{SOCKET_DIR}/queue-{}{UNFINISHED}", self.database.to_u32())
    }

    /// What is known of the worker's last ends.
    pub fn failures(self) -> Failures {
        let file = format!("{SOCKET_DIR}/queue-{}.failures", self.database.to_u32());
        Failures::new(file)
    }

    /// The database that such a file is of.
    pub fn of_unfinished_file(name: &str) -> Option<Self> {
        let database = name.strip_prefix("queue-")?.strip_suffix(UNFINISHED)?;
        Some(Self::first_of(Oid::from(database.parse::<u32>().ok()?)))
    }

    /// The worker that such a file is of.
    pub fn of_lock_file(name: &str) -> Option<Self> {
        let name = name.strip_prefix("queue-")?.strip_suffix(".lock")?;
        let (database, number) = name.split_once('-')?;
        Some(Self {
            database: Oid::from(database.parse::<u32>().ok()?),
            number: number.parse().ok()?,
        })
    }

    /// Has the supervisor start the worker when it can. Word that has been left keeps its age.
    pub fn leave_word(self) {
        if paths::create_runtime_dir().is_ok() {
            // Without the file a worker looks when the next change is told.
            let _ = File::create_new(self.unfinished_file());
        }
    }

    /// As [`Self::leave_word`], after everybody who waits.
    pub fn wait_in_turn(self) {
        let _ = fs::remove_file(self.unfinished_file());
        self.leave_word();
    }

    /// Removes what is kept for a database that is gone.
    pub fn forget(self) {
        for file in [self.unfinished_file(), self.socket(), self.lock_file()] {
            let _ = fs::remove_file(file);
        }
        self.failures().forget();
    }

    /// Registers the worker, whose first step takes so many rows.
    ///
    /// # Errors
    /// `NoWorkerSlot`
    pub fn start(self, rows: u16) -> Result<(), Error> {
        BackgroundWorkerBuilder::new("ner_retriever queue worker")
            .set_library("ner_retriever")
            .set_function("ner_retriever_queue_main")
            .set_argument(Some(self.argument(rows)))
            .enable_spi_access()
            .set_start_time(BgWorkerStartTime::RecoveryFinished)
            // Whoever has something to do starts another; one that cannot connect, because its
            // database is gone, must not come back for ever.
            .set_restart_time(None)
            .load_dynamic()
            .map(drop)
            .map_err(|_| Error::NoWorkerSlot)
    }
}

thread_local! {
    static AT_COMMIT: Cell<bool> = const { Cell::new(false) };
}

/// `ner_retriever.wake()`
#[pg_extern]
fn ner_wake() {
    at_commit();
}

/// `ner_retriever.start_worker()`: false if the worker has to wait for a slot.
#[pg_extern]
fn ner_start_worker() -> Result<bool, ErrorReport> {
    match now() {
        Ok(()) => Ok(true),
        Err(Error::NoWorkerSlot) => {
            leave_word();
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Tells a worker when this transaction commits, once.
pub fn at_commit() {
    if AT_COMMIT.replace(true) {
        return;
    }
    register_xact_callback(PgXactCallbackEvent::Abort, || AT_COMMIT.set(false));
    register_xact_callback(PgXactCallbackEvent::Prepare, || AT_COMMIT.set(false));
    register_xact_callback(PgXactCallbackEvent::Commit, || {
        AT_COMMIT.set(false);
        if now().is_err() {
            leave_word();
        }
    });
}

/// Has the supervisor look at this database.
pub fn leave_word() {
    // SAFETY: reads a variable of this process.
    WorkerId::first_of(unsafe { pg_sys::MyDatabaseId }).leave_word();
}

/// Tells the worker of this database, or starts it.
///
/// # Errors
/// `NoWorkerSlot`, `Unreachable`.
fn now() -> Result<(), Error> {
    // SAFETY: reads variables of this process.
    let (database, standby) = unsafe { (pg_sys::MyDatabaseId, pg_sys::RecoveryInProgress()) };
    if standby {
        return Ok(());
    }
    let worker = WorkerId::first_of(database);
    match tell(&worker.socket()) {
        // A full socket has not been read yet: what is in it is enough.
        Ok(()) | Err(Errno::AGAIN) => Ok(()),
        Err(Errno::NOENT | Errno::CONNREFUSED) if worker.failures().have_to_wait() => {
            worker.leave_word();
            Ok(())
        }
        Err(Errno::NOENT | Errno::CONNREFUSED) => worker.start(FEW_ROWS),
        Err(error) => Err(Error::Unreachable(error.into())),
    }
}

fn tell(path: &str) -> rustix::io::Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    sendto(
        &socket,
        &[0],
        SendFlags::NOSIGNAL,
        &SocketAddrUnix::new(path)?,
    )?;
    Ok(())
}
