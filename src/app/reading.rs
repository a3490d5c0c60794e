//! The read path: this node's copy, and as many peers' as the quorum needs.
//!
//! The decisions (whom to ask, what wins, whom to repair) are [`ReadQuorum`]'s. A peer that is slow
//! is hedged by the next one; what arrives after the answer still serves read repair. What a
//! confirmed read does before it answers is in `confirming`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::domain::{
    Confirmation, Entry, Key, KeyedEntry, Liveness, MemberView, NodeId, Progress, QuorumSpec,
    ReadQuorum, Required, TraceContext,
};
use crate::ports::{Answer, Peer, PeerCall, PeerError, PeerTransport, Phases, Verdict};

use super::apply::Replica;
use super::asking::{Asking, decide};
use super::confirming::WriteBack;
use super::members::Members;
use super::repair::ReadRepair;
use super::stamps::Stamps;
use super::tasks::Tasks;

/// A peer is hedged after three of its usual round trips, within these bounds: not so soon that
/// every hiccup doubles the load, not so late that a stopped peer is felt.
const HEDGE_AFTER_MIN: Duration = Duration::from_millis(10);
const HEDGE_AFTER_MAX: Duration = Duration::from_millis(100);
const HEDGE_ROUND_TRIPS: u32 = 3;

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
        trace: Option<TraceContext>,
    ) -> Answer {
        let own_copy = self.replica.get(&key);
        if quorum == QuorumSpec::ONE {
            return answer(own_copy.as_ref(), QuorumSpec::ONE.among(1), 1);
        }
        // Boxed: the future of the short way out need not have room for timers.
        Box::pin(self.read_from_peers((key, own_copy), quorum, deadline, trace)).await
    }

    /// Reads `key` and makes sure, before it answers, that as many replicas hold what it answers as
    /// had to answer: see [`Required::to_confirm`] for how many that are.
    pub(crate) async fn read_confirmed(
        self: &Arc<Self>,
        key: Key,
        quorums: ConfirmedQuorums,
        deadline: Instant,
        trace: Option<TraceContext>,
    ) -> Answer {
        let own_copy = self.replica.get(&key);
        let among = |replicas| Required::to_confirm(quorums.read, quorums.write, replicas);
        Box::pin(async move {
            let since = Instant::now();
            let mut reading = self.begin((key, own_copy), among, trace);
            decide(&mut reading, deadline).await;
            // What the replicas hold counts here, not that they answered.
            let mut achieved = reading.quorum.holders().len();
            if let (Progress::Met, Some(newest)) =
                (reading.quorum.progress(), reading.quorum.newest().cloned())
            {
                let entry = KeyedEntry::new(reading.key.clone(), newest);
                let confirmation = Confirmation::of(&reading.quorum);
                let mut write_back = WriteBack::new(Arc::clone(self), entry, confirmation, trace);
                decide(&mut write_back, deadline).await;
                achieved = write_back.achieved();
                // If one of them does not take it, it becomes a hint.
                for node in write_back.sent_to() {
                    reading.quorum.record_repaired(*node);
                }
            }
            reading.answer_with(achieved, since)
        })
        .await
    }

    async fn read_from_peers(
        self: &Arc<Self>,
        (key, own_copy): (Key, Option<Entry>),
        quorum: QuorumSpec,
        deadline: Instant,
        trace: Option<TraceContext>,
    ) -> Answer {
        let since = Instant::now();
        let mut reading = self.begin((key, own_copy), |replicas| quorum.among(replicas), trace);
        decide(&mut reading, deadline).await;
        let achieved = reading.quorum.achieved();
        reading.answer_with(achieved, since)
    }

    fn begin(
        self: &Arc<Self>,
        (key, own_copy): (Key, Option<Entry>),
        required: impl FnOnce(usize) -> Required,
        trace: Option<TraceContext>,
    ) -> Reading {
        let view = self.members.view();
        let required = required(view.size());
        let peers = self.nearest_first(&view);
        let quorum = ReadQuorum::new(required, view.me().id, own_copy, peers);
        let (reader, replies) = (Arc::clone(self), FuturesUnordered::new());
        Reading { reader, view, key, quorum, trace, replies }
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

    /// When a peer that is asked now is slow.
    pub(super) fn hedge_at(&self, peer: NodeId) -> Instant {
        let usual = self.round_trip(peer) * HEDGE_ROUND_TRIPS;
        Instant::now() + usual.clamp(HEDGE_AFTER_MIN, HEDGE_AFTER_MAX)
    }
}

