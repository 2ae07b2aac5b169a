//! The background worker that drains the queue of a database.
//!
//! It comes when there is something to do and goes when there has been nothing for a while. Each
//! step is a transaction of its own (`ner_retriever.work`), so that a worker that is killed loses
//! nothing but the time of that step.

use std::ffi::{CStr, c_int};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use pgrx::bgworkers::BackgroundWorker;
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::wake::{FEW_ROWS, WorkerId};
use crate::errors::Error;
use crate::gucs;
use crate::latch::{Interest, wait_interruptibly};
use crate::start::open_lock;

/// How long a worker stays without anything to do: a connection is worth keeping between the
/// statements of someone's work.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks for rows whose time has come, and whether the database is to be dropped:
/// DROP DATABASE gives others 5 seconds to leave.
const TICK: Duration = Duration::from_secs(1);
/// A step takes one to two times this long, as long as it has rows: longer steps would keep DROP DATABASE,
/// and the rows' locks, waiting; shorter ones would cost more commits, and the engine batches too small to
/// keep it busy.
const STEP: Duration = Duration::from_millis(1500);
const MAX_ROWS: u16 = 1024;

/// The worker's entry point; PostgreSQL finds it by name.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn ner_retriever_queue_main(argument: pg_sys::Datum) {
    let (id, rows) = WorkerId::from_argument(argument);
    handle_signals();
    match Worker::new(id, rows) {
        Ok(Some(mut worker)) => worker.run(),
        // Another one runs.
        Ok(None) => {}
        Err(error) => log!("ner_retriever: queue worker cannot start: {error}"),
    }
    // SAFETY: the regular way out of a server process; nothing is left to be dropped.
    unsafe { pg_sys::proc_exit(0) };
}

unsafe extern "C-unwind" {
    // Those of pgrx are wrappers, which cannot be signal handlers.
    fn die(signal: c_int);
    fn SignalHandlerForConfigReload(signal: c_int);
}

