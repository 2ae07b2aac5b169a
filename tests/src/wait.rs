//! Time.

use std::thread;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `condition` holds; fails the test after `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < limit,
            "waited {} s in vain: {what}",
            limit.as_secs_f32()
        );
        thread::sleep(PAUSE);
    }
}

/// What `work` gives, and how long it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let result = work();
    (result, started.elapsed())
}

/// The shortest of a few measurements, fewer if one is within `limit` already: other load on the
/// machine only ever adds to a time.
pub fn shortest(limit: Duration, attempts: usize, measure: impl FnMut() -> Duration) -> Duration {
    let mut best = Duration::MAX;
    for time in std::iter::repeat_with(measure).take(attempts) {
        best = best.min(time);
        if best <= limit {
            break;
        }
    }
    best
}
