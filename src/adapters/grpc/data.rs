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
use std::vec;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use prost::Message;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use crate::domain::{Key, KeyedEntry};
use crate::ports::{Origin, ReplicaApi};

use super::convert::{copy_to_wire, key_from_wire, keyed_from_wire, reply_to_wire};
use super::fragments::{BATCH_BYTES, Reassembly, split};
use super::wire::{Reply, ReplyBatch, RequestBatch, reply, request};

/// Batches of one stream whose writes wait for the log at a time; then the stream is not read on.
const BATCHES_AT_A_TIME: usize = 64;

/// The requests of one stream, and what is known of their answers.
pub(super) struct Answers {
    replica: Arc<dyn ReplicaApi>,
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
    asked: VecDeque<(u64, Asked)>,
    /// What is left of a message that travels in parts.
    parts: vec::IntoIter<ReplyBatch>,
}

/// What needs no log.
enum Asked {
    Read(Key),
    Malformed(String),
}

impl Answers {
    pub(super) fn new(
        replica: Arc<dyn ReplicaApi>,
        requests: Streaming<RequestBatch>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            replica,
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
        while let Some(reply) = self.next_reply() {
            bytes += reply.encoded_len();
            if bytes > BATCH_BYTES && !batch.replies.is_empty() {
                self.next = Some(reply);
                break;
            }
            batch.replies.push(reply);
        }
        Some(batch).filter(|batch| !batch.replies.is_empty())
    }

    fn next_reply(&mut self) -> Option<Reply> {
        let known = self.next.take().or_else(|| self.replies.pop_front());
        known.or_else(|| self.asked.pop_front().map(|(id, asked)| self.answer(id, asked)))
    }

    fn answer(&self, id: u64, asked: Asked) -> Reply {
        let kind = match asked {
            Asked::Read(key) => match self.replica.read(&key) {
                Ok(copy) => copy_to_wire(copy.as_ref()),
                Err(refused) => reply::Kind::Rejected(refused.to_string()),
            },
            Asked::Malformed(why) => reply::Kind::Rejected(why),
        };
        Reply { id, kind: Some(kind) }
    }

    /// Begins to carry out what a message asks for.
    fn take(&mut self, part: RequestBatch) -> Result<(), String> {
        // A stop waits also for what is carried out here and now.
        let _token = self.tasks.token();
        let Some(batch) = self.reassembly.accept(part)? else { return Ok(()) };
        let (mut ids, mut writes) = (Vec::with_capacity(batch.requests.len()), Vec::new());
        for request in batch.requests {
            match request.kind {
                Some(request::Kind::Write(entry)) => match keyed_from_wire(&entry) {
                    Ok(write) => {
                        ids.push(request.id);
                        writes.push(write);
                    }
                    Err(malformed) => {
                        self.asked.push_back((request.id, Asked::Malformed(malformed.0)));
                    }
                },
                Some(request::Kind::Read(key)) => {
                    let asked = match key_from_wire(&key) {
                        Ok(key) => Asked::Read(key),
                        Err(malformed) => Asked::Malformed(malformed.0),
                    };
                    self.asked.push_back((request.id, asked));
                }
                None => {
                    let why = "a request for nothing this node knows".into();
                    self.asked.push_back((request.id, Asked::Malformed(why)));
                }
            }
        }
        if writes.is_empty() {
            return Ok(());
        }
        let applying = AssertUnwindSafe(apply(Arc::clone(&self.replica), ids, writes));
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

async fn apply(replica: Arc<dyn ReplicaApi>, ids: Vec<u64>, writes: Vec<KeyedEntry>) -> Vec<Reply> {
    let replies = replica.apply(writes, Origin::Replica).await;
    let numbered = ids.into_iter().zip(replies);
    numbered.map(|(id, reply)| Reply { id, kind: Some(reply_to_wire(reply)) }).collect()
}
