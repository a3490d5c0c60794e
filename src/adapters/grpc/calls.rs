//! `Calls`: the calls to one peer, those that wait to be sent and those that wait for their reply.
//!
//! A call waits until whoever sends takes it, together with all others that wait then, and from then
//! on for the reply with its number. All of this is one plain state behind one lock; here nothing
//! waits for the network.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use prost::Message;
use rapidhash::fast::RandomState;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::TraceContext;
use crate::ports::{PeerError, PeerStats};

use super::convert::trace_to_wire;
use super::fragments::BATCH_BYTES;
use super::wire::{ReplyBatch, Request, RequestBatch, reply, request};

/// Calls that wait to be sent.
const QUEUE_LENGTH: usize = 8_192;

/// Their bytes.
const QUEUE_BYTES: usize = 64 << 20;

/// Calls under way.
const MAX_UNDER_WAY: usize = 65_536;

/// The answer to a call.
pub(super) type Reply = Result<reply::Kind, PeerError>;

/// The calls to one peer.
#[derive(Default)]
pub(super) struct Calls(Mutex<State>);

#[derive(Default)]
struct State {
    queue: VecDeque<Call>,
    queued_bytes: usize,
    under_way: HashMap<u64, Waiting, RandomState>,
    /// The number of calls under way at which abandoned ones are looked for.
    sweep_at: usize,
    last_id: u64,
    /// Which stream takes calls, if it is open.
    stream: StreamNumber,
    is_open: bool,
    /// Whether there will be no more calls.
    is_closed: bool,
    /// Whom to wake when there is a call, or the stream has ended.
    waker: Option<Waker>,
    /// Smoothed.
    round_trip: Option<Duration>,
    /// But for what is queued.
    stats: PeerStats,
}

/// A stream, counted from the first to this peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct StreamNumber(u64);

struct Call {
    kind: request::Kind,
    trace: Option<TraceContext>,
    bytes: usize,
    reply: oneshot::Sender<Reply>,
}

struct Waiting {
    reply: oneshot::Sender<Reply>,
    sent: Instant,
}

impl Calls {
    /// Queues a call, unless there are too many.
    pub(super) fn queue(
        &self,
        kind: request::Kind,
        trace: Option<TraceContext>,
        reply: oneshot::Sender<Reply>,
    ) -> Result<(), PeerError> {
        let bytes = size(&kind);
        self.change(|state| {
            if state.is_closed {
                return Err(gone());
            }
            if state.queue.len() >= QUEUE_LENGTH || state.queued_bytes > QUEUE_BYTES {
                return Err(full());
            }
            state.queued_bytes += bytes;
            state.queue.push_back(Call { kind, trace, bytes, reply });
            Ok(())
        })
    }

    /// A new stream, in place of the one before. It takes no calls before it is open.
    pub(super) fn new_stream(&self) -> StreamNumber {
        self.change(|state| {
            state.is_open = false;
            state.stream.0 += 1;
            state.stream
        })
    }

    /// From now on the new stream takes calls.
    pub(super) fn open_stream(&self) {
        self.change(|state| state.is_open = true);
    }

    /// Takes calls from this stream no more, which ends it. Each that is under way may have been
    /// carried out.
    pub(super) fn shut_stream(&self) {
        let under_way = self.change(|state| {
            state.is_open = false;
            state.stream.0 += 1;
            std::mem::take(&mut state.under_way)
        });
        for waiting in under_way.into_values() {
            waiting.reply.send(Err(PeerError::TimedOut)).ok();
        }
    }

    /// Resolves when this stream has something to send (`true`), or never will again (`false`).
    pub(super) fn poll_any(&self, stream: StreamNumber, context: &Context<'_>) -> Poll<bool> {
        let mut state = self.state();
        if state.stream != stream {
            return Poll::Ready(false);
        }
        if state.is_open && !state.queue.is_empty() {
            return Poll::Ready(true);
        }
        state.wait(context);
        Poll::Pending
    }

    /// Takes what is queued, up to the size of a batch.
    pub(super) fn take_batch(&self, stream: StreamNumber) -> RequestBatch {
        let mut state = self.state();
        if state.stream == stream && state.is_open { state.take_batch() } else { <_>::default() }
    }

    /// Refuses what is queued, and wakes whoever asks for it when there is more.
    pub(super) fn refuse(&self, why: &PeerError, context: &Context<'_>) {
        let refused = {
            let mut state = self.state();
            state.wait(context);
            state.drain()
        };
        for call in refused {
            call.reply.send(Err(why.clone())).ok();
        }
    }

