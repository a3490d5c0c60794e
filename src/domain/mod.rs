//! The pure core: what a value is, which version of it wins, and when enough nodes have answered.
//!
//! Everything here is a plain value: no async, no I/O, no clock, no randomness, no serialization.
//! Whatever depends on order, counts or time is decided here and tested exhaustively; the layers
//! above only carry out what these values say. The domain names nothing outside itself but
//! `thiserror` and a stable hash.

mod access;
mod clock;
mod compaction;
mod confirmation;
mod digest;
mod entry;
mod hints;
mod horizon;
mod key;
mod line_budget;
mod members;
mod memory;
mod quorum;
mod read_quorum;
mod recount;
mod skew;
mod start;
mod stopping;
mod summary;
mod trace;
mod value;
mod version;
mod write_quorum;

pub use access::{Access, InvalidAccess, Role};
pub use clock::{ClockDrift, HybridClock, RESERVATION_NS, ReservationNeeded};
pub use compaction::LogWeight;
pub use confirmation::Confirmation;
pub use digest::{
    BUCKETS, Bucket, BucketSet, Digest, DigestLevel, Fingerprint, GROUP_BUCKETS, GROUPS, Group,
};
pub use entry::{Content, Entry, KeyedEntry};
pub use hints::HintQueue;
pub use horizon::{EqualRound, Evidence, LATE_NS, Proposal, counted, is_proposer};
pub use key::{InvalidKey, Key, MAX_KEY_BYTES};
pub use line_budget::LineBudget;
pub use members::{
    CannotForget, FORGOTTEN_AHEAD, Forgotten, Liveness, Meeting, Member, MemberState, MemberView,
    Phase, RecordChange,
};
pub use memory::{MemoryFull, MemoryLimit};
pub use quorum::{InvalidQuorum, Progress, QuorumSpec, Required};
pub use read_quorum::ReadQuorum;
pub use recount::Recount;
pub use skew::{BehindHorizon, ClockSample, ClockSkew};
pub use start::{Contact, KeptData, Roundup, Start};
pub use stopping::{QuorumKind, StopCheck, StopRisk, StopWitness};
pub use summary::{Remedy, Summary};
pub use trace::TraceContext;
pub use value::{MAX_VALUE_BYTES, Value};
pub use version::{InvalidNodeId, NodeId, Timestamp, Version};
pub use write_quorum::WriteQuorum;
