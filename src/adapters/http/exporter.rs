//! Metrics in the text format of `OpenMetrics`, which Prometheus reads: what requests have counted,
//! what the node says of itself through the port, and what the operating system says of the process,
//! each read when it is asked for.
//!
//! `docs/metrics.md` lists them; a test compares the two.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use crate::domain::MemberState;
use crate::ports::{
    ClientApi, ComparisonStats, LogStats, MemberStatus, NodeStats, PeerError, ReloadStats,
    ReplyTimes, SyncTimes,
};

use super::delivery_metrics;
use super::metrics::{BOUNDS, Call, Metrics, Outcome};
use super::process::ProcessCollector;
use super::render::state_name;

/// The media type of what [`Exporter::render`] returns.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) const STATES: [MemberState; 5] = [
    MemberState::Joining,
    MemberState::Alive,
    MemberState::Suspect,
    MemberState::Down,
    MemberState::Left,
];

/// Renders everything that is counted.
pub(super) struct Exporter(Registry);

impl Exporter {
    pub(super) fn new(metrics: Arc<Metrics>, api: Arc<dyn ClientApi>) -> Self {
        let mut registry = Registry::default();
        let node = Scrape { metrics, api, since: Instant::now() };
        registry.sub_registry_with_prefix("lally").register_collector(Box::new(node));
        registry.register_collector(Box::new(ProcessCollector));
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
    /// When the server began.
    since: Instant,
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
        self.encode_slow(&mut encoder)?;
        let members = self.api.cluster().members;
        Self::encode_members(&members, &mut encoder)?;
        Self::encode_lags(&members, &mut encoder)?;
        Self::encode_peers(&members, &mut encoder)?;
        let stats = self.api.stats();
        self.encode_gauges(&stats, &mut encoder)?;
        Self::encode_disk(&stats.log, &mut encoder)?;
        Self::encode_reloads(stats.reloads, &mut encoder)?;
        self.encode_counters(&stats, &mut encoder)?;
        delivery_metrics::encode(&stats.deliveries, &mut encoder)
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

    fn encode_slow(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Requests that took longer than slow_log_threshold";
        let mut family =
            encoder.encode_descriptor("slow_requests", help, None, MetricType::Counter)?;
        for (call, metrics) in Call::ALL.into_iter().zip(&self.metrics.calls) {
            family
                .encode_family(&[("call", call.as_str())])?
                .encode_counter::<NoLabelSet, _, u64>(
                    &metrics.slow.load(Ordering::Relaxed),
                    None,
                )?;
        }
        Ok(())
    }

    fn encode_members(
        members: &[MemberStatus],
        encoder: &mut DescriptorEncoder<'_>,
    ) -> fmt::Result {
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
        for member in present(members) {
            let id = member.id().to_string();
            family.encode_family(&[("member", id.as_str())])?.encode_gauge(&member.hints)?;
        }
        Self::encode_clocks(encoder, members)
    }

    fn encode_lags(members: &[MemberStatus], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Value = fn(&MemberStatus) -> Option<f64>;
        let gauges: [(_, _, Value); 3] = [
            ("member_in_sync", "1 if a member is known to have everything, else 0", |member| {
                Some(f64::from(u8::from(member.in_sync)))
            }),
            ("member_lag_seconds", "For how long that is not known of a member", |member| {
                member.lag.map(|lag| lag.as_secs_f64())
            }),
            ("member_last_heard_seconds", "Time since a member was heard last", |member| {
                member.last_heard.map(|heard| heard.as_secs_f64())
            }),
        ];
        for (name, help, value) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for member in present(members) {
                let Some(value) = value(member) else { continue };
                let id = member.id().to_string();
                family.encode_family(&[("member", id.as_str())])?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }

    fn encode_peers(members: &[MemberStatus], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = ("peer_call_duration_seconds", "Time that replies of a peer took");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for member in present(members) {
            let times = &member.calls.replies;
            let bounds =
                ReplyTimes::BOUNDS.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(times.counts).collect();
            let (sum, count) = (times.total.as_secs_f64(), times.counts.iter().sum());
            let id = member.id().to_string();
            family
                .encode_family(&[("member", id.as_str())])?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        let (name, help) = ("peer_call_failures", "Calls to a peer that failed");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for member in present(members) {
            let id = member.id().to_string();
            for (reason, count) in PeerError::REASONS.into_iter().zip(member.calls.failures) {
                family
                    .encode_family(&[("member", id.as_str()), ("reason", reason)])?
                    .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        let help = "Calls that wait to be sent to a peer";
        let mut family =
            encoder.encode_descriptor("peer_calls_queued", help, None, MetricType::Gauge)?;
        for member in present(members) {
            let id = member.id().to_string();
            family.encode_family(&[("member", id.as_str())])?.encode_gauge(&member.calls.queued)?;
        }
        Ok(())
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

    fn encode_reloads(reloads: ReloadStats, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Times that the configuration was read again";
        let mut family = encoder.encode_descriptor("reloads", help, None, MetricType::Counter)?;
        for (result, count) in [("ok", reloads.applied), ("failed", reloads.refused)] {
            let labels = [("result", result)];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    fn encode_gauges(&self, stats: &NodeStats, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let NodeStats { store, log, memory_limit, horizon_age, .. } = stats;
        let ready = u64::from(self.api.readiness().is_ok());
        let in_flight = self.metrics.in_flight.load(Ordering::Relaxed) as u64;
        let awaited = self.metrics.bodies_awaited.load(Ordering::Relaxed) as u64;
        let connections = self.metrics.connections.load(Ordering::Relaxed) as u64;
        for (name, help, value) in [
            ("ready", "1 if the node is ready, else 0", ready),
            ("keys", "Keys with a value", store.keys),
            ("tombstones", "Removed keys that are remembered", store.tombstones),
            ("payload_bytes", "Bytes of all keys and values", store.payload_bytes),
            ("memory_bytes", "Bytes of memory that the data takes", store.memory_bytes),
            ("log_bytes", "Bytes of the log on disk", log.bytes),
            ("log_queue_bytes", "Bytes that wait to be written to the log", log.queued_bytes),
            ("http_requests_in_flight", "Requests worked on right now", in_flight),
            ("http_connections", "Open connections", connections),
            ("http_bodies_awaited", "Requests whose bodies are on their way", awaited),
            ("unawaited_writes", "Writes under way whose clients are gone", stats.unawaited_writes),
            ("peer_connections", "Open connections of peers", stats.peer_connections.open),
            (
                "uptime_seconds",
                "Time since this node began to serve",
                self.since.elapsed().as_secs(),
            ),
        ] {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        encoder
            .encode_descriptor("build_info", "The release that runs", None, MetricType::Gauge)?
            .encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?
            .encode_gauge(&1_u64)?;
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

    fn encode_disk(log: &LogStats, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, times) in [
            ("log_sync_duration_seconds", "Time that forcing the log to disk took", &log.syncs),
            ("log_write_duration_seconds", "Time that writing to the log's file took", &log.writes),
        ] {
            let bounds = SyncTimes::BOUNDS.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
            let buckets: Vec<(f64, u64)> = bounds.zip(times.counts).collect();
            encoder
                .encode_descriptor(name, help, None, MetricType::Histogram)?
                .encode_histogram::<NoLabelSet>(
                    times.total.as_secs_f64(),
                    times.count(),
                    &buckets,
                    None,
                )?;
        }
        let help = "Age of the oldest write that waits to be forced to disk";
        encoder
            .encode_descriptor("log_unforced_seconds", help, None, MetricType::Gauge)?
            .encode_gauge(&log.unforced_for.unwrap_or_default().as_secs_f64())
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
        let peers = stats.peer_connections;
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
            ("peer_connections_refused", "Connections of peers above the limit", peers.refused),
            ("peer_handshakes_dropped", "Strangers that gave way to others", peers.cut_short),
        ] {
            encoder
                .encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
        }
        Ok(())
    }
}

/// The members that have not left.
fn present(members: &[MemberStatus]) -> impl Iterator<Item = &MemberStatus> {
    members.iter().filter(|member| member.state != MemberState::Left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Digest, Member, MemoryLimit, NodeId, Phase};
    use crate::ports::{
        ClusterStatus, DeliveryStats, MockClientApi, NodeStatus, PeerStats, StoreStats,
    };
    use std::collections::{BTreeMap, BTreeSet};

    /// The type of each metric, and its labels; the names as samples have them, those of histograms
    /// without their ends.
    type Shown = BTreeMap<String, (String, BTreeSet<String>)>;

    fn member(id: u64) -> Member {
        let addr = format!("10.0.0.{id}:1");
        Member {
            id: NodeId::new(id),
            generation: 1,
            phase: Phase::Whole,
            grpc_addr: addr.clone(),
            http_addr: addr,
        }
    }

    /// A node of which everything is known that there is to know.
    fn telling() -> MockClientApi {
        let mut api = MockClientApi::new();
        api.expect_readiness().returning(|| Ok(()));
        api.expect_stats().returning(|| NodeStats {
            memory_limit: MemoryLimit::bytes(1),
            horizon_age: Some(Duration::ZERO),
            deliveries: vec![DeliveryStats::default()],
            ..NodeStats::default()
        });
        api.expect_cluster().returning(|| ClusterStatus {
            cluster: "lally".into(),
            node: NodeStatus { member: member(1), state: MemberState::Alive, version: "1".into() },
            members: vec![MemberStatus {
                member: member(2),
                state: MemberState::Alive,
                hints: 0,
                in_sync: true,
                lag: Some(Duration::ZERO),
                last_heard: Some(Duration::ZERO),
                version: Some("1".into()),
                calls: PeerStats::default(),
                clock_offset_ms: Some(0),
                clock_refusals: 0,
            }],
            store: StoreStats::default(),
            digest: Digest::default(),
            horizon: None,
        });
        api
    }

    fn rendered() -> String {
        let metrics = Arc::new(Metrics::default());
        let refused = Outcome::Refused(super::super::errors::Code::NotFound);
        metrics.record(Call::Other, refused, Duration::ZERO);
        Exporter::new(metrics, Arc::new(telling())).render()
    }

    fn shown(text: &str) -> Shown {
        let types: BTreeMap<_, _> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        let mut found = Shown::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (sample, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
            let family = ["_bucket", "_sum", "_count", "_total", ""].into_iter().find_map(|end| {
                let family = name.strip_suffix(end)?;
                types.contains_key(family).then_some(family)
            });
            let family = family.unwrap_or_else(|| panic!("{line} has no type"));
            let kind = types[family];
            let name = if kind == "counter" { name } else { family };
            let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
            let labels = labels.map(|label| label.split('=').next().unwrap().to_owned());
            found
                .entry(name.to_owned())
                .or_insert_with(|| (kind.to_owned(), BTreeSet::new()))
                .1
                .extend(labels.filter(|label| label != "le"));
        }
        found
    }

    fn documented() -> Shown {
        let document = include_str!("../../../docs/metrics.md");
        let cells = |line: &str| -> Vec<String> {
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let names = |cell: &str| -> BTreeSet<String> {
            let names = cell.split(',').map(|name| name.trim().trim_matches('`').to_owned());
            names.filter(|name| !name.is_empty()).collect()
        };
        let rows = document.lines().filter(|line| line.starts_with("| `")).map(cells);
        let mut found = Shown::new();
        for row in rows {
            let [name, kind, labels, ..] = row.as_slice() else { panic!("{row:?}") };
            // Name, type, labels, unit, meaning, alarm.
            assert!(row.len() >= 5, "{row:?}");
            let name = name.trim_matches('`').to_owned();
            let before = found.insert(name.clone(), (kind.clone(), names(labels)));
            assert!(before.is_none(), "{name} stands there twice");
        }
        found
    }

    #[test]
    fn the_table_of_metrics_has_what_a_node_shows_with_types_and_labels_and_nothing_else() {
        let (shown, documented) = (shown(&rendered()), documented());
        for (name, what) in &shown {
            assert_eq!(documented.get(name), Some(what), "{name} in docs/metrics.md");
        }
        for name in documented.keys() {
            let optional = name.starts_with("process_") && !cfg!(target_os = "linux");
            assert!(shown.contains_key(name) || optional, "{name} is in docs/metrics.md alone");
        }
    }

    /// The metrics that an expression names.
    fn named_in(expression: &str) -> impl Iterator<Item = &str> {
        let words = expression.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
        words.filter(|word| word.starts_with("lally_") || word.starts_with("process_"))
    }

    #[track_caller]
    fn all_exist(expressions: &[String]) {
        let shown = shown(&rendered());
        let exists = |name: &str| {
            let of_histogram = ["_bucket", "_sum", "_count"].iter().any(|end| {
                let family = name.strip_suffix(end).and_then(|family| shown.get(family));
                family.is_some_and(|(kind, _)| kind == "histogram")
            });
            of_histogram || shown.get(name).is_some_and(|(kind, _)| kind != "histogram")
        };
        for expression in expressions {
            assert!(named_in(expression).next().is_some(), "no metric in {expression}");
            for name in named_in(expression) {
                assert!(exists(name), "{name} in {expression}");
            }
        }
    }

    fn expressions_in(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, field) in fields {
                    match field.as_str() {
                        Some(text) if ["expr", "definition"].contains(&name.as_str()) => {
                            found.push(text.to_owned());
                        }
                        _ => expressions_in(field, found),
                    }
                }
            }
            serde_json::Value::Array(items) => {
                for item in items {
                    expressions_in(item, found);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn the_dashboard_asks_for_metrics_that_exist() {
        let dashboard = include_str!("../../../docs/grafana/lally.json");
        let mut expressions = Vec::new();
        expressions_in(&serde_json::from_str(dashboard).unwrap(), &mut expressions);
        assert!(expressions.len() > 40, "{}", expressions.len());
        all_exist(&expressions);
    }

    #[test]
    fn the_alarms_ask_for_metrics_that_exist() {
        let rules = include_str!("../../../docs/prometheus/lally-alerts.yml");
        let rules: serde_yaml::Value = serde_yaml::from_str(rules).unwrap();
        let rules = rules["groups"][0]["rules"].as_sequence().unwrap();
        let expressions: Vec<_> =
            rules.iter().map(|rule| rule["expr"].as_str().unwrap().to_owned()).collect();
        assert!(expressions.len() > 15);
        all_exist(&expressions);
        for rule in rules {
            for field in ["alert", "labels", "annotations"] {
                assert!(rule.get(field).is_some(), "{rule:?}");
            }
        }
    }

    #[test]
    fn a_metric_that_is_missing_or_has_other_labels_is_noticed() {
        let text = "# TYPE a counter\na_total{x=\"1\",le=\"2\"} 1\n# TYPE b histogram\nb_bucket{le=\"1\"} 2\n";
        let shown = shown(text);
        assert_eq!(shown["a_total"], ("counter".into(), BTreeSet::from(["x".into()])));
        assert_eq!(shown["b"], ("histogram".into(), BTreeSet::new()));
    }
}
