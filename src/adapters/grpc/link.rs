//! `Link`: the data plane to one peer.
//!
//! Callers queue requests; one task sends whatever is queued in the next message, so batches grow
//! with the load and a lone request waits for nobody. Replies come back in any order and find their
//! callers by number. When the stream breaks, what was sent may have been carried out (timed out);
//! what was not has not (unreachable). The task connects again by itself, with backoff, or as soon as
//! the peer is heard of in another way; while it waits, calls fail at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::StreamExt;
use prost::Message;
use rapidhash::fast::RandomState;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::domain::NodeId;
use crate::ports::PeerError;

use super::fragments::{BATCH_BYTES, MAX_MESSAGE_BYTES, Reassembly, split};
use super::handshake::{Handshake, error};
use super::wire::peer_client::PeerClient;
use super::wire::{ReplyBatch, Request, RequestBatch, reply, request};

/// Requests that wait for one peer.
const QUEUE_LENGTH: usize = 8_192;

/// Bytes of requests that wait for one peer.
const QUEUE_BYTES: usize = 64 << 20;

/// Requests under way to one peer.
const MAX_PENDING: usize = 65_536;

/// Messages between the sender and the connection.
const MESSAGES_AHEAD: usize = 4;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

type Reply = Result<reply::Kind, PeerError>;

/// The way to one peer.
pub(super) struct Link {
    pub(super) addr: String,
    queue: mpsc::Sender<Call>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Why calls fail at once; `None` while connected, or while connecting for the first time.
    down: ArcSwapOption<PeerError>,
    /// Ends the wait before the next attempt to connect.
    heard_of: Notify,
    queued_bytes: AtomicUsize,
    pending: Mutex<Pending>,
    /// Smoothed, in microseconds; 0 if there were no calls.
    round_trip_us: AtomicU64,
}

#[derive(Default)]
struct Pending {
    calls: HashMap<u64, Waiting, RandomState>,
    /// The number of calls at which abandoned ones are looked for.
    sweep_at: usize,
}

struct Waiting {
    reply: oneshot::Sender<Reply>,
    sent: Instant,
}

struct Call {
    kind: request::Kind,
    bytes: usize,
    reply: oneshot::Sender<Reply>,
}

impl Link {
    /// A link to the node of this id at this address, and the work of its task.
    pub(super) fn new(
        addr: &str,
        id: NodeId,
        channel: Channel,
        handshake: Handshake,
        jitter: impl FnMut(Duration) -> Duration + Send + 'static,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, calls) = mpsc::channel(QUEUE_LENGTH);
        let shared = Arc::new(Shared {
            down: ArcSwapOption::empty(),
            heard_of: Notify::new(),
            queued_bytes: AtomicUsize::new(0),
            pending: Mutex::default(),
            round_trip_us: AtomicU64::new(0),
        });
        let task = Task { shared: Arc::clone(&shared), calls, id, channel, handshake, next_id: 1 };
        (Self { addr: addr.to_owned(), queue, shared }, task.run(jitter))
    }

    /// Sends a request and waits for its reply.
    pub(super) async fn call(&self, kind: request::Kind, timeout: Duration) -> Reply {
        if let Some(down) = self.shared.down.load().as_deref() {
            return Err(down.clone());
        }
        let bytes = size(&kind);
        if self.shared.queued_bytes.load(Ordering::Relaxed) > QUEUE_BYTES {
            return Err(full());
        }
        let (reply, answered) = oneshot::channel();
        self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.queue.try_send(Call { kind, bytes, reply }).is_err() {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(full());
        }
        match tokio::time::timeout(timeout, answered).await {
            Ok(Ok(reply)) => reply,
            // The task ended without a word, or is slow: the request may have been sent.
            Ok(Err(_)) | Err(_) => Err(PeerError::TimedOut),
        }
    }

    /// The smoothed round trip.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        let micros = self.shared.round_trip_us.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }

    /// The peer answered on another connection: there is no reason to wait any longer.
    pub(super) fn note_heard_of(&self) {
        if self.shared.down.load().is_some() {
            self.shared.heard_of.notify_one();
        }
    }

    /// Whether the task has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands replies to their callers.
    fn complete(&self, batch: ReplyBatch) {
        let now = Instant::now();
        let mut pending = self.pending();
        for reply in batch.replies {
            let Some(waiting) = pending.calls.remove(&reply.id) else { continue };
            self.smooth(now.duration_since(waiting.sent));
            let missing = || PeerError::Protocol("a reply without an answer".into());
            // Whoever does not wait any more does not need to know.
            waiting.reply.send(reply.kind.ok_or_else(missing)).ok();
        }
    }

