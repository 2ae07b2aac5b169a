//! Counters and the figures of a status answer.

use std::fs;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use ner_retriever_protocol::{ModelInfo, State, Status};

/// Counts since the engine's start.
pub(super) struct Counters {
    started: Instant,
    pub(super) requests: AtomicU64,
    pub(super) tokens: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) merged_requests: AtomicU64,
    waiting: AtomicU64,
}

/// A place among the requests that wait for the model, free again on drop.
pub(super) struct Place<'a>(&'a AtomicU64);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Counters {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            requests: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            merged_requests: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        }
    }

    /// A place for one more request, if fewer than `max_queue` wait.
    pub(super) fn admit(&self, max_queue: usize) -> Option<Place<'_>> {
        let one_more = |waiting| (waiting < max_queue as u64).then_some(waiting + 1);
        self.waiting.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        Some(Place(&self.waiting))
    }

    pub(super) fn status(&self, state: State, model: Option<ModelInfo>) -> Status {
        Status {
            state,
            pid: process::id(),
            model,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            requests: self.requests.load(Relaxed),
            tokens: self.tokens.load(Relaxed),
            batches: self.batches.load(Relaxed),
            merged_requests: self.merged_requests.load(Relaxed),
            queue_depth: self.waiting.load(Relaxed),
            resident_bytes: resident_bytes(),
        }
    }
}

/// Resident memory of this process, bytes; 0 where the system does not tell.
pub fn resident_bytes() -> u64 {
    // Not statm: its unit is the page, whose size it does not give.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}
