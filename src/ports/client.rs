//! The `ClientApi` driving port: what clients ask of this node.

use std::time::Duration;

use async_trait::async_trait;

use crate::domain::{
    CannotForget, Digest, Forgotten, Key, Member, MemberState, MemoryLimit, NodeId, QuorumSpec,
    StopRisk, Timestamp, TraceContext, Value,
};

use super::{
    BackupStream, Compacted, ConnectionStats, DeliveryStats, LogError, LogLevel, LogStats,
    PeerStats, StoreStats,
};

/// What clients ask of this node. The HTTP adapter calls it, and so may an embedding program.
///
/// Every call answers within the request's timeout plus 250 ms. Cancel safety: dropping the future
/// of a write does not stop the write, which goes on to every replica.
#[cfg_attr(test, mockall::automock)]
#[async_trait]
pub trait ClientApi: Send + Sync + 'static {
    /// Reads a key from as many replicas as the quorum says.
    async fn get(&self, key: Key, options: RequestOptions) -> Result<Answer, ClientError>;

    /// Writes a value.
    async fn add(
        &self,
        key: Key,
        value: Value,
        options: RequestOptions,
    ) -> Result<Answer, ClientError>;

    /// Removes a key.
    async fn remove(&self, key: Key, options: RequestOptions) -> Result<Answer, ClientError>;

    /// The peer addresses of the live members but this one, sorted.
    fn nodes(&self) -> Vec<String>;

    /// Whether this node has its data and is in sync with the cluster.
    ///
    /// # Errors
    /// The reason why not yet, or not any more.
    fn readiness(&self) -> Result<(), String>;

    /// The cluster as this node sees it.
    fn cluster(&self) -> ClusterStatus;

    /// Counts for metrics.
    fn stats(&self) -> NodeStats;

    /// Removes a member that is down and will never come back, here and, as it spreads, everywhere:
    /// quorums shrink, and what was kept for it is dropped. It is in the book of this node when this
    /// returns. Repeating it is harmless.
    ///
    /// # Errors
    /// [`ForgetError`]; nothing was changed then.
    async fn forget(&self, member: NodeId) -> Result<Forgotten, ForgetError>;

    /// Has the log compacted: returns when that is done, whatever it takes. Cancel safety: dropping
    /// the future does not stop it.
    ///
    /// # Errors
    /// [`ClientError::Overloaded`] when that is done already, [`ClientError::DiskFull`] when there is
    /// no space for the copy, and others; the log is as it was then.
    async fn compact_log(&self) -> Result<Compacted, ClientError>;

    /// Begins a backup of this node: every write that it had taken when this was called is in it, and
    /// of later ones none without all before it. Nobody waits for it. One at a time; whoever takes
    /// nothing of it for a minute has given it up, and so has whoever drops it.
    ///
    /// # Errors
    /// [`ClientError::NotReady`] when the node has not got its data, [`ClientError::Overloaded`] when
    /// there is one already, [`ClientError::NoBackups`], and others.
    async fn backup(&self) -> Result<Box<dyn BackupStream>, ClientError>;

    /// What speaks against stopping this node now; nothing if that is safe.
    fn stop_risks(&self) -> Vec<StopRisk>;

    /// Has messages of this level and above logged from now on, until the configuration is read again
    /// or the process ends.
    ///
    /// # Errors
    /// [`NoLogLevel`], and nothing has changed.
    fn set_log_level(&self, level: LogLevel) -> Result<(), NoLogLevel>;
}

/// What a client may set for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestOptions {
    /// Instead of the configured quorum.
    pub quorum: Option<QuorumSpec>,
    /// Instead of the configured timeout.
    pub timeout: Option<Duration>,
    /// Of a read.
    pub consistency: Consistency,
    /// What it is a part of: goes along to the nodes that are asked, and into log lines.
    pub trace: Option<TraceContext>,
}

/// What a read has made sure of before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Consistency {
    /// As many replicas as the quorum says have answered.
    #[default]
    Default,
    /// And as many hold what is answered, at least a majority: no later confirmed read answers with
    /// anything older (see [`Confirmation`](crate::domain::Confirmation)).
    Confirmed,
}

