//! The read path: this node's copy, and as many peers' as the quorum needs.
//!
//! The decisions (whom to ask, what wins, whom to repair) are [`ReadQuorum`]'s. A peer that is slow
//! is hedged by the next one; what arrives after the answer still serves read repair.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::domain::{
    Entry, Key, KeyedEntry, Liveness, MemberView, NodeId, Progress, QuorumSpec, ReadQuorum,
    Required,
};
use crate::ports::{Answer, Peer, PeerError, PeerTransport, Verdict};

use super::apply::Replica;
use super::members::Members;
use super::repair::ReadRepair;
use super::stamps::Stamps;
use super::tasks::Tasks;

/// A peer is hedged after three of its usual round trips, within these bounds: not so soon that
/// every hiccup doubles the load, not so late that a stopped peer is felt.
const HEDGE_AFTER_MIN: Duration = Duration::from_millis(10);
const HEDGE_AFTER_MAX: Duration = Duration::from_millis(100);
const HEDGE_ROUND_TRIPS: u32 = 3;

/// How long answers are still collected for a read whose quorum cannot be met.
const UNREACHABLE_GRACE: Duration = Duration::from_millis(100);

/// Carries out reads.
pub(crate) struct Reader {
    pub(crate) members: Arc<Members>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) stamps: Arc<Stamps>,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) repair: Arc<ReadRepair>,
    pub(crate) tasks: Tasks,
    pub(crate) peer_timeout: Duration,
}

impl Reader {
    /// Reads `key`, at most until `deadline`.
    pub(crate) async fn read(
        self: &Arc<Self>,
        key: Key,
        quorum: QuorumSpec,
        deadline: Instant,
    ) -> Answer {
        let own_copy = self.replica.get(&key);
        if quorum == QuorumSpec::ONE {
            return answer(own_copy.as_ref(), QuorumSpec::ONE.among(1), 1);
        }
        let view = self.members.view();
        let required = quorum.among(view.replicas().count());
        let peers = self.nearest_first(&view);
        let quorum = ReadQuorum::new(required, view.me().id, own_copy, peers);
        let replies = FuturesUnordered::new();
        let mut reading = Reading { reader: Arc::clone(self), view, key, quorum, replies };
        reading.decide(deadline).await;
        let answer = answer(reading.quorum.newest(), required, reading.quorum.achieved());
        if let Some(newest) = reading.quorum.newest() {
            // A later write of this client through this node must win over what it has read. (A
            // version too far ahead to follow is refused; the next write then meets it as one that
            // supersedes it.)
            self.stamps.observe(newest.version.timestamp).ok();
        }
        if reading.quorum.outstanding() > 0 || !reading.quorum.behind().is_empty() {
            self.tasks.spawn(reading.finish());
        }
        answer
    }

    /// The replicas worth asking: those not known to be down, by their usual round trip.
    fn nearest_first(&self, view: &MemberView) -> Vec<NodeId> {
        let up = |id: &NodeId| *id != view.me().id && view.liveness(*id) != Liveness::Down;
        let mut peers: Vec<_> = view.replicas().filter(up).collect();
        peers.sort_by_key(|id| (view.liveness(*id) == Liveness::Suspect, self.round_trip(*id)));
        peers
    }

    fn round_trip(&self, peer: NodeId) -> Duration {
        self.transport.round_trip(peer).unwrap_or(HEDGE_AFTER_MAX)
    }
}

type CopyReply = (NodeId, Result<Option<Entry>, PeerError>);

/// The state of a running read.
struct Reading {
    reader: Arc<Reader>,
    view: Arc<MemberView>,
    key: Key,
    quorum: ReadQuorum,
    replies: FuturesUnordered<BoxFuture<'static, CopyReply>>,
}

impl Reading {
    /// Asks and collects until the client can be answered.
    async fn decide(&mut self, deadline: Instant) {
        let mut hedge_at = self.ask_as_needed().unwrap_or(deadline);
        let mut hopeless_since = None;
        loop {
            let mut until = deadline;
            match self.quorum.progress() {
                Progress::Met => return,
                Progress::Unreachable if self.quorum.outstanding() == 0 => return,
                Progress::Unreachable => {
                    let since = *hopeless_since.get_or_insert_with(Instant::now);
                    until = deadline.min(since + UNREACHABLE_GRACE);
                }
                Progress::Pending => {}
            }
            tokio::select! {
                Some(reply) = self.replies.next() => {
                    self.record(reply);
                    if let Some(later) = self.ask_as_needed() {
                        hedge_at = later;
                    }
                }
                () = tokio::time::sleep_until(hedge_at.min(until)) => {
                    if Instant::now() >= until {
                        return;
                    }
                    hedge_at = self.hedge().unwrap_or(deadline);
                }
            }
        }
    }

    /// After the answer: waits for whoever was asked, then repairs whoever is behind.
    async fn finish(mut self) {
        while let Some(reply) = self.replies.next().await {
            self.record(reply);
        }
        let behind = self.quorum.behind();
        if let (Some(newest), false) = (self.quorum.newest(), behind.is_empty()) {
            let newest = KeyedEntry::new(self.key.clone(), newest.clone());
            self.reader.repair.repair(newest, behind).await;
        }
    }

    /// Asks as many peers as the quorum wants; when the slowest of them is worth hedging.
    fn ask_as_needed(&mut self) -> Option<Instant> {
        let mut hedge_at = None;
        while let Some(peer) = self.quorum.next_to_ask() {
            hedge_at = hedge_at.max(self.ask(peer));
        }
        hedge_at
    }

    fn hedge(&mut self) -> Option<Instant> {
        let peer = self.quorum.ask_one_more()?;
        self.ask(peer)
    }

    fn ask(&mut self, id: NodeId) -> Option<Instant> {
        let Some(peer) = self.view.get(id).map(Peer::from) else {
            self.quorum.record_failure(id);
            return None;
        };
        let usual = self.reader.round_trip(id) * HEDGE_ROUND_TRIPS;
        let (transport, key) = (Arc::clone(&self.reader.transport), self.key.clone());
        let timeout = self.reader.peer_timeout;
        self.replies
            .push(Box::pin(async move { (peer.id, transport.read(&peer, key, timeout).await) }));
        Some(Instant::now() + usual.clamp(HEDGE_AFTER_MIN, HEDGE_AFTER_MAX))
    }

    fn record(&mut self, (node, result): CopyReply) {
        match result {
            Ok(copy) => self.quorum.record_reply(node, copy),
            Err(error) => {
                tracing::debug!(peer = %node, %error, "read not answered");
                self.quorum.record_failure(node);
            }
        }
    }
}

fn answer(newest: Option<&Entry>, required: Required, achieved: usize) -> Answer {
    let live = newest.filter(|entry| !entry.is_tombstone());
    Answer {
        verdict: if required.is_met_by(achieved) { Verdict::Success } else { Verdict::Partial },
        value: live.and_then(Entry::value).cloned(),
        timestamp: live.map(|entry| entry.version.timestamp),
        required: required.get(),
        achieved: u32::try_from(achieved).unwrap_or(u32::MAX),
    }
}
