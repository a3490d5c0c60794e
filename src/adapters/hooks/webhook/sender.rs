//! The delivery of changes: each is sent until the receiver takes it, refuses it, or too much time has
//! passed.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::{Request, Response, header};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::ports::Clock;

use super::backlog::{Backlog, Taken, Ticket};
use super::connection::{Connection, Target};
use super::event::Event;
use super::retry::{Verdict, judge, wait_after};
use super::signature::{self, Secret};

/// How much of an answer is read, and for how long, so that the connection can be used again.
const ANSWER_BYTES: usize = 64 << 10;
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// How long a change waits that could not be read, for want of a file descriptor.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

const DELIVERY: &str = "lally-delivery";
const AGENT: &str = concat!("lally/", env!("CARGO_PKG_VERSION"));

/// How deliveries are made.
pub(super) struct Delivery {
    pub(super) name: String,
    pub(super) target: Target,
    pub(super) secret: Secret,
    pub(super) clock: Arc<dyn Clock>,
    /// For one attempt.
    pub(super) timeout: Duration,
    pub(super) parallel: usize,
    pub(super) give_up_after: Duration,
}

/// What deliveries have come to.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) delivered: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) given_up: AtomicU64,
    pub(super) dropped: AtomicU64,
}

/// Adds one, and returns how many there are.
pub(super) fn count(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed) + 1
}

/// What the hook and its sender share.
pub(super) struct Shared {
    backlog: Mutex<Backlog>,
    /// Notified when nothing waits any more.
    idle: Condvar,
    /// Notified when something does.
    pub(super) wake: Notify,
    pub(super) stop: CancellationToken,
    pub(super) counts: Counts,
    /// What waits, as it was after the last change of the backlog: for those that cannot wait for the
    /// disk that it may be on.
    pub(super) waits: Waits,
}

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Waits {
    pub(super) changes: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) damaged: AtomicU64,
}

impl Shared {
    pub(super) fn new(backlog: Backlog) -> Self {
        let shared = Self {
            backlog: Mutex::new(backlog),
            idle: Condvar::new(),
            wake: Notify::new(),
            stop: CancellationToken::new(),
            counts: Counts::default(),
            waits: Waits::default(),
        };
        shared.with_backlog(|_| ());
        shared
    }

    /// Works on the backlog. May wait for a disk.
    pub(super) fn with_backlog<T>(&self, work: impl FnOnce(&mut Backlog) -> T) -> T {
        let mut backlog = self.backlog();
        let done = work(&mut backlog);
        let (changes, bytes) = backlog.size();
        self.waits.changes.store(changes, Ordering::Relaxed);
        self.waits.bytes.store(bytes, Ordering::Relaxed);
        self.waits.damaged.store(backlog.damaged(), Ordering::Relaxed);
        if changes == 0 {
            self.idle.notify_all();
        }
        done
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing waits, at most this long. Says how much is left.
    pub(super) fn wait_idle(&self, within: Duration) -> u64 {
        let busy = |backlog: &mut Backlog| backlog.size().0 > 0;
        let waited = self.idle.wait_timeout_while(self.backlog(), within, busy);
        let (backlog, _) = waited.unwrap_or_else(PoisonError::into_inner);
        backlog.size().0
    }
}

/// Delivers what waits.
pub(super) struct Sender {
    delivery: Delivery,
    shared: Arc<Shared>,
    /// Connections that nobody uses.
    free: Mutex<Vec<Connection>>,
    /// Whether the last attempt failed.
    is_failing: AtomicBool,
}

impl Sender {
    pub(super) fn new(delivery: Delivery, shared: Arc<Shared>) -> Self {
        Self { delivery, shared, free: Mutex::default(), is_failing: AtomicBool::new(false) }
    }

    /// Runs until it is stopped; what is being sent then is broken off.
    pub(super) async fn run(&self) {
        self.shared.stop.run_until_cancelled(self.deliver_all()).await;
    }

