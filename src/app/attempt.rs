//! What an attempt of a write is made of: what is to be written, by whom, and what a replica says.

use tokio::time::Instant;

use crate::domain::{Content, Key, MemberView, NodeId, QuorumSpec, TraceContext, WriteQuorum};
use crate::ports::{ApplyError, PeerError, WriteReply};

/// What is to be written.
pub(super) struct Write {
    pub(super) key: Key,
    pub(super) content: Content,
    pub(super) quorum: QuorumSpec,
    pub(super) deadline: Instant,
    pub(super) trace: Option<TraceContext>,
}

/// A reply to one attempt.
pub(super) struct Reply {
    pub(super) attempt: u8,
    pub(super) node: NodeId,
    pub(super) result: Result<WriteReply, Failure>,
}

/// Why a replica did not take a write.
pub(super) enum Failure {
    Here(ApplyError),
    There(PeerError),
}

/// The members that must, and may, acknowledge a write.
pub(super) fn quorum(write: &Write, view: &MemberView) -> WriteQuorum {
    WriteQuorum::new(write.quorum.among(view.size()), view.replicas())
}