/// Those of a session: termination takes effect wherever interrupts are checked.
fn handle_signals() {
    // SAFETY: PostgreSQL's own handlers; signals are blocked until they are in place.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16", feature = "pg17"))]
        use pg_sys::pqsignal;
        #[cfg(feature = "pg18")]
        use pg_sys::pqsignal_be as pqsignal;
        pqsignal(pg_sys::SIGTERM as c_int, Some(die));
        pqsignal(pg_sys::SIGHUP as c_int, Some(SignalHandlerForConfigReload));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

struct Worker {
    id: WorkerId,
    /// What the first worker is told through.
    socket: Option<UnixDatagram>,
    /// That a step takes.
    rows: u16,
    last_index: i32,
    _lock: File,
}

impl Worker {
    /// Takes the worker's place and connects. `None` if the place is taken.
    fn new(id: WorkerId, rows: u16) -> io::Result<Option<Self>> {
        let lock = open_lock(&id.lock_file())?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut worker = Self {
            id,
            socket: None,
            rows,
            last_index: 0,
            _lock: lock,
        };
        worker.open_socket()?;
        BackgroundWorker::connect_worker_to_spi_by_oid(Some(id.database), None);
        forget_settings_of_the_database();
        Ok(Some(worker))
    }

    /// From now on changes are told to this worker.
    fn open_socket(&mut self) -> io::Result<()> {
        if self.id.number > 0 {
            return Ok(());
        }
        let path = self.id.socket();
        remove(&path)?;
        let socket = UnixDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        self.socket = Some(socket);
        Ok(())
    }

    fn run(&mut self) {
        if !transaction(is_installed) {
            self.leave();
            return;
        }
        self.mark_unfinished();
        transaction(adopt_all);
        transaction(commit_without_waiting);
        let mut busy = Instant::now();
        while !transaction(has_to_leave) {
            reload_if_asked();
            if self.step() {
                busy = Instant::now();
                continue;
            }
            if self.id.number > 0 {
                return;
            }
            if busy.elapsed() > PATIENCE && !transaction(anything_waits) {
                // What came after that look finds no socket, and starts another worker.
                self.leave();
                if !transaction(anything_waits) {
                    return;
                }
                if self.open_socket().is_err() {
                    return;
                }
                self.mark_unfinished();
            }
            self.wait();
        }
        self.leave();
    }

    /// Should the server end before the queue is empty, the supervisor starts a worker with it.
    fn mark_unfinished(&self) {
        if self.id.number == 0
            && let Err(error) = fs::write(self.id.unfinished_file(), [])
        {
            log!("ner_retriever: the queue will not be resumed after a restart: {error}");
        }
    }

    fn leave(&mut self) {
        if self.socket.take().is_some() {
            let _ = remove(&self.id.socket());
            let _ = remove(&self.id.unfinished_file());
        }
    }

    /// One step. Returns whether there was anything to do.
    fn step(&mut self) -> bool {
        let began = Instant::now();
        let (index, rows) = transaction(|| work(self.last_index, self.rows.into()));
        let Some(index) = index else { return false };
        self.last_index = index;
        let took = began.elapsed();
        let is_full = rows == i32::from(self.rows);
        if is_full && took < STEP {
            self.rows = (self.rows * 2).min(MAX_ROWS);
        } else if took > STEP * 2 {
            self.rows = (self.rows / 2).max(FEW_ROWS);
        }
        if is_full {
            self.start_helpers();
        }
        true
    }

    /// There is more than one step to do: others can read and write rows while the engine computes. They
    /// begin with as many rows: with few, each step would wait for this worker's before it, and the engine
    /// for the rows of both.
    fn start_helpers(&self) {
        if self.id.number > 0 {
            return;
        }
        for number in 1..gucs::queue_workers() {
            let helper = WorkerId { number, ..self.id };
            let free = open_lock(&helper.lock_file()).is_ok_and(|lock| lock.try_lock().is_ok());
            if free && helper.start(self.rows).is_err() {
                return;
            }
        }
    }

    fn wait(&self) {
        let Some(socket) = &self.socket else { return };
        if wait_interruptibly(Some((socket.as_fd(), Interest::Readable)), Some(TICK)) {
            let mut message = [0; 8];
            while socket.recv(&mut message).is_ok() {}
        }
    }
}

/// Runs `work` in a transaction of its own.
fn transaction<T: Send>(
    work: impl FnOnce() -> T + std::panic::UnwindSafe + std::panic::RefUnwindSafe,
) -> T {
    BackgroundWorker::transaction(work)
}

fn reload_if_asked() {
    // SAFETY: the main loop of a worker is where configuration is reloaded.
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// The database's owner, who need not be a superuser, decides what its sessions start with; a worker
/// has a superuser's rights.
fn forget_settings_of_the_database() {
    for (name, value) in [
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"row_security", c"on"),
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_deferrable", c"off"),
    ] {
        // SAFETY: both are static strings, of a setting that is there and a value that it takes.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}

/// Whether the schema is the extension's, which stays so until the transaction ends. Anyone who may
/// create schemas can make one of that name when the extension is gone: a superuser's process must
/// call nothing there. Every transaction that does asks this first.
fn is_installed() -> bool {
    const NAME: &CStr = c"ner_retriever";
    // SAFETY: look-ups in the catalogue, in a transaction.
    unsafe {
        let extension = pg_sys::get_extension_oid(NAME.as_ptr(), true);
        if extension == pg_sys::Oid::INVALID {
            return false;
        }
        let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        pg_sys::LockDatabaseObject(pg_sys::ExtensionRelationId, extension, 0, lock);
        let schema = pg_sys::get_namespace_oid(NAME.as_ptr(), true);
        schema != pg_sys::Oid::INVALID
            && pg_sys::get_extension_oid(NAME.as_ptr(), true) == extension
            && pg_sys::getExtensionOfObject(pg_sys::NamespaceRelationId, schema) == extension
    }
}

fn has_to_leave() -> bool {
    !is_installed() || database_is_wanted_by_others()
}

fn anything_waits() -> bool {
    is_installed()
        && truth(
            "SELECT EXISTS (SELECT FROM ner_retriever.pending)
             OR EXISTS (SELECT FROM ner_retriever.managed_index WHERE state <> 'ready')",
        )
}

/// DROP DATABASE and CREATE DATABASE ... TEMPLATE hold such a lock while they wait for others to
/// leave.
fn database_is_wanted_by_others() -> bool {
    truth(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_database AS d
                        ON l.objid OPERATOR(pg_catalog.=) d.oid
                        WHERE l.locktype OPERATOR(pg_catalog.=) 'object'
                          AND l.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_database'::regclass
                          AND d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
                          AND l.mode IN ('ShareLock', 'ExclusiveLock', 'AccessExclusiveLock'))",
    )
}

fn adopt_all() {
    if !is_installed() {
        return;
    }
    let adopted =
        Spi::run("SELECT ner_retriever.adopt(id) FROM ner_retriever.managed_index ORDER BY id");
    end_with(adopted.map_err(Error::from));
}

/// A step that a crash of the server undoes is done again: its rows are in the queue again as well. So
/// nobody's commits have to share the disk with the worker's.
fn commit_without_waiting() {
    end_with(Spi::run("SET synchronous_commit = off").map_err(Error::from));
}

/// The index that was worked on and the number of rows taken from the queue.
fn work(after: i32, rows: i32) -> (Option<i32>, i32) {
    if !is_installed() {
        return (None, 0);
    }
    end_with(
        Spi::get_two_with_args::<i32, i32>(
            "SELECT index_id, rows_done FROM ner_retriever.work($1, $2)",
            &[after.into(), rows.into()],
        )
        .map(|(index, rows)| (index, rows.unwrap_or(0)))
        .map_err(Error::from),
    )
}

fn truth(query: &str) -> bool {
    end_with(Spi::get_one::<bool>(query).map_err(Error::from)).unwrap_or(false)
}

/// A worker that cannot use the catalogue ends, with the error in the server log.
fn end_with<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => {
            pgrx::pg_sys::panic::ErrorReport::from(error).report(PgLogLevel::ERROR);
            unreachable!("an ERROR does not return")
        }
    }
}

fn remove(path: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
