//! The `PeerTransport` port: how this node reaches its peers.

use std::time::Duration;

use async_trait::async_trait;

use crate::domain::{
    BucketSet, Digest, DigestLevel, Entry, Key, KeyedEntry, Member, NodeId, Summary, Timestamp,
    TraceContext,
};

use super::{Certification, EntryStream, PeerStats, WriteReply};

/// The version of the language spoken between nodes.
pub const PROTOCOL_VERSION: u32 = 1;

/// The way to the other nodes.
///
/// Contract (suite: `tests/it/contracts/transport.rs`):
/// * Every call MUST return within its timeout (those without one, within a few seconds), whatever
///   the peer or the network does.
/// * [`PeerError::Unreachable`] MUST be returned only if the peer certainly did not see the
///   request. When it may have acted, the answer is [`PeerError::TimedOut`].
/// * A request for a node id MUST NOT be served by a node of another id, cluster or protocol.
/// * A peer that is known to be gone MUST fail at once, not after the timeout; the way to it MUST
///   be tried again in the background, with backoff, so that a later call succeeds; but not after
///   [`release`](PeerTransport::release), until that later call.
/// * Dropping the future of a call does not take back a request that is under way; one that still
///   waits for a connection may be left unsent.
/// * `write` and `read` to one peer may overtake each other.
/// * The trace of a `write` or `read` SHOULD reach the peer's [`ReplicaApi`](super::ReplicaApi); no call
///   fails for it.
#[cfg_attr(test, mockall::automock)]
#[async_trait]
pub trait PeerTransport: Send + Sync + 'static {
    /// Has the peer merge an entry in.
    async fn write(
        &self,
        peer: &Peer,
        write: KeyedEntry,
        call: PeerCall,
    ) -> Result<WriteReply, PeerError>;

    /// The peer's copy of a key, tombstones included.
    async fn read(&self, peer: &Peer, key: Key, call: PeerCall)
    -> Result<Option<Entry>, PeerError>;

    /// States this node to whoever is at this address (`HOST:PORT`, the host an IPv4, `[IPv6]` or
    /// DNS name, resolved anew) and returns what that node states in turn.
    async fn announce(
        &self,
        addr: &str,
        announcement: Announcement,
        timeout: Duration,
    ) -> Result<Announcement, PeerError>;

    /// Sends a packet of the failure detector to this address. May be lost, like any datagram;
    /// never waits for more than a place in a bounded queue.
    fn gossip(&self, addr: &str, packet: Vec<u8>);

    /// The peer's digest of all entries.
    async fn digest(&self, peer: &Peer, timeout: Duration) -> Result<Digest, PeerError>;

    /// The peer's wall time when it answered; `None` if it does not say.
    async fn wall_time(
        &self,
        peer: &Peer,
        timeout: Duration,
    ) -> Result<Option<Timestamp>, PeerError>;

    /// The peer's digests of a level, exactly as many as it [has](DigestLevel::len).
    async fn level_digests(
        &self,
        peer: &Peer,
        level: DigestLevel,
        timeout: Duration,
    ) -> Result<Vec<u64>, PeerError>;

    /// Streams the peer's entries in these buckets, in the order of the buckets, up to a chunk that is
    /// complete through [`Bucket::LAST`](crate::domain::Bucket::LAST).
    async fn pull(
        &self,
        peer: &Peer,
        buckets: BucketSet,
    ) -> Result<Box<dyn EntryStream>, PeerError>;

    /// Streams summaries of the peer's entries in these buckets, as [`pull`](Self::pull) the entries.
    async fn summaries(
        &self,
        peer: &Peer,
        buckets: BucketSet,
    ) -> Result<Box<dyn EntryStream<Summary>>, PeerError>;

    /// Streams the peer's entries of these keys, at most [`MAX_FETCHED`](super::MAX_FETCHED) of them;
    /// those it does not hold are left out. The end is as that of a [`pull`](Self::pull).
    async fn fetch(&self, peer: &Peer, keys: Vec<Key>) -> Result<Box<dyn EntryStream>, PeerError>;

    /// Has the peer merge many entries in, away from the way of `write` and `read`. `Ok` means that
    /// it holds each of them or a newer one, but for those it refuses for their clock. After an error
    /// it may hold some of them.
    async fn push(
        &self,
        peer: &Peer,
        writes: Vec<KeyedEntry>,
        timeout: Duration,
    ) -> Result<(), PeerError>;

    /// Certifies the peer at a horizon, as [`ReplicaApi::fence`](super::ReplicaApi::fence). A refusal
    /// is [`PeerError::Rejected`].
    async fn fence(
        &self,
        peer: &Peer,
        certification: Certification,
        timeout: Duration,
    ) -> Result<(), PeerError>;

    /// The smoothed round trip of recent calls to this peer, if there were any.
    fn round_trip(&self, peer: NodeId) -> Option<Duration>;

    /// How the reads and writes sent to this peer went; nothing where that is not counted.
    fn stats(&self, peer: NodeId) -> PeerStats;

    /// This peer has left: ends the way to it, so that nobody calls there any more. A later call
    /// opens it again. Never waits; what is under way goes on.
    fn release(&self, peer: &Peer);

    /// Closes every connection, after what is under way or its timeout.
    async fn close(&self);
}