    async fn deliver_all(&self) {
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < self.delivery.parallel {
                let Some(taken) = self.shared.with_backlog(Backlog::take) else { break };
                under_way.push(self.deliver(taken));
            }
            tokio::select! {
                Some(ticket) = under_way.next(), if !under_way.is_empty() => {
                    self.shared.with_backlog(|backlog| backlog.done(ticket));
                }
                () = self.shared.wake.notified() => {}
                () = sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Sends a change until that is settled one way or the other.
    async fn deliver(&self, taken: Taken) -> Ticket {
        let Taken { ticket, event, since } = taken;
        let (counts, webhook) = (&self.shared.counts, self.delivery.name.as_str());
        let id = event.id();
        let mut failures = 0;
        loop {
            match self.attempt(&event, &id).await {
                Ok(()) => {
                    count(&counts.delivered);
                    break;
                }
                Err(Failure::Refused(status)) => {
                    let refused = count(&counts.refused);
                    if refused.is_power_of_two() {
                        tracing::warn!(webhook, id, status, refused, "a receiver refused a change");
                    }
                    break;
                }
                Err(Failure::Again(error)) => {
                    failures += 1;
                    count(&counts.failures);
                    self.note_failure(&error);
                    if since.elapsed() >= self.delivery.give_up_after {
                        let given_up = count(&counts.given_up);
                        if given_up.is_power_of_two() {
                            tracing::warn!(webhook, id, given_up, "a change was given up");
                        }
                        break;
                    }
                    sleep(wait_after(failures, rand::random())).await;
                }
            }
        }
        ticket
    }

    /// One attempt, within its time.
    async fn attempt(&self, event: &Event, id: &str) -> Result<(), Failure> {
        let within = self.delivery.timeout;
        let sent = timeout(within, self.send(event, id)).await;
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {within:?}"));
        let (connection, response) = sent
            .unwrap_or_else(|_| Err(late()))
            .map_err(|error| Failure::Again(error.to_string()))?;
        let status = response.status().as_u16();
        self.keep(connection, response).await;
        let verdict = judge(status);
        if verdict != Verdict::Again {
            self.note_answer();
        }
        match verdict {
            Verdict::Delivered => Ok(()),
            Verdict::Refused => Err(Failure::Refused(status)),
            Verdict::Again => Err(Failure::Again(format!("status {status}"))),
        }
    }

    async fn send(&self, event: &Event, id: &str) -> io::Result<(Connection, Response<Incoming>)> {
        let Delivery { target, secret, clock, .. } = &self.delivery;
        let free = self.free().pop().filter(|connection| !connection.is_closed());
        let mut connection = match free {
            Some(connection) => connection,
            None => Connection::to(target).await?,
        };
        let now = clock.now().as_nanos() / 1_000_000_000;
        let request = Request::post(&target.path)
            .header(header::HOST, &target.authority)
            .header(header::USER_AGENT, AGENT)
            .header(header::CONTENT_TYPE, "application/json")
            .header(DELIVERY, id)
            .header(signature::HEADER, secret.sign(now, &event.body))
            .body(Full::new(event.body.clone()));
        let response = connection.send(request.map_err(io::Error::other)?).await?;
        Ok((connection, response))
    }

    /// Reads the answer, of which nothing is wanted, so that the connection can be used again.
    async fn keep(&self, connection: Connection, response: Response<Incoming>) {
        let body = Limited::new(response.into_body(), ANSWER_BYTES).collect();
        if let Ok(Ok(_)) = timeout(ANSWER_WITHIN, body).await {
            self.free().push(connection);
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says once that a receiver does not answer as it should.
    fn note_failure(&self, error: &str) {
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            let webhook = self.delivery.name.as_str();
            tracing::warn!(webhook, error, "a webhook fails; its changes wait and are sent again");
        }
    }

    fn note_answer(&self) {
        if self.is_failing.swap(false, Ordering::Relaxed) {
            tracing::info!(webhook = self.delivery.name.as_str(), "a webhook works again");
        }
    }
}

/// Why a change was not delivered.
enum Failure {
    /// It never will be.
    Refused(u16),
    /// It may be yet.
    Again(String),
}
