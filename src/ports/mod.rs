//! The ports: what the application needs from outside, and what the outside may ask of it.
//!
//! Driven ports (the application calls, an adapter answers): [`Store`], [`OpLog`],
//! [`PeerTransport`], [`FailureDetector`], [`MemberBook`], [`Quarantine`], [`Hook`],
//! [`Clock`]; the adapter for clients asks a [`Gatekeeper`]. Driving ports (an
//! adapter calls, the application answers): [`ClientApi`] for clients, [`ReplicaApi`] for peers.
//!
//! A port's documentation is its contract. Ports with more than one adapter have a suite under
//! `tests/it/contracts/` that every adapter passes. Ports are asynchronous only where an adapter
//! waits for something outside the process.

mod book;
mod client;
mod clock;
mod detector;
mod gatekeeper;
mod hook;
mod log;
mod log_level;
mod peer_stats;
mod quarantine;
mod replica;
mod store;
mod transport;

pub use book::{Book, BookError, MemberBook};
pub use client::{
    Answer, ClientApi, ClientError, ClusterStatus, ComparisonStats, Consistency, ForgetError,
    MemberStatus, NoLogLevel, NodeStats, NodeStatus, Phases, ReloadStats, RequestOptions, Verdict,
};
pub use clock::Clock;
pub use detector::{FailureDetector, LivenessChange};
pub use gatekeeper::Gatekeeper;
pub use hook::{DeliveryStats, Effect, Hook, OpKind, Operation, Origin, Veto};
pub use log::{
    BackupStream, Compacted, LogError, LogRecord, LogStats, OpLog, ReplayVisitor, Replayed,
    SnapshotEntries, SnapshotSource, SyncTimes,
};
pub use log_level::{InvalidLogLevel, LogLevel};
pub use peer_stats::{ConnectionStats, PeerStats, ReplyTimes};
pub use quarantine::{Quarantine, QuarantineError};
pub use replica::{
    ApplyError, Asked, Caller, Certification, EntryChunk, EntryStream, MAX_FETCHED, NotCertified,
    NotWhole, ReplicaApi, WriteReply,
};
pub use store::{Merged, Store, StoreStats};
pub use transport::{
    Announcement, PROTOCOL_VERSION, Peer, PeerCall, PeerError, PeerTransport, ProtocolRange,
    Refusal,
};

#[cfg(test)]
pub use self::{
    book::MockMemberBook, client::MockClientApi, clock::MockClock, detector::MockFailureDetector,
    gatekeeper::MockGatekeeper, hook::MockHook, log::MockBackupStream, log::MockOpLog,
    quarantine::MockQuarantine, replica::MockReplicaApi, store::MockStore,
    transport::MockPeerTransport,
};
