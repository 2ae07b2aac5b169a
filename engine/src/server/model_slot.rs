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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::mpsc;
    use std::thread;

    use ner_retriever_protocol::ErrorKind;

    use super::*;

    /// Returns once `waiters` threads share the attempt that runs now.
    fn wait_for_waiters<T>(slot: &ModelSlot<T>, waiters: usize) {
        loop {
            if let Phase::Loading(attempt) = &*lock(&slot.phase) {
                // The slot and the loading thread hold it as well.
                if Arc::strong_count(attempt) == 2 + waiters {
                    return;
                }
            }
            thread::yield_now();
        }
    }

    #[test]
    fn all_who_wait_share_one_attempt_and_its_failure() {
        let (finish, finished) = mpsc::channel::<Result<u32, EngineError>>();
        let finished = Mutex::new(finished);
        let attempts = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&attempts);
        let slot = ModelSlot::new(move || {
            counted.fetch_add(1, SeqCst);
            lock(&finished).recv().unwrap()
        });
        let failure = EngineError::new(ErrorKind::ModelDamaged, "damaged");
        for result in [Err(failure), Ok(7)] {
            assert_eq!(slot.peek().0, State::Idle);
            let answers = thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| slot.get_or_load())).collect();
                wait_for_waiters(&slot, 3);
                assert_eq!(slot.peek(), (State::Loading, None));
                finish.send(result.clone()).unwrap();
                threads
                    .into_iter()
                    .map(|t| t.join().unwrap())
                    .collect::<Vec<_>>()
            });
            assert_eq!(answers, vec![result.map(Arc::new); 4]);
        }
        assert_eq!(slot.get_or_load(), Ok(Arc::new(7)));
        assert_eq!(attempts.load(SeqCst), 2);
        assert_eq!(slot.peek(), (State::Ready, Some(Arc::new(7))));
    }
}
