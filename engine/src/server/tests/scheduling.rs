//! What shares a batch, in which order, and who gets which failure. Requests are submitted while a
//! gate holds the model, so that what waits is certain.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use ner_retriever_protocol::{EngineError, ErrorKind, Priority, State, Status};

use super::toy::{Gate, Toy, uppercase};
use crate::server::scheduler::{Answer, Scheduler};
use crate::server::status::Counters;

const INTERACTIVE: Priority = Priority::Interactive;
const BULK: Priority = Priority::Bulk;

struct Model {
    scheduler: Scheduler<Toy>,
    counters: Arc<Counters>,
}

/// A submitted request; its client is there as long as `_client`.
struct Pending {
    answer: Answer<Toy>,
    _client: UnixStream,
}

impl Pending {
    fn words(self) -> Vec<String> {
        self.answer.recv().unwrap().unwrap()
    }

    fn error(self) -> EngineError {
        self.answer.recv().unwrap().unwrap_err()
    }
}

impl Model {
    fn new(
        batch_tokens: usize,
        forward: impl Fn(&[&String]) -> Result<Vec<String>, EngineError> + Send + Sync + 'static,
    ) -> Self {
        let counters = Arc::new(Counters::new());
        let backend = Toy::new(forward);
        let scheduler = Scheduler::start(backend, batch_tokens, Arc::clone(&counters)).unwrap();
        Self {
            scheduler,
            counters,
        }
    }

    /// A model that is held while it computes a first request; what is submitted now waits.
    fn busy(batch_tokens: usize) -> (Self, Gate, Pending) {
        Self::busy_with(batch_tokens, uppercase)
    }

    /// The same, for a model that then computes `forward`.
    fn busy_with(
        batch_tokens: usize,
        forward: impl Fn(&[&String]) -> Result<Vec<String>, EngineError> + Send + Sync + 'static,
    ) -> (Self, Gate, Pending) {
        let (gate, hook) = Gate::new();
        let model = Self::new(batch_tokens, move |windows| {
            hook(windows)?;
            forward(windows)
        });
        let first = model.submit(INTERACTIVE, &["first"]);
        assert_eq!(gate.next(), ["first"]);
        (model, gate, first)
    }

    fn submit(&self, priority: Priority, words: &[&str]) -> Pending {
        let (client, server) = UnixStream::pair().unwrap();
        let windows: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let tokens = windows.iter().map(String::len).collect();
        let answer = self
            .scheduler
            .submit(Arc::new(server), priority, windows, tokens);
        Pending {
            answer,
            _client: client,
        }
    }

    fn status(&self) -> Status {
        self.counters.status(State::Ready, None)
    }

    /// Lets the held model compute all that was submitted; its batches.
    fn run_dry(self, gate: &Gate) -> Vec<Vec<String>> {
        gate.release();
        std::thread::scope(|scope| {
            // Dropping it waits for the model thread, which finishes its queue first.
            scope.spawn(|| drop(self.scheduler));
            gate.run_dry()
        })
    }
}

fn failure(kind: ErrorKind) -> EngineError {
    EngineError::new(kind, "toy failure")
}

#[test]
fn requests_that_wait_share_a_batch() {
    let (model, gate, first) = Model::busy(1000);
    let words: Vec<_> = (10..26).map(|n| format!("w{n}")).collect();
    let waiting: Vec<_> = words
        .iter()
        .map(|word| model.submit(INTERACTIVE, &[word]))
        .collect();
    gate.release();
    assert_eq!(gate.next(), words);
    gate.release();
    assert_eq!(first.words(), ["FIRST"]);
    for (word, pending) in words.iter().zip(waiting) {
        assert_eq!(pending.words(), [word.to_uppercase()]);
    }
    let status = model.status();
    assert_eq!((status.batches, status.merged_requests), (2, 16));
    assert_eq!(status.tokens, 5 + 16 * 3);
}

#[test]
fn a_request_merges_once_however_many_windows_it_has() {
    let (model, gate, _first) = Model::busy(6);
    let large = model.submit(INTERACTIVE, &["a1", "a2", "a3", "a4"]);
    let small = model.submit(INTERACTIVE, &["b1", "b2"]);
    gate.release();
    for expected in [["a1", "a2", "a3"], ["a4", "b1", "b2"]] {
        assert_eq!(gate.next(), expected);
        gate.release();
    }
    assert_eq!(large.words(), ["A1", "A2", "A3", "A4"]);
    assert_eq!(small.words(), ["B1", "B2"]);
    assert_eq!(model.status().merged_requests, 2);
}

#[test]
fn batches_keep_to_the_budget_and_a_larger_window_goes_alone() {
    let (model, gate, _first) = Model::busy(8);
    let _waiting = [
        model.submit(INTERACTIVE, &["aaaa", "bbbb", "cccc"]),
        model.submit(INTERACTIVE, &["larger-than-eight"]),
        model.submit(INTERACTIVE, &["d"]),
    ];
    let batches = model.run_dry(&gate);
    let expected = [
        vec!["aaaa", "bbbb"],
        vec!["cccc"],
        vec!["larger-than-eight"],
        vec!["d"],
    ];
    assert_eq!(batches, expected);
}

