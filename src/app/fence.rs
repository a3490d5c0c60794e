//! `Fence`: what keeps forgotten keys out.
//!
//! A node is certified at a [`Horizon`]: it holds every entry stamped up to there that exists. So
//! what comes from elsewhere with such a stamp, and is not held, is a ghost: a copy of a key that was
//! removed so long ago that its tombstone is gone. It is refused like an entry that is older than
//! the held one, and a coordinator that stamped it a moment ago, by a clock far behind, stamps anew.
//!
//! A new horizon is refused up to first; then what was checked before is waited for, or a ghost among
//! that could come in after the tombstone that hides it is gone; and only then is it made durable. Nobody
//! waits at the fence, for a disk or otherwise.
//!
//! Not here: when a horizon is reached (`domain/horizon.rs`, `collector.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use crate::domain::{LATE_NS, NodeId, Timestamp, Version};
use crate::ports::LogError;

use super::underway::Underway;

/// How long a new horizon waits for entries that are on their way from the check to the store, by way
/// of the log.
const SHUT_WITHIN: Duration = Duration::from_secs(1);

/// Where this node is certified; it only rises, until the node joins (again).
#[derive(Debug, Default)]
pub(crate) struct Horizon(AtomicU64);

impl Horizon {
    pub(crate) fn get(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn raise(&self, to: Timestamp) {
        self.0.fetch_max(to.as_nanos(), Ordering::AcqRel);
    }

    /// What was certified counts no more.
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// What was checked before does not arrive: the log hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocked;

impl From<Blocked> for LogError {
    fn from(_: Blocked) -> Self {
        Self::Overloaded
    }
}

/// The fence of this node, and what passed it late.
#[derive(Debug)]
pub(crate) struct Fence {
    horizon: Arc<Horizon>,
    /// Up to where entries are refused, if that is further: a horizon that is being made durable.
    shut: AtomicU64,
    /// When the last late arrival was, in nanoseconds; 0: never.
    last_late: AtomicU64,
    late: AtomicU64,
    dropped: AtomicU64,
}

impl Fence {
    pub(crate) fn new(horizon: Arc<Horizon>) -> Self {
        let [shut, last_late, late, dropped] = [const { AtomicU64::new(0) }; 4];
        Self { horizon, shut, last_late, late, dropped }
    }

    pub(crate) const fn horizon(&self) -> &Arc<Horizon> {
        &self.horizon
    }

    /// Refuses entries up to there, and waits for those that were checked before: changes are under
    /// way from before their check on. Returns up to where they were refused until now.
    pub(crate) async fn shut(
        &self,
        through: Timestamp,
        changes: &Underway,
    ) -> Result<Timestamp, Blocked> {
        let before =
            Timestamp::from_nanos(self.shut.fetch_max(through.as_nanos(), Ordering::SeqCst));
        if timeout(SHUT_WITHIN, changes.settled()).await.is_err() {
            self.open(before);
            return Err(Blocked);
        }
        Ok(before)
    }

    /// The horizon for which it was shut is not reached.
    pub(crate) fn open(&self, through: Timestamp) {
        self.shut.store(through.as_nanos(), Ordering::Release);
    }

    /// Refuses nothing any more: this node is certified nowhere.
    pub(crate) fn lift(&self) {
        self.horizon.reset();
        self.shut.store(0, Ordering::Release);
    }

    /// Up to where entries are refused that are not held: the horizon, or one on its way to the log.
    pub(crate) fn through(&self) -> Timestamp {
        self.horizon.get().max(Timestamp::from_nanos(self.shut.load(Ordering::SeqCst)))
    }

    /// By what an entry with this stamp is superseded, if it is not held: larger than any version
    /// up to the horizon, so that a coordinator that moves past it is through.
    pub(crate) fn refuses(&self, stamp: Timestamp) -> Option<Version> {
        let horizon = self.through();
        let ghost = horizon > Timestamp::ZERO && stamp <= horizon;
        ghost.then(|| Version::new(horizon, NodeId::new(u64::MAX)))
    }

    /// An entry from elsewhere is new here.
    pub(crate) fn note_arrival(&self, stamp: Timestamp, now: Timestamp) {
        if now.nanos_after(stamp) > LATE_NS {
            self.last_late.fetch_max(now.as_nanos(), Ordering::AcqRel);
            self.late.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// When the last entry arrived late.
    pub(crate) fn last_late(&self) -> Option<Timestamp> {
        let at = Timestamp::from_nanos(self.last_late.load(Ordering::Acquire));
        (at > Timestamp::ZERO).then_some(at)
    }

    pub(crate) fn note_dropped(&self, tombstones: u64) {
        if tombstones > 0 {
            self.dropped.fetch_add(tombstones, Ordering::Relaxed);
            tracing::info!(tombstones, "old tombstones forgotten");
        }
    }

    /// Late arrivals, and tombstones dropped.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.late.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }
}
