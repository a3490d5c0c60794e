//! The write-back of a confirmed read: what was read reaches a quorum before it is answered.
//!
//! The decisions are [`Confirmation`]'s; here is only the sending and the waiting. Each write goes
//! on in a task of its own, since neither the answer nor a client that goes away may cut one off:
//! this node's copy goes through its log like any other, and what a peer does not take becomes a
//! hint.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::domain::{Confirmation, KeyedEntry, NodeId, Progress, TraceContext};

use super::asking::Asking;
use super::reading::Reader;

/// Replies that wait to be counted; whoever sends one waits for its place.
const REPLY_QUEUE: usize = 16;

/// The state of a running write-back.
pub(super) struct WriteBack {
    reader: Arc<Reader>,
    entry: KeyedEntry,
    confirmation: Confirmation,
    trace: Option<TraceContext>,
    /// Who was sent the entry, whatever came of it.
    sent_to: Vec<NodeId>,
    /// For the tasks: who was sent to, and whether it holds the entry.
    answer: mpsc::Sender<(NodeId, bool)>,
    replies: mpsc::Receiver<(NodeId, bool)>,
}

impl WriteBack {
    pub(super) fn new(
        reader: Arc<Reader>,
        entry: KeyedEntry,
        confirmation: Confirmation,
        trace: Option<TraceContext>,
    ) -> Self {
        let (answer, replies) = mpsc::channel(REPLY_QUEUE);
        Self { reader, entry, confirmation, trace, sent_to: Vec::new(), answer, replies }
    }

    /// Who was sent the entry.
    pub(super) fn sent_to(&self) -> &[NodeId] {
        &self.sent_to
    }

    /// The number of replicas known to hold the entry.
    pub(super) fn achieved(&self) -> usize {
        self.confirmation.achieved()
    }
}

impl Asking for WriteBack {
    fn progress(&self) -> Progress {
        self.confirmation.progress()
    }

    fn outstanding(&self) -> usize {
        self.confirmation.outstanding()
    }

    fn next_to_ask(&mut self) -> Option<NodeId> {
        self.confirmation.next_to_ask()
    }

    fn ask_one_more(&mut self) -> Option<NodeId> {
        self.confirmation.ask_one_more()
    }

    fn ask(&mut self, node: NodeId) -> Option<Instant> {
        self.sent_to.push(node);
        let (repair, entry) = (Arc::clone(&self.reader.repair), self.entry.clone());
        let (answer, trace) = (self.answer.clone(), self.trace);
        self.reader.tasks.spawn(async move {
            let held = repair.repair_one(entry, node, trace).await;
            // Whoever was answered, or went away, does not need to know.
            answer.send((node, held)).await.ok();
        });
        Some(self.reader.hedge_at(node))
    }

