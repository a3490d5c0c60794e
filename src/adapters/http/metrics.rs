//! What requests and connections count.
//!
//! It lies in fixed arrays of atomics, found by index: a request does no look-up by name and takes no
//! lock. `exporter` shows it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::ports::OpKind;

use super::errors::Code;

/// Upper bounds of the latency buckets: from a read in memory to the longest timeout.
pub(super) const BOUNDS: [Duration; 14] = [
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(10),
];

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Get,
    Add,
    Remove,
    Nodes,
    /// No call of ours: an unknown path or method.
    Other,
}

impl From<OpKind> for Call {
    fn from(kind: OpKind) -> Self {
        match kind {
            OpKind::Get => Self::Get,
            OpKind::Add => Self::Add,
            OpKind::Remove => Self::Remove,
        }
    }
}

impl Call {
    pub(super) const ALL: [Self; 5] =
        [Self::Get, Self::Add, Self::Remove, Self::Nodes, Self::Other];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Nodes => "nodes",
            Self::Other => "other",
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    Partial,
    Refused(Code),
}

impl Outcome {
    const COUNT: usize = 2 + Code::ALL.len();

    pub(super) fn all() -> impl Iterator<Item = Self> {
        [Self::Success, Self::Partial].into_iter().chain(Code::ALL.into_iter().map(Self::Refused))
    }

    const fn index(self) -> usize {
        match self {
            Self::Success => 0,
            Self::Partial => 1,
            Self::Refused(code) => 2 + code as usize,
        }
    }

    /// The `status` of the response.
    pub(super) const fn status(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Partial => "partial",
            Self::Refused(_) => "error",
        }
    }

    /// The `code` of the response, which errors alone have.
    pub(super) const fn code(self) -> Option<Code> {
        match self {
            Self::Success | Self::Partial => None,
            Self::Refused(code) => Some(code),
        }
    }
}

/// What requests and connections count.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    pub(super) calls: [CallMetrics; Call::ALL.len()],
    /// Requests worked on right now.
    pub(super) in_flight: AtomicUsize,
    /// Requests whose bodies are on their way right now.
    pub(super) bodies_awaited: AtomicUsize,
    /// Bytes of bodies that did not come with their heads, of requests not answered yet.
    pub(super) pending_bytes: AtomicUsize,
    /// Connections open right now.
    pub(super) connections: AtomicUsize,
    /// Connections closed at once because there were too many.
    pub(super) connections_refused: AtomicU64,
    /// Connections that could not be accepted, for want of file descriptors for instance.
    pub(super) accept_failures: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct CallMetrics {
    pub(super) outcomes: [AtomicU64; Outcome::COUNT],
    // One more than the bounds: what took longer than the last one.
    pub(super) latencies: [AtomicU64; BOUNDS.len() + 1],
    pub(super) nanos: AtomicU64,
    /// Those that took longer than the threshold of the slow log.
    pub(super) slow: AtomicU64,
}

impl Metrics {
    /// A request has ended.
    pub(super) fn record(&self, call: Call, outcome: Outcome, took: Duration) {
        let Some(metrics) = self.calls.get(call as usize) else { return };
        if let Some(count) = metrics.outcomes.get(outcome.index()) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let bucket = BOUNDS.iter().position(|bound| took <= *bound).unwrap_or(BOUNDS.len());
        if let Some(count) = metrics.latencies.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        metrics.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// It took longer than the threshold of the slow log.
    pub(super) fn record_slow(&self, call: Call) {
        if let Some(metrics) = self.calls.get(call as usize) {
            metrics.slow.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_outcomes_are_counted_where_they_are_shown() {
        for (index, call) in Call::ALL.into_iter().enumerate() {
            assert_eq!(call as usize, index);
        }
        for (index, outcome) in Outcome::all().enumerate() {
            assert_eq!(outcome.index(), index);
        }
        assert_eq!(Outcome::all().count(), Outcome::COUNT);
    }

    #[test]
    fn latencies_fall_into_the_bucket_that_ends_at_or_after_them() {
        let metrics = Metrics::default();
        for took in [Duration::ZERO, Duration::from_micros(50), Duration::from_secs(11)] {
            metrics.record(Call::Get, Outcome::Success, took);
        }
        let counts = |i: usize| metrics.calls[0].latencies[i].load(Ordering::Relaxed);
        assert_eq!((counts(0), counts(1), counts(BOUNDS.len())), (2, 0, 1));
    }

    #[test]
    fn bounds_rise() {
        assert!(BOUNDS.is_sorted());
    }
}