    /// Every call under way may have been carried out.
    fn fail_pending(&self) {
        for (_, waiting) in self.pending().calls.drain() {
            waiting.reply.send(Err(PeerError::TimedOut)).ok();
        }
    }

    /// An eighth of the new into the old, as TCP does (RFC 6298).
    fn smooth(&self, sample: Duration) {
        let sample = u64::try_from(sample.as_micros()).unwrap_or(u64::MAX).max(1);
        let old = self.round_trip_us.load(Ordering::Relaxed);
        let new = if old == 0 { sample } else { old - old / 8 + sample / 8 };
        self.round_trip_us.store(new.max(1), Ordering::Relaxed);
    }
}

impl Pending {
    /// Makes room by forgetting calls whose callers have given up.
    fn sweep(&mut self) {
        if self.calls.len() >= self.sweep_at {
            self.calls.retain(|_, waiting| !waiting.reply.is_closed());
            self.sweep_at = (self.calls.len() * 2).max(1_024);
        }
    }
}

/// The task of a link.
struct Task {
    shared: Arc<Shared>,
    calls: mpsc::Receiver<Call>,
    id: NodeId,
    channel: Channel,
    handshake: Handshake,
    next_id: u64,
}

impl Task {
    async fn run(mut self, mut jitter: impl FnMut(Duration) -> Duration) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let reason = match self.connect().await {
                Ok((requests, replies)) => {
                    self.shared.down.store(None);
                    backoff = BACKOFF_MIN;
                    self.exchange(requests, replies).await
                }
                Err(error) => error,
            };
            let Some(reason) = reason else { return };
            tracing::debug!(peer = %self.id, %reason, "data stream down");
            self.shared.down.store(Some(Arc::new(as_unreachable(reason))));
            self.shared.fail_pending();
            if !self.wait(jitter(backoff)).await {
                return;
            }
            backoff = BACKOFF_MAX.min(backoff * 2);
        }
    }

    async fn connect(
        &self,
    ) -> Result<(mpsc::Sender<RequestBatch>, Streaming<ReplyBatch>), Option<PeerError>> {
        let (sender, requests) = mpsc::channel(MESSAGES_AHEAD);
        let request = self.handshake.request(ReceiverStream::new(requests), Some(self.id));
        let mut client = PeerClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        match tokio::time::timeout(CONNECT_TIMEOUT, client.data(request)).await {
            Ok(Ok(response)) => Ok((sender, response.into_inner())),
            Ok(Err(status)) => Err(Some(error(&status))),
            Err(_) => Err(Some(PeerError::Unreachable("no connection in time".into()))),
        }
    }

    /// Serves calls until the stream breaks (why) or nobody holds the link any more (`None`).
    async fn exchange(
        &mut self,
        requests: mpsc::Sender<RequestBatch>,
        replies: Streaming<ReplyBatch>,
    ) -> Option<PeerError> {
        // Both directions at once: a peer whose replies are not read stops reading requests.
        let shared = Arc::clone(&self.shared);
        tokio::select! {
            ended = self.send_all(requests) => ended,
            broken = receive_all(&shared, replies) => Some(broken),
        }
    }

    async fn send_all(&mut self, requests: mpsc::Sender<RequestBatch>) -> Option<PeerError> {
        loop {
            // A place first: what is taken from the queue must be sent or refused, not dropped.
            let Ok(place) = requests.reserve().await else {
                return Some(PeerError::TimedOut);
            };
            let first = self.calls.recv().await?;
            let mut parts = split(self.fill_batch(first)).into_iter();
            if let Some(part) = parts.next() {
                place.send(part);
            }
            for part in parts {
                if requests.send(part).await.is_err() {
                    return Some(PeerError::TimedOut);
                }
            }
        }
    }

    /// Takes what is queued, up to the size of a batch.
    fn fill_batch(&mut self, first: Call) -> RequestBatch {
        let mut batch = RequestBatch::default();
        let mut bytes = 0;
        let shared = Arc::clone(&self.shared);
        let mut pending = shared.pending();
        pending.sweep();
        let mut next = Some(first);
        while let Some(call) = next {
            bytes += call.bytes;
            self.shared.queued_bytes.fetch_sub(call.bytes, Ordering::Relaxed);
            if pending.calls.len() >= MAX_PENDING {
                call.reply.send(Err(full())).ok();
            } else if !call.reply.is_closed() {
                let id = self.next_id;
                self.next_id += 1;
                let sent = Instant::now();
                pending.calls.insert(id, Waiting { reply: call.reply, sent });
                batch.requests.push(Request { id, kind: Some(call.kind) });
            }
            next = if bytes < BATCH_BYTES { self.calls.try_recv().ok() } else { None };
        }
        batch
    }

    /// Lets the time pass, refusing what comes in, but no more than the shortest time once the peer
    /// is heard of; `false` once nobody holds the link any more.
    async fn wait(&mut self, time: Duration) -> bool {
        let shared = Arc::clone(&self.shared);
        let until = tokio::time::sleep(time);
        let heard_of = async {
            tokio::time::sleep(BACKOFF_MIN.min(time)).await;
            shared.heard_of.notified().await;
        };
        tokio::pin!(until, heard_of);
        loop {
            tokio::select! {
                () = &mut until => return true,
                () = &mut heard_of => return true,
                call = self.calls.recv() => match call {
                    Some(call) => self.refuse(call),
                    None => return false,
                },
            }
        }
    }

    fn refuse(&self, call: Call) {
        self.shared.queued_bytes.fetch_sub(call.bytes, Ordering::Relaxed);
        let down = self.shared.down.load();
        let reason = down.as_deref().cloned().unwrap_or_else(full);
        call.reply.send(Err(reason)).ok();
    }
}

