//! `ReadRepair`: sends the newest entry to replicas that a read found behind.
//!
//! Bounded, and one at a time per key: a hot key that is behind is repaired once, not once per
//! read. A read that must know that a replica has it does not wait for its turn: it calls
//! [`ReadRepair::repair_one`].

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::domain::{Key, KeyedEntry, NodeId, TraceContext};
use crate::ports::{Origin, Peer, PeerCall, PeerTransport};

use super::apply::Replica;
use super::handoff::Handoff;
use super::members::Members;

/// Keys under repair at a time. A read that finds more does not repair; the next one may.
const MAX_KEYS: usize = 256;

/// Repairs replicas.
pub(crate) struct ReadRepair {
    members: Arc<Members>,
    transport: Arc<dyn PeerTransport>,
    replica: Arc<Replica>,
    handoff: Arc<Handoff>,
    peer_timeout: Duration,
    under_repair: Mutex<HashSet<Key>>,
    repaired: AtomicU64,
}

impl ReadRepair {
    pub(crate) fn new(
        members: Arc<Members>,
        transport: Arc<dyn PeerTransport>,
        replica: Arc<Replica>,
        handoff: Arc<Handoff>,
        peer_timeout: Duration,
    ) -> Self {
        Self {
            members,
            transport,
            replica,
            handoff,
            peer_timeout,
            under_repair: Mutex::default(),
            repaired: AtomicU64::new(0),
        }
    }

    /// Entries sent since the start.
    pub(crate) fn repaired(&self) -> u64 {
        self.repaired.load(Ordering::Relaxed)
    }

    /// Sends `newest` to these replicas. Not cancel safe: it may apply an entry to this node.
    pub(crate) async fn repair(
        &self,
        newest: KeyedEntry,
        behind: Vec<NodeId>,
        trace: Option<TraceContext>,
    ) {
        let Some(_turn) = self.begin(&newest.key) else { return };
        for node in behind {
            self.repair_one(newest.clone(), node, trace).await;
        }
    }

    /// Sends `newest` to one replica. Says whether that holds it now, or something newer. Not cancel
    /// safe, as [`repair`](Self::repair).
    pub(crate) async fn repair_one(
        &self,
        newest: KeyedEntry,
        node: NodeId,
        trace: Option<TraceContext>,
    ) -> bool {
        let view = self.members.view();
        let sent = if node == view.me().id {
            self.replica.apply_one(newest, Origin::Repair).await.is_ok()
        } else if let Some(member) = view.get(node) {
            self.send(&Peer::from(member), newest, trace).await
        } else {
            false
        };
        if sent {
            self.repaired.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    async fn send(&self, peer: &Peer, newest: KeyedEntry, trace: Option<TraceContext>) -> bool {
        let key = newest.key.clone();
        let call = PeerCall { timeout: self.peer_timeout, trace };
        let sent = self.transport.write(peer, newest, call).await.is_ok();
        if !sent {
            self.handoff.note(peer.id, key);
        }
        sent
    }

    fn begin(&self, key: &Key) -> Option<Turn<'_>> {
        let mut keys = self.under_repair.lock().unwrap_or_else(PoisonError::into_inner);
        let free = keys.len() < MAX_KEYS && keys.insert(key.clone());
        free.then(|| Turn { repair: self, key: key.clone() })
    }
}

/// A key under repair, until dropped.
struct Turn<'a> {
    repair: &'a ReadRepair,
    key: Key,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let keys = &self.repair.under_repair;
        keys.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
