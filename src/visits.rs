//! What the supervisor does for the queues: it looks where somebody has to look, in which order, and sends
//! workers away from a database that is to be dropped.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use ner_retriever_protocol::SOCKET_DIR;
use pgrx::pg_sys::{self, Oid};
use rustix::process::{Pid, Signal, kill_process};

use crate::gucs;
use crate::managed::wake::{FEW_ROWS, WorkerId};

/// How often the files are looked at: a directory listing.
const TICK: Duration = Duration::from_secs(1);
/// How often all databases are: a connection each. What waits without word having been left (a prepared
/// transaction that commits, a copy of a database) waits no longer.
const ROUND: Duration = Duration::from_secs(300);

pub struct Visits {
    last_tick: Option<Instant>,
    last_round: Option<Instant>,
    was_standby: bool,
}

impl Visits {
    pub fn new() -> Self {
        Self {
            last_tick: None,
            last_round: None,
            was_standby: false,
        }
    }

    /// Does what is due. Returns when to call it again.
    pub fn look(&mut self) -> Duration {
        let since = |time: Option<Instant>| time.map(|time| time.elapsed());
        if since(self.last_tick).is_some_and(|passed| passed < TICK) {
            return TICK;
        }
        self.last_tick = Some(Instant::now());
        // SAFETY: reads the server's state.
        let standby = unsafe { pg_sys::RecoveryInProgress() };
        let promoted = self.was_standby && !standby;
        self.was_standby = standby;
        if standby {
            return TICK;
        }
        let round = gucs::reconcile_interval().map_or(ROUND, |interval| interval.min(ROUND));
        if promoted || since(self.last_round).is_none_or(|passed| passed >= round) {
            self.last_round = Some(Instant::now());
            let databases = databases();
            forget_others(&databases);
            for database in databases {
                let worker = WorkerId::first_of(database);
                if !worker.is_running() {
                    worker.leave_word();
                }
            }
        }
        start_waiting();
        make_way_for_others();
        TICK
    }
}

/// Removes the files of databases that are gone.
fn forget_others(databases: &[Oid]) {
    let files = fs::read_dir(SOCKET_DIR).into_iter().flatten().flatten();
    for file in files {
        let worker = file.file_name().to_str().and_then(WorkerId::of_lock_file);
        if let Some(worker) = worker.filter(|worker| !databases.contains(&worker.database)) {
            worker.forget();
        }
    }
}

/// Starts the workers of databases where somebody has to look, who has waited longest first, as far as
/// there are slots. A worker that works leaves its slot to others after a while.
fn start_waiting() {
    let waiting = waiting();
    if waiting.is_empty() {
        return;
    }
    let databases = databases();
    for worker in waiting {
        if !databases.contains(&worker.database) {
            worker.forget();
            continue;
        }
        if worker.is_running() || worker.failures().have_to_wait() {
            continue;
        }
        if worker.start(FEW_ROWS).is_err() {
            return;
        }
        // The worker leaves word again. One that cannot connect does not: the database may be gone.
        let _ = fs::remove_file(worker.unfinished_file());
    }
}

/// The databases for which word has been left, the oldest first.
fn waiting() -> Vec<WorkerId> {
    let Ok(files) = fs::read_dir(SOCKET_DIR) else {
        return Vec::new();
    };
    let mut waiting: Vec<(SystemTime, WorkerId)> = files
        .flatten()
        .filter_map(|file| {
            let worker = WorkerId::of_unfinished_file(file.file_name().to_str()?)?;
            Some((file.metadata().ok()?.modified().ok()?, worker))
        })
        .collect();
    waiting.sort_by_key(|(since, _)| *since);
    waiting.into_iter().map(|(_, worker)| worker).collect()
}

/// Whether a database has waited for a worker for longer than one takes to start.
pub fn others_wait(own: WorkerId) -> bool {
    let Ok(files) = fs::read_dir(SOCKET_DIR) else {
        return false;
    };
    files.flatten().any(|file| {
        let is_old = || {
            let since = file.metadata().ok()?.modified().ok()?.elapsed().ok()?;
            Some(since > 2 * TICK)
        };
        file.file_name()
            .to_str()
            .and_then(WorkerId::of_unfinished_file)
            .is_some_and(|worker| {
                worker.database != own.database
                    && is_old() == Some(true)
                    && !worker.is_running()
                    && !worker.failures().have_to_wait()
            })
    })
}

