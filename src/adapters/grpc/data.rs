//! `Answers`: the server's side of the data plane.
//!
//! The answers to the requests of one stream are a stream, too, and whoever sends it drives it: a
//! message that comes in is carried out and answered without a task or a queue between the
//! connection and the replica. Only writes that have to wait for the log do so in a task, since the
//! stream may break halfway, and an apply must not.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use prost::Message;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use crate::domain::{Key, NodeId, TraceContext};
use crate::ports::{Asked, Caller, Origin, ReplicaApi};

use super::convert::{copy_to_wire, key_from_wire, keyed_from_wire, reply_to_wire};
use super::fragments::{BATCH_BYTES, Reassembly, split};
use super::wire::{Reply, ReplyBatch, RequestBatch, reply, request};

/// Batches of one stream whose writes wait for the log at a time; then the stream is not read on.
const BATCHES_AT_A_TIME: usize = 64;

/// The requests of one stream, and what is known of their answers.
pub(super) struct Answers {
    replica: Arc<dyn ReplicaApi>,
    /// Who asks, if it says so.
    caller: Option<NodeId>,
    /// `None` once there will be no more.
    requests: Option<Streaming<RequestBatch>>,
    reassembly: Reassembly,
    /// Carries out the writes that wait for the log.
    tasks: TaskTracker,
    /// Resolves when no more requests are to be read.
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    applying: FuturesUnordered<JoinHandle<Vec<Reply>>>,
    /// What is to be sent, the first first of all.
    next: Option<Reply>,
    replies: VecDeque<Reply>,
    /// What is to be answered from memory, when its turn to be sent has come: many large values at
    /// once would be many times the limit of a message.
    asked: VecDeque<Question>,
    /// What is left of a message that travels in parts.
    parts: vec::IntoIter<ReplyBatch>,
}

/// What needs no log.
struct Question {
    id: u64,
    kind: Kind,
    trace: Option<TraceContext>,
    received: Instant,
}

enum Kind {
    Read(Key),
    Malformed(String),
}