async fn receive_all(shared: &Shared, mut replies: Streaming<ReplyBatch>) -> PeerError {
    let mut reassembly = Reassembly::default();
    loop {
        match replies.next().await {
            Some(Ok(part)) => match reassembly.accept(part) {
                Ok(Some(batch)) => shared.complete(batch),
                Ok(None) => {}
                Err(why) => return PeerError::Protocol(why),
            },
            Some(Err(status)) => return error(&status),
            None => return PeerError::Unreachable("the peer closed the stream".into()),
        }
    }
}

/// What calls are told that were not sent because the stream is down.
fn as_unreachable(reason: PeerError) -> PeerError {
    match reason {
        refused @ PeerError::Refused(_) => refused,
        PeerError::Unreachable(why) => PeerError::Unreachable(why),
        other => PeerError::Unreachable(other.to_string()),
    }
}

fn full() -> PeerError {
    PeerError::Unreachable("too many requests wait for this peer".into())
}

/// About what a request takes in a message and in memory.
fn size(kind: &request::Kind) -> usize {
    const OVERHEAD: usize = 48;
    OVERHEAD
        + match kind {
            request::Kind::Write(entry) => entry.encoded_len(),
            request::Kind::Read(key) => key.len(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join;
    use tonic::transport::Endpoint;

    const MILLI: Duration = Duration::from_millis(1);

    /// How long a link that is down waits if its peer is heard of after so long.
    async fn waits(time: Duration, heard_of_after: Option<Duration>) -> Duration {
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let handshake = Handshake { cluster: "lally".into(), me: NodeId::new(1) };
        let (queue, calls) = mpsc::channel(1);
        let shared = Arc::new(Shared {
            down: ArcSwapOption::from_pointee(PeerError::TimedOut),
            heard_of: Notify::new(),
            queued_bytes: AtomicUsize::new(0),
            pending: Mutex::default(),
            round_trip_us: AtomicU64::new(0),
        });
        let id = NodeId::new(2);
        let link = Link { addr: String::new(), queue, shared: Arc::clone(&shared) };
        let mut task = Task { shared, calls, id, channel, handshake, next_id: 1 };
        let hearing = async {
            if let Some(after) = heard_of_after {
                tokio::time::sleep(after).await;
                link.note_heard_of();
            }
        };
        let began = Instant::now();
        let waiting = async {
            assert!(task.wait(time).await);
            began.elapsed()
        };
        join(waiting, hearing).await.0
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_waits_no_longer_once_its_peer_is_heard_of() {
        assert_eq!(waits(BACKOFF_MAX, None).await, BACKOFF_MAX);
        assert_eq!(waits(BACKOFF_MAX, Some(300 * MILLI)).await, 300 * MILLI);
        // A peer that answers there but not here must not be tried without a pause.
        assert_eq!(waits(BACKOFF_MAX, Some(MILLI)).await, BACKOFF_MIN);
        assert_eq!(waits(20 * MILLI, Some(MILLI)).await, 20 * MILLI);
    }
}