/// All databases, by their folders: the supervisor has no connection that could ask.
fn databases() -> Vec<Oid> {
    let in_tablespaces = fs::read_dir("pg_tblspc")
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|tablespace| {
            fs::read_dir(tablespace.path())
                .into_iter()
                .flatten()
                .flatten()
        })
        .map(|version| version.path());
    let folders = std::iter::once("base".into()).chain(in_tablespaces);
    let databases: BTreeSet<u32> = folders
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten())
        .filter_map(|folder| folder.file_name().to_str()?.parse::<u32>().ok())
        // The templates that nobody connects to.
        .filter(|number| *number > 4)
        .collect();
    databases.into_iter().map(Oid::from).collect()
}

/// Workers that hold a lock for as long as a vector index takes to be built do not look around. DROP DATABASE
/// gives others 5 seconds to leave; nobody's DROP or ALTER TABLE shall wait for minutes. They do it again.
fn make_way_for_others() {
    let workers = running_workers();
    if workers.is_empty() {
        return;
    }
    let locks = Locks::now();
    for (worker, pid) in workers {
        let signal = if locks.want_database(worker.database) {
            Signal::TERM
        } else if locks.wait_for(pid) {
            Signal::INT
        } else {
            continue;
        };
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = kill_process(pid, signal);
        }
    }
}

/// The workers that run, with their process ids, which their lock files have.
fn running_workers() -> Vec<(WorkerId, i32)> {
    let Ok(files) = fs::read_dir(SOCKET_DIR) else {
        return Vec::new();
    };
    files
        .flatten()
        .filter_map(|file| {
            let worker = WorkerId::of_lock_file(file.file_name().to_str()?)?;
            let pid = fs::read_to_string(file.path()).ok()?.trim().parse().ok()?;
            worker.is_running().then_some((worker, pid))
        })
        .collect()
}

/// The server's locks at one moment.
struct Locks(Vec<pg_sys::LockInstanceData>);

impl Locks {
    fn now() -> Self {
        // SAFETY: a copy of the lock table, in the current memory context, which is freed at once.
        unsafe {
            let data = pg_sys::GetLockStatusData();
            let locks = (*data).locks;
            let count = usize::try_from((*data).nelements).unwrap_or(0);
            let copy = if locks.is_null() {
                Vec::new()
            } else {
                let copy = std::slice::from_raw_parts(locks, count).to_vec();
                pg_sys::pfree(locks.cast());
                copy
            };
            pg_sys::pfree(data.cast());
            Self(copy)
        }
    }

    /// Whether somebody has locked a database to drop or to copy it.
    fn want_database(&self, database: Oid) -> bool {
        const MODES: i32 =
            1 << pg_sys::ShareLock | 1 << pg_sys::ExclusiveLock | 1 << pg_sys::AccessExclusiveLock;
        self.0.iter().any(|lock| {
            u32::from(lock.locktag.locktag_type) == pg_sys::LockTagType::LOCKTAG_OBJECT
                && lock.locktag.locktag_field1 == 0
                && lock.locktag.locktag_field2 == pg_sys::DatabaseRelationId.to_u32()
                && lock.locktag.locktag_field3 == database.to_u32()
                && lock.holdMask & MODES != 0
        })
    }

    /// Whether somebody waits to have a table alone on which a worker builds an index.
    fn wait_for(&self, pid: i32) -> bool {
        let is_table = |lock: &pg_sys::LockInstanceData| {
            u32::from(lock.locktag.locktag_type) == pg_sys::LockTagType::LOCKTAG_RELATION
        };
        let builds = |lock: &&pg_sys::LockInstanceData| {
            lock.pid == pid && is_table(lock) && lock.holdMask & (1 << pg_sys::ShareLock) != 0
        };
        self.0.iter().filter(builds).any(|held| {
            self.0.iter().any(|lock| {
                lock.pid != pid
                    && is_table(lock)
                    && lock.waitLockMode == pg_sys::AccessExclusiveLock as i32
                    && lock.locktag.locktag_field1 == held.locktag.locktag_field1
                    && lock.locktag.locktag_field2 == held.locktag.locktag_field2
            })
        })
    }
}
