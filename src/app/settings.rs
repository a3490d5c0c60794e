//! `NodeSettings`: what a node needs to know that is not an adapter.

use std::time::Duration;

use crate::domain::{MemoryLimit, QuorumSpec};

/// How long answers are still collected for an operation whose quorum cannot be met: long enough for
/// replicas that are up, so that the answer says how many they are, and short enough for "at once".
pub(crate) const UNREACHABLE_GRACE: Duration = Duration::from_millis(100);

use super::walks::Walks;

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
            random_seed: 0,
            walks: Walks::Aside,
        }
    }
}