impl Answers {
    pub(super) fn new(
        replica: Arc<dyn ReplicaApi>,
        (caller, requests): (Option<NodeId>, Streaming<RequestBatch>),
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            replica,
            caller,
            requests: Some(requests),
            reassembly: Reassembly::default(),
            tasks,
            stop: Box::pin(stop.cancelled_owned()),
            applying: FuturesUnordered::new(),
            next: None,
            replies: VecDeque::new(),
            asked: VecDeque::new(),
            parts: Vec::new().into_iter(),
        }
    }

    /// The stream of the answers. It ends after the last of them, when there are no more requests or
    /// no more are to be read; or with what is wrong with a request.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<ReplyBatch, Status>> + Send {
        stream::unfold(Box::new(self), |mut answers| async move {
            let next = answers.next().await?;
            Some((next, answers))
        })
    }

    async fn next(&mut self) -> Option<Result<ReplyBatch, Status>> {
        loop {
            if let Some(part) = self.parts.next() {
                return Some(Ok(part));
            }
            if let Some(batch) = self.fill_batch() {
                self.parts = split(batch).into_iter();
                continue;
            }
            let takes_more = self.requests.is_some() && self.applying.len() < BATCHES_AT_A_TIME;
            tokio::select! {
                biased;
                Some(applied) = self.applying.next() => {
                    self.replies.extend(applied.into_iter().flatten());
                }
                // What was taken is answered all the same.
                () = &mut self.stop, if self.requests.is_some() => self.requests = None,
                received = receive(&mut self.requests), if takes_more => match received {
                    Some(part) => if let Err(why) = self.take(part) {
                        self.requests = None;
                        return Some(Err(Status::invalid_argument(why)));
                    },
                    None => self.requests = None,
                },
                else => return None,
            }
        }
    }

    /// Replies to send together: as many as fit into a batch, or a single one.
    fn fill_batch(&mut self) -> Option<ReplyBatch> {
        let (mut batch, mut bytes) = (ReplyBatch::default(), 0);
        // Once for all that are answered here.
        let now = if self.asked.is_empty() { None } else { Some(Instant::now()) };
        while let Some(reply) = self.next_reply(now) {
            bytes += reply.encoded_len();
            if bytes > BATCH_BYTES && !batch.replies.is_empty() {
                self.next = Some(reply);
                break;
            }
            batch.replies.push(reply);
        }
        Some(batch).filter(|batch| !batch.replies.is_empty())
    }

    fn next_reply(&mut self, now: Option<Instant>) -> Option<Reply> {
        let known = self.next.take().or_else(|| self.replies.pop_front());
        known.or_else(|| self.asked.pop_front().map(|question| self.answer(question, now)))
    }

    fn answer(&self, question: Question, now: Option<Instant>) -> Reply {
        let Question { id, kind, trace, received } = question;
        let waited = now.map_or(Duration::ZERO, |now| now.saturating_duration_since(received));
        let caller = Caller { node: self.caller, waited };
        let kind = match kind {
            Kind::Read(key) => match self.replica.read(&key, caller, trace) {
                Ok(copy) => copy_to_wire(copy.as_ref()),
                Err(refused) => reply::Kind::Rejected(refused.to_string()),
            },
            Kind::Malformed(why) => reply::Kind::Rejected(why),
        };
        Reply { id, kind: Some(kind) }
    }

    /// Begins to carry out what a message asks for.
    fn take(&mut self, part: RequestBatch) -> Result<(), String> {
        // A stop waits also for what is carried out here and now.
        let _token = self.tasks.token();
        let Some(batch) = self.reassembly.accept(part)? else { return Ok(()) };
        let received = Instant::now();
        let (mut ids, mut writes) = (Vec::with_capacity(batch.requests.len()), Vec::new());
        let mut traces = Vec::new();
        for request in batch.requests {
            let (id, trace) = (request.id, TraceContext::from_bytes(&request.trace));
            let kind = match request.kind {
                Some(request::Kind::Write(entry)) => match keyed_from_wire(&entry) {
                    Ok(write) => {
                        traces.extend(trace.map(|trace| (writes.len(), trace)));
                        ids.push(id);
                        writes.push(write);
                        continue;
                    }
                    Err(malformed) => Kind::Malformed(malformed.0),
                },
                Some(request::Kind::Read(key)) => match key_from_wire(&key) {
                    Ok(key) => Kind::Read(key),
                    Err(malformed) => Kind::Malformed(malformed.0),
                },
                None => Kind::Malformed("a request for nothing this node knows".into()),
            };
            self.asked.push_back(Question { id, kind, trace, received });
        }
        if writes.is_empty() {
            return Ok(());
        }
        let (replica, caller) = (Arc::clone(&self.replica), self.caller);
        let applying = AssertUnwindSafe(async move {
            let caller = Caller { node: caller, waited: received.elapsed() };
            let asked = Asked { origin: Origin::Replica, caller, traces };
            let replies = replica.apply(writes, asked).await;
            let numbered = ids.into_iter().zip(replies);
            numbered.map(|(id, reply)| Reply { id, kind: Some(reply_to_wire(reply)) }).collect()
        });
        // Writes at which something panics are not answered; all others are.
        let mut applying = Box::pin(applying.catch_unwind().map(Result::unwrap_or_default));
        // Most logs take a batch at once. But what is asked beside it must not wait for the disk.
        let at_once = if self.asked.is_empty() { (&mut applying).now_or_never() } else { None };
        match at_once {
            Some(replies) => self.replies.extend(replies),
            None => self.applying.push(self.tasks.spawn(applying)),
        }
        Ok(())
    }
}

async fn receive(requests: &mut Option<Streaming<RequestBatch>>) -> Option<RequestBatch> {
    requests.as_mut()?.next().await?.ok()
}