    async fn take_reply(&mut self) -> bool {
        let Some((node, held)) = self.replies.recv().await else { return false };
        if held {
            self.confirmation.record_held(node);
        } else {
            self.confirmation.record_failure(node);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::fixture::{Fixture, NOW, TestNode, key, live, text, version};
    use crate::domain::{Entry, QuorumSpec, Timestamp};
    use crate::ports::{Answer, Consistency, PeerError, RequestOptions, Verdict, WriteReply};
    use std::sync::Mutex;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    type Sent = Arc<Mutex<Vec<(u64, Entry)>>>;

    async fn confirmed(node: &TestNode, quorum: Option<&str>) -> Answer {
        let quorum = quorum.map(|text| text.parse().unwrap());
        let options = RequestOptions {
            quorum,
            consistency: Consistency::Confirmed,
            ..RequestOptions::default()
        };
        node.client().get(key("k"), options).await.unwrap()
    }

    /// A node whose peers hold these copies, and what they are sent, to which they `reply`.
    fn fixture(
        copies: &[(u64, Option<Entry>)],
        reply: impl Fn(u64) -> Result<WriteReply, PeerError> + Send + Sync + 'static,
    ) -> (Fixture, Sent) {
        let mut fixture = Fixture::with_peers(copies.iter().map(|(id, _)| *id));
        let copies = copies.to_vec();
        fixture.transport.expect_read().returning(move |peer, _, _| {
            let copy = copies.iter().find(|(id, _)| *id == peer.id.as_u64());
            Ok(copy.and_then(|(_, entry)| entry.clone()))
        });
        let sent = Sent::default();
        let record = Arc::clone(&sent);
        fixture.transport.expect_write().returning(move |peer, write, _| {
            record.lock().unwrap().push((peer.id.as_u64(), write.entry));
            reply(peer.id.as_u64())
        });
        (fixture, sent)
    }

    /// Who refuses what it is sent, by id; all others take it.
    fn all_but(refusing: u64) -> impl Fn(u64) -> Result<WriteReply, PeerError> {
        move |peer| {
            if peer == refusing {
                return Err(PeerError::Rejected("clock drift".into()));
            }
            Ok(WriteReply::Applied { previous: None })
        }
    }

    fn sent_to(sent: &Sent) -> Vec<u64> {
        sent.lock().unwrap().iter().map(|(peer, _)| *peer).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_majority_that_agrees_is_answered_without_a_write() {
        let new = live(9, "new");
        let (fixture, sent) = fixture(&[(2, Some(new.clone())), (3, None)], all_but(0));
        let node = fixture.build();
        node.hold("k", new);
        let answer = confirmed(&node, None).await;
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Success, 2, 2));
        node.node.finish().await;
        assert!(sent_to(&sent).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_only_this_node_holds_is_brought_to_a_majority_before_the_answer() {
        let (fixture, sent) = fixture(&[(2, Some(live(5, "old"))), (3, None)], all_but(0));
        let node = fixture.build();
        node.hold("k", live(9, "new"));
        let answer = confirmed(&node, None).await;
        assert_eq!(*sent.lock().unwrap(), [(2, live(9, "new"))]);
        assert_eq!((text(&answer), answer.achieved), (Some("new"), 2));
        node.node.finish().await;
        assert_eq!(sent_to(&sent), [2], "it is not repaired a second time");
    }

    #[tokio::test(start_paused = true)]
    async fn what_only_a_peer_holds_enters_this_node_before_the_answer() {
        let (fixture, sent) = fixture(&[(2, Some(live(9, "new"))), (3, None)], all_but(0));
        let node = fixture.build();
        node.hold("k", live(5, "old"));
        let answer = confirmed(&node, None).await;
        assert_eq!(node.held("k"), Some(live(9, "new")));
        assert_eq!((text(&answer), answer.achieved), (Some("new"), 2));
        assert!(sent_to(&sent).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_quorum_below_the_majority_is_raised_and_a_larger_one_is_kept() {
        let new = live(9, "new");
        let (fixture, sent) = fixture(&[(2, None), (3, None), (4, None), (5, None)], all_but(0));
        let node = fixture.build();
        node.hold("k", new);
        assert_eq!(confirmed(&node, Some("1")).await.required, 3);
        assert_eq!(sent.lock().unwrap().len(), 2);
        let all = confirmed(&node, Some("all")).await;
        assert_eq!((all.verdict, all.required, all.achieved), (Verdict::Success, 5, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn the_configured_write_quorum_is_satisfied_too() {
        let (mut fixture, sent) = fixture(&[(2, None), (3, None)], all_but(0));
        fixture.settings.write_quorum = QuorumSpec::All;
        let node = fixture.build();
        node.hold("k", live(9, "new"));
        let answer = confirmed(&node, None).await;
        assert_eq!((answer.required, answer.achieved), (3, 3));
        let mut written = sent_to(&sent);
        written.sort_unstable();
        assert_eq!(written, [2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tombstone_is_confirmed_like_a_value_and_reads_as_absent() {
        let removed = Entry::tombstone(version(9));
        let (fixture, sent) = fixture(&[(2, Some(live(5, "zombie"))), (3, None)], all_but(0));
        let node = fixture.build();
        node.hold("k", removed.clone());
        let answer = confirmed(&node, None).await;
        assert_eq!((text(&answer), answer.timestamp, answer.achieved), (None, None, 2));
        assert_eq!(*sent.lock().unwrap(), [(2, removed)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_nobody_holds_is_confirmed_without_a_write() {
        let (fixture, sent) = fixture(&[(2, None), (3, None)], all_but(0));
        let node = fixture.build();
        let answer = confirmed(&node, None).await;
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 2));
        node.node.finish().await;
        assert!(sent_to(&sent).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_refuses_the_write_is_replaced_by_another_and_gets_a_hint() {
        let (fixture, sent) = fixture(&[(2, None), (3, None)], all_but(2));
        let node = fixture.build();
        node.hold("k", live(9, "new"));
        let began = Instant::now();
        let answer = confirmed(&node, None).await;
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 2));
        assert_eq!((sent_to(&sent), began.elapsed()), (vec![2, 3], Duration::ZERO));
        node.node.finish().await;
        assert_eq!((node.hints(2), node.hints(3)), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_too_far_ahead_for_this_node_is_confirmed_by_others_or_not_at_all() {
        let ahead = Entry::tombstone(crate::domain::Version::new(
            Timestamp::from_nanos(2 * NOW),
            NodeId::new(99),
        ));
        for (refusing, verdict, achieved) in [(0, Verdict::Success, 2), (3, Verdict::Partial, 1)] {
            let (fixture, sent) =
                fixture(&[(2, Some(ahead.clone())), (3, None)], all_but(refusing));
            let node = fixture.build();
            let answer = confirmed(&node, None).await;
            assert_eq!((answer.verdict, answer.achieved), (verdict, achieved));
            assert_eq!((node.held("k"), sent_to(&sent)), (None, vec![3]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_has_something_newer_by_now_counts() {
        let superseded = |_| Ok(WriteReply::Superseded { by: version(10) });
        let (fixture, _) = fixture(&[(2, None), (3, None)], superseded);
        let node = fixture.build();
        node.hold("k", live(9, "new"));
        let answer = confirmed(&node, None).await;
        assert_eq!((answer.verdict, text(&answer)), (Verdict::Success, Some("new")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_peer_is_not_waited_for_when_another_can_take_its_place() {
        let (mut fixture, sent) = fixture(&[(2, None), (3, None)], all_but(0));
        // The read is hedged at 100 ms, answered by the third, and the write goes there at once.
        fixture.delays = [(2, 10 * SECOND)].into();
        let node = fixture.build();
        node.hold("k", live(9, "new"));
        let began = Instant::now();
        let answer = confirmed(&node, None).await;
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 2));
        assert_eq!((sent_to(&sent), began.elapsed()), (vec![3], SECOND / 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_slow_to_write_is_hedged_by_the_next() {
        let (mut fixture, sent) = fixture(&[(2, None), (3, None)], all_but(0));
        fixture.write_delays = [(2, 10 * SECOND)].into();
        let node = fixture.build();
        node.hold("k", live(9, "new"));
        let began = Instant::now();
        let answer = confirmed(&node, None).await;
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 2));
        assert_eq!((sent_to(&sent), began.elapsed()), (vec![3], SECOND / 10));
        node.node.finish().await;
        assert_eq!(node.hints(2), 1, "what it did not take in time");
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_confirmed_by_the_deadline_is_partial() {
        let (mut fixture, _) = fixture(&[(2, None), (3, None)], all_but(0));
        fixture.write_delays = [(2, 10 * SECOND), (3, 10 * SECOND)].into();
        let node = fixture.build();
        node.hold("k", live(9, "new"));
        let began = Instant::now();
        let answer = confirmed(&node, None).await;
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Partial, 2, 1));
        assert_eq!((text(&answer), began.elapsed()), (Some("new"), SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_misses_its_majority_brings_nothing_anywhere_before_the_answer() {
        let (mut fixture, sent) = fixture(&[(2, None), (3, None)], all_but(0));
        fixture.down = vec![2, 3];
        let node = fixture.build();
        node.hold("k", live(9, "new"));
        let answer = confirmed(&node, None).await;
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Partial, 1));
        assert!(sent_to(&sent).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_goes_away_stops_no_write_back() {
        let (mut fixture, sent) = fixture(&[(2, Some(live(9, "new"))), (3, None)], all_but(0));
        fixture.log_delays = (Duration::ZERO, SECOND / 2);
        let node = fixture.build();
        let reading = confirmed(&node, Some("all"));
        assert!(tokio::time::timeout(SECOND / 4, reading).await.is_err());
        node.node.finish().await;
        assert_eq!(node.held("k"), Some(live(9, "new")));
        assert_eq!(sent_to(&sent), [3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_alone_confirms_its_own_copy() {
        let node = Fixture::with_peers([]).build();
        node.hold("k", live(9, "v"));
        let answer = confirmed(&node, None).await;
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Success, 1, 1));
    }
}
