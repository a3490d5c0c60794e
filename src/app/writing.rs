//! The write path: to this node and every other one at once, answered at the quorum.
//!
//! A write runs in a task of its own, so neither a client that goes away nor the answer itself
//! stops a delivery. The decision is [`WriteQuorum`]'s; here is only the waiting: for replies, for
//! the deadline, and for what comes after the answer, where every failed delivery becomes a hint.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::{
    Content, Entry, Key, KeyedEntry, Liveness, NodeId, Progress, QuorumSpec, Version, WriteQuorum,
};
use crate::ports::{
    Answer, ApplyError, ClientError, LogError, Origin, Peer, PeerError, PeerTransport, Verdict,
    WriteReply,
};

use super::apply::Replica;
use super::handoff::Handoff;
use super::members::Members;
use super::stamps::Stamps;
use super::tasks::Tasks;

/// How often a write that replicas hold something newer against is stamped anew. Each time the
/// clock has moved past all versions seen, so more than one repetition takes a rival that writes
/// the key at the same moment; the last attempt counts such a rival's entry as ours.
const MAX_ATTEMPTS: u8 = 3;

/// How long answers are still collected for a write whose quorum cannot be met: long enough for
/// replicas that are up, so that the answer says how many they are, and short enough for "at once".
const UNREACHABLE_GRACE: Duration = Duration::from_millis(100);

/// After the deadline the task answers; this much later the client no longer waits for the task.
const ANSWER_SLACK: Duration = Duration::from_millis(100);

type Outcome = Result<Answer, ClientError>;

/// Carries out writes.
pub(crate) struct Writer {
    pub(crate) members: Arc<Members>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) stamps: Arc<Stamps>,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) handoff: Arc<Handoff>,
    pub(crate) tasks: Tasks,
    pub(crate) peer_timeout: Duration,
}

impl Writer {
    /// Writes `content` and waits until the quorum is met or missed, at most until `deadline`.
    /// Dropping the future does not stop the write.
    pub(crate) async fn write(
        self: &Arc<Self>,
        key: Key,
        content: Content,
        quorum: QuorumSpec,
        deadline: Instant,
    ) -> Outcome {
        let replicas = self.members.view().replicas().count();
        let unknown = unknown_outcome(&content, quorum.among(replicas).get());
        let (answer, answered) = oneshot::channel();
        self.tasks.spawn(run(Arc::clone(self), Write { key, content, quorum, deadline }, answer));
        match tokio::time::timeout_at(deadline + ANSWER_SLACK, answered).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) | Err(_) => Ok(unknown),
        }
    }
}

/// What is to be written.
struct Write {
    key: Key,
    content: Content,
    quorum: QuorumSpec,
    deadline: Instant,
}

/// A reply to one attempt.
struct Reply {
    attempt: u8,
    node: NodeId,
    result: Result<WriteReply, Failure>,
}

/// Why a replica did not take a write.
enum Failure {
    Here(ApplyError),
    There(PeerError),
}

/// The state of a running write.
struct Running {
    writer: Arc<Writer>,
    write: Write,
    replies: FuturesUnordered<BoxFuture<'static, Reply>>,
    attempt: u8,
    /// The version of the first attempt.
    first_version: Version,
    /// The version of the current attempt.
    version: Version,
    quorum: WriteQuorum,
    /// The newest entry a removal removed anywhere, our own earlier attempts aside.
    removed: Option<Entry>,
    /// Why this node did not take it.
    failed_here: Option<ApplyError>,
    /// Whether a replica that did not acknowledge may hold it all the same.
    in_doubt: bool,
}

async fn run(writer: Arc<Writer>, write: Write, answer: oneshot::Sender<Outcome>) {
    let mut running = match Running::begin(writer, write).await {
        Ok(running) => running,
        Err(error) => {
            drop(answer.send(Err(refusal(&error))));
            return;
        }
    };
    let outcome = running.decide().await;
    drop(answer.send(outcome));
    while let Some(reply) = running.replies.next().await {
        running.record(reply);
    }
}

impl Running {
    async fn begin(writer: Arc<Writer>, write: Write) -> Result<Self, LogError> {
        let version = writer.stamps.stamp().await?;
        let view = writer.members.view();
        let required = write.quorum.among(view.replicas().count());
        let mut running = Self {
            quorum: WriteQuorum::new(required, view.replicas()),
            writer,
            write,
            replies: FuturesUnordered::new(),
            attempt: 1,
            first_version: version,
            version,
            removed: None,
            failed_here: None,
            in_doubt: false,
        };
        running.send_to_all();
        Ok(running)
    }

