//! The metrics of hooks that pass changes on, one series per hook.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::ports::DeliveryStats;

type Count = fn(&DeliveryStats) -> u64;

const COUNTERS: [(&str, &str, Count); 6] = [
    ("deliveries", "Changes that the receiver took", |of| of.delivered),
    ("failures", "Attempts to deliver a change that failed", |of| of.failures),
    ("refusals", "Changes that the receiver refused for good", |of| of.refused),
    ("given_up", "Changes given up after retries for too long", |of| of.given_up),
    ("drops", "Changes dropped, the queue or the disk being full", |of| of.dropped),
    ("damaged", "Changes kept on disk that cannot be read", |of| of.damaged),
];

const GAUGES: [(&str, &str, Count); 2] = [
    ("queue_length", "Changes that wait to be delivered", |of| of.queued),
    ("queue_bytes", "Bytes that those take", |of| of.queued_bytes),
];

/// Writes nothing if there is no such hook.
pub(super) fn encode(hooks: &[DeliveryStats], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    if hooks.is_empty() {
        return Ok(());
    }
    for (name, help, count) in COUNTERS {
        let name = format!("webhook_{name}");
        let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
        for hook in hooks {
            family
                .encode_family(&[("webhook", hook.name.as_str())])?
                .encode_counter::<NoLabelSet, _, u64>(&count(hook), None)?;
        }
    }
    for (name, help, value) in GAUGES {
        let name = format!("webhook_{name}");
        let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
        for hook in hooks {
            family.encode_family(&[("webhook", hook.name.as_str())])?.encode_gauge(&value(hook))?;
        }
    }
    Ok(())
}
