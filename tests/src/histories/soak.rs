//! Many histories, side by side, until the time or the seeds are at an end.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::history::History;
use super::place::Place;
use super::run::{Fault, Kind, Report, run};
use super::shrink::shrink;
use super::{Without, generate};

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(15);

/// What is to be run.
pub struct Plan {
    pub first_seed: u64,
    /// Seeds end before this one.
    pub end_seed: u64,
    pub limit: Duration,
    pub threads: usize,
    pub keep_going: bool,
    pub shrinks: bool,
    pub without: Without,
}

/// How many histories ran, and the seeds of those that differed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub histories: u64,
    pub differences: Vec<u64>,
    /// The kinds that have been shrunk: one of each is enough for whoever goes on counting.
    shrunk: Vec<Kind>,
}

/// Runs histories as planned; prints what differs, and lines of progress.
pub fn soak(place: &Place, plan: &Plan) -> Tally {
    let started = Instant::now();
    let (next, stop) = (AtomicU64::new(plan.first_seed), AtomicBool::new(false));
    let tally = Mutex::new(Tally::default());
    let told = Mutex::new(started);
    let work = || {
        while !stop.load(Relaxed) && started.elapsed() < plan.limit {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= plan.end_seed {
                break;
            }
            let history = generate(seed, place.major(), &plan.without);
            let report = run(place, &history, false);
            let mut tally = tally.lock().expect("no thread panics with it");
            tally.histories += 1;
            if let Some(fault) = &report.fault {
                tally.differences.push(seed);
                if !plan.keep_going {
                    stop.store(true, Relaxed);
                }
                println!("{}", described(&history, &report));
                let known = tally.shrunk.contains(&fault.kind);
                tally.shrunk.push(fault.kind.clone());
                if plan.shrinks && !known {
                    drop(tally);
                    println!("{}", shortest(place, &history, fault));
                    continue;
                }
            }
            let mut told = told.lock().expect("no thread panics with it");
            if told.elapsed() > PROGRESS {
                *told = Instant::now();
                let (count, wrong) = (tally.histories, tally.differences.len());
                println!(
                    "{:.0} s: {count} histories, {wrong} differences",
                    started.elapsed().as_secs_f32()
                );
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..plan.threads).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            thread
                .join()
                .expect("a thread that runs histories does not panic");
        }
    });
    tally.into_inner().expect("no thread panicked with it")
}

/// A history with its outcomes, as far as it ran, and what was wrong.
pub fn described(history: &History, report: &Report) -> String {
    let mut text = format!("--- seed {}", history.seed);
    for (n, role) in history.sessions.iter().enumerate() {
        text.push_str(&format!("\n-- session {n} is {}", role.name()));
    }
    for (step, (main, twin)) in history.steps.iter().zip(&report.outcomes) {
        text.push_str(&format!("\n{step}"));
        if let Some(main) = main {
            text.push_str(&format!("\n    -- {main}"));
        }
        if let Some(twin) = twin.as_ref().filter(|twin| Some(*twin) != main.as_ref()) {
            text.push_str(&format!("\n    -- without an index: {twin}"));
        }
    }
    match &report.fault {
        Some(fault) => text.push_str(&format!(
            "\n--- seed {}: {:?}\n{}",
            history.seed, fault.kind, fault.text
        )),
        None => text.push_str("\n--- no difference"),
    }
    text
}

/// The shrunk history of a failing one.
fn shortest(place: &Place, history: &History, fault: &Fault) -> String {
    match shrink(place, history, &fault.kind) {
        Some((history, report)) => {
            format!(
                "=== shrunk to {} steps\n{}",
                history.steps.len(),
                described(&history, &report)
            )
        }
        None => format!(
            "=== seed {} did not fail again in the same way",
            history.seed
        ),
    }
}
