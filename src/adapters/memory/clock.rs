//! `ManualClock`: wall time that a test sets, also backwards.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::Timestamp;
use crate::ports::Clock;

/// Stands still until it is set.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock that stands at this time.
    pub const fn new(now: Timestamp) -> Self {
        Self(AtomicU64::new(now.as_nanos()))
    }

    /// Sets the time, forwards or backwards.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.as_nanos(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::SeqCst))
    }
}