/// Whether the quorum was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It was.
    Success,
    /// Fewer nodes answered than required. A write may still spread to all of them.
    Partial,
}

/// The answer to an operation that was carried out, at least in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether enough nodes answered.
    pub verdict: Verdict,
    /// Of a read: the value found. Of a write: the value written. Of a removal: what it removed.
    pub value: Option<Value>,
    /// Of a read: the version of the value found. Of a write: its version. Of a removal: the time
    /// of the removal, if there was something to remove.
    pub timestamp: Option<Timestamp>,
    /// How many nodes had to answer.
    pub required: u32,
    /// How many did, this one included.
    pub achieved: u32,
    /// What it waited for.
    pub phases: Phases,
}

/// What an operation waited for, and how long. Of one that waited for nothing no clock is read, and
/// all is zero; what it did beside, this does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Phases {
    /// For the hooks that may refuse it.
    pub hooks: Duration,
    /// For this node's own log, until it had the write or the answer was given.
    pub log: Duration,
    /// For other nodes, until the last that counted or the answer was given. At the same time as for
    /// the log.
    pub peers: Duration,
}

/// Why nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The node has not got its data yet. A retry helps later, or at another node.
    #[error("the node is not ready: {0}")]
    NotReady(String),
    /// More requests than the node takes at a time. A retry helps later, or at another node.
    #[error("the node is overloaded: {0}")]
    Overloaded(&'static str),
    /// The node is stopping. A retry helps at another node.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// The value is longer than allowed. No retry helps.
    #[error("the value has {bytes} bytes, more than the {max_bytes} allowed (max_value_bytes)")]
    TooLarge {
        /// Length of the value.
        bytes: usize,
        /// The limit.
        max_bytes: usize,
    },
    /// The disk is further behind than `--fsync everysec` allows: to take the write would be to risk
    /// more than the last two seconds. Reads work; a retry helps once the disk has caught up, or at
    /// another node.
    #[error(
        "the disk is behind: what was acknowledged almost two seconds ago is not forced to it \
         yet (--fsync everysec); a retry helps once it has caught up"
    )]
    DurabilityLag,
    /// The disk of the log is full. Reads work, and removals as long as the log's reserve lasts; a retry helps
    /// once there is space.
    #[error("the disk is full: a retry helps once there is space")]
    DiskFull,
    /// What was asked of the log itself (to compact it, to back it up) could not be done; it is as it
    /// was. A retry helps if the disk does what it refused now.
    #[error("{0}")]
    LogFailed(String),
    /// The data of this node takes as much memory as it may. Reads, removals, and writes that make
    /// no value longer work; a retry helps once keys were removed.
    #[error(
        "the data takes as much memory as it may, {max_memory} bytes (max_memory): remove keys, or \
         give the node more"
    )]
    MemoryFull {
        /// The limit, in bytes.
        max_memory: u64,
    },
    /// The log of this node cannot be taken elsewhere. No retry helps.
    #[error("the log of this node has no backups")]
    NoBackups,
    /// A hook refused the operation. No retry helps.
    #[error("refused by the {hook} hook: {reason}")]
    Vetoed {
        /// The hook's name.
        hook: &'static str,
        /// What it said.
        reason: String,
    },
}

/// Why a member was not forgotten. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForgetError {
    /// It cannot be, as things are.
    #[error(transparent)]
    Refused(#[from] CannotForget),
    /// This node is starting or stopping. A retry helps later, or at another node.
    #[error(transparent)]
    Unavailable(#[from] ClientError),
}

/// What a log that did not take a write means to whoever asked for it.
impl From<&LogError> for ClientError {
    fn from(error: &LogError) -> Self {
        match error {
            LogError::Overloaded => Self::Overloaded("the log cannot keep up"),
            LogError::DurabilityLag => Self::DurabilityLag,
            LogError::DiskFull => Self::DiskFull,
            LogError::NoBackups => Self::NoBackups,
            LogError::Failed(_) | LogError::Closed | LogError::Corrupt { .. } => Self::ShuttingDown,
        }
    }
}

/// The program that this node is part of logs in a way of its own. No retry helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log level of this node is not set by calls")]
pub struct NoLogLevel;

/// The cluster as one node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// The cluster's name.
    pub cluster: String,
    /// This node.
    pub node: NodeStatus,
    /// The other members, by id.
    pub members: Vec<MemberStatus>,
    /// Live keys, tombstones and bytes on this node.
    pub store: StoreStats,
    /// Equal on nodes that hold the same data.
    pub digest: Digest,
    /// Keys removed up to here are forgotten, and cannot come back; `None` if none were yet.
    pub horizon: Option<Timestamp>,
}

