//! The server's side of long streams: the data plane, and entries, or summaries of
//! them, for whoever asks for many.

use std::sync::Arc;

use futures_util::StreamExt;
use prost::Message;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;
use tonic::{Status, Streaming};

use crate::domain::{Key, KeyedEntry};
use crate::ports::{EntryChunk, EntryStream, Origin, ReplicaApi};

use super::convert::{copy_to_wire, key_from_wire, keyed_from_wire, reply_to_wire};
use super::fragments::{BATCH_BYTES, Fragmented, Reassembly, split};
use super::wire::{Reply, ReplyBatch, RequestBatch, reply, request};

/// Batches of one stream whose writes wait for the log at a time; then the stream is not read on.
const BATCHES_AT_A_TIME: usize = 64;

/// Answers the requests of one stream until it ends.
pub(super) async fn serve_data(
    replica: Arc<dyn ReplicaApi>,
    mut requests: Streaming<RequestBatch>,
    replies: Outbox<ReplyBatch>,
    tasks: TaskTracker,
) {
    let replies = Arc::new(replies);
    let turns = Arc::new(Semaphore::new(BATCHES_AT_A_TIME));
    let mut reassembly = Reassembly::default();
    while let Some(Ok(part)) = requests.next().await {
        let batch = match reassembly.accept(part) {
            Ok(Some(batch)) => batch,
            Ok(None) => continue,
            Err(why) => {
                replies.fail(Status::invalid_argument(why)).await;
                return;
            }
        };
        let (reads, writes) = sort(batch);
        // First: what is answered from memory does not wait for a log that is behind. One by one as
        // they are sent: many large values at once would be many times the limit of a message.
        let answers = reads.into_iter().map(|(id, kind)| answer(replica.as_ref(), id, kind));
        send_replies(&replies, answers).await;
        if writes.ids.is_empty() {
            continue;
        }
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
        let (replica, replies) = (Arc::clone(&replica), Arc::clone(&replies));
        // In a task of its own: the stream may break halfway, an apply must not.
        tasks.spawn(async move {
            let applied = apply(replica.as_ref(), writes).await;
            drop(turn);
            send_replies(&replies, applied.into_iter()).await;
        });
    }
}

/// Sends replies in batches, each as large as a batch may be or a single reply.
async fn send_replies(outbox: &Outbox<ReplyBatch>, replies: impl Iterator<Item = Reply>) {
    let (mut batch, mut bytes) = (ReplyBatch::default(), 0);
    for reply in replies {
        let size = reply.encoded_len();
        if bytes + size > BATCH_BYTES && !batch.replies.is_empty() {
            if !outbox.send(std::mem::take(&mut batch)).await {
                return;
            }
            bytes = 0;
        }
        bytes += size;
        batch.replies.push(reply);
    }
    if !batch.replies.is_empty() {
        outbox.send(batch).await;
    }
}

/// Sends what a stream brings, chunk by chunk, as fast as it is taken.
pub(super) async fn send_chunks<T: Send + 'static, M: Fragmented>(
    mut entries: Box<dyn EntryStream<T>>,
    chunks: Outbox<M>,
    to_wire: fn(&EntryChunk<T>) -> M,
) {
    while let Some(next) = entries.next().await {
        match next {
            Ok(chunk) => {
                if !chunks.send(to_wire(&chunk)).await {
                    return;
                }
            }
            Err(error) => {
                chunks.fail(Status::aborted(error.to_string())).await;
                return;
            }
        }
    }
}

/// The writes of a batch, and the numbers of their requests.
#[derive(Default)]
struct Writes {
    ids: Vec<u64>,
    writes: Vec<KeyedEntry>,
}

/// The writes of a batch, and the rest of its requests.
fn sort(batch: RequestBatch) -> (Vec<(u64, Rest)>, Writes) {
    let (mut rest, mut writes) = (Vec::new(), Writes::default());
    for request in batch.requests {
        let refused = match request.kind {
            Some(request::Kind::Write(entry)) => match keyed_from_wire(&entry) {
                Ok(write) => {
                    writes.ids.push(request.id);
                    writes.writes.push(write);
                    continue;
                }
                Err(malformed) => malformed.0,
            },
            Some(request::Kind::Read(key)) => match key_from_wire(&key) {
                Ok(key) => {
                    rest.push((request.id, Rest::Read(key)));
                    continue;
                }
                Err(malformed) => malformed.0,
            },
            None => "a request for nothing this node knows".into(),
        };
        rest.push((request.id, Rest::Refused(refused)));
    }
    (rest, writes)
}

/// What needs no log.
enum Rest {
    Read(Key),
    Refused(String),
}

fn answer(replica: &dyn ReplicaApi, id: u64, request: Rest) -> Reply {
    let kind = match request {
        Rest::Read(key) => match replica.read(&key) {
            Ok(copy) => copy_to_wire(copy.as_ref()),
            Err(refused) => reply::Kind::Rejected(refused.to_string()),
        },
        Rest::Refused(why) => reply::Kind::Rejected(why),
    };
    Reply { id, kind: Some(kind) }
}

async fn apply(replica: &dyn ReplicaApi, writes: Writes) -> Vec<Reply> {
    let replies = replica.apply(writes.writes, Origin::Replica).await;
    let numbered = writes.ids.into_iter().zip(replies);
    numbered.map(|(id, reply)| Reply { id, kind: Some(reply_to_wire(reply)) }).collect()
}

/// The way back of a stream. Several tasks answer on it, and the parts of two messages must not
/// mix: whoever sends has the turn until its last part is under way.
pub(super) struct Outbox<M> {
    messages: mpsc::Sender<Result<M, Status>>,
    turn: tokio::sync::Mutex<()>,
}

impl<M: Fragmented> Outbox<M> {
    pub(super) fn new(messages: mpsc::Sender<Result<M, Status>>) -> Self {
        Self { messages, turn: tokio::sync::Mutex::new(()) }
    }

    /// Sends a message, in parts if it is too large; whether anybody takes it.
    async fn send(&self, message: M) -> bool {
        let parts = split(message);
        let _turn = self.turn.lock().await;
        for part in parts {
            if self.messages.send(Ok(part)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Ends the stream with an error.
    async fn fail(&self, status: Status) {
        // Nobody to tell if the stream is gone already.
        self.messages.send(Err(status)).await.ok();
    }
}
