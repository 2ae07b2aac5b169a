//! Makes a failing history as short as it can be: what is left is what matters.

use std::time::{Duration, Instant};

use super::history::History;
use super::place::Place;
use super::run::{Kind, Report, run};

/// Shrinking is for people who wait for it.
const LIMIT: Duration = Duration::from_secs(120);
/// Runs of one history before it counts as one that does not fail: workers come and go as they like.
const ATTEMPTS: usize = 2;

/// The shortest history found that still fails with a fault of `kind`, and how; `None` if the history
/// itself does not fail again.
pub fn shrink(place: &Place, history: &History, kind: &Kind) -> Option<(History, Report)> {
    let started = Instant::now();
    let mut best = history.clone();
    let mut report = fails(place, &best, kind)?;
    // What came after the fault never ran, or is part of no cause.
    let mut chunk = best.steps.len().div_ceil(2);
    while chunk > 0 && started.elapsed() < LIMIT {
        let mut removed = false;
        let mut at = best.steps.len();
        // From the end: later steps depend on earlier ones.
        while at > 0 && started.elapsed() < LIMIT {
            let from = at.saturating_sub(chunk);
            let mut steps = best.steps.clone();
            steps.drain(from..at);
            let shorter = best.with_steps(steps);
            if let Some(found) = fails(place, &shorter, kind) {
                best = shorter;
                report = found;
                removed = true;
            }
            at = from.min(best.steps.len());
        }
        if !removed || chunk > 1 {
            chunk /= 2;
        }
    }
    Some((best, report))
}

fn fails(place: &Place, history: &History, kind: &Kind) -> Option<Report> {
    (0..ATTEMPTS).find_map(|_| {
        let report = run(place, history, true);
        let same = report
            .fault
            .as_ref()
            .is_some_and(|fault| fault.kind == *kind);
        same.then_some(report)
    })
}
