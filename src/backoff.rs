//! When to start the engine again after it ended abnormally.

use std::time::{Duration, Instant};

/// An engine that lived longer than this did not end because of how it was started.
const SOON: Duration = Duration::from_secs(60);
/// A single kill, and the retry that meets the same fate, must not be answered with errors.
const FREE_RESTARTS: u32 = 2;
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// Abnormal ends in quick succession, and the pause that follows from them.
#[derive(Default)]
pub struct Backoff {
    abnormal_ends: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// Notes that the engine ended abnormally after having lived for `lifetime`.
    pub fn abnormal_end(&mut self, lifetime: Duration, now: Instant) {
        if lifetime >= SOON {
            *self = Self::default();
        }
        self.abnormal_ends = self.abnormal_ends.saturating_add(1);
        if let Some(doublings) = self.abnormal_ends.checked_sub(FREE_RESTARTS + 1) {
            let factor = 2_u32.saturating_pow(doublings);
            self.until = Some(now + FIRST_DELAY.saturating_mul(factor).min(LONGEST_DELAY));
        }
    }

    /// Forgets all ends: the engine ended as it should, or its settings may have been repaired.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// How long not to start an engine; `None` when one may start.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        self.until?
            .checked_duration_since(now)
            .filter(|left| !left.is_zero())
    }

    pub fn abnormal_ends(&self) -> u32 {
        self.abnormal_ends
    }
}
