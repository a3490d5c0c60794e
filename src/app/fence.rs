//! `Fence`: what keeps forgotten keys out.
//!
//! A node is certified at a [`Horizon`]: it holds every entry stamped up to there that exists. So
//! what comes from elsewhere with such a stamp, and is not held, is a ghost: a copy of a key that was
//! removed so long ago that its tombstone is gone. It is refused like an entry that is older than
//! the held one, and a coordinator that stamped it a moment ago, by a clock far behind, stamps anew.
//!
//! Not here: when a horizon is reached (`domain/horizon.rs`, `collector.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::domain::{LATE_NS, NodeId, Timestamp, Version};

/// Where this node is certified; it only rises.
#[derive(Debug, Default)]
pub(crate) struct Horizon(AtomicU64);

impl Horizon {
    pub(crate) fn get(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn raise(&self, to: Timestamp) {
        self.0.fetch_max(to.as_nanos(), Ordering::AcqRel);
    }
}

/// The fence of this node, and what passed it late.
#[derive(Debug)]
pub(crate) struct Fence {
    horizon: Arc<Horizon>,
    /// Shared by entries between their check and the store, held alone by a new horizon: or a ghost
    /// that was checked before could come in after the tombstone that hides it is gone.
    passing: RwLock<()>,
    /// When the last late arrival was, in nanoseconds; 0: never.
    last_late: AtomicU64,
    late: AtomicU64,
    dropped: AtomicU64,
}

impl Fence {
    pub(crate) fn new(horizon: Arc<Horizon>) -> Self {
        let (passing, last_late) = (RwLock::new(()), AtomicU64::new(0));
        let (late, dropped) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { horizon, passing, last_late, late, dropped }
    }

    pub(crate) const fn horizon(&self) -> &Arc<Horizon> {
        &self.horizon
    }

    pub(crate) async fn pass(&self) -> RwLockReadGuard<'_, ()> {
        self.passing.read().await
    }

    pub(crate) async fn close(&self) -> RwLockWriteGuard<'_, ()> {
        self.passing.write().await
    }

    /// By what an entry with this stamp is superseded, if it is not held: larger than any version
    /// up to the horizon, so that a coordinator that moves past it is through.
    pub(crate) fn refuses(&self, stamp: Timestamp) -> Option<Version> {
        let horizon = self.horizon.get();
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
