//! The background worker that drains the queue of a database.
//!
//! It comes when there is something to do and goes when there has been nothing for a while. Each
//! step is a transaction of its own (`ner_retriever.work`), so that a worker that is killed loses
//! nothing but the time of that step.

use std::ffi::c_int;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use pgrx::bgworkers::BackgroundWorker;
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::extension::is_installed;
use super::wake::{FEW_ROWS, WorkerId};
use super::world;
use crate::errors::Error;
use crate::gucs;
use crate::latch::{Interest, wait_interruptibly};
use crate::start::open_lock;
use crate::text::ServerText;
use crate::visits::others_wait;

/// How long a worker stays without anything to do: a connection is worth keeping between the
/// statements of someone's work.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks for rows whose time has come, and whether the database is to be dropped:
/// DROP DATABASE gives others 5 seconds to leave.
const TICK: Duration = Duration::from_secs(1);
/// How long a worker works while other databases wait for its slot.
const TURN: Duration = Duration::from_secs(20);
/// How often it leaves one of the changes of each row in the queue.
const COMPACT: Duration = Duration::from_secs(5);
/// A step takes one to two times this long, as long as it has rows: longer steps would keep DROP DATABASE
/// waiting; shorter ones would cost more commits, and the engine batches too small to
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
    /// Changes and the comparison of a table take turns.
    compare_first: bool,
    compacted: Instant,
    has_worked: bool,
    _lock: File,
}

impl Worker {
    /// Takes the worker's place and connects. `None` if the place is taken.
    fn new(id: WorkerId, rows: u16) -> io::Result<Option<Self>> {
        let mut lock = open_lock(&id.lock_file())?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Who has the lock: DROP DATABASE has it sent away.
        lock.set_len(0)?;
        write!(lock, "{}", std::process::id())?;
        if id.number == 0 {
            id.failures().count_start();
            id.failures().note_errors_of_this_process();
        }
        let mut worker = Self {
            id,
            socket: None,
            rows,
            last_index: 0,
            compare_first: false,
            compacted: Instant::now(),
            has_worked: false,
            _lock: lock,
        };
        worker.open_socket()?;
        // SAFETY: what a worker does once at its start. A database that takes no connections may have work.
        unsafe {
            pg_sys::BackgroundWorkerInitializeConnectionByOid(
                id.database,
                pg_sys::Oid::INVALID,
                pg_sys::BGWORKER_BYPASS_ALLOWCONN,
            );
        }
        world::settle();
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
        if !transaction(has_work_here) {
            self.works();
            self.leave();
            return;
        }
        if self.id.number == 0 {
            self.id.leave_word();
            let failures = self.id.failures();
            if let Some(message) = failures.last_message() {
                transaction(move || tell_last_error(&message));
            }
            transaction(arrive);
        }
        let began = Instant::now();
        let mut busy = Instant::now();
        while !transaction(has_to_leave) {
            reload_if_asked();
            if self.gives_way(began.elapsed()) {
                return;
            }
            if self.step() {
                busy = Instant::now();
                continue;
            }
            self.works();
            if self.id.number > 0 {
                return;
            }
            // The extension may have been dropped and made again meanwhile.
            transaction(arrive);
            if others_wait(self.id) || busy.elapsed() > PATIENCE {
                // What came after that look finds no socket, and starts another worker.
                if !transaction(anything_waits) {
                    self.leave();
                    if !transaction(anything_waits) {
                        return;
                    }
                    if self.open_socket().is_err() {
                        return;
                    }
                    self.id.leave_word();
                }
            }
            self.wait();
        }
        self.works();
        self.leave();
    }

    /// Leaves its slot to another database for a while. Word stays that there is more to do here.
    fn gives_way(&mut self, worked: Duration) -> bool {
        if worked < TURN || !others_wait(self.id) {
            return false;
        }
        self.works();
        if self.id.number == 0 {
            self.id.wait_in_turn();
            self.socket = None;
            let _ = remove(&self.id.socket());
        }
        true
    }

    /// Whatever ended the workers before it does not end this one.
    fn works(&mut self) {
        if !std::mem::replace(&mut self.has_worked, true) && self.id.number == 0 {
            self.id.failures().forget();
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
        if self.id.number == 0 && self.compacted.elapsed() > COMPACT {
            self.compacted = Instant::now();
            transaction(compact);
        }
        let began = Instant::now();
        self.compare_first = !self.compare_first;
        let (after, rows, compare_first) = (self.last_index, self.rows.into(), self.compare_first);
        let (index, rows) = transaction(move || work(after, rows, compare_first));
        let Some(index) = index else { return false };
        self.works();
        self.last_index = index;
        let took = began.elapsed();
        let is_full = rows >= i32::from(self.rows);
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
            if !helper.is_running() && helper.start(self.rows).is_err() {
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

/// Whether the database has the extension, with the SQL of this version.
fn has_work_here() -> bool {
    is_installed()
        && truth("SELECT pg_catalog.to_regprocedure('ner_retriever.arrive()') IS NOT NULL")
}

fn has_to_leave() -> bool {
    !is_installed() || database_is_wanted_by_others()
}

fn anything_waits() -> bool {
    is_installed() && truth("SELECT ner_retriever.anything_waits()")
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

fn arrive() {
    if is_installed() {
        end_with(Spi::run("SELECT ner_retriever.arrive()").map_err(Error::from));
    }
}

fn compact() {
    if is_installed() {
        end_with(Spi::run("SELECT ner_retriever.compact_queue()").map_err(Error::from));
    }
}

fn tell_last_error(message: &str) {
    if is_installed() {
        let sql = "SELECT ner_retriever.tell_last_error($1)";
        end_with(
            Spi::run_with_args(sql, &[ServerText(message.to_owned()).into()]).map_err(Error::from),
        );
    }
}

/// The index that was worked on and the number of rows taken from the queue.
fn work(after: i32, rows: i32, compare_first: bool) -> (Option<i32>, i32) {
    if !is_installed() {
        return (None, 0);
    }
    end_with(
        Spi::get_two_with_args::<i32, i32>(
            "SELECT index_id, rows_done FROM ner_retriever.work($1, $2, $3)",
            &[after.into(), rows.into(), compare_first.into()],
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
