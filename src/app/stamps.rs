//! `Stamps`: the node's hybrid logical clock, with its durable bound.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{ClockDrift, HybridClock, NodeId, Timestamp, Version};
use crate::ports::{Clock, LogError, LogRecord, OpLog};

/// Stamps writes of this node and passes those of others.
pub(crate) struct Stamps {
    me: NodeId,
    clock: Mutex<HybridClock>,
    wall: Arc<dyn Clock>,
    log: Arc<dyn OpLog>,
    /// Held while a bound is made durable, so that a burst of writes appends one.
    reserving: tokio::sync::Mutex<()>,
}

impl Stamps {
    pub(crate) fn new(
        me: NodeId,
        max_drift: Duration,
        wall: Arc<dyn Clock>,
        log: Arc<dyn OpLog>,
    ) -> Self {
        let max_drift_ns = u64::try_from(max_drift.as_nanos()).unwrap_or(u64::MAX);
        let clock = Mutex::new(HybridClock::new(max_drift_ns));
        Self { me, clock, wall, log, reserving: tokio::sync::Mutex::new(()) }
    }

    /// Whose stamps they are.
    pub(crate) const fn node(&self) -> NodeId {
        self.me
    }

    /// The version of the next write of this node, before the deadline. Waits for the log about four
    /// times a second.
    pub(crate) async fn stamp_before(&self, deadline: Instant) -> Result<Version, LogError> {
        match self.try_stamp() {
            Ok(stamp) => Ok(stamp),
            // Rare, and boxed: a timer is large, and of an alignment that makes every future that
            // holds one dear to allocate.
            Err(_) => Box::pin(tokio::time::timeout_at(deadline, self.reserve_and_stamp()))
                .await
                .unwrap_or(Err(LogError::Overloaded)),
        }
    }

    async fn reserve_and_stamp(&self) -> Result<Version, LogError> {
        let _one_at_a_time = self.reserving.lock().await;
        loop {
            match self.try_stamp() {
                Ok(stamp) => return Ok(stamp),
                Err(up_to) => {
                    self.log.append(&[LogRecord::ClockBound(up_to)]).await?;
                    self.clock().reserve(up_to);
                }
            }
        }
    }

    /// Whether a version from elsewhere may enter this node.
    pub(crate) fn check(&self, seen: Timestamp) -> Result<(), ClockDrift> {
        let now = self.wall.now();
        self.clock().check(now, seen)
    }

    /// Wall time.
    pub(crate) fn now(&self) -> Timestamp {
        self.wall.now()
    }

    /// Moves past a version from elsewhere.
    pub(crate) fn observe(&self, seen: Timestamp) -> Result<(), ClockDrift> {
        let now = self.wall.now();
        self.clock().observe(now, seen)
    }

    /// Moves past what the node's own log says.
    pub(crate) fn restore(&self, seen: Timestamp) {
        self.clock().restore(seen);
    }

    /// The version of the next write, or the bound that has to be made durable first.
    fn try_stamp(&self) -> Result<Version, Timestamp> {
        let now = self.wall.now();
        let stamped = self.clock().stamp(now);
        stamped.map(|at| Version::new(at, self.me)).map_err(|needed| needed.up_to)
    }

    fn clock(&self) -> MutexGuard<'_, HybridClock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{MockClock, MockOpLog};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    fn wall(nanos: u64) -> Arc<MockClock> {
        let mut clock = MockClock::new();
        clock.expect_now().returning(move || Timestamp::from_nanos(nanos));
        Arc::new(clock)
    }

    fn stamps(log: MockOpLog) -> Stamps {
        let drift = Duration::from_millis(500);
        Stamps::new(NodeId::new(1), drift, wall(1_000), Arc::new(log))
    }

    #[tokio::test]
    async fn many_stamps_cost_one_record_and_none_is_given_before_it_is_in_the_log() {
        let mut log = MockOpLog::new();
        log.expect_append().times(1).returning(|records| {
            assert!(matches!(records, [LogRecord::ClockBound(_)]));
            Ok(())
        });
        let stamps = stamps(log);
        let mut last = None;
        for _ in 0..1_000 {
            let next = stamps.stamp_before(soon()).await.ok();
            assert!(next > last);
            last = next;
        }
    }

    #[tokio::test]
    async fn without_the_log_there_is_no_stamp() {
        let mut log = MockOpLog::new();
        log.expect_append().returning(|_| Err(LogError::Closed));
        assert_eq!(stamps(log).stamp_before(soon()).await, Err(LogError::Closed));
    }
}
