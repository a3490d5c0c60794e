//! `Handoff`: hinted handoff, the delivery of writes that a member missed.
//!
//! A write that did not reach a member leaves its key here ([`HintQueue`]); once the member answers
//! again it is sent the newest entry of each key. Hints live in memory: a coordinator that ends
//! with hints leaves the difference to the comparison of nodes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;

use crate::domain::{HintQueue, Key, KeyedEntry, Liveness, NodeId, Phase};
use crate::ports::{Peer, PeerError, PeerTransport, Store, WriteReply};

use super::members::Members;
use super::reconcile::Reconciler;

/// Hints under way to one member at a time: enough to fill its batches, few enough to leave the
/// way to clients' writes.
const IN_FLIGHT: usize = 64;

/// How long a member that did not take its hints is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Bounds of handoff.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HandoffLimits {
    /// Of one delivery.
    pub(crate) peer_timeout: Duration,
    /// Of the hints for one member; beyond it the member is compared in full.
    pub(crate) max_hint_bytes: usize,
}

/// The hints of a node.
pub(crate) struct Handoff {
    members: Arc<Members>,
    transport: Arc<dyn PeerTransport>,
    store: Arc<dyn Store>,
    reconciler: Arc<Reconciler>,
    limits: HandoffLimits,
    queues: Mutex<BTreeMap<NodeId, HintQueue>>,
    wake: Notify,
    delivered: AtomicU64,
}

impl Handoff {
    pub(crate) fn new(
        members: Arc<Members>,
        transport: Arc<dyn PeerTransport>,
        store: Arc<dyn Store>,
        reconciler: Arc<Reconciler>,
        limits: HandoffLimits,
    ) -> Self {
        Self {
            members,
            transport,
            store,
            reconciler,
            limits,
            queues: Mutex::default(),
            wake: Notify::new(),
            delivered: AtomicU64::new(0),
        }
    }

    /// `member` missed a write of `key`.
    pub(crate) fn note(&self, member: NodeId, key: Key) {
        let max_bytes = self.limits.max_hint_bytes;
        self.queues().entry(member).or_insert_with(|| HintQueue::new(max_bytes)).push(key);
        self.wake.notify_one();
    }

    /// Somebody came back: try at once.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// The number of hints kept for a member.
    pub(crate) fn count(&self, member: NodeId) -> u64 {
        self.queues().get(&member).map_or(0, |queue| queue.len() as u64)
    }

    /// Hints delivered since the start.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }

    /// Delivers hints for as long as the node runs.
    pub(crate) async fn run(&self) {
        loop {
            self.forget_the_gone();
            self.compare_the_overflowed();
            if self.deliver_once().await {
                self.wake.notified().await;
            } else {
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }

    /// Sends every member that is up what it missed. Says whether all took it. Cancel safe: a hint
    /// under way is kept.
    pub(crate) async fn deliver_once(&self) -> bool {
        let waiting = self.waiting();
        let delivered = join_all(waiting.iter().map(|peer| self.deliver(peer))).await;
        delivered.iter().all(|delivered| *delivered)
    }

    /// Sends a member what it missed until nothing is left; `false` once it does not take it.
    async fn deliver(&self, peer: &Peer) -> bool {
        loop {
            let keys = match self.queues().get_mut(&peer.id) {
                Some(queue) if !queue.is_empty() => queue.take(IN_FLIGHT),
                _ => return true,
            };
            let hints = keys.into_iter().map(|key| TakenHint {
                handoff: self,
                peer: peer.id,
                key: Some(key),
            });
            let outcomes = join_all(hints.map(|hint| self.deliver_one(peer, hint))).await;
            if outcomes.contains(&false) {
                return false;
            }
        }
    }

    async fn deliver_one(&self, peer: &Peer, mut hint: TakenHint<'_>) -> bool {
        let Some(key) = hint.key.clone() else { return true };
        let Some(entry) = self.store.get(&key) else {
            hint.key = None;
            return true;
        };
        let write = KeyedEntry::new(key, entry);
        match self.transport.write(peer, write, self.limits.peer_timeout).await {
            Ok(WriteReply::Applied { .. } | WriteReply::Superseded { .. }) => {
                hint.key = None;
                self.delivered.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(error) => {
                if !matches!(error, PeerError::Unreachable(_) | PeerError::TimedOut) {
                    tracing::warn!(peer = %peer.id, %error, "hint not taken");
                }
                false
            }
        }
    }

    /// Members that have hints and are not known to be down.
    fn waiting(&self) -> Vec<Peer> {
        let view = self.members.view();
        let queues = self.queues();
        let with_hints = view.peers().filter(|m| queues.get(&m.id).is_some_and(|q| !q.is_empty()));
        with_hints.filter(|m| view.liveness(m.id) != Liveness::Down).map(Peer::from).collect()
    }

    /// A member that left compares its data when it returns; it needs no hints.
    fn forget_the_gone(&self) {
        let view = self.members.view();
        self.queues().retain(|id, _| view.get(*id).is_some_and(|m| m.phase != Phase::Left));
    }

    /// Members that missed more than fits here are compared in full instead.
    fn compare_the_overflowed(&self) {
        let view = self.members.view();
        let is_up = |id: &NodeId| view.liveness(*id) != Liveness::Down;
        let mut queues = self.queues();
        for (id, queue) in queues.iter_mut().filter(|(id, q)| q.overflowed() && is_up(id)) {
            tracing::warn!(peer = %id, "more hints than fit: the member will be compared in full");
            queue.clear_overflow();
            self.reconciler.request(*id);
        }
    }

    fn queues(&self) -> MutexGuard<'_, BTreeMap<NodeId, HintQueue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A hint on its way; back in the queue when it is dropped without having been delivered.
struct TakenHint<'a> {
    handoff: &'a Handoff,
    peer: NodeId,
    /// `None` once it is delivered.
    key: Option<Key>,
}

impl Drop for TakenHint<'_> {
    fn drop(&mut self) {
        // Not `note`: that would wake the loop at once.
        if let Some(key) = self.key.take()
            && let Some(queue) = self.handoff.queues().get_mut(&self.peer)
        {
            queue.push(key);
        }
    }
}