    /// Stamps the write past everything seen and sends it once more. What the attempt before has
    /// under way goes on, but counts no more.
    async fn begin_again(&mut self) -> Result<(), LogError> {
        self.version = self.writer.stamps.stamp().await?;
        self.attempt += 1;
        let view = self.writer.members.view();
        let required = self.write.quorum.among(view.replicas().count());
        self.quorum = WriteQuorum::new(required, view.replicas());
        self.send_to_all();
        Ok(())
    }

    fn send_to_all(&mut self) {
        let entry = Entry { version: self.version, content: self.write.content.clone() };
        let keyed = KeyedEntry::new(self.write.key.clone(), entry);
        let attempt = self.attempt;
        let view = self.writer.members.view();
        for member in view.peers() {
            if view.liveness(member.id) == Liveness::Down {
                self.quorum.record_failure(member.id);
                self.writer.handoff.note(member.id, keyed.key.clone());
                continue;
            }
            let (peer, keyed) = (Peer::from(member), keyed.clone());
            let (transport, timeout) =
                (Arc::clone(&self.writer.transport), self.writer.peer_timeout);
            self.replies.push(Box::pin(async move {
                let result = transport.write(&peer, keyed, timeout).await;
                Reply { attempt, node: peer.id, result: result.map_err(Failure::There) }
            }));
        }
        let (replica, me) = (Arc::clone(&self.writer.replica), view.me().id);
        self.replies.push(Box::pin(async move {
            let result = replica.apply_one(keyed, Origin::Client).await;
            Reply { attempt, node: me, result: result.map_err(Failure::Here) }
        }));
    }

    /// Collects replies until the client can be answered.
    async fn decide(&mut self) -> Outcome {
        let deadline = self.write.deadline;
        let mut timer = std::pin::pin!(tokio::time::sleep_until(deadline));
        let mut hopeless = false;
        loop {
            match self.quorum.progress() {
                Progress::Met => return self.outcome(),
                Progress::Unreachable if self.quorum.outstanding() == 0 => return self.outcome(),
                Progress::Unreachable if !hopeless => {
                    hopeless = true;
                    timer.as_mut().reset(deadline.min(Instant::now() + UNREACHABLE_GRACE));
                }
                Progress::Unreachable | Progress::Pending => {}
            }
            if self.quorum.superseded_by().is_some() && self.attempt < MAX_ATTEMPTS {
                if let Err(error) = self.begin_again().await {
                    tracing::warn!(%error, "write not repeated past a newer version");
                    return self.outcome();
                }
                hopeless = false;
                timer.as_mut().reset(deadline);
                continue;
            }
            tokio::select! {
                Some(reply) = self.replies.next() => self.record(reply),
                () = &mut timer => return self.outcome(),
            }
        }
    }

    fn record(&mut self, reply: Reply) {
        let current = reply.attempt == self.attempt;
        match reply.result {
            Ok(WriteReply::Applied { previous }) => {
                if current {
                    self.quorum.record_ack(reply.node);
                }
                let removed = previous.filter(|entry| !self.is_ours(entry.version));
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
    }

    /// Whether a version is that of one of this write's attempts.
    fn is_ours(&self, version: Version) -> bool {
        version.node == self.version.node && version >= self.first_version
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
                tracing::warn!(%error, "write not taken by this node");
                self.failed_here = Some(error);
            }
            Failure::There(error) => {
                self.in_doubt |= matches!(error, PeerError::TimedOut | PeerError::Protocol(_));
                tracing::debug!(peer = %node, %error, "write not acknowledged");
                self.writer.handoff.note(node, self.write.key.clone());
            }
        }
    }

    fn outcome(&self) -> Outcome {
        let achieved = self.quorum.achieved();
        let open = self.quorum.outstanding() > 0 || self.in_doubt;
        if let (0, false, Some(error)) = (achieved, open, &self.failed_here) {
            return Err(match error {
                ApplyError::Log(error) => refusal(error),
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
        })
    }
}

/// What is said of a write whose task could not even say how far it came.
fn unknown_outcome(content: &Content, required: u32) -> Answer {
    let value = match content {
        Content::Live(value) => Some(value.clone()),
        Content::Tombstone => None,
    };
    Answer { verdict: Verdict::Partial, value, timestamp: None, required, achieved: 0 }
}

fn refusal(error: &LogError) -> ClientError {
    match error {
        LogError::Overloaded => ClientError::Overloaded("the log cannot keep up"),
        LogError::DiskFull => ClientError::DiskFull,
        LogError::Failed(_) | LogError::Closed | LogError::Corrupt { .. } => {
            ClientError::ShuttingDown
        }
    }
}
