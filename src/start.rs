//! Getting the supervisor to run: with the server when the library is preloaded, otherwise by the
//! first session that needs it.

use std::fs::{File, TryLockError};
use std::io;
use std::time::{Duration, Instant};

use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys;

use crate::errors::Error;
use crate::paths;

/// How a supervisor came to be; its argument.
#[derive(Clone, Copy, PartialEq)]
pub enum Origin {
    /// Registered at the server's start: there for good.
    Preload,
    /// Registered by a session: another one can be, whenever it is missing.
    Session,
}

impl Origin {
    pub fn from_argument(argument: pg_sys::Datum) -> Self {
        if argument.value() == 0 {
            Self::Preload
        } else {
            Self::Session
        }
    }

    fn argument(self) -> pg_sys::Datum {
        pg_sys::Datum::from(usize::from(self == Self::Session))
    }
}

/// After a failure of the supervisor itself.
const RESTART: Duration = Duration::from_secs(1);
/// The postmaster starts a worker within milliseconds, a busy one within a second or two.
const PATIENCE: Duration = Duration::from_secs(10);

/// Called while the server loads its preloaded libraries.
pub fn register_with_the_server() {
    supervisor(Origin::Preload).load();
}

fn supervisor(origin: Origin) -> BackgroundWorkerBuilder {
    BackgroundWorkerBuilder::new("ner_retriever supervisor")
        .set_library("ner_retriever")
        .set_function("ner_retriever_supervisor_main")
        .set_argument(Some(origin.argument()))
        // As early as sessions can connect, which includes a hot standby.
        .set_start_time(BgWorkerStartTime::ConsistentState)
        .set_restart_time(Some(RESTART))
}

/// One session's effort to have a supervisor, from its first failed connect to its first success.
#[derive(Default)]
pub struct Starter {
    since: Option<Instant>,
    progress: Progress,
}

/// A file lock lets one session register at a time: worker slots are few. It ends with the file,
/// also when an error or a cancel unwinds.
#[derive(Default)]
enum Progress {
    #[default]
    Waiting,
    Locked(File),
    Registered {
        _lock: File,
    },
}

impl Starter {
    /// Call it after each failed connect, with a pause after it.
    ///
    /// # Errors
    /// `RuntimeDir`, `NoWorkerSlot`; `SupervisorNotStarted` when it has taken too long.
    pub fn keep_starting(&mut self) -> Result<(), Error> {
        if self.since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return Err(Error::SupervisorNotStarted(PATIENCE));
        }
        self.progress = match std::mem::take(&mut self.progress) {
            Progress::Waiting => try_lock()?,
            // A connect failed while this session held the lock, so no other has just succeeded.
            Progress::Locked(lock) => {
                supervisor(Origin::Session)
                    .load_dynamic()
                    .map_err(|_| Error::NoWorkerSlot)?;
                Progress::Registered { _lock: lock }
            }
            registered => registered,
        };
        Ok(())
    }
}

fn try_lock() -> Result<Progress, Error> {
    let lock = open_lock(paths::START_LOCK).map_err(Error::RuntimeDir)?;
    match lock.try_lock() {
        Ok(()) => Ok(Progress::Locked(lock)),
        Err(TryLockError::WouldBlock) => Ok(Progress::Waiting),
        Err(TryLockError::Error(error)) => Err(Error::RuntimeDir(error)),
    }
}

/// Opens a lock file in the run-time directory, creating both if need be.
pub fn open_lock(path: &str) -> io::Result<File> {
    paths::create_runtime_dir()?;
    File::options().create(true).append(true).open(path)
}