    /// Hands replies to their callers.
    pub(super) fn complete(&self, batch: ReplyBatch) {
        let mut answered = Vec::with_capacity(batch.replies.len());
        {
            let now = Instant::now();
            let mut state = self.state();
            for reply in batch.replies {
                let Some(waiting) = state.under_way.remove(&reply.id) else { continue };
                let took = now.duration_since(waiting.sent);
                state.smooth(took);
                state.stats.replies.record(took);
                answered.push((waiting.reply, reply.kind));
            }
        }
        // Not under the lock: those who are woken may call again.
        for (caller, kind) in answered {
            let missing = || PeerError::Protocol("a reply without an answer".into());
            // Whoever does not wait any more does not need to know.
            caller.send(kind.ok_or_else(missing)).ok();
        }
    }

    /// Takes no more calls; what waits is answered.
    pub(super) fn close(&self) {
        self.shut_stream();
        let queued = self.change(|state| {
            state.is_closed = true;
            state.drain()
        });
        for call in queued {
            call.reply.send(Err(gone())).ok();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// The smoothed round trip.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.state().round_trip
    }

    /// A call failed.
    pub(super) fn note_failure(&self, error: &PeerError) {
        self.state().stats.note_failure(error);
    }

    /// How the calls went, and how many wait.
    pub(super) fn stats(&self) -> PeerStats {
        let state = self.state();
        PeerStats { queued: state.queue.len() as u64, ..state.stats }
    }

    /// Changes the state, and wakes whoever waits for a change.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let (outcome, waker) = {
            let mut state = self.state();
            (change(&mut state), state.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        outcome
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wait(&mut self, context: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(context.waker()),
            None => self.waker = Some(context.waker().clone()),
        }
    }

    fn take_batch(&mut self) -> RequestBatch {
        self.sweep();
        let mut batch = RequestBatch::default();
        let (mut bytes, sent) = (0, Instant::now());
        while bytes < BATCH_BYTES {
            let Some(call) = self.queue.pop_front() else { break };
            bytes += call.bytes;
            self.queued_bytes -= call.bytes;
            if self.under_way.len() >= MAX_UNDER_WAY {
                call.reply.send(Err(full())).ok();
            } else if !call.reply.is_closed() {
                self.last_id += 1;
                let id = self.last_id;
                self.under_way.insert(id, Waiting { reply: call.reply, sent });
                let trace = trace_to_wire(call.trace);
                batch.requests.push(Request { id, kind: Some(call.kind), trace });
            }
        }
        batch
    }

    fn drain(&mut self) -> VecDeque<Call> {
        self.queued_bytes = 0;
        std::mem::take(&mut self.queue)
    }

    /// Makes room by forgetting calls whose callers have given up.
    fn sweep(&mut self) {
        if self.under_way.len() >= self.sweep_at {
            self.under_way.retain(|_, waiting| !waiting.reply.is_closed());
            self.sweep_at = (self.under_way.len() * 2).clamp(1_024, MAX_UNDER_WAY);
        }
    }

    /// An eighth of the new into the old, as TCP does (RFC 6298).
    fn smooth(&mut self, sample: Duration) {
        self.round_trip = Some(self.round_trip.map_or(sample, |old| old * 7 / 8 + sample / 8));
    }
}

fn gone() -> PeerError {
    PeerError::Unreachable("this node does not call this peer any more".into())
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    type Answer = oneshot::Receiver<Reply>;

    fn queue(calls: &Calls, key: &str) -> Answer {
        let (reply, answer) = oneshot::channel();
        calls.queue(request::Kind::Read(key.to_owned().into()), None, reply).unwrap();
        answer
    }

    fn open(calls: &Calls) -> StreamNumber {
        let stream = calls.new_stream();
        calls.open_stream();
        stream
    }

    fn ids(batch: &RequestBatch) -> Vec<u64> {
        batch.requests.iter().map(|request| request.id).collect()
    }

    fn replies(ids: &[u64]) -> ReplyBatch {
        let reply = |id: &u64| super::super::wire::Reply {
            id: *id,
            kind: Some(reply::Kind::Rejected(id.to_string())),
        };
        ReplyBatch { replies: ids.iter().map(reply).collect(), fragment: None }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn all_that_waits_goes_together_and_replies_find_their_callers() {
        let calls = Calls::default();
        let stream = open(&calls);
        let mut answers = ["a", "b", "c"].map(|key| queue(&calls, key));
        let sent = ids(&calls.take_batch(stream));
        assert_eq!(sent.len(), 3);
        assert!(ids(&calls.take_batch(stream)).is_empty());
        calls.complete(replies(&[sent[2], sent[0], sent[0], 0, 77]));
        let told = |id: u64| Ok(Ok(reply::Kind::Rejected(id.to_string())));
        assert_eq!(answers[0].try_recv(), told(sent[0]));
        assert_eq!(answers[2].try_recv(), told(sent[2]));
        assert!(answers[1].try_recv().is_err(), "answered without a reply");
        assert!(calls.round_trip().is_some());
    }

    #[test]
    fn who_sends_is_woken_by_the_first_call_and_by_the_opening() {
        let calls = Calls::default();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let context = Context::from_waker(&waker);
        let stream = calls.new_stream();
        let _first = queue(&calls, "a");
        assert_eq!(calls.poll_any(stream, &context), Poll::Pending, "before it is open");
        calls.open_stream();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(calls.poll_any(stream, &context), Poll::Ready(true));
        drop(calls.take_batch(stream));
        assert_eq!(calls.poll_any(stream, &context), Poll::Pending);
        let _more = ["b", "c"].map(|key| queue(&calls, key));
        assert_eq!(woken.0.load(Ordering::Relaxed), 2, "once for all that wait");
    }

    /// A stream may live on for a while after another has taken its place.
    #[test]
    fn a_stream_that_was_replaced_takes_nothing() {
        let calls = Calls::default();
        let old = open(&calls);
        let mut under_way = queue(&calls, "a");
        assert_eq!(calls.take_batch(old).requests.len(), 1);
        calls.shut_stream();
        assert_eq!(under_way.try_recv(), Ok(Err(PeerError::TimedOut)), "it may have been sent");
        let _answer = queue(&calls, "b");
        let context = Context::from_waker(Waker::noop());
        for _ in 0..2 {
            assert_eq!(calls.poll_any(old, &context), Poll::Ready(false));
            assert!(ids(&calls.take_batch(old)).is_empty());
            open(&calls);
        }
    }

    /// Or its connection would stay open for ever.
    #[test]
    fn a_stream_that_waits_for_calls_is_woken_by_its_end() {
        let replace = |calls: &Calls| {
            calls.new_stream();
        };
        for end in [Calls::shut_stream, Calls::close, replace] {
            let calls = Calls::default();
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let context = Context::from_waker(&waker);
            let stream = open(&calls);
            assert_eq!(calls.poll_any(stream, &context), Poll::Pending);
            end(&calls);
            assert_eq!(woken.0.load(Ordering::Relaxed), 1);
            assert_eq!(calls.poll_any(stream, &context), Poll::Ready(false));
        }
    }

    #[test]
    fn abandoned_calls_make_room_however_many_were_under_way() {
        let calls = Calls::default();
        let stream = open(&calls);
        let fill = || {
            let mut answers = Vec::new();
            while answers.len() < MAX_UNDER_WAY {
                answers.extend((0..QUEUE_LENGTH).map(|_| queue(&calls, "k")));
                while !calls.take_batch(stream).requests.is_empty() {}
            }
            answers
        };
        drop(fill());
        assert!(fill().iter_mut().all(|answer| answer.try_recv().is_err()), "one was refused");
    }

    #[test]
    fn what_was_not_sent_is_refused_with_the_reason() {
        let calls = Calls::default();
        let mut answer = queue(&calls, "a");
        let why = PeerError::Unreachable("gone".into());
        calls.refuse(&why, &Context::from_waker(Waker::noop()));
        assert_eq!(answer.try_recv(), Ok(Err(why)));
    }

    #[test]
    fn a_closed_way_answers_everybody_and_takes_nobody() {
        let calls = Calls::default();
        let stream = open(&calls);
        let mut sent = queue(&calls, "a");
        assert_eq!(calls.take_batch(stream).requests.len(), 1);
        let mut queued = queue(&calls, "b");
        calls.close();
        assert_eq!(sent.try_recv(), Ok(Err(PeerError::TimedOut)));
        assert!(matches!(queued.try_recv(), Ok(Err(PeerError::Unreachable(_)))));
        let (reply, _answer) = oneshot::channel();
        let refused = calls.queue(request::Kind::Read("c".into()), None, reply);
        assert!(matches!(refused, Err(PeerError::Unreachable(_))));
        assert!(calls.is_closed());
    }

    #[test]
    fn calls_are_bounded_in_number_and_bytes() {
        let long = |calls: &Calls, bytes: usize| {
            let (reply, answer) = oneshot::channel();
            calls.queue(request::Kind::Read(vec![b'k'; bytes].into()), None, reply).map(|()| answer)
        };
        let calls = Calls::default();
        let answers: Vec<_> = (0..QUEUE_LENGTH).map(|_| long(&calls, 1)).collect();
        assert!(answers.iter().all(Result::is_ok) && long(&calls, 1).is_err());
        let calls = Calls::default();
        let answers: Vec<_> = (0..9).map(|_| long(&calls, QUEUE_BYTES / 8)).collect();
        assert!(answers.iter().take(8).all(Result::is_ok) && answers[8].is_err());
    }

    #[test]
    fn those_that_have_given_up_are_not_sent() {
        let calls = Calls::default();
        let stream = open(&calls);
        drop(queue(&calls, "a"));
        let _waits = queue(&calls, "b");
        assert_eq!(calls.take_batch(stream).requests.len(), 1);
    }
}
