//! The model thread: while it computes one batch, requests gather for the next.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use ner_retriever_protocol::{EngineError, ErrorKind, Priority};

use super::queue::{Job, Pick, Queue};
use super::status::Counters;
use super::{catch_panic, log};
use crate::backend::Backend;

/// Where the outputs of a request's windows arrive, in order; it disconnects when the request was
/// dropped because its client has gone.
pub(super) type Answer<B> = Receiver<Result<Vec<<B as Backend>::WindowOutput>, EngineError>>;

/// A loaded model and the thread that runs it. Dropping it ends the thread.
pub(super) struct Scheduler<B: Backend> {
    backend: Arc<B>,
    jobs: Option<Sender<Job<B>>>,
    thread: Option<JoinHandle<()>>,
}

impl<B: Backend> Scheduler<B> {
    /// Starts the model thread; its batches hold up to `batch_tokens` tokens, 0: what suits the device.
    ///
    /// # Errors
    /// Those of [`Backend::batch_tokens`]; `Internal` without a thread.
    pub(super) fn start(
        backend: B,
        batch_tokens: usize,
        counters: Arc<Counters>,
    ) -> Result<Self, EngineError> {
        let batch_tokens = backend.batch_tokens(batch_tokens)?;
        let backend = Arc::new(backend);
        let (jobs, waiting) = mpsc::channel();
        let model_thread = ModelThread {
            backend: Arc::clone(&backend),
            batch_tokens,
            counters,
        };
        let thread = thread::Builder::new()
            .name("model".into())
            .spawn(move || model_thread.run(&waiting))
            .map_err(|error| {
                EngineError::new(
                    ErrorKind::Internal,
                    format!("the engine cannot start its model thread: {error}"),
                )
                .hint("Raise the limit of processes of the server's user.")
            })?;
        Ok(Self {
            backend,
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    pub(super) fn backend(&self) -> &B {
        &self.backend
    }

    /// Queues the windows of one request; `tokens` holds the tokens of each.
    pub(super) fn submit(
        &self,
        client: Arc<UnixStream>,
        priority: Priority,
        windows: Vec<B::Window>,
        tokens: Vec<usize>,
    ) -> Answer<B> {
        let (answer, receiver) = mpsc::channel();
        let job = Job {
            priority,
            outputs: Vec::with_capacity(windows.len()),
            windows,
            tokens,
            failure: None,
            merged: false,
            client,
            answer,
        };
        if let Some(jobs) = &self.jobs {
            // Without a model thread the job is dropped here, which disconnects the receiver.
            let _ = jobs.send(job);
        }
        receiver
    }
}

impl<B: Backend> Drop for Scheduler<B> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // The device's memory is freed before the process tears its libraries down.
            let _ = thread.join();
        }
    }
}

/// A GPU after a fault serves no process that used it before. The next engine takes the requests that
/// are waiting, and the supervisor's pauses are for a device that fails again and again.
fn end_process(error: &EngineError) -> ! {
    log(&format!(
        "the device has failed, the engine ends: {}",
        error.message
    ));
    std::process::exit(1)
}

struct ModelThread<B: Backend> {
    backend: Arc<B>,
    batch_tokens: usize,
    counters: Arc<Counters>,
}

impl<B: Backend> ModelThread<B> {
    fn run(&self, waiting: &Receiver<Job<B>>) {
        let mut queue = Queue::new();
        // Sleeps while there is nothing to do, ends when the scheduler is dropped.
        while let Ok(job) = waiting.recv() {
            queue.jobs.push(job);
            while !queue.jobs.is_empty() {
                queue.jobs.extend(waiting.try_iter());
                queue.drop_abandoned();
                let batch = queue.next_batch(self.batch_tokens);
                self.compute(&mut queue, batch);
                queue.answer_done();
            }
        }
    }

    /// Runs a batch, in halves where the device lacks memory for the whole. A failure stays with
    /// the requests of the part that failed.
    fn compute(&self, queue: &mut Queue<B>, batch: Vec<Pick>) {
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            part.retain(|pick| queue.jobs[pick.job].failure.is_none());
            if part.is_empty() {
                continue;
            }
            match self.forward(queue, &part) {
                Ok(outputs) => self.record(queue, &part, outputs),
                Err(error) if error.kind == ErrorKind::OutOfMemory && part.len() > 1 => {
                    let second_half = part.split_off(part.len() / 2);
                    // Windows of a request stay in order: the first half is on top of the stack.
                    parts.push(second_half);
                    parts.push(part);
                }
                Err(error) => {
                    if self.backend.is_lost() {
                        end_process(&error);
                    }
                    for pick in part {
                        queue.jobs[pick.job].failure = Some(error.clone());
                    }
                }
            }
        }
    }

    fn forward(
        &self,
        queue: &Queue<B>,
        part: &[Pick],
    ) -> Result<Vec<B::WindowOutput>, EngineError> {
        let windows: Vec<_> = part
            .iter()
            .map(|pick| &queue.jobs[pick.job].windows[pick.window])
            .collect();
        let outputs = catch_panic("running the model", || self.backend.forward(&windows))?;
        if outputs.len() != part.len() {
            let message = format!(
                "the model gave {} results for {} windows",
                outputs.len(),
                part.len()
            );
            return Err(EngineError::new(ErrorKind::Internal, message));
        }
        Ok(outputs)
    }

    fn record(&self, queue: &mut Queue<B>, part: &[Pick], outputs: Vec<B::WindowOutput>) {
        let merged = part.iter().any(|pick| pick.job != part[0].job);
        self.counters.batches.fetch_add(1, Relaxed);
        for (pick, output) in part.iter().zip(outputs) {
            let job = &mut queue.jobs[pick.job];
            job.outputs.push(output);
            self.counters
                .tokens
                .fetch_add(job.tokens[pick.window] as u64, Relaxed);
            if merged && !job.merged {
                job.merged = true;
                self.counters.merged_requests.fetch_add(1, Relaxed);
            }
        }
    }
}