/// The quorums that a confirmed read has to satisfy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConfirmedQuorums {
    /// Of the request, or else the configured one.
    pub(crate) read: QuorumSpec,
    /// The configured one.
    pub(crate) write: QuorumSpec,
}

type CopyReply = (NodeId, Result<Option<Entry>, PeerError>);

/// The state of a running read.
struct Reading {
    reader: Arc<Reader>,
    view: Arc<MemberView>,
    key: Key,
    quorum: ReadQuorum,
    trace: Option<TraceContext>,
    replies: FuturesUnordered<BoxFuture<'static, CopyReply>>,
}

impl Reading {
    /// The answer, which was waited for since then, with what is still to be done going on in a task.
    fn answer_with(self, achieved: usize, since: Instant) -> Answer {
        let mut answer = answer(self.quorum.newest(), self.quorum.required(), achieved);
        answer.phases.peers = since.elapsed();
        if let Some(newest) = self.quorum.newest() {
            // A later write of this client through this node must win over what it has read. (A
            // version too far ahead to follow is refused; the next write then meets it as one that
            // supersedes it.)
            self.reader.stamps.observe(newest.version.timestamp).ok();
        }
        if self.quorum.outstanding() > 0 || !self.quorum.behind().is_empty() {
            let tasks = self.reader.tasks.clone();
            tasks.spawn(self.finish());
        }
        answer
    }

    /// After the answer: waits for whoever was asked, then repairs whoever is behind.
    async fn finish(mut self) {
        while let Some(reply) = self.replies.next().await {
            self.record(reply);
        }
        let behind = self.quorum.behind();
        if let (Some(newest), false) = (self.quorum.newest(), behind.is_empty()) {
            let newest = KeyedEntry::new(self.key.clone(), newest.clone());
            self.reader.repair.repair(newest, behind, self.trace).await;
        }
    }

    fn record(&mut self, (node, result): CopyReply) {
        match result {
            Ok(copy) => {
                let copy = copy.filter(|copy| !self.reader.replica.is_ghost(&self.key, copy));
                self.quorum.record_reply(node, copy);
            }
            Err(error) => {
                tracing::debug!(peer = %node, %error, "read not answered");
                self.quorum.record_failure(node);
            }
        }
    }
}

impl Asking for Reading {
    fn progress(&self) -> Progress {
        self.quorum.progress()
    }

    fn outstanding(&self) -> usize {
        self.quorum.outstanding()
    }

    fn next_to_ask(&mut self) -> Option<NodeId> {
        self.quorum.next_to_ask()
    }

    fn ask_one_more(&mut self) -> Option<NodeId> {
        self.quorum.ask_one_more()
    }

    fn ask(&mut self, id: NodeId) -> Option<Instant> {
        let Some(peer) = self.view.get(id).map(Peer::from) else {
            self.quorum.record_failure(id);
            return None;
        };
        let (transport, key) = (Arc::clone(&self.reader.transport), self.key.clone());
        let call = PeerCall { timeout: self.reader.peer_timeout, trace: self.trace };
        self.replies
            .push(Box::pin(async move { (peer.id, transport.read(&peer, key, call).await) }));
        Some(self.reader.hedge_at(id))
    }