#[test]
fn the_windows_of_a_client_that_has_gone_are_dropped() {
    let (model, gate, _first) = Model::busy(4);
    let never_starts = model.submit(INTERACTIVE, &["gone"]);
    let stops_half_way = model.submit(INTERACTIVE, &["win1", "win2", "win3"]);
    let stays = model.submit(INTERACTIVE, &["stay"]);
    drop(never_starts._client);
    gate.release();
    assert_eq!(gate.next(), ["win1"]);
    drop(stops_half_way._client);
    assert_eq!(model.run_dry(&gate), [["stay"]]);
    assert!(never_starts.answer.recv().is_err());
    assert!(stops_half_way.answer.recv().is_err());
    assert_eq!(stays.words(), ["STAY"]);
}

#[test]
fn interactive_requests_overtake_bulk_which_still_progresses() {
    let (model, gate, _first) = Model::busy(2);
    let bulk = model.submit(BULK, &["b1", "b2", "b3"]);
    let interactive: Vec<_> = ["i1", "i2", "i3", "i4", "i5"]
        .iter()
        .map(|word| model.submit(INTERACTIVE, &[word]))
        .collect();
    let order = model.run_dry(&gate).concat();
    assert_eq!(order, ["i1", "i2", "i3", "b1", "i4", "i5", "b2", "b3"]);
    assert_eq!(bulk.words(), ["B1", "B2", "B3"]);
    assert_eq!(interactive.len(), 5);
}

#[test]
fn interactive_batches_carry_no_bulk_but_ride_along_in_its_turn() {
    let (model, gate, _first) = Model::busy(8);
    let _bulk = model.submit(BULK, &["bbbb", "bbbb", "BB"]);
    let _interactive =
        ["i1i1i1", "i2i2i2", "i3i3i3", "i4", "i5"].map(|word| model.submit(INTERACTIVE, &[word]));
    let batches = model.run_dry(&gate);
    let expected = [
        vec!["i1i1i1"],
        vec!["i2i2i2"],
        vec!["i3i3i3", "i4"],
        vec!["bbbb", "bbbb"],
        vec!["i5"],
        vec!["BB"],
    ];
    assert_eq!(batches, expected);
}

#[test]
fn a_batch_without_memory_is_halved_until_it_fits() {
    let (model, gate, _first) = Model::busy_with(1000, |windows| {
        if windows.len() > 2 {
            return Err(failure(ErrorKind::OutOfMemory));
        }
        uppercase(windows)
    });
    let large = model.submit(INTERACTIVE, &["a1", "a2", "a3", "a4"]);
    let small = model.submit(INTERACTIVE, &["b1"]);
    let batches = model.run_dry(&gate);
    let expected = [
        vec!["a1", "a2", "a3", "a4", "b1"],
        vec!["a1", "a2"],
        vec!["a3", "a4", "b1"],
        vec!["a3"],
        vec!["a4", "b1"],
    ];
    assert_eq!(batches, expected);
    assert_eq!(large.words(), ["A1", "A2", "A3", "A4"]);
    assert_eq!(small.words(), ["B1"]);
}

#[test]
fn a_window_without_memory_is_the_error_of_its_request_alone() {
    let (model, gate, _first) = Model::busy_with(1000, |windows| {
        if windows.iter().any(|window| *window == "huge") {
            return Err(failure(ErrorKind::OutOfMemory));
        }
        uppercase(windows)
    });
    let before = model.submit(INTERACTIVE, &["before"]);
    let huge = model.submit(INTERACTIVE, &["huge", "rest1", "rest2"]);
    let after = model.submit(INTERACTIVE, &["after"]);
    let batches = model.run_dry(&gate);
    let expected = [
        vec!["before", "huge", "rest1", "rest2", "after"],
        vec!["before", "huge"],
        vec!["before"],
        vec!["huge"],
        vec!["after"],
    ];
    assert_eq!(batches, expected);
    assert_eq!(before.words(), ["BEFORE"]);
    assert_eq!(huge.error().kind, ErrorKind::OutOfMemory);
    assert_eq!(after.words(), ["AFTER"]);
}

#[test]
fn another_failure_stays_with_its_batch() {
    let (model, gate, _first) = Model::busy_with(8, |windows| {
        if windows.iter().any(|window| *window == "bad") {
            return Err(failure(ErrorKind::Internal));
        }
        uppercase(windows)
    });
    let shares = model.submit(INTERACTIVE, &["same"]);
    let bad = model.submit(INTERACTIVE, &["bad", "never-computed"]);
    let next = model.submit(INTERACTIVE, &["next"]);
    let batches = model.run_dry(&gate);
    assert_eq!(batches, [vec!["same", "bad"], vec!["next"]]);
    assert_eq!(shares.error(), failure(ErrorKind::Internal));
    assert_eq!(bad.error(), failure(ErrorKind::Internal));
    assert_eq!(next.words(), ["NEXT"]);
}

#[test]
fn a_panic_or_a_missing_result_is_internal_and_the_model_goes_on() {
    let model = Model::new(1000, |windows| match windows[0].as_str() {
        "panic" => panic!("out of range"),
        "short" => Ok(Vec::new()),
        _ => uppercase(windows),
    });
    let panicked = model.submit(INTERACTIVE, &["panic"]).error();
    assert_eq!(panicked.kind, ErrorKind::Internal);
    assert!(panicked.message.contains("out of range"));
    let short = model.submit(INTERACTIVE, &["short"]).error();
    assert_eq!(short.kind, ErrorKind::Internal);
    assert!(short.message.contains("0 results for 1 windows"));
    assert_eq!(model.submit(INTERACTIVE, &["fine"]).words(), ["FINE"]);
}
