//! `Link`: the data plane to one peer.
//!
//! Callers queue calls; the stream that is open sends all that are queued in its next message, so
//! batches grow with the load and a lone call waits for nobody. Replies come back in any order and
//! find their callers by number. When the stream breaks, what was sent may have been carried out
//! (timed out); what was not has not (unreachable). A task connects again, with backoff, or as soon
//! as the peer is heard of in another way; while it waits, calls fail at once.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{Notify, oneshot};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::domain::NodeId;
use crate::ports::{PeerCall, PeerError, PeerStats};

use super::calls::{Calls, Reply, StreamNumber};
use super::fragments::{Reassembly, split};
use super::handshake::{Handshake, error};
use super::peers::client;
use super::wire::{ReplyBatch, RequestBatch, request};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The way to one peer.
pub(super) struct Link {
    pub(super) addr: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    calls: Calls,
    /// Why calls fail at once; `None` while connected, or while connecting for the first time.
    down: ArcSwapOption<PeerError>,
    /// Ends the wait before the next attempt to connect.
    heard_of: Notify,
    /// Nobody calls any more.
    released: Notify,
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
        let shared = Arc::<Shared>::default();
        let task = Task { shared: Arc::clone(&shared), id, channel, handshake };
        let work = {
            let shared = Arc::clone(&shared);
            async move {
                tokio::select! {
                    () = shared.released.notified() => {}
                    () = task.run(jitter) => {}
                }
            }
        };
        (Self { addr: addr.to_owned(), shared }, work)
    }

    /// Sends a request and waits for its reply.
    pub(super) async fn call(&self, kind: request::Kind, call: PeerCall) -> Reply {
        if let Some(down) = self.shared.down.load().as_deref() {
            return Err(down.clone());
        }
        let (reply, answered) = oneshot::channel();
        self.shared.calls.queue(kind, call.trace, reply)?;
        match tokio::time::timeout(call.timeout, answered).await {
            Ok(Ok(reply)) => reply,
            // The task ended without a word, or is slow: the request may have been sent.
            Ok(Err(_)) | Err(_) => Err(PeerError::TimedOut),
        }
    }

    /// What came of a call: counted if it failed.
    pub(super) fn counted<T>(&self, outcome: Result<T, PeerError>) -> Result<T, PeerError> {
        outcome.inspect_err(|error| self.shared.calls.note_failure(error))
    }

    /// How the calls went.
    pub(super) fn stats(&self) -> PeerStats {
        self.shared.calls.stats()
    }

    /// The smoothed round trip.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.shared.calls.round_trip()
    }

    /// The peer answered on another connection: there is no reason to wait any longer.
    pub(super) fn note_heard_of(&self) {
        if self.shared.down.load().is_some() {
            self.shared.heard_of.notify_one();
        }
    }

    /// Whether the task has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.shared.calls.is_closed()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.released.notify_one();
    }
}

/// The task of a link. It ends when it is dropped.
struct Task {
    shared: Arc<Shared>,
    id: NodeId,
    channel: Channel,
    handshake: Handshake,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.shared.calls.close();
    }
}

impl Task {
    async fn run(self, mut jitter: impl FnMut(Duration) -> Duration) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let reason = match self.connect().await {
                Ok(replies) => {
                    self.shared.down.store(None);
                    self.shared.calls.open_stream();
                    backoff = BACKOFF_MIN;
                    receive_all(&self.shared.calls, replies).await
                }
                Err(reason) => reason,
            };
            tracing::debug!(peer = %self.id, %reason, "data stream down");
            let why = as_unreachable(reason);
            self.shared.down.store(Some(Arc::new(why.clone())));
            self.shared.calls.shut_stream();
            self.wait(jitter(backoff), &why).await;
            backoff = BACKOFF_MAX.min(backoff * 2);
        }
    }

    /// A new stream, which is to be opened.
    async fn connect(&self) -> Result<Streaming<ReplyBatch>, PeerError> {
        let requests = requests(Arc::clone(&self.shared), self.shared.calls.new_stream());
        let request = self.handshake.request(requests, Some(self.id));
        let mut client = client(self.channel.clone());
        match tokio::time::timeout(CONNECT_TIMEOUT, client.data(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(error(&status)),
            Err(_) => Err(PeerError::Unreachable("no connection in time".into())),
        }
    }

    /// Lets the time pass, refusing what comes in, but no more than the shortest time once the peer
    /// is heard of.
    async fn wait(&self, time: Duration, why: &PeerError) {
        let refusing = poll_fn(|context| {
            self.shared.calls.refuse(why, context);
            Poll::<()>::Pending
        });
        let heard_of = async {
            tokio::time::sleep(BACKOFF_MIN.min(time)).await;
            self.shared.heard_of.notified().await;
        };
        tokio::select! {
            () = refusing => {}
            () = tokio::time::sleep(time) => {}
            () = heard_of => {}
        }
    }
}

/// What a stream sends: whatever is queued, in as few messages as hold it. It ends when it is shut.
fn requests(shared: Arc<Shared>, number: StreamNumber) -> impl Stream<Item = RequestBatch> + Send {
    let batches = stream::unfold(shared, move |shared| async move {
        if !poll_fn(|context| shared.calls.poll_any(number, context)).await {
            return None;
        }
        // Whoever is about to call, at this turn of the runtime, comes along.
        behind_all_that_is_queued().await;
        let batch = shared.calls.take_batch(number);
        // Nothing, if those who called have given up.
        let parts = if batch.requests.is_empty() { Vec::new() } else { split(batch) };
        Some((stream::iter(parts), shared))
    });
    batches.flatten()
}

/// Goes to the end of the thread's queue, once. Not by yielding: what has yielded, no other thread can
/// take, should a disk hold this one up.
async fn behind_all_that_is_queued() {
    let mut is_behind = false;
    poll_fn(|context| {
        if std::mem::replace(&mut is_behind, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn receive_all(calls: &Calls, mut replies: Streaming<ReplyBatch>) -> PeerError {
    let mut reassembly = Reassembly::default();
    loop {
        match replies.next().await {
            Some(Ok(part)) => match reassembly.accept(part) {
                Ok(Some(batch)) => calls.complete(batch),
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join;
    use tokio::time::Instant;
    use tonic::transport::Endpoint;

    const MILLI: Duration = Duration::from_millis(1);

    /// How long a link that is down waits if its peer is heard of after so long.
    async fn waits(time: Duration, heard_of_after: Option<Duration>) -> Duration {
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let handshake = Handshake { cluster: "lally".into(), me: NodeId::new(1) };
        let shared = Arc::<Shared>::default();
        shared.down.store(Some(Arc::new(PeerError::TimedOut)));
        let link = Link { addr: String::new(), shared: Arc::clone(&shared) };
        let task = Task { shared, id: NodeId::new(2), channel, handshake };
        let hearing = async {
            if let Some(after) = heard_of_after {
                tokio::time::sleep(after).await;
                link.note_heard_of();
            }
        };
        let began = Instant::now();
        let waiting = async {
            task.wait(time, &PeerError::TimedOut).await;
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
