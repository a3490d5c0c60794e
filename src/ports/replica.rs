//! The `ReplicaApi` driving port: what peers ask of this node.

use std::time::Duration;

use async_trait::async_trait;

use crate::domain::{
    Bucket, BucketSet, ClockDrift, Digest, DigestLevel, Entry, Key, KeyedEntry, NodeId, Summary,
    Timestamp, TraceContext, Version,
};

use super::{Announcement, LogError, Origin, PeerError, Refusal};

/// What peers ask of this node. The transport adapter calls it for what it receives.
///
/// Messages of another cluster or protocol are refused by [`announce`](Self::announce) and by the
/// transport's own handshake before anything else here is called.
#[cfg_attr(test, mockall::automock)]
#[async_trait]
pub trait ReplicaApi: Send + Sync + 'static {
    /// Merges these writes in: into the log, then into the store. The answers are in the order of
    /// the writes. This is the one path by which entries enter a node.
    ///
    /// Not cancel safe between log and store: call it from a task that is not aborted.
    async fn apply(
        &self,
        writes: Vec<KeyedEntry>,
        asked: Asked,
    ) -> Vec<Result<WriteReply, ApplyError>>;

    /// This node's copy, tombstones included.
    ///
    /// # Errors
    /// [`NotWhole`] as long as "nothing" would not mean that nothing was written.
    fn read(
        &self,
        key: &Key,
        caller: Caller,
        trace: Option<TraceContext>,
    ) -> Result<Option<Entry>, NotWhole>;

    /// The digest of all entries.
    fn digest(&self) -> Digest;

    /// This node's wall time.
    fn wall_time(&self) -> Timestamp;

    /// The digests of a level, as many as it [has](DigestLevel::len).
    fn level_digests(&self, level: &DigestLevel) -> Vec<u64>;

    /// Streams every entry of these buckets, in the order of the buckets. The last chunk is complete
    /// through [`Bucket::LAST`]; a stream that ends without it was broken off.
    async fn pull(&self, buckets: BucketSet) -> Box<dyn EntryStream>;

    /// Streams a summary of every entry of these buckets, as [`pull`](Self::pull) the entries.
    async fn summaries(&self, buckets: BucketSet) -> Box<dyn EntryStream<Summary>>;

    /// Streams the entries of these keys, at most [`MAX_FETCHED`] of them, those that are held. The
    /// end is as that of a [`pull`](Self::pull).
    fn fetch(&self, keys: Vec<Key>) -> Box<dyn EntryStream>;

    /// A peer states itself and what it knows of the members; this node answers with the same.
    ///
    /// # Errors
    /// [`Refusal`] when the two do not belong together.
    async fn announce(&self, announcement: Announcement) -> Result<Announcement, Refusal>;

    /// Certifies this node at a horizon: it refuses from now on what is older and not held, and
    /// forgets its tombstones up to there. Durable when it returns; a second time does nothing.
    ///
    /// # Errors
    /// [`NotCertified`] when the evidence is not of this node as it is now. Nothing was changed; the
    /// caller has to compare anew.
    async fn fence(&self, certification: Certification) -> Result<(), NotCertified>;

    /// A packet for the failure detector. Never blocks; may be dropped like any datagram.
    fn gossip(&self, packet: &[u8]);
}

/// Who asks, as far as is known, and for how long the question has waited here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caller {
    /// The node that says it is the one.
    pub node: Option<NodeId>,
    /// From its arrival to the call.
    pub waited: Duration,
}

/// Why there is something to [apply](ReplicaApi::apply).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// By which way the writes come.
    pub origin: Origin,
    /// Who sends them.
    pub caller: Caller,
    /// The traces that writes are a part of, with the place of the write. Those of none have none here.
    pub traces: Vec<(usize, TraceContext)>,
}

impl From<Origin> for Asked {
    /// By nobody in particular.
    fn from(origin: Origin) -> Self {
        Self { origin, caller: Caller::default(), traces: Vec::new() }
    }
}

/// That a node holds everything up to a horizon, as a peer found by comparing with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certification {
    /// Every entry stamped up to here that exists is held.
    pub horizon: Timestamp,
    /// The start of the node that was compared.
    pub generation: u64,
    /// How long ago the oldest of the comparisons began on which this rests.
    pub age: Duration,
}

/// Why a node did not let itself be certified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCertified {
    /// It is no whole member, or not in the generation that was compared.
    #[error("the node is not the one that was compared: {0}")]
    Changed(&'static str),
    /// Something has arrived late since it was compared, which others may lack.
    #[error("an entry has arrived late since the comparison")]
    Disturbed,
    /// The horizon is not in its past: one of the clocks is wrong.
    #[error("the horizon is not in the past of this node; check the clocks of both (NTP)")]
    Clock,
    /// The log did not take it.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// A replica's answer to a write that it took in or did not need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteReply {
    /// The replica holds the entry, in its log and in memory.
    Applied {
        /// For a removal only: what it removed here, if the key was held.
        previous: Option<Entry>,
    },
    /// The replica holds a newer entry and kept that.
    Superseded {
        /// The version of the newer entry.
        by: Version,
    },
}

/// The node has not got its data yet, or has left: its copy counts for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node is no whole member and has no copy that counts")]
pub struct NotWhole;

/// Why a write did not enter this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The version is from too far in the future. Nothing was changed; a retry helps once the
    /// clocks agree.
    #[error(transparent)]
    ClockDrift(#[from] ClockDrift),
    /// The log did not take it. The store is unchanged.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The node is starting or stopping. Nothing was changed.
    #[error("the node takes no writes: {0}")]
    NotReady(&'static str),
}

/// The most keys, and bytes of keys, in one [`fetch`](ReplicaApi::fetch).
pub const MAX_FETCHED: (usize, usize) = (4_096, 256 * 1_024);

/// Entries, or summaries of them, chunk by chunk.
#[async_trait]
pub trait EntryStream<T: Send + 'static = KeyedEntry>: Send {
    /// The next chunk; `None` at the end. After an error the stream has ended.
    ///
    /// Cancel safe: a chunk is either returned or comes with the next call.
    async fn next(&mut self) -> Option<Result<EntryChunk<T>, PeerError>>;
}

/// A part of a stream of entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryChunk<T = KeyedEntry> {
    /// Entries, about 256 KiB of them, unless a single one is larger; a chunk may have none, and says
    /// then that more is on its way.
    pub entries: Vec<T>,
    /// All asked-for buckets up to this one are complete with this chunk.
    pub complete_through: Option<Bucket>,
}
