//! The write path: to this node and every other one at once, answered at the quorum.
//!
//! The decision is [`WriteQuorum`]'s; here is only the waiting: for replies, for the deadline, and
//! for what comes after the answer, where every failed delivery becomes a hint. The request waits
//! for its own write, without a task in between; when it is answered, or its client goes away, what
//! is still under way moves into a task and goes on there. So neither stops a delivery, and a write
//! that leaves nothing under way costs no task.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::domain::{
    Content, Entry, KeyedEntry, Liveness, MemberView, NodeId, Progress, TraceContext, Version,
    WriteQuorum,
};
use crate::ports::{
    Answer, ApplyError, ClientError, LogError, Origin, Peer, PeerCall, PeerError, PeerTransport,
    Phases, Verdict, WriteReply,
};

use super::apply::Replica;
use super::attempt::{Failure, Reply, Write, quorum};
use super::handoff::Handoff;
use super::members::Members;
use super::settings::UNREACHABLE_GRACE;
use super::stamps::Stamps;
use super::tasks::Tasks;
use super::unawaited::{GoesOn, Unawaited};

/// How often a write that replicas hold something newer against is stamped anew. Each time the
/// clock has moved past all versions seen, so more than one repetition takes a rival that writes
/// the key at the same moment; the last attempt counts such a rival's entry as ours.
const MAX_ATTEMPTS: u8 = 3;

type Outcome = Result<Answer, ClientError>;

/// Carries out writes.
pub(crate) struct Writer {
    pub(crate) members: Arc<Members>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) stamps: Arc<Stamps>,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) handoff: Arc<Handoff>,
    pub(crate) tasks: Tasks,
    pub(crate) unawaited: Unawaited,
    pub(crate) peer_timeout: Duration,
}

impl Writer {
    /// Writes and waits until the quorum is met or missed, at most until the deadline. Dropping the
    /// future does not stop the write.
    pub(super) async fn write(self: &Arc<Self>, write: Write) -> Outcome {
        // Without a stamp nothing was sent to anybody.
        let stamped = self.stamps.stamp_before(write.deadline).await;
        let version = stamped.map_err(|error| ClientError::from(&error))?;
        // It may have had to join again, or have left, while it waited.
        self.members.check_whole().map_err(ClientError::NotReady)?;
        Delivery(Some(Running::begin(Arc::clone(self), write, version))).decide().await
    }
}

/// The state of a running write.
struct Running {
    writer: Arc<Writer>,
    write: Write,
    /// This node's own reply, of the current attempt.
    here: Option<BoxFuture<'static, Reply>>,
    /// The other replies, and this node's of attempts before. So few that asking each is cheaper
    /// than keeping account of who woke.
    there: Vec<BoxFuture<'static, Reply>>,
    /// Has a stop of the node wait for this write.
    _token: TaskTrackerToken,
    attempt: u8,
    /// The version of the first attempt.
    first_version: Version,
    /// The version of the current attempt.
    version: Version,
    quorum: WriteQuorum,
    /// The newest entry a removal removed anywhere, the tombstones of its earlier attempts aside.
    removed: Option<Entry>,
    /// Members that did not take it. Hints are delivered from the store: they wait for its reply.
    missed: Vec<NodeId>,
    /// Why this node did not take it.
    failed_here: Option<ApplyError>,
    /// Whether somebody holds it, or may, that is not among those who acknowledged this attempt.
    in_doubt: bool,
    phases: Phases,
}

/// A write under way. Dropped, after the answer or without one, it goes on in a task.
struct Delivery(Option<Running>);