    async fn take_reply(&mut self) -> bool {
        let Some(reply) = self.replies.next().await else { return false };
        self.record(reply);
        true
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
        phases: Phases::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::fixture::{Fixture, NOW, TestNode, key, live, text, version};
    use crate::domain::{Timestamp, Value};
    use crate::ports::{Certification, Consistency, RequestOptions, WriteReply};
    use std::sync::Mutex;

    const SECOND: Duration = Duration::from_secs(1);

    async fn get(node: &TestNode, quorum: &str) -> Answer {
        let quorum = Some(quorum.parse().unwrap());
        node.client()
            .get(key("k"), RequestOptions { quorum, ..RequestOptions::default() })
            .await
            .unwrap()
    }

    fn copies(fixture: &mut Fixture, copies: &[(u64, Option<Entry>)]) {
        let copies = copies.to_vec();
        fixture.transport.expect_read().returning(move |peer, _, _| {
            let copy = copies.iter().find(|(id, _)| *id == peer.id.as_u64());
            Ok(copy.and_then(|(_, entry)| entry.clone()))
        });
    }

    fn recorded_repairs(fixture: &mut Fixture) -> Arc<Mutex<Vec<(u64, Entry)>>> {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&sent);
        fixture.transport.expect_write().returning(move |peer, write, _| {
            record.lock().unwrap().push((peer.id.as_u64(), write.entry));
            Ok(WriteReply::Applied { previous: None })
        });
        sent
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_says_how_long_it_waited_for_peers() {
        let mut fixture = Fixture::with_peers([2]);
        copies(&mut fixture, &[(2, None)]);
        fixture.delays = [(2, SECOND / 10)].into();
        let node = fixture.build();
        assert_eq!(get(&node, "1").await.phases, Phases::default());
        let waited = get(&node, "2").await.phases.peers;
        assert!(waited >= SECOND / 10 && waited < SECOND / 5, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_trace_of_a_request_goes_along_with_all_that_is_done_for_it() {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace = TraceContext::parse(trace);
        assert!(trace.is_some());
        for (consistency, trace) in [
            (Consistency::Default, trace),
            (Consistency::Confirmed, trace),
            (Consistency::Default, None),
        ] {
            let mut fixture = Fixture::with_peers([2]);
            let seen = Arc::new(Mutex::new(Vec::new()));
            let (reads, writes) = (Arc::clone(&seen), Arc::clone(&seen));
            fixture.transport.expect_read().returning(move |_, _, call| {
                reads.lock().unwrap().push(("read", call.trace));
                Ok(None)
            });
            fixture.transport.expect_write().returning(move |_, _, call| {
                writes.lock().unwrap().push(("write", call.trace));
                Ok(WriteReply::Applied { previous: None })
            });
            let node = fixture.build();
            let quorum = Some("2".parse().unwrap());
            let options = RequestOptions { quorum, consistency, trace, timeout: None };
            // The peer has lost it when it is read, and is repaired.
            node.client().add(key("k"), Value::new("v"), options).await.unwrap();
            node.client().get(key("k"), options).await.unwrap();
            node.node.finish().await;
            let expected = [("write", trace), ("read", trace), ("write", trace)];
            assert_eq!(*seen.lock().unwrap(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_quorum_of_one_reads_the_local_copy_and_asks_nobody() {
        let node = Fixture::with_peers([2, 3]).build();
        node.hold("k", live(5, "here"));
        let answer = get(&node, "1").await;
        assert_eq!((text(&answer), answer.achieved), (Some("here"), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_copy_wins_and_every_asked_replica_behind_it_is_repaired() {
        let mut fixture = Fixture::with_peers([2, 3]);
        copies(&mut fixture, &[(2, Some(live(9, "newest"))), (3, None)]);
        let repairs = recorded_repairs(&mut fixture);
        let node = fixture.build();
        node.hold("k", live(5, "old"));
        let answer = get(&node, "all").await;
        assert_eq!((text(&answer), answer.achieved), (Some("newest"), 3));
        node.node.finish().await;
        assert_eq!(node.held("k"), Some(live(9, "newest")));
        assert_eq!(*repairs.lock().unwrap(), vec![(3, live(9, "newest"))]);
        assert_eq!(node.client().stats().read_repairs, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tombstone_is_repaired_like_a_value_and_reads_as_absent() {
        let removed = Entry::tombstone(version(9));
        let mut fixture = Fixture::with_peers([2, 3]);
        copies(&mut fixture, &[(2, Some(removed.clone())), (3, Some(live(4, "zombie")))]);
        let repairs = recorded_repairs(&mut fixture);
        let node = fixture.build();
        node.hold("k", live(5, "old"));
        let answer = get(&node, "all").await;
        assert_eq!((text(&answer), answer.timestamp), (None, None));
        assert_eq!(answer.verdict, Verdict::Success);
        node.node.finish().await;
        assert_eq!(node.held("k"), Some(removed.clone()));
        assert_eq!(*repairs.lock().unwrap(), vec![(3, removed)]);
    }

    /// A member that was away for long answers before it knows what was forgotten without it.
    #[tokio::test(start_paused = true)]
    async fn a_copy_of_a_key_that_was_removed_and_forgotten_is_no_copy() {
        const H: u64 = NOW / 2;
        let mut fixture = Fixture::with_peers([2]);
        copies(&mut fixture, &[(2, Some(live(H, "ghost")))]);
        let repairs = recorded_repairs(&mut fixture);
        let node = fixture.build();
        let horizon = Timestamp::from_nanos(H);
        let certification = Certification { horizon, generation: 1, age: Duration::ZERO };
        node.node.replica_api().fence(certification).await.unwrap();
        for consistency in [Consistency::Default, Consistency::Confirmed] {
            let quorum = Some("2".parse().unwrap());
            let options = RequestOptions { quorum, consistency, ..RequestOptions::default() };
            let answer = node.client().get(key("k"), options).await.unwrap();
            assert_eq!((text(&answer), answer.verdict), (None, Verdict::Success));
        }
        // Of a key that this node holds, what is older than the horizon and not held is one, too.
        node.hold("k", live(H - 2, "held"));
        assert_eq!(text(&get(&node, "2").await), Some("held"));
        node.node.finish().await;
        assert_eq!(node.held("k"), Some(live(H - 2, "held")));
        assert_eq!(*repairs.lock().unwrap(), vec![(2, live(H - 2, "held"))]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_as_many_peers_are_asked_as_the_quorum_needs() {
        let mut fixture = Fixture::with_peers([2, 3, 4, 5]);
        fixture.transport.expect_read().times(2).returning(|_, _, _| Ok(None));
        let node = fixture.build();
        assert_eq!(get(&node, "majority").await.verdict, Verdict::Success);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_is_hedged_by_the_next_and_repaired_when_it_answers_late() {
        let mut fixture = Fixture::with_peers([2, 3]);
        copies(&mut fixture, &[(2, Some(live(1, "late and old"))), (3, Some(live(9, "new")))]);
        let repairs = recorded_repairs(&mut fixture);
        fixture.delays = [(2, SECOND)].into();
        let node = fixture.build();
        node.hold("k", live(9, "new"));
        let began = Instant::now();
        assert_eq!(get(&node, "2").await.verdict, Verdict::Success);
        assert_eq!(began.elapsed(), HEDGE_AFTER_MAX);
        node.node.finish().await;
        assert_eq!(*repairs.lock().unwrap(), vec![(2, live(9, "new"))]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_peer_is_replaced_at_once() {
        let mut fixture = Fixture::with_peers([2, 3]);
        fixture.transport.expect_read().returning(|peer, _, _| match peer.id.as_u64() {
            2 => Err(PeerError::Unreachable("gone".into())),
            _ => Ok(None),
        });
        let node = fixture.build();
        let began = Instant::now();
        assert_eq!(get(&node, "2").await.verdict, Verdict::Success);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_missed_quorum_answers_what_there_is_at_the_deadline() {
        let mut fixture = Fixture::with_peers([2, 3]);
        fixture.delays = [(2, 100 * SECOND), (3, 100 * SECOND)].into();
        let node = fixture.build();
        node.hold("k", live(5, "here"));
        let began = Instant::now();
        let answer = get(&node, "2").await;
        assert_eq!(began.elapsed(), SECOND);
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Partial, 1));
        assert_eq!(text(&answer), Some("here"));
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_there_are_asks_all_and_is_partial_at_once() {
        let mut fixture = Fixture::with_peers([2, 3]);
        copies(&mut fixture, &[(2, None), (3, None)]);
        let node = fixture.build();
        let began = Instant::now();
        let answer = get(&node, "7").await;
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Partial, 7, 3));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_down_is_not_asked() {
        let mut fixture = Fixture::with_peers([2, 3]);
        copies(&mut fixture, &[(3, None)]);
        fixture.down = vec![2];
        let node = fixture.build();
        assert_eq!(get(&node, "2").await.verdict, Verdict::Success);
        let answer = get(&node, "all").await;
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Partial, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn repair_that_does_not_arrive_becomes_a_hint() {
        let mut fixture = Fixture::with_peers([2]);
        copies(&mut fixture, &[(2, None)]);
        fixture.transport.expect_write().returning(|_, _, _| Err(PeerError::TimedOut));
        let node = fixture.build();
        node.hold("k", live(5, "here"));
        get(&node, "2").await;
        node.node.finish().await;
        assert_eq!(node.hints(2), 1);
    }
}
