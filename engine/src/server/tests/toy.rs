//! A model whose windows are words and whose tokens are bytes.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};

pub(super) use ner_retriever_protocol::Mention;
use ner_retriever_protocol::{EngineError, ModelInfo, Span};

use super::PATIENCE;
use crate::backend::{Backend, Input, Output};
use crate::server::lock;

pub(super) const FINGERPRINT: &str = "toy-1";
/// Texts that make a stage panic with the text as its message.
pub(super) const PANIC_PREPARE: &str = "panic-prepare";
pub(super) const PANIC_FORWARD: &str = "panic-forward";
pub(super) const PANIC_FINISH: &str = "panic-finish";

type Forward = dyn Fn(&[&String]) -> Result<Vec<String>, EngineError> + Send + Sync;

pub(super) struct Toy {
    info: ModelInfo,
    forward: Box<Forward>,
    /// Inputs that were prepared.
    pub(super) prepared: Arc<AtomicUsize>,
    /// What it says of its device.
    pub(super) is_lost: bool,
}

impl Toy {
    pub(super) fn new(
        forward: impl Fn(&[&String]) -> Result<Vec<String>, EngineError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            info: ModelInfo {
                model: "toy".into(),
                head: "toy".into(),
                fingerprint: FINGERPRINT.into(),
                device: "cpu".into(),
                block: 0,
                dims: 1,
                dtype: "f32".into(),
            },
            forward: Box::new(forward),
            prepared: Arc::default(),
            is_lost: false,
        }
    }
}

pub(super) fn uppercase(windows: &[&String]) -> Result<Vec<String>, EngineError> {
    let upper = |window: &&String| {
        assert_ne!(*window, PANIC_FORWARD);
        window.to_uppercase()
    };
    Ok(windows.iter().map(upper).collect())
}

impl Backend for Toy {
    type Prepared = Input;
    type Window = String;
    type WindowOutput = String;

    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn prepare(&self, input: Input) -> Result<(Input, Vec<String>), EngineError> {
        self.prepared.fetch_add(1, SeqCst);
        let windows: Vec<_> = match &input {
            Input::Text { request, .. } => {
                assert_ne!(request.text, PANIC_PREPARE);
                request.text.split(' ').map(str::to_owned).collect()
            }
            Input::Type { name } => vec![name.clone()],
        };
        let windows = windows.into_iter().filter(|window| !window.is_empty());
        Ok((input, windows.collect()))
    }

    fn batch_tokens(&self, wanted: usize) -> Result<usize, EngineError> {
        Ok(wanted)
    }

    fn is_lost(&self) -> bool {
        self.is_lost
    }

    fn tokens(&self, window: &String) -> usize {
        window.len()
    }

    fn forward(&self, windows: &[&String]) -> Result<Vec<String>, EngineError> {
        (self.forward)(windows)
    }

    fn finish(&self, input: Input, outputs: Vec<String>) -> Result<Output, EngineError> {
        Ok(match input {
            Input::Text { request, .. } => {
                assert_ne!(request.text, PANIC_FINISH);
                let mention = |(index, text): (usize, String)| Mention {
                    span: Span {
                        start: index as u32,
                        end: index as u32 + 1,
                    },
                    score: 1.0,
                    embedding: vec![text.len() as f32],
                    text,
                };
                Output::Mentions(outputs.into_iter().enumerate().map(mention).collect())
            }
            Input::Type { .. } => Output::Type(outputs.iter().map(|o| o.len() as f32).collect()),
        })
    }
}

/// Holds every batch until the test lets it go. Once the gate is dropped, batches pass freely.
pub(super) struct Gate {
    batches: Receiver<Vec<String>>,
    permits: Sender<()>,
}

impl Gate {
    /// The gate, and what a [`Toy`] runs to be held by it.
    pub(super) fn new() -> (
        Self,
        impl Fn(&[&String]) -> Result<Vec<String>, EngineError> + Send + Sync + 'static,
    ) {
        let (announce, batches) = mpsc::channel();
        let (permits, permitted) = mpsc::channel();
        let permitted = Mutex::new(permitted);
        let hook = move |windows: &[&String]| {
            let batch = windows.iter().map(|window| (*window).clone()).collect();
            if announce.send(batch).is_ok() {
                let _ = lock(&permitted).recv();
            }
            uppercase(windows)
        };
        (Self { batches, permits }, hook)
    }

    /// The batch that is held now, after the model has got that far.
    pub(super) fn next(&self) -> Vec<String> {
        self.batches.recv_timeout(PATIENCE).expect("a batch")
    }

    pub(super) fn release(&self) {
        self.permits.send(()).unwrap();
    }

    /// Lets all batches go until the scheduler is dropped; returns them.
    pub(super) fn run_dry(&self) -> Vec<Vec<String>> {
        let mut seen = Vec::new();
        loop {
            match self.batches.recv_timeout(PATIENCE) {
                Ok(batch) => seen.push(batch),
                Err(RecvTimeoutError::Disconnected) => return seen,
                Err(RecvTimeoutError::Timeout) => panic!("the scheduler does not end"),
            }
            // The model thread may end right after the batch it announced.
            let _ = self.permits.send(());
        }
    }
}
