//! `SyncMeter`: how long syncs took, counted without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ports::SyncTimes;

/// Counts syncs by how long they took.
#[derive(Debug, Default)]
pub(super) struct SyncMeter {
    counts: [AtomicU64; SyncTimes::BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl SyncMeter {
    /// A sync took this long.
    pub(super) fn record(&self, took: Duration) {
        if let Some(count) = self.counts.get(SyncTimes::place(took)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub(super) fn times(&self) -> SyncTimes {
        let total = Duration::from_nanos(self.nanos.load(Ordering::Relaxed));
        let counts = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        SyncTimes { counts, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_counts_where_its_time_belongs() {
        let meter = SyncMeter::default();
        let [first, .., last] = SyncTimes::BOUNDS;
        for took in [Duration::ZERO, first, first + Duration::from_nanos(1), last, last * 2] {
            meter.record(took);
        }
        let times = meter.times();
        assert_eq!(times.counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(
            (times.count(), times.total),
            (5, first * 2 + Duration::from_nanos(1) + last * 3)
        );
    }
}
