//! A worker that keeps ending is started less and less often, and says why when one works again.

use std::cell::RefCell;
use std::ffi::{CStr, c_int};
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgrx::pg_sys;
use pgrx::prelude::PgLogLevel;

/// Pauses after the first, second, ... end: one line in the log a minute is enough.
const PAUSES: [Duration; 3] = [
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(60),
];

/// What a file keeps of a worker's ends: how often, when the next may start, and the last error. A worker
/// counts itself when it starts, and forgets all when it has worked.
pub struct Failures {
    file: String,
}

impl Failures {
    pub fn new(file: String) -> Self {
        Self { file }
    }

    /// Whether a worker must not start yet.
    pub fn have_to_wait(&self) -> bool {
        self.read().is_some_and(|(_, until, _)| now() < until)
    }

    /// Counts a start that has not worked yet.
    pub fn count_start(&self) {
        let (count, _, message) = self.read().unwrap_or_default();
        let pause = PAUSES[count.min(PAUSES.len() - 1)];
        // The first start may take a while; its successor shall not come too early.
        self.write(count + 1, now() + pause.as_secs(), &message);
    }

    /// Keeps each error of this process from now on: what ends it is the last.
    pub fn note_errors_of_this_process(self) {
        OF_THIS_PROCESS.set(Some(self));
        // SAFETY: a hook of this process, which has no other of this kind.
        unsafe { pg_sys::emit_log_hook = Some(note_error) };
    }

    /// Keeps why a worker ends.
    fn note(&self, message: &str) {
        if let Some((count, until, _)) = self.read() {
            self.write(count, until, message);
        }
    }

    /// The last error, if a worker before has ended with one.
    pub fn last_message(&self) -> Option<String> {
        let (_, _, message) = self.read()?;
        (!message.is_empty()).then_some(message)
    }

    /// A worker works.
    pub fn forget(&self) {
        let _ = fs::remove_file(&self.file);
    }

    fn read(&self) -> Option<(usize, u64, String)> {
        let content = fs::read(&self.file).ok()?;
        let content = String::from_utf8_lossy(&content);
        let mut lines = content.lines();
        let count = lines.next()?.parse().ok()?;
        let until = lines.next()?.parse().ok()?;
        Some((count, until, lines.next().unwrap_or_default().to_owned()))
    }

    fn write(&self, count: usize, until: u64, message: &str) {
        let message = message.lines().next().unwrap_or_default();
        // Without the file workers start as often as they are asked for.
        let _ = fs::write(&self.file, format!("{count}\n{until}\n{message}\n"));
    }
}

thread_local! {
    static OF_THIS_PROCESS: RefCell<Option<Failures>> = const { RefCell::new(None) };
}

/// PostgreSQL calls this for each message. It may not fail.
unsafe extern "C-unwind" fn note_error(error: *mut pg_sys::ErrorData) {
    // SAFETY: the message lives as long as the call.
    let message = unsafe {
        if (*error).elevel < PgLogLevel::ERROR as c_int || (*error).message.is_null() {
            return;
        }
        CStr::from_ptr((*error).message).to_string_lossy()
    };
    OF_THIS_PROCESS.with_borrow(|failures| {
        if let Some(failures) = failures {
            failures.note(&message);
        }
    });
}

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
