//! Metrics in the text format of `OpenMetrics`, which Prometheus reads.
//!
//! What requests count lies in fixed arrays of atomics, found by index: a request does no look-up
//! by name and takes no lock. What the node counts is read through the port at scrape time.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::domain::MemberState;
use crate::ports::{
    ClientApi, ComparisonStats, LogStats, MemberStatus, NodeStats, OpKind, ReloadStats, SyncTimes,
};

use super::errors::Code;
use super::render::state_name;

/// The media type of what [`Exporter::render`] returns.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the latency buckets: from a read in memory to the longest timeout.
const BOUNDS: [Duration; 14] = [
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

const STATES: [MemberState; 5] = [
    MemberState::Joining,
    MemberState::Alive,
    MemberState::Suspect,
    MemberState::Down,
    MemberState::Left,
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
    const ALL: [Self; 5] = [Self::Get, Self::Add, Self::Remove, Self::Nodes, Self::Other];

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

    fn all() -> impl Iterator<Item = Self> {
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
    calls: [CallMetrics; Call::ALL.len()],
    /// Requests worked on right now.
    pub(super) in_flight: AtomicUsize,
    /// Requests whose bodies are on their way right now.
    pub(super) bodies_awaited: AtomicUsize,
    /// Connections open right now.
    pub(super) connections: AtomicUsize,
    /// Connections closed at once because there were too many.
    pub(super) connections_refused: AtomicU64,
    /// Connections that could not be accepted, for want of file descriptors for instance.
    pub(super) accept_failures: AtomicU64,
}

#[derive(Debug, Default)]
struct CallMetrics {
    outcomes: [AtomicU64; Outcome::COUNT],
    // One more than the bounds: what took longer than the last one.
    latencies: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
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
}

/// Renders everything that is counted.
pub(super) struct Exporter(Registry);

impl Exporter {
    pub(super) fn new(metrics: Arc<Metrics>, api: Arc<dyn ClientApi>) -> Self {
        let mut registry = Registry::with_prefix("lally");
        registry.register_collector(Box::new(Scrape { metrics, api }));
        Self(registry)
    }

    /// The text of a scrape.
    pub(super) fn render(&self) -> String {
        let mut text = String::with_capacity(16 * 1_024);
        // Writing to a String does not fail.
        encode(&mut text, &self.0).unwrap_or_default();
        text
    }
}

struct Scrape {
    metrics: Arc<Metrics>,
    api: Arc<dyn ClientApi>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrape").field("metrics", &self.metrics).finish_non_exhaustive()
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_requests(&mut encoder)?;
        self.encode_latencies(&mut encoder)?;
        self.encode_members(&mut encoder)?;
        let stats = self.api.stats();
        self.encode_gauges(&stats, &mut encoder)?;
        Self::encode_syncs(&stats.log, &mut encoder)?;
        Self::encode_reloads(stats.reloads, &mut encoder)?;
        self.encode_counters(&stats, &mut encoder)
    }
}

impl Scrape {
    fn encode_requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests by call and status, errors by code";
        let mut family = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
        for (call, metrics) in Call::ALL.into_iter().zip(&self.metrics.calls) {
            for (outcome, count) in Outcome::all().zip(&metrics.outcomes) {
                let count = count.load(Ordering::Relaxed);
                let mut labels = vec![("call", call.as_str()), ("status", outcome.status())];
                labels.extend(outcome.code().map(|code| ("code", code.as_str())));
                // Most pairs never happen; a counter that begins with its first event is fine.
                if count > 0 || (outcome == Outcome::Success && call != Call::Other) {
                    family
                        .encode_family(&labels)?
                        .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        Ok(())
    }

    fn encode_latencies(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let name = "request_duration_seconds";
        let help = "Time from the head of a request to its answer";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (call, metrics) in Call::ALL.into_iter().zip(&self.metrics.calls) {
            let bounds = BOUNDS.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> =
                bounds.zip(metrics.latencies.iter().map(|n| n.load(Ordering::Relaxed))).collect();
            let count = buckets.iter().map(|(_, n)| n).sum();
            let sum = Duration::from_nanos(metrics.nanos.load(Ordering::Relaxed)).as_secs_f64();
            family
                .encode_family(&[("call", call.as_str())])?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn encode_members(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let members = self.api.cluster().members;
        let help = "Other members by state";
        let mut family = encoder.encode_descriptor("members", help, None, MetricType::Gauge)?;
        for state in STATES {
            let count = members.iter().filter(|member| member.state == state).count();
            family.encode_family(&[("state", state_name(state))])?.encode_gauge(&count)?;
        }
        let hints: u64 = members.iter().map(|member| member.hints).sum();
        let help = "Keys kept for members that missed them";
        encoder
            .encode_descriptor("hints_pending", help, None, MetricType::Gauge)?
            .encode_gauge(&hints)?;
        let help = "Keys kept for a member that missed them";
        let mut family =
            encoder.encode_descriptor("member_hints", help, None, MetricType::Gauge)?;
        for member in members.iter().filter(|member| member.state != MemberState::Left) {
            let id = member.id().to_string();
            family.encode_family(&[("member", id.as_str())])?.encode_gauge(&member.hints)?;
        }
        Self::encode_clocks(encoder, &members)
    }

    fn encode_clocks(encoder: &mut DescriptorEncoder<'_>, members: &[MemberStatus]) -> fmt::Result {
        let (name, help) = ("clock_offset_seconds", "Clock of a member less this node's");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for member in members {
            let Some(ms) = member.clock_offset_ms else { continue };
            let id = member.id().to_string();
            // Exact for offsets of less than a hundred thousand years.
            #[expect(clippy::cast_precision_loss, reason = "a clock's offset, in milliseconds")]
            let seconds = ms as f64 / 1_000.0;
            family.encode_family(&[("member", id.as_str())])?.encode_gauge(&seconds)?;
        }
        let help = "Entries refused as from the future, by who stamped them";
        let mut family =
            encoder.encode_descriptor("clock_refusals", help, None, MetricType::Counter)?;
        for member in members {
            let id = member.id().to_string();
            family
                .encode_family(&[("peer", id.as_str())])?
                .encode_counter::<NoLabelSet, _, u64>(&member.clock_refusals, None)?;
        }
        Ok(())
    }

    fn encode_gauges(&self, stats: &NodeStats, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let NodeStats { store, log, memory_limit, horizon_age, .. } = stats;
        let ready = u64::from(self.api.readiness().is_ok());
        let in_flight = self.metrics.in_flight.load(Ordering::Relaxed) as u64;
        let connections = self.metrics.connections.load(Ordering::Relaxed) as u64;
        for (name, help, value) in [
            ("ready", "1 if the node is ready, else 0", ready),
            ("keys", "Keys with a value", store.keys),
            ("tombstones", "Removed keys that are remembered", store.tombstones),
            ("payload_bytes", "Bytes of all keys and values", store.payload_bytes),
            ("memory_bytes", "Bytes of memory that the data takes", store.memory_bytes),
            ("log_bytes", "Bytes of the log on disk", log.bytes),
            ("http_requests_in_flight", "Requests worked on right now", in_flight),
            ("http_connections", "Open connections", connections),
        ] {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        if let Some(age) = horizon_age {
            let help = "Seconds since the time up to which removed keys are forgotten";
            encoder
                .encode_descriptor("horizon_age_seconds", help, None, MetricType::Gauge)?
                .encode_gauge(&age.as_secs())?;
        }
        if let Some(bytes) = memory_limit.as_bytes() {
            let help = "Bytes of memory that the data may take (max_memory)";
            encoder
                .encode_descriptor("memory_limit_bytes", help, None, MetricType::Gauge)?
                .encode_gauge(&bytes)?;
        }
        Ok(())
    }

    fn encode_reloads(reloads: ReloadStats, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Times that the configuration was read again";
        let mut family = encoder.encode_descriptor("reloads", help, None, MetricType::Counter)?;
        for (result, count) in [("ok", reloads.applied), ("failed", reloads.refused)] {
            let labels = [("result", result)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    fn encode_syncs(log: &LogStats, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let LogStats { syncs, unforced_for, .. } = log;
        let bounds = SyncTimes::BOUNDS.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(syncs.counts).collect();
        let (name, help) = ("log_sync_duration_seconds", "Time that forcing the log to disk took");
        encoder
            .encode_descriptor(name, help, None, MetricType::Histogram)?
            .encode_histogram::<NoLabelSet>(
                syncs.total.as_secs_f64(),
                syncs.count(),
                &buckets,
                None,
            )?;
        let help = "Age of the oldest write that waits to be forced to disk";
        encoder
            .encode_descriptor("log_unforced_seconds", help, None, MetricType::Gauge)?
            .encode_gauge(&unforced_for.unwrap_or_default().as_secs_f64())
    }

    fn encode_counters(
        &self,
        stats: &NodeStats,
        encoder: &mut DescriptorEncoder<'_>,
    ) -> fmt::Result {
        let ComparisonStats {
            differing_buckets: differing,
            summaries,
            entries_pulled: pulled,
            entries_pushed: pushed,
            bytes_pushed: bytes,
            ..
        } = stats.comparison;
        let refused = self.metrics.connections_refused.load(Ordering::Relaxed);
        let failures = self.metrics.accept_failures.load(Ordering::Relaxed);
        for (name, help, value) in [
            ("log_appended_records", "Records appended to the log", stats.log.appended),
            ("read_repairs", "Entries sent to replicas found behind", stats.read_repairs),
            ("hints_delivered", "Missed writes delivered later", stats.hints_delivered),
            ("entries_synced", "Entries taken over by comparison", stats.entries_synced),
            ("comparison_rounds", "Rounds of comparison with a peer", stats.comparison.rounds),
            ("comparison_differing_buckets", "Buckets exchanged", differing),
            ("comparison_summaries", "Summaries of entries got by comparison", summaries),
            ("comparison_entries_pulled", "Entries got by comparison", pulled),
            ("comparison_entries_pushed", "Entries sent by comparison", pushed),
            ("comparison_bytes_pushed", "Bytes of keys and values sent by comparison", bytes),
            ("digest_drift", "Buckets whose digest was wrong and repaired", stats.digest_drift),
            ("drift_refusals", "Entries refused as from the future", stats.drift_refusals),
            ("late_arrivals", "Entries that were old on arrival", stats.late_arrivals),
            ("tombstones_dropped", "Removed keys forgotten", stats.tombstones_dropped),
            ("entries_quarantined", "Entries put into quarantine", stats.quarantined),
            ("hook_drops", "Hook calls dropped, the hook being slow", stats.hook_drops),
            ("hook_panics", "Hook calls that panicked", stats.hook_panics),
            ("http_connections_refused", "Connections above the limit", refused),
            ("http_accept_failures", "Connections that could not be accepted", failures),
        ] {
            encoder
                .encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
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
