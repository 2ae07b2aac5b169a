//! A worker that keeps ending is started less and less often, and says why when one works again.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

    /// Keeps why a worker ends.
    pub fn note(&self, message: &str) {
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

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
