//! `NodeSettings`: what a node needs to know that is not an adapter.

use std::time::Duration;

use crate::domain::{MemoryLimit, QuorumSpec};

use super::walks::Walks;

/// How long answers are still collected for an operation whose quorum cannot be met: long enough for
/// replicas that are up, so that the answer says how many they are, and short enough for "at once".
pub(crate) const UNREACHABLE_GRACE: Duration = Duration::from_millis(100);

/// What a link to a peer carries at least, in bytes per second: 256 kbit/s. Values may have 16 MiB,
/// so a timeout that is the same for all is too short for some, or too long for the rest. Of a link
/// that is dead the transport's keep-alive tells sooner.
const SLOWEST_LINK: u64 = 32 * 1_024;

/// How long a call may take that carries this many bytes, with this timeout for the rest of it.
pub(crate) fn time_for(bytes: usize, timeout: Duration) -> Duration {
    let millis = (bytes as u64).saturating_mul(1_000) / SLOWEST_LINK;
    timeout.saturating_add(Duration::from_millis(millis))
}

/// What holds for requests that do not say otherwise. It can be changed while a node runs
/// ([`Live::limit`](super::Live::limit)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// See [`NodeSettings::read_quorum`].
    pub read_quorum: QuorumSpec,
    /// See [`NodeSettings::write_quorum`].
    pub write_quorum: QuorumSpec,
    /// See [`NodeSettings::request_timeout`].
    pub request_timeout: Duration,
    /// See [`NodeSettings::max_value_bytes`].
    pub max_value_bytes: usize,
    /// See [`NodeSettings::max_memory`].
    pub max_memory: MemoryLimit,
}

impl From<&NodeSettings> for RequestLimits {
    fn from(settings: &NodeSettings) -> Self {
        Self {
            read_quorum: settings.read_quorum,
            write_quorum: settings.write_quorum,
            request_timeout: settings.request_timeout,
            max_value_bytes: settings.max_value_bytes,
            max_memory: settings.max_memory,
        }
    }
}

/// The settings of a node. [`NodeSettings::new`] has the defaults of the configuration.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// Nodes of other clusters are refused.
    pub cluster: String,
    /// `HOST:PORT` where peers reach this node.
    pub grpc_addr: String,
    /// `HOST:PORT` where clients reach this node.
    pub http_addr: String,
    /// `HOST:PORT` of members to join.
    pub seeds: Vec<String>,
    /// Answers needed for a read, unless the request says otherwise.
    pub read_quorum: QuorumSpec,
    /// Acknowledgements needed for a write, unless the request says otherwise.
    pub write_quorum: QuorumSpec,
    /// Bound of a client's request, unless the request says otherwise.
    pub request_timeout: Duration,
    /// Bound of one call to a peer. Deliveries go on for this long after the client was answered;
    /// what takes longer becomes a hint.
    pub peer_timeout: Duration,
    /// Longest value, in bytes; at most [`MAX_VALUE_BYTES`](crate::domain::MAX_VALUE_BYTES).
    pub max_value_bytes: usize,
    /// How much the data may take in memory before clients' writes that make it grow are refused.
    pub max_memory: MemoryLimit,
    /// How far ahead of this node's clock a version may be.
    pub max_clock_drift: Duration,
    /// Bytes of hints kept per absent member; beyond it the member is compared in full.
    pub max_hint_bytes: usize,
    /// How often this node compares itself with another one, on average.
    pub anti_entropy_interval: Duration,
    /// How long a tombstone is kept at least.
    pub tombstone_grace: Duration,
    /// How long a member may be down before tombstones are forgotten without it.
    pub max_absence: Duration,
    /// Beyond this time what is done for a peer is a line of the log; `None`: never.
    pub slow_log_threshold: Option<Duration>,
    /// Seed of the randomness of intervals and orders.
    pub random_seed: u64,
    /// Where walks over all keys happen.
    pub walks: Walks,
}

impl NodeSettings {
    /// The defaults, for a node of this cluster at these addresses.
    pub fn new(cluster: &str, grpc_addr: &str, http_addr: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            grpc_addr: grpc_addr.to_owned(),
            http_addr: http_addr.to_owned(),
            seeds: Vec::new(),
            read_quorum: QuorumSpec::ONE,
            write_quorum: QuorumSpec::ONE,
            request_timeout: Duration::from_secs(2),
            peer_timeout: Duration::from_secs(2),
            max_value_bytes: 1 << 20,
            max_memory: MemoryLimit::NONE,
            max_clock_drift: Duration::from_millis(500),
            max_hint_bytes: 64 << 20,
            anti_entropy_interval: Duration::from_secs(30),
            tombstone_grace: Duration::from_secs(24 * 3_600),
            max_absence: Duration::from_secs(7 * 24 * 3_600),
            slow_log_threshold: Some(Duration::from_millis(250)),
            random_seed: 0,
            walks: Walks::Aside,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_larger_may_take_longer_and_what_is_small_takes_no_longer_than_the_timeout() {
        let timeout = Duration::from_secs(2);
        assert_eq!(time_for(0, timeout), timeout);
        assert_eq!(time_for(100, timeout), timeout + Duration::from_millis(3));
        assert_eq!(time_for(256 << 10, timeout), timeout + Duration::from_secs(8));
        assert_eq!(time_for(1 << 20, timeout), timeout + Duration::from_secs(32));
        assert!(time_for(usize::MAX, Duration::MAX) == Duration::MAX);
    }
}
