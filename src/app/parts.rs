//! `NodeParts`: what a node plugs in.

use std::sync::Arc;

use crate::ports::{
    Clock, FailureDetector, Hook, MemberBook, OpLog, PeerTransport, Quarantine, Store,
};

/// The adapters of a node.
pub struct NodeParts {
    /// The entries.
    pub store: Arc<dyn Store>,
    /// The log, not replayed yet.
    pub log: Arc<dyn OpLog>,
    /// The way to the peers.
    pub transport: Arc<dyn PeerTransport>,
    /// Who is up.
    pub detector: Arc<dyn FailureDetector>,
    /// Who this node is and whom it knows.
    pub book: Arc<dyn MemberBook>,
    /// Where entries go that must not come back.
    pub quarantine: Arc<dyn Quarantine>,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Hooks, in their order.
    pub hooks: Vec<Arc<dyn Hook>>,
}