/// A read or write at a peer: how long it may take, and what it is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCall {
    /// See [`PeerTransport`].
    pub timeout: Duration,
    /// The trace of the request that it is made for, if that has one.
    pub trace: Option<TraceContext>,
}

impl From<Duration> for PeerCall {
    /// Of no trace.
    fn from(timeout: Duration) -> Self {
        Self { timeout, trace: None }
    }
}

/// A node to be reached: at this address there must be this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who is expected.
    pub id: NodeId,
    /// `HOST:PORT` of its peer port.
    pub addr: String,
}

impl From<&Member> for Peer {
    fn from(member: &Member) -> Self {
        Self { id: member.id, addr: member.grpc_addr.clone() }
    }
}

/// Protocol versions that a node speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProtocolRange {
    /// The oldest.
    pub min: u32,
    /// The newest.
    pub max: u32,
}

impl ProtocolRange {
    /// What this release speaks.
    pub const OURS: Self = Self { min: PROTOCOL_VERSION, max: PROTOCOL_VERSION };

    /// Whether two nodes have a version in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }
}

/// What a node states about itself and the members it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The name of its cluster.
    pub cluster: String,
    /// The protocol versions it speaks.
    pub protocol: ProtocolRange,
    /// Itself.
    pub sender: Member,
    /// The other members it knows, those that left too.
    pub members: Vec<Member>,
    /// Where it is certified: it holds everything stamped up to here, and no tombstone. Zero: nowhere.
    pub horizon: Timestamp,
    /// The release that the sender runs, for people; empty if it does not say.
    pub version: String,
}

/// Why two nodes do not belong together. Nothing was changed on either side; no retry helps until
/// one of them is configured anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The cluster names differ.
    #[error(
        "wrong cluster: this node belongs to {ours:?}, the other to {theirs:?}; set the same --cluster-name on both, or another --seed-node"
    )]
    WrongCluster {
        /// The name on the side that refuses.
        ours: String,
        /// The name on the side that was refused.
        theirs: String,
    },
    /// No protocol version in common.
    #[error(
        "no common protocol: this node speaks {}..={}, the other {}..={}; upgrade the older one",
        ours.min, ours.max, theirs.min, theirs.max
    )]
    WrongProtocol {
        /// What the side that refuses speaks.
        ours: ProtocolRange,
        /// What the side that was refused speaks.
        theirs: ProtocolRange,
    },
    /// The node at the address is not the one that was expected there.
    #[error("wrong node: {expected} was expected at this address, {found} is there")]
    WrongNode {
        /// Who was expected.
        expected: NodeId,
        /// Who answered.
        found: NodeId,
    },
    /// The node reached itself: its own address is among its seeds.
    #[error("this address is the node's own")]
    Myself,
    /// Another process runs with the identity of this node.
    #[error(
        "the node at {addr} has the identity of this one: one of the two runs on a copy of the other's data directory; remove node.json from the copy, and start it with --fresh"
    )]
    SameIdentity {
        /// What the other one states as its address.
        addr: String,
    },
    /// Another node states the address of this one.
    #[error(
        "{addr} is the address of the node that refuses; set --advertise-addr to where peers reach yours"
    )]
    SameAddress {
        /// The address of both.
        addr: String,
    },
}

/// Why a peer did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer did not see the request. A retry helps once it is back.
    #[error("the peer is unreachable: {0}")]
    Unreachable(String),
    /// No answer in time, or the connection broke before it: the peer may have acted.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// The two do not belong together. Nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The peer saw the request and did not carry it out: clock drift, a full disk, start or stop.
    /// Its state is unchanged (after a `push` of many entries: it may hold some).
    #[error("the peer did not carry it out: {0}")]
    Rejected(String),
    /// The peer sent something that is not of the protocol. The connection was dropped.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
}

impl PeerError {
    /// What [`reason`](Self::reason) may be, in the order of [`PeerStats::failures`].
    pub const REASONS: [&'static str; 5] =
        ["unreachable", "timed_out", "refused", "rejected", "protocol"];

    /// In one word.
    pub fn reason(&self) -> &'static str {
        Self::REASONS.get(self.place()).copied().unwrap_or_default()
    }

    pub(super) const fn place(&self) -> usize {
        match self {
            Self::Unreachable(_) => 0,
            Self::TimedOut => 1,
            Self::Refused(_) => 2,
            Self::Rejected(_) => 3,
            Self::Protocol(_) => 4,
        }
    }
}