impl Delivery {
    async fn decide(&mut self) -> Outcome {
        match &mut self.0 {
            Some(running) => running.decide().await,
            // Only a drop takes the write out.
            None => Err(ClientError::ShuttingDown),
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let Some(running) = self.0.take().filter(|running| !running.is_settled()) else { return };
        // Without a runtime the process is at its end, and nothing goes on anywhere.
        if tokio::runtime::Handle::try_current().is_ok() {
            let Writer { tasks, unawaited, .. } = &*Arc::clone(&running.writer);
            let is_open = running.quorum.progress() != Progress::Met;
            tasks.spawn(running.finish(is_open.then(|| unawaited.begin())));
        }
    }
}

impl Running {
    fn begin(writer: Arc<Writer>, write: Write, version: Version) -> Self {
        let view = writer.members.view();
        // A quorum of one may be met before this node has said what it removed itself.
        let removed = match write.content {
            Content::Tombstone => writer.replica.get(&write.key),
            Content::Live(_) => None,
        };
        let mut running = Self {
            quorum: quorum(&write, &view),
            _token: writer.tasks.token(),
            writer,
            write,
            here: None,
            there: Vec::new(),
            attempt: 1,
            first_version: version,
            version,
            removed,
            missed: Vec::new(),
            failed_here: None,
            in_doubt: false,
            phases: Phases::default(),
        };
        running.send_to_all(&view);
        running
    }

    /// Stamps the write past everything seen and sends it once more. What the attempt before has
    /// under way goes on, but counts no more.
    async fn begin_again(&mut self) -> Result<(), LogError> {
        self.version = self.writer.stamps.stamp_before(self.write.deadline).await?;
        self.attempt += 1;
        // What the attempt before achieved, or may yet, is not undone by how this one ends.
        self.in_doubt |= self.quorum.achieved() > 0 || self.quorum.outstanding() > 0;
        let view = self.writer.members.view();
        self.quorum = quorum(&self.write, &view);
        self.send_to_all(&view);
        Ok(())
    }

    fn send_to_all(&mut self, view: &MemberView) {
        let entry = Entry { version: self.version, content: self.write.content.clone() };
        let keyed = KeyedEntry::new(self.write.key.clone(), entry);
        let attempt = self.attempt;
        for member in view.peers() {
            if view.liveness(member.id) == Liveness::Down {
                self.quorum.record_failure(member.id);
                self.missed.push(member.id);
                continue;
            }
            let (peer, keyed) = (Peer::from(member), keyed.clone());
            let transport = Arc::clone(&self.writer.transport);
            let call = PeerCall { timeout: self.writer.peer_timeout, trace: self.write.trace };
            self.there.push(Box::pin(async move {
                let result = transport.write(&peer, keyed, call).await;
                Reply { attempt, node: peer.id, result: result.map_err(Failure::There) }
            }));
        }
        let (replica, me) = (Arc::clone(&self.writer.replica), view.me().id);
        let before = self.here.replace(Box::pin(async move {
            let result = replica.apply_one(keyed, Origin::Client).await;
            Reply { attempt, node: me, result: result.map_err(Failure::Here) }
        }));
        self.there.extend(before);
    }

