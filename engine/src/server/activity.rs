//! Whether the engine is still needed.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use super::lock;

/// How long connections that do not ask for the model may hold up an engine that is idle otherwise,
/// each time, and how often the idle time is looked at again while others outlast it.
pub(super) const IDLE_RECHECK: Duration = Duration::from_millis(200);

/// A pause of this length is worth giving memory back to the system, which then takes a few ms to come again.
const SETTLED: Duration = Duration::from_secs(1);

/// What keeps the engine from exiting.
pub(super) struct Activity {
    idle_timeout: Option<Duration>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Connections with a thread.
    open: usize,
    /// Requests for the model that are not answered yet, each in an open connection.
    working: usize,
    /// End of the last request for the model. Status requests do not count: a monitor must not
    /// keep a model in memory.
    last_work: Instant,
    /// Whether there was work after the last pause.
    unsettled: bool,
}

impl Activity {
    pub fn new(idle_timeout: Option<Duration>) -> Self {
        Self {
            idle_timeout,
            state: Mutex::new(State {
                open: 0,
                working: 0,
                last_work: Instant::now(),
                unsettled: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Counts a connection in, unless there are `limit` already.
    pub fn open(&self, limit: usize) -> bool {
        let mut state = lock(&self.state);
        let admitted = state.open < limit;
        state.open += usize::from(admitted);
        admitted
    }

    pub fn close(&self) {
        lock(&self.state).open -= 1;
        self.changed.notify_all();
    }

    /// A request for the model begins; it ends when what this gives is dropped.
    pub fn work(&self) -> Working<'_> {
        lock(&self.state).working += 1;
        self.changed.notify_all();
        Working(self)
    }

    /// How long to wait for a connection before [`Self::settles`] or [`Self::is_idle`] is worth asking;
    /// `None`: for ever.
    pub fn until_idle(&self) -> Option<Duration> {
        let state = lock(&self.state);
        let until_settled = state.unsettled.then_some(SETTLED);
        let until_idle = self.idle_timeout.map(|timeout| {
            let left = timeout.saturating_sub(state.last_work.elapsed());
            if left.is_zero() && state.open > 0 {
                IDLE_RECHECK
            } else {
                left
            }
        });
        until_settled.into_iter().chain(until_idle).min()
    }

    /// Whether nobody has asked for the model for a while; once after each time that somebody has.
    pub fn settles(&self) -> bool {
        let mut state = lock(&self.state);
        let settles = state.unsettled && state.working == 0 && state.last_work.elapsed() >= SETTLED;
        state.unsettled &= !settles;
        settles
    }

    /// Whether nobody has asked for the model for the idle time. Connections that might still ask
    /// are waited for, though not for long: a monitor that comes back faster than its connections
    /// are closed would have the engine live for ever.
    pub fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        let timed_out = |state: &State| {
            let idle_timeout = self.idle_timeout;
            idle_timeout.is_some_and(|timeout| state.last_work.elapsed() >= timeout)
        };
        let waited = self
            .changed
            .wait_timeout_while(state, IDLE_RECHECK, |state| {
                timed_out(state) && state.working == 0 && state.open > 0
            });
        let (state, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        timed_out(&state) && state.open == 0
    }
}

/// A request for the model that is not answered yet.
pub(super) struct Working<'a>(&'a Activity);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.working -= 1;
        state.last_work = Instant::now();
        state.unsettled = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_settles_once() {
        let activity = Activity::new(None);
        assert!(!activity.settles());
        assert_eq!(activity.until_idle(), None);
        drop(activity.work());
        assert!(!activity.settles());
        assert_eq!(activity.until_idle(), Some(SETTLED));
        lock(&activity.state).last_work -= SETTLED;
        let working = activity.work();
        assert!(!activity.settles());
        drop(working);
        lock(&activity.state).last_work -= SETTLED;
        assert!(activity.settles());
        assert!(!activity.settles());
        assert_eq!(activity.until_idle(), None);
    }
}
