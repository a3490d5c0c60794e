//! `Handoff`: hinted handoff, the delivery of writes that a member missed.
//!
//! A write that did not reach a member leaves its key here ([`HintQueue`]); once the member answers
//! again it is sent the newest entry of each key. One delivery at a time to each member, at a limited
//! rate, so that one that comes back is not run over; a member that is slow holds up nobody else's.
//! Hints live in memory: a coordinator that ends with hints leaves the difference to the comparison
//! that every member makes when it comes back, and every node when it starts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::domain::{HintQueue, Key, KeyedEntry, Liveness, NodeId, Phase};
use crate::ports::{Peer, PeerError, PeerTransport, Store, WriteReply};

use super::members::Members;
use super::reconcile::Reconciler;
use super::settings::time_for;

/// Hints under way to one member at a time: enough to fill its batches, few enough to leave the
/// way to clients' writes.
const IN_FLIGHT: usize = 64;

/// The time that so many hints take at least: 10,000 a second to one member.
const IN_FLIGHT_WITHIN: Duration = Duration::from_micros(6_400);

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

    /// `member` has left: it compares its data when it returns, and needs no hints.
    pub(crate) fn drop_hints(&self, member: NodeId) {
        self.queues().remove(&member);
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
        let mut deliveries = FuturesUnordered::new();
        let mut under_way = BTreeSet::new();
        loop {
            self.forget_the_gone();
            self.compare_the_overflowed();
            let waiting = self.waiting().into_iter().filter(|peer| under_way.insert(peer.id));
            deliveries.extend(waiting.map(async |peer| {
                if !self.deliver(&peer).await {
                    tokio::time::sleep(RETRY_AFTER).await;
                }
                peer.id
            }));
            tokio::select! {
                () = self.wake.notified() => {}
                Some(id) = deliveries.next() => {
                    under_way.remove(&id);
                }
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
        let mut next = Instant::now();
        loop {
            tokio::time::sleep_until(next).await;
            // What was late is not made up for.
            next = Instant::now().max(next + IN_FLIGHT_WITHIN);
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
        let timeout = time_for(write.payload_bytes(), self.limits.peer_timeout);
        match self.transport.write(peer, write, timeout.into()).await {
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

    /// Of members that left, what was noted for them by writes that had begun before.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::fixture::{Fixture, NOW, TestNode, key, live};

    /// A node on which every peer missed this many writes.
    fn with_hints(fixture: Fixture, count: u64) -> TestNode {
        let node = fixture.all_acknowledge().build();
        for i in 0..count {
            let name = format!("k{i}");
            node.hold(&name, live(NOW, "v"));
            for peer in [2, 3] {
                node.node.handoff().note(NodeId::new(peer), key(&name));
            }
        }
        node
    }

    /// Lets the node deliver for so long: how many hints it has left for each peer.
    async fn left_after(node: &TestNode, time: Duration) -> [u64; 2] {
        let handoff = node.node.handoff();
        tokio::time::timeout(time, handoff.run()).await.unwrap_err();
        [2, 3].map(|peer| handoff.count(NodeId::new(peer)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_does_not_answer_holds_up_no_hint_of_another() {
        let mut fixture = Fixture::with_peers([2, 3]);
        fixture.delays.insert(2, Duration::from_hours(1));
        let node = with_hints(fixture, 200);
        assert_eq!(left_after(&node, Duration::from_secs(1)).await, [200, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn hints_leave_at_a_limited_rate() {
        let node = with_hints(Fixture::with_peers([2, 3]), 10_000);
        let left = left_after(&node, Duration::from_millis(500)).await;
        for left in left {
            assert!((4_900..5_100).contains(&left), "{left}");
        }
        assert_eq!(left_after(&node, Duration::from_secs(1)).await, [0, 0]);
        assert_eq!(node.node.handoff().delivered(), 20_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_that_comes_while_others_are_under_way_is_delivered_too() {
        let node = with_hints(Fixture::with_peers([2, 3]), 100);
        let handoff = node.node.handoff();
        let late = async {
            tokio::time::sleep(Duration::from_millis(3)).await;
            node.hold("late", live(NOW, "v"));
            handoff.note(NodeId::new(2), key("late"));
            std::future::pending::<()>().await;
        };
        let both = futures_util::future::join(handoff.run(), late);
        tokio::time::timeout(Duration::from_secs(1), both).await.unwrap_err();
        assert_eq!(handoff.delivered(), 201);
    }
}