    /// The next reply; `None` when nothing is under way any more. Cancel safe.
    async fn next_reply(&mut self) -> Option<Reply> {
        std::future::poll_fn(|context| {
            if let Some(here) = &mut self.here
                && let Poll::Ready(reply) = here.as_mut().poll(context)
            {
                self.here = None;
                return Poll::Ready(Some(reply));
            }
            for place in 0..self.there.len() {
                let Some(reply) = self.there.get_mut(place) else { break };
                if let Poll::Ready(reply) = reply.as_mut().poll(context) {
                    drop(self.there.swap_remove(place));
                    return Poll::Ready(Some(reply));
                }
            }
            if self.here.is_none() && self.there.is_empty() {
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await
    }

    /// Whether nothing is under way, and nothing left to decide.
    fn is_settled(&self) -> bool {
        self.here.is_none() && self.there.is_empty() && !self.is_to_be_repeated()
    }

    /// Whether the write has to be stamped and sent once more.
    fn is_to_be_repeated(&self) -> bool {
        self.quorum.superseded_by().is_some()
            && self.attempt < MAX_ATTEMPTS
            && self.quorum.progress() != Progress::Met
    }

    /// Goes on after the answer, or without anybody who waits for one.
    async fn finish(mut self, unawaited: Option<GoesOn>) {
        if self.decide().await.is_err() {
            tracing::debug!("a write that nobody waits for was not carried out");
        }
        drop(unawaited);
        while let Some(reply) = self.next_reply().await {
            self.record(reply);
        }
    }

    /// Collects replies until the client can be answered.
    async fn decide(&mut self) -> Outcome {
        let deadline = self.write.deadline;
        // Most writes with a quorum of one are answered by this node at once, without a timer.
        if let Some(Some(reply)) = self.next_reply().now_or_never() {
            self.record(reply);
            if self.quorum.progress() == Progress::Met {
                return self.outcome();
            }
        }
        // Only who waits reads the clock.
        let since = Instant::now();
        // Boxed: a timer is large, and of an alignment that makes every future that holds one dear.
        let mut timer = Box::pin(tokio::time::sleep_until(deadline));
        let mut hopeless = false;
        loop {
            // First of all: a replica that holds something newer counts as failed until then.
            if self.is_to_be_repeated() {
                if let Err(error) = self.begin_again().await {
                    let trace_id = self.trace_id();
                    let trace_id = trace_id.as_deref();
                    tracing::warn!(%error, trace_id, "write not repeated past a newer version");
                    return self.outcome();
                }
                hopeless = false;
                timer.as_mut().reset(deadline);
            }
            match self.quorum.progress() {
                Progress::Met => return self.outcome(),
                Progress::Unreachable if self.quorum.outstanding() == 0 => return self.outcome(),
                Progress::Unreachable if !hopeless => {
                    hopeless = true;
                    timer.as_mut().reset(deadline.min(Instant::now() + UNREACHABLE_GRACE));
                }
                Progress::Unreachable | Progress::Pending => {}
            }
            tokio::select! {
                biased; // What has arrived by the deadline counts.
                Some(reply) = self.next_reply() => {
                    self.note_wait(since.elapsed(), reply.node == self.version.node);
                    self.record(reply);
                }
                () = &mut timer => {
                    // For each that it still waits for.
                    if self.here.is_some() {
                        self.phases.log = since.elapsed();
                    }
                    if !self.there.is_empty() {
                        self.phases.peers = since.elapsed();
                    }
                    return self.outcome();
                }
            }
        }
    }

    /// It waited so long, for this node's log or for others.
    const fn note_wait(&mut self, waited: Duration, for_log: bool) {
        if for_log {
            self.phases.log = waited;
        } else {
            self.phases.peers = waited;
        }
    }

    fn record(&mut self, reply: Reply) {
        let current = reply.attempt == self.attempt;
        match reply.result {
            Ok(WriteReply::Applied { previous }) => {
                // Also by a member that joins, and is not counted below.
                self.in_doubt = true;
                if current {
                    self.quorum.record_ack(reply.node);
                }
                let removed = previous.filter(|entry| !self.is_ours(entry));
                self.removed = self.removed.take().max(removed);
            }
            Ok(WriteReply::Superseded { by }) if current => self.record_superseded(reply.node, by),
            Ok(WriteReply::Superseded { .. }) => {}
            Err(failure) => {
                if current {
                    self.quorum.record_failure(reply.node);
                }
                self.record_failure(reply.node, failure);
            }
        }
        if self.here.is_none() {
            for member in self.missed.drain(..) {
                self.writer.handoff.note(member, self.write.key.clone());
            }
        }
    }

    /// Whether an entry is the tombstone of one of this removal's attempts.
    fn is_ours(&self, entry: &Entry) -> bool {
        entry.is_tombstone()
            && entry.version.node == self.version.node
            && entry.version >= self.first_version
    }

    fn record_superseded(&mut self, node: NodeId, by: Version) {
        if self.writer.stamps.observe(by.timestamp).is_err() {
            // Beyond what this clock may follow: our write cannot win there, and must not count.
            self.quorum.record_failure(node);
        } else if self.attempt < MAX_ATTEMPTS {
            self.quorum.record_superseded(node, by);
        } else {
            self.quorum.record_ack(node);
        }
    }

    fn record_failure(&mut self, node: NodeId, failure: Failure) {
        match failure {
            Failure::Here(error) => {
                // These are reported once, by the log.
                let known = [LogError::DiskFull, LogError::DurabilityLag].map(ApplyError::Log);
                if !known.contains(&error) {
                    let trace_id = self.trace_id();
                    let trace_id = trace_id.as_deref();
                    tracing::warn!(%error, trace_id, "write not taken by this node");
                }
                // A log that failed may hold it all the same, and the next start find it.
                self.in_doubt |= matches!(error, ApplyError::Log(LogError::Failed(_)));
                self.failed_here = Some(error);
            }
            Failure::There(error) => {
                self.in_doubt |= matches!(error, PeerError::TimedOut | PeerError::Protocol(_));
                tracing::debug!(peer = %node, %error, "write not acknowledged");
                self.missed.push(node);
            }
        }
    }

    fn trace_id(&self) -> Option<String> {
        self.write.trace.map(TraceContext::trace_id)
    }

    fn outcome(&self) -> Outcome {
        let achieved = self.quorum.achieved();
        let open = self.here.is_some() || !self.there.is_empty() || self.in_doubt;
        if let (0, false, Some(error)) = (achieved, open, &self.failed_here) {
            return Err(match error {
                ApplyError::Log(error) => error.into(),
                other => ClientError::NotReady(other.to_string()),
            });
        }
        let met = self.quorum.progress() == Progress::Met;
        let (value, timestamp) = match &self.write.content {
            Content::Live(value) => (Some(value.clone()), Some(self.version.timestamp)),
            Content::Tombstone => {
                let value = self.removed.as_ref().and_then(Entry::value).cloned();
                let timestamp = value.is_some().then_some(self.version.timestamp);
                (value, timestamp)
            }
        };
        Ok(Answer {
            verdict: if met { Verdict::Success } else { Verdict::Partial },
            value,
            timestamp,
            required: self.quorum.required().get(),
            achieved: u32::try_from(achieved).unwrap_or(u32::MAX),
            phases: self.phases,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::fixture::{Fixture, NOW, key, live, member, text, version};
    use crate::app::unawaited::MAX_UNAWAITED;
    use crate::domain::{ClockDrift, Phase, Timestamp, Value};
    use crate::ports::{MockOpLog, RequestOptions};
    use std::sync::Mutex;

    const SECOND: Duration = Duration::from_secs(1);

    fn options(quorum: &str) -> RequestOptions {
        RequestOptions { quorum: Some(quorum.parse().unwrap()), ..RequestOptions::default() }
    }

    async fn add(node: &crate::app::fixture::TestNode, quorum: &str) -> Outcome {
        node.client().add(key("k"), Value::new("v"), options(quorum)).await
    }

    /// Records who was sent which entry, and acknowledges it.
    fn recording(fixture: &mut Fixture) -> Arc<Mutex<Vec<(u64, Entry)>>> {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&sent);
        fixture.transport.expect_write().returning(move |peer, write, _| {
            record.lock().unwrap().push((peer.id.as_u64(), write.entry));
            Ok(WriteReply::Applied { previous: None })
        });
        sent
    }

    /// The peers hold a version of this time.
    fn hold_newer(fixture: &mut Fixture, newer: u64) {
        fixture.transport.expect_write().returning(move |_, write, _| {
            Ok(if write.entry.version > version(newer) {
                WriteReply::Applied { previous: None }
            } else {
                WriteReply::Superseded { by: version(newer) }
            })
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_goes_to_this_node_and_to_every_peer_as_the_same_entry() {
        let mut fixture = Fixture::with_peers([2, 3]);
        let sent = recording(&mut fixture);
        let node = fixture.build();
        let answer = add(&node, "all").await.unwrap();
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 3));
        let held = node.held("k").unwrap();
        assert_eq!(answer.timestamp, Some(held.version.timestamp));
        let mut sent = sent.lock().unwrap().clone();
        sent.sort();
        assert_eq!(sent, vec![(2, held.clone()), (3, held)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quorum_of_one_waits_for_no_peer_and_delivery_goes_on_after_the_answer() {
        let mut fixture = Fixture::with_peers([2, 3]);
        let sent = recording(&mut fixture);
        fixture.delays = [(2, SECOND), (3, SECOND)].into();
        let node = fixture.build();
        let began = Instant::now();
        let answer = add(&node, "1").await.unwrap();
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Success, 1, 1));
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert!(sent.lock().unwrap().is_empty());
        node.node.finish().await;
        assert_eq!(sent.lock().unwrap().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn writes_whose_clients_are_gone_are_bounded_until_they_are_decided() {
        let mut fixture = Fixture::with_peers([2]).all_acknowledge();
        fixture.write_delays = [(2, Duration::from_secs(3_600))].into();
        let node = fixture.build();
        assert_eq!(add(&node, "1").await.unwrap().achieved, 1);
        for gone in 0..MAX_UNAWAITED {
            assert_eq!(node.client().stats().unawaited_writes, gone as u64);
            assert!(add(&node, "2").now_or_never().is_none());
        }
        let refused = add(&node, "1").await.unwrap_err();
        assert!(matches!(refused, ClientError::Overloaded(_)), "{refused:?}");
        assert!(node.client().remove(key("k"), options("1")).await.is_err());
        assert!(node.client().get(key("k"), options("1")).await.is_ok());
        // Their time is over, though not their deliveries.
        tokio::time::sleep(SECOND + Duration::from_millis(1)).await;
        assert_eq!(node.client().stats().unawaited_writes, 0);
        add(&node, "1").await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_goes_away_does_not_stop_the_write() {
        let mut fixture = Fixture::with_peers([2, 3]);
        let sent = recording(&mut fixture);
        fixture.delays = [(2, SECOND / 2), (3, SECOND / 2)].into();
        let node = fixture.build();
        let client = node.client();
        let request = client.add(key("k"), Value::new("v"), options("all"));
        assert!(tokio::time::timeout(SECOND / 4, request).await.is_err());
        node.node.finish().await;
        assert_eq!(sent.lock().unwrap().len(), 2);
        assert!(node.held("k").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_peer_that_hangs_costs_nothing_when_the_quorum_is_met_without_it() {
        let mut fixture = Fixture::with_peers([2, 3]).all_acknowledge();
        fixture.delays = [(3, 100 * SECOND)].into();
        let node = fixture.build();
        let began = Instant::now();
        let answer = add(&node, "2").await.unwrap();
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 2));
        assert_eq!(began.elapsed(), Duration::ZERO);
        node.node.finish().await;
        assert_eq!((node.hints(2), node.hints(3)), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_says_what_it_waited_for() {
        let ms = Duration::from_millis;
        for (quorum, log, peer, waited) in [
            ("1", 0, 50, Phases::default()),
            ("1", 20, 50, Phases { log: ms(20), ..Phases::default() }),
            ("2", 0, 50, Phases { peers: ms(50), ..Phases::default() }),
            ("2", 20, 50, Phases { log: ms(20), peers: ms(50), ..Phases::default() }),
            // Until the deadline, a second later.
            ("2", 0, 100_000, Phases { peers: SECOND, ..Phases::default() }),
            ("1", 100_000, 100_000, Phases { log: SECOND, peers: SECOND, ..Phases::default() }),
        ] {
            let mut fixture = Fixture::with_peers([2]).all_acknowledge();
            fixture.log_delays.1 = ms(log);
            fixture.delays = [(2, ms(peer))].into();
            let node = fixture.build();
            let found = add(&node, quorum).await.unwrap().phases;
            // The timer of a paused clock is a millisecond late at most.
            let near = |found: Duration, waited: Duration| {
                waited <= found && found <= waited + ms(if waited.is_zero() { 0 } else { 2 })
            };
            let is_so = near(found.log, waited.log) && near(found.peers, waited.peers);
            assert!(is_so, "{quorum} {log} {peer}: {found:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_missed_quorum_is_answered_partial_at_the_deadline() {
        let mut fixture = Fixture::with_peers([2, 3]).all_acknowledge();
        fixture.delays = [(2, 100 * SECOND), (3, 100 * SECOND)].into();
        let node = fixture.build();
        let began = Instant::now();
        let answer = add(&node, "2").await.unwrap();
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Partial, 2, 1));
        assert_eq!(began.elapsed(), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_there_are_is_answered_partial_as_soon_as_all_have_answered() {
        let node = Fixture::with_peers([2, 3]).all_acknowledge().build();
        let began = Instant::now();
        let answer = add(&node, "5").await.unwrap();
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Partial, 5, 3));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_there_are_is_answered_at_once_although_a_peer_hangs() {
        let mut fixture = Fixture::with_peers([2, 3]).all_acknowledge();
        fixture.delays = [(3, 100 * SECOND)].into();
        let node = fixture.build();
        let began = Instant::now();
        let answer = add(&node, "5").await.unwrap();
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Partial, 2));
        assert_eq!(began.elapsed(), UNREACHABLE_GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_down_is_not_asked_but_gets_a_hint_and_still_counts_among_all() {
        let mut fixture = Fixture::with_peers([2, 3]);
        let sent = recording(&mut fixture);
        fixture.down = vec![3];
        let node = fixture.build();
        let answer = add(&node, "majority").await.unwrap();
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Success, 2, 2));
        let answer = add(&node, "all").await.unwrap();
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Partial, 3, 2));
        assert!(sent.lock().unwrap().iter().all(|(peer, _)| *peer == 2));
        assert_eq!(node.hints(3), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_a_peer_refuses_or_does_not_answer_becomes_a_hint() {
        for error in [
            PeerError::Unreachable("gone".into()),
            PeerError::TimedOut,
            PeerError::Rejected("disk full".into()),
        ] {
            let mut fixture = Fixture::with_peers([2]);
            fixture.transport.expect_write().returning(move |_, _, _| Err(error.clone()));
            let node = fixture.build();
            let answer = add(&node, "2").await.unwrap();
            assert_eq!((answer.verdict, answer.achieved), (Verdict::Partial, 1));
            assert_eq!(node.hints(2), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_joining_member_gets_the_write_but_counts_for_no_quorum() {
        let mut fixture = Fixture::with_peers([2]);
        let sent = recording(&mut fixture);
        fixture.peers.push(member(3, Phase::Joining));
        let node = fixture.build();
        let answer = add(&node, "all").await.unwrap();
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Success, 2, 2));
        node.node.finish().await;
        assert_eq!(sent.lock().unwrap().len(), 2);
    }

    /// What was "not done" must be nowhere.
    #[tokio::test(start_paused = true)]
    async fn a_write_that_only_a_joining_member_took_or_may_take_is_no_error() {
        for delay in [0, 5] {
            let mut fixture = Fixture::with_peers([]).all_acknowledge();
            fixture.log = failing_log(&LogError::DiskFull);
            fixture.log_delays.1 = Duration::from_millis(1);
            fixture.peers.push(member(3, Phase::Joining));
            fixture.delays = [(3, Duration::from_millis(delay))].into();
            let answer = add(&fixture.build(), "1").await.unwrap();
            assert_eq!((answer.verdict, answer.achieved), (Verdict::Partial, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_superseded_write_is_stamped_past_the_newer_version_and_written_again() {
        let newer = NOW + 1_000_000;
        let mut fixture = Fixture::with_peers([2]);
        hold_newer(&mut fixture, newer);
        let node = fixture.build();
        let answer = add(&node, "2").await.unwrap();
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 2));
        assert!(answer.timestamp > Some(Timestamp::from_nanos(newer)));
        assert_eq!(node.held("k").map(|e| e.version.timestamp), answer.timestamp);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_repeated_also_when_the_newer_version_is_reported_last() {
        let newer = NOW + 1_000_000;
        let mut fixture = Fixture::with_peers([2]);
        hold_newer(&mut fixture, newer);
        // This node has acknowledged long before.
        fixture.delays = [(2, SECOND / 10)].into();
        let answer = add(&fixture.build(), "2").await.unwrap();
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 2));
        assert!(answer.timestamp > Some(Timestamp::from_nanos(newer)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_hangs_delays_no_answer_beyond_the_deadline() {
        let hour = 3_600 * SECOND;
        let mut fixture = Fixture::with_peers([]);
        fixture.log_delays = (hour, Duration::ZERO);
        let (node, began) = (fixture.build(), Instant::now());
        // Not even stamped: nothing was done.
        let refused = add(&node, "1").await.unwrap_err();
        assert_eq!(refused, ClientError::Overloaded("the log cannot keep up"));
        assert_eq!(began.elapsed(), SECOND);

        let mut fixture = Fixture::with_peers([]);
        fixture.log_delays = (Duration::ZERO, hour);
        let (node, began) = (fixture.build(), Instant::now());
        let answer = add(&node, "1").await.unwrap();
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Partial, 0));
        assert_eq!(began.elapsed(), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rival_that_is_always_newer_does_not_keep_a_write_for_ever() {
        let mut fixture = Fixture::with_peers([2]);
        let mut sends = 0;
        fixture.transport.expect_write().returning(move |_, write, _| {
            sends += 1;
            assert!(sends <= u32::from(MAX_ATTEMPTS));
            let by = version(write.entry.version.timestamp.as_nanos() + 10);
            Ok(WriteReply::Superseded { by })
        });
        let node = fixture.build();
        let answer = add(&node, "2").await.unwrap();
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_from_too_far_ahead_is_not_followed_and_its_holder_does_not_count() {
        let far = NOW + 3_600_000_000_000;
        let mut fixture = Fixture::with_peers([2]);
        fixture
            .transport
            .expect_write()
            .times(1)
            .returning(move |_, _, _| Ok(WriteReply::Superseded { by: version(far) }));
        let node = fixture.build();
        let answer = add(&node, "2").await.unwrap();
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Partial, 1));
        assert!(answer.timestamp < Some(Timestamp::from_nanos(far)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_removal_returns_the_newest_value_that_any_replica_removed() {
        let mut fixture = Fixture::with_peers([2]);
        fixture.transport.expect_write().returning(|_, write, _| {
            assert!(write.entry.is_tombstone());
            Ok(WriteReply::Applied { previous: Some(live(20, "newer")) })
        });
        let node = fixture.build();
        node.hold("k", live(10, "older"));
        let answer = node.client().remove(key("k"), options("2")).await.unwrap();
        assert_eq!(text(&answer), Some("newer"));
        assert!(answer.timestamp.is_some());
        assert!(node.held("k").is_some_and(|e| e.is_tombstone()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_removal_of_an_absent_or_removed_key_returns_nothing_and_leaves_a_tombstone() {
        let node = Fixture::with_peers([2]).all_acknowledge().build();
        for _ in 0..2 {
            let answer = node.client().remove(key("k"), options("2")).await.unwrap();
            assert_eq!((text(&answer), answer.timestamp), (None, None));
            assert_eq!(answer.verdict, Verdict::Success);
            assert!(node.held("k").is_some_and(|e| e.is_tombstone()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn successive_writes_through_one_node_have_growing_timestamps_on_a_standing_clock() {
        let node = Fixture::with_peers([]).build();
        let mut last = None;
        for _ in 0..100 {
            let answer = add(&node, "1").await.unwrap();
            assert!(answer.timestamp > last);
            last = answer.timestamp;
        }
    }

    fn failing_log(error: &LogError) -> MockOpLog {
        let mut log = MockOpLog::new();
        let error = error.clone();
        log.expect_append().returning(move |records| match records {
            [crate::ports::LogRecord::ClockBound(_)] => Ok(()),
            _ => Err(error.clone()),
        });
        log
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_whose_log_fails_says_that_nothing_was_done_and_holds_nothing() {
        for (error, told) in [
            (LogError::DiskFull, ClientError::DiskFull),
            (LogError::Overloaded, ClientError::Overloaded("the log cannot keep up")),
            (LogError::DurabilityLag, ClientError::DurabilityLag),
            (LogError::Closed, ClientError::ShuttingDown),
        ] {
            let mut fixture = Fixture::with_peers([]);
            fixture.log = failing_log(&error);
            let node = fixture.build();
            assert_eq!(add(&node, "1").await, Err(told));
            assert_eq!(node.held("k"), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_into_a_log_that_failed_may_have_happened() {
        let mut fixture = Fixture::with_peers([]);
        fixture.log = failing_log(&LogError::Failed("EIO".into()));
        let answer = add(&fixture.build(), "1").await.unwrap();
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Partial, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_only_peers_took_is_told_as_it_is() {
        let mut fixture = Fixture::with_peers([2, 3]).all_acknowledge();
        fixture.log = failing_log(&LogError::DiskFull);
        let node = fixture.build();
        let answer = add(&node, "3").await.unwrap();
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Partial, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_from_the_future_is_refused_from_peers() {
        let node = Fixture::with_peers([2]).build();
        let far = NOW + 501_000_000;
        let write = KeyedEntry::new(key("k"), live(far, "v"));
        let reply = node.node.replica_api().apply(vec![write], Origin::Replica.into()).await;
        let drift = ClockDrift { ahead_ns: 501_000_000, max_drift_ns: 500_000_000 };
        assert_eq!(reply, vec![Err(ApplyError::ClockDrift(drift))]);
        assert_eq!(node.held("k"), None);
        assert_eq!(node.client().stats().drift_refusals, 1);
    }
}
