//! A value that the first request loads, while the others wait for the same attempt.

use std::sync::{Arc, Mutex, OnceLock};

use ner_retriever_protocol::{EngineError, State};

use super::{catch_panic, lock};

type Attempt<T> = OnceLock<Result<Arc<T>, EngineError>>;

enum Phase<T> {
    Unloaded,
    Loading(Arc<Attempt<T>>),
    Ready(Arc<T>),
}

pub(super) struct ModelSlot<T> {
    phase: Mutex<Phase<T>>,
    load: Box<dyn Fn() -> Result<T, EngineError> + Send + Sync>,
}

impl<T> ModelSlot<T> {
    pub(super) fn new(load: impl Fn() -> Result<T, EngineError> + Send + Sync + 'static) -> Self {
        Self {
            phase: Mutex::new(Phase::Unloaded),
            load: Box::new(load),
        }
    }

    /// The value, loaded now if it is not there. A failure is the answer to everyone who waited
    /// for this attempt; the next call tries again.
    pub(super) fn get_or_load(&self) -> Result<Arc<T>, EngineError> {
        let attempt = {
            let mut phase = lock(&self.phase);
            match &*phase {
                Phase::Ready(value) => return Ok(Arc::clone(value)),
                Phase::Loading(attempt) => {
                    let attempt = Arc::clone(attempt);
                    drop(phase);
                    return attempt.wait().clone();
                }
                Phase::Unloaded => {
                    let attempt = Arc::new(Attempt::new());
                    *phase = Phase::Loading(Arc::clone(&attempt));
                    attempt
                }
            }
        };
        let loaded = catch_panic("loading the model", || (self.load)()).map(Arc::new);
        *lock(&self.phase) = match &loaded {
            Ok(value) => Phase::Ready(Arc::clone(value)),
            Err(_) => Phase::Unloaded,
        };
        attempt.get_or_init(|| loaded).clone()
    }

    /// The value if it is loaded; never loads and never waits for a load.
    pub(super) fn peek(&self) -> (State, Option<Arc<T>>) {
        match &*lock(&self.phase) {
            Phase::Unloaded => (State::Idle, None),
            Phase::Loading(_) => (State::Loading, None),
            Phase::Ready(value) => (State::Ready, Some(Arc::clone(value))),
        }
    }
}
