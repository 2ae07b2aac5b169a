//! The requests that wait for the model, and which of their windows form the next batch.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use ner_retriever_protocol::{EngineError, Priority};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::backend::Backend;

/// While both classes wait, one batch of this many serves bulk requests first.
const BULK_TURN: u32 = 4;

/// All windows of one request, and what the model gave for them so far.
pub(super) struct Job<B: Backend> {
    pub(super) priority: Priority,
    pub(super) windows: Vec<B::Window>,
    /// Tokens of each window.
    pub(super) tokens: Vec<usize>,
    /// Outputs of the first windows: batches take windows in order.
    pub(super) outputs: Vec<B::WindowOutput>,
    pub(super) failure: Option<EngineError>,
    /// Whether it has shared a batch with another request.
    pub(super) merged: bool,
    pub(super) client: Arc<UnixStream>,
    /// Takes the outputs of all windows, or is dropped when the client has gone.
    pub(super) answer: Sender<Result<Vec<B::WindowOutput>, EngineError>>,
}

impl<B: Backend> Job<B> {
    fn is_done(&self) -> bool {
        self.failure.is_some() || self.outputs.len() == self.windows.len()
    }
}

/// One window of the queue: valid until the queue's jobs change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) job: usize,
    pub(super) window: usize,
}

pub(super) struct Queue<B: Backend> {
    /// In the order of arrival.
    pub(super) jobs: Vec<Job<B>>,
    /// Batches since bulk requests, which were waiting, had their turn.
    bulk_passed_over: u32,
}

impl<B: Backend> Queue<B> {
    pub(super) fn new() -> Self {
        Self {
            jobs: Vec::new(),
            bulk_passed_over: 0,
        }
    }

    /// The windows of the next batch, at most `budget` tokens unless a single window is larger.
    /// Within a class, first come is first served. Interactive batches carry no bulk windows, which
    /// would only make them slower; in the turn of bulk, interactive windows may fill the batch up.
    pub(super) fn next_batch(&mut self, budget: usize) -> Vec<Pick> {
        let waits = |class| self.jobs.iter().any(|job| job.priority == class);
        let classes: &[Priority] = match (waits(Priority::Interactive), waits(Priority::Bulk)) {
            (true, false) => &[Priority::Interactive],
            (true, true) if self.bulk_passed_over + 1 < BULK_TURN => {
                self.bulk_passed_over += 1;
                &[Priority::Interactive]
            }
            _ => {
                self.bulk_passed_over = 0;
                &[Priority::Bulk, Priority::Interactive]
            }
        };
        let mut batch = Vec::new();
        let mut left = budget;
        for class in classes {
            for pick in self.waiting_windows(*class) {
                let tokens = self.jobs[pick.job].tokens[pick.window];
                if tokens > left && !batch.is_empty() {
                    break;
                }
                left = left.saturating_sub(tokens);
                batch.push(pick);
            }
        }
        batch
    }

    fn waiting_windows(&self, class: Priority) -> impl Iterator<Item = Pick> {
        let jobs = self.jobs.iter().enumerate();
        jobs.filter(move |(_, job)| job.priority == class)
            .flat_map(|(index, job)| {
                (job.outputs.len()..job.windows.len())
                    .map(move |window| Pick { job: index, window })
            })
    }

    /// Drops the requests whose clients have gone.
    pub(super) fn drop_abandoned(&mut self) {
        let mut gone = clients_gone(self.jobs.iter().map(|job| &*job.client)).into_iter();
        self.jobs.retain(|_| !gone.next().unwrap_or(false));
    }

    /// Answers the requests that are complete or have failed, and lets go of them.
    pub(super) fn answer_done(&mut self) {
        for job in self.jobs.extract_if(.., |job| job.is_done()) {
            let answer = match job.failure {
                Some(failure) => Err(failure),
                None => Ok(job.outputs),
            };
            // The receiver is gone when the connection's thread is.
            let _ = job.answer.send(answer);
        }
    }
}

/// For each connection, whether its client has closed it.
pub(super) fn clients_gone<'a>(clients: impl Iterator<Item = &'a UnixStream>) -> Vec<bool> {
    // No flags: hang-ups and errors are always reported, and a client that has only ended its own
    // side still waits for the answer.
    let mut polled: Vec<_> = clients
        .map(|client| PollFd::new(client, PollFlags::empty()))
        .collect();
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // On failure all flags stay empty and everyone counts as present.
    let _ = poll(&mut polled, Some(&now));
    polled
        .iter()
        .map(|client| client.revents().intersects(PollFlags::HUP | PollFlags::ERR))
        .collect()
}
