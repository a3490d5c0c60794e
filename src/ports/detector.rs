//! The `FailureDetector` port: who is up.

use async_trait::async_trait;

use crate::domain::{Liveness, Member, NodeId};

/// Watches the members. What it says changes who is waited for, never who is a member.
///
/// Contract (suite: `tests/it/contracts/detector.rs`):
/// * A member that stops answering MUST be reported down within a few seconds, one that answers
///   again (or with a new generation) alive.
/// * Packets travel over [`PeerTransport::gossip`](super::PeerTransport::gossip) and come back in
///   through [`receive`](Self::receive); both may lose, repeat and reorder them.
/// * A member that is not watched any more MUST NOT be sent anything, until it is watched again or
///   heard of in a later generation.
/// * `watch`, `unwatch`, `receive` and `restate` MUST NOT block, and what they say, `receive` aside,
///   MUST NOT be lost, however many packets come in.
#[cfg_attr(test, mockall::automock)]
#[async_trait]
pub trait FailureDetector: Send + Sync + 'static {
    /// Watches this member from now on. A second call is harmless.
    fn watch(&self, member: &Member);

    /// This member has left, up to the generation of this record: nothing more is sent to it, until
    /// it is watched again.
    fn unwatch(&self, member: &Member);

    /// This node states itself anew (a higher generation).
    fn restate(&self, me: &Member);

    /// Takes in a packet from a peer: any bytes, possibly garbage.
    fn receive(&self, packet: &[u8]);

    /// The next change; `None` once the detector has ended. Cancel safe.
    async fn next_change(&self) -> Option<LivenessChange>;

    /// Tells the others that this node goes, and ends.
    async fn leave(&self);
}

/// News about a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivenessChange {
    /// Who.
    pub id: NodeId,
    /// Which of its starts this is about.
    pub generation: u64,
    /// Where it is reached: enough to ask a member for its record that was only heard of.
    pub grpc_addr: String,
    /// What is believed from now on.
    pub liveness: Liveness,
}