/// This node, as it shows itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its own record.
    pub member: Member,
    /// In one word.
    pub state: MemberState,
    /// The release that it runs.
    pub version: String,
}

/// Another member, as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its record.
    pub member: Member,
    /// In one word.
    pub state: MemberState,
    /// Keys it missed and that this node keeps for it.
    pub hints: u64,
    /// Whether its data was equal to this node's when they last compared, and it has missed
    /// nothing since.
    pub in_sync: bool,
    /// For how long this node has not known that any more: nothing while it does, `None` if it never
    /// did since it started.
    pub lag: Option<Duration>,
    /// How long ago this node heard from it last, to within a few seconds; `None` if it never did
    /// since it started.
    pub last_heard: Option<Duration>,
    /// The release that it runs, if it has said so.
    pub version: Option<String>,
    /// How the calls to it went.
    pub calls: PeerStats,
    /// Its wall clock less this node's, in milliseconds, if it answered lately.
    pub clock_offset_ms: Option<i64>,
    /// Entries that it stamped and this node refused, as from too far in the future.
    pub clock_refusals: u64,
}

impl MemberStatus {
    /// The member's name.
    pub const fn id(&self) -> NodeId {
        self.member.id
    }
}

/// Counts of this node since it started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeStats {
    /// The store.
    pub store: StoreStats,
    /// What the store may take in memory.
    pub memory_limit: MemoryLimit,
    /// The log.
    pub log: LogStats,
    /// Entries sent to replicas that a read found behind.
    pub read_repairs: u64,
    /// Hints delivered to members that had missed writes.
    pub hints_delivered: u64,
    /// Entries taken over from other nodes by comparison.
    pub entries_synced: u64,
    /// What the comparison of nodes has cost.
    pub comparison: ComparisonStats,
    /// Buckets whose digest had drifted from the entries, and was repaired.
    pub digest_drift: u64,
    /// Entries refused because their version was too far in the future.
    pub drift_refusals: u64,
    /// Entries from elsewhere that were more than ten seconds old on arrival.
    pub late_arrivals: u64,
    /// Tombstones forgotten.
    pub tombstones_dropped: u64,
    /// Entries put into the quarantine.
    pub quarantined: u64,
    /// How long ago the horizon was.
    pub horizon_age: Option<Duration>,
    /// Hook calls dropped because a hook was too slow.
    pub hook_drops: u64,
    /// Hook calls that panicked.
    pub hook_panics: u64,
    /// Writes that wait for their quorum although their clients are gone.
    pub unawaited_writes: u64,
    /// Connections that peers open, if whoever accepts them tells.
    pub peer_connections: ConnectionStats,
    /// New configurations.
    pub reloads: ReloadStats,
    /// What hooks have passed on.
    pub deliveries: Vec<DeliveryStats>,
}

/// How often a new configuration was read while the node ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReloadStats {
    /// It took effect.
    pub applied: u64,
    /// It was refused, and nothing has changed.
    pub refused: u64,
}

/// Counts of the comparisons that this node has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ComparisonStats {
    /// Rounds, those that found nothing to exchange too.
    pub rounds: u64,
    /// Buckets in which entries were exchanged.
    pub differing_buckets: u64,
    /// Summaries of entries that were got, to see which of them differ.
    pub summaries: u64,
    /// Entries taken over.
    pub entries_pulled: u64,
    /// Entries sent.
    pub entries_pushed: u64,
    /// Bytes of keys and values sent.
    pub bytes_pushed: u64,
}
