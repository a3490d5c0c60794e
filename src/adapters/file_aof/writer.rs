//! The writer: one thread that owns the file.
//!
//! Appends are encoded by the tasks that ask for them, straight into one pending buffer; the thread
//! takes the buffer whole, writes it with one call, forces it to disk if the policy says so, and
//! only then completes everybody in it (group commit). While it is busy the next buffer grows, so
//! batches follow the load by themselves.
//!
//! A failed write is undone by cutting the file back to the last good record; if the disk was only
//! full, the log goes on. Anything else, and any failed sync, ends it: after a failed sync the
//! kernel may have dropped the data and say nothing the next time (Rebello et al., "Can
//! applications recover from fsync failures?", 2020).

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot, watch};

use crate::ports::{LogError, LogRecord, LogStats};

use super::disk::Disk;
use super::format::{encode, max_encoded_bytes};

/// With `everysec`: how old acknowledged data may become before it is forced to disk. One second,
/// so that data is at most two seconds behind even if the sync takes another.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Buffers larger than this are not kept for the next batch.
const KEPT_BUFFER_BYTES: usize = 4 << 20;

/// When acknowledged data is forced to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FsyncPolicy {
    /// Before it is acknowledged.
    Always,
    /// Within about a second.
    #[default]
    EverySec,
    /// When the operating system likes.
    Never,
}

/// The writer as those who append see it.
pub(super) struct Writer {
    shared: Arc<Shared>,
    salt: u64,
    queue_bytes: usize,
    queue_wait: Duration,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes the thread.
    work: Condvar,
    /// Wakes those who wait for room in the queue.
    room: Notify,
    failed: watch::Sender<Option<LogError>>,
    bytes: AtomicU64,
    appended: AtomicU64,
    syncs: AtomicU64,
}

struct State {
    pending: Batch,
    /// Bytes that the thread has taken and not completed.
    writing_bytes: usize,
    next_sequence: u64,
    thread_waits: bool,
    /// Why nothing more is taken.
    ended: Option<LogError>,
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    first_sequence: u64,
    records: u64,
    waiting: Vec<oneshot::Sender<Result<(), LogError>>>,
}

/// What the thread found to do.
enum Task {
    Write(Batch),
    Sync,
    End,
}

impl Writer {
    /// A writer that goes on after `good_bytes` bytes, and the work for its thread.
    pub(super) fn new(
        position: Position,
        queue_bytes: usize,
        queue_wait: Duration,
    ) -> (Self, impl FnOnce(Box<dyn Disk>, FsyncPolicy) + Send + 'static) {
        let state = State {
            pending: Batch::default(),
            writing_bytes: 0,
            next_sequence: position.next_sequence,
            thread_waits: false,
            ended: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            room: Notify::new(),
            failed: watch::Sender::new(None),
            bytes: AtomicU64::new(position.good_bytes),
            appended: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
        });
        let for_thread = Arc::clone(&shared);
        let work = move |disk, policy| run(&for_thread, disk, policy, position.good_bytes);
        (Self { shared, salt: position.salt, queue_bytes, queue_wait }, work)
    }

    /// Appends records and waits until they are as durable as the policy says.
    pub(super) async fn append(&self, records: &[LogRecord]) -> Result<(), LogError> {
        let deadline = tokio::time::Instant::now() + self.queue_wait;
        loop {
            let room = self.shared.room.notified();
            if let Some(done) = self.try_append(records)? {
                return done.await.unwrap_or(Err(LogError::Closed));
            }
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                return Err(LogError::Overloaded);
            }
        }
    }

    /// Takes no more; the thread writes and forces what there is, and ends.
    pub(super) fn close(&self) {
        let mut state = self.shared.state();
        state.ended.get_or_insert(LogError::Closed);
        self.shared.work.notify_one();
    }

    /// Resolves when the log has failed.
    pub(super) async fn failed(&self) -> LogError {
        let mut failed = self.shared.failed.subscribe();
        match failed.wait_for(Option::is_some).await.map(|error| error.clone()) {
            Ok(Some(error)) => error,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Why the log failed, if it did.
    pub(super) fn failure(&self) -> Option<LogError> {
        self.shared.failed.borrow().clone()
    }

    pub(super) fn stats(&self) -> LogStats {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        LogStats {
            bytes: load(&self.shared.bytes),
            appended: load(&self.shared.appended),
            syncs: load(&self.shared.syncs),
        }
    }

    /// Queues records; `None` if there is no room. A batch larger than the queue is taken when the
    /// queue is empty.
    fn try_append(
        &self,
        records: &[LogRecord],
    ) -> Result<Option<oneshot::Receiver<Result<(), LogError>>>, LogError> {
        let needed: usize = records.iter().map(max_encoded_bytes).sum();
        let mut state = self.shared.state();
        if let Some(ended) = &state.ended {
            return Err(ended.clone());
        }
        let queued = state.pending.bytes.len() + state.writing_bytes;
        if queued > 0 && queued + needed > self.queue_bytes {
            return Ok(None);
        }
        let (done, waiting) = oneshot::channel();
        state.queue(records, self.salt, done);
        if std::mem::take(&mut state.thread_waits) {
            drop(state);
            self.shared.work.notify_one();
        }
        Ok(Some(waiting))
    }
}

/// Where a writer goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) good_bytes: u64,
    pub(super) next_sequence: u64,
    pub(super) salt: u64,
}

impl State {
    fn queue(
        &mut self,
        records: &[LogRecord],
        salt: u64,
        done: oneshot::Sender<Result<(), LogError>>,
    ) {
        if self.pending.records == 0 {
            self.pending.first_sequence = self.next_sequence;
        }
        for record in records {
            encode(record, self.next_sequence, salt, &mut self.pending.bytes);
            self.next_sequence += 1;
        }
        self.pending.records += records.len() as u64;
        self.pending.waiting.push(done);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to do; for a sync no longer than until it is due.
    fn next_task(&self, sync_due: Option<Instant>) -> Task {
        let mut state = self.state();
        loop {
            if !state.pending.waiting.is_empty() {
                let batch = std::mem::take(&mut state.pending);
                state.writing_bytes = batch.bytes.len();
                return Task::Write(batch);
            }
            if state.ended.is_some() {
                return Task::End;
            }
            state.thread_waits = true;
            state = match sync_due.map(|due| due.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => {
                    state.thread_waits = false;
                    return Task::Sync;
                }
                Some(left) => {
                    let waited = self.work.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Tells everybody in the batch how it went.
    fn complete(&self, batch: Batch, outcome: &Result<(), LogError>) {
        let Batch { mut bytes, waiting, .. } = batch;
        bytes.clear();
        let mut state = self.state();
        state.writing_bytes = 0;
        if state.pending.bytes.capacity() == 0 && bytes.capacity() <= KEPT_BUFFER_BYTES {
            state.pending.bytes = bytes;
        }
        drop(state);
        for waiting in waiting {
            // Whoever does not wait any more does not need to know.
            waiting.send(outcome.clone()).ok();
        }
        self.room.notify_waiters();
    }

    /// A batch did not get into the file, which is as it was before. Whatever was queued behind it
    /// has later sequences, so it fails with it and the sequences are used again: no gap arises.
    fn refuse(&self, batch: Batch, error: LogError) {
        let mut state = self.state();
        state.next_sequence = batch.first_sequence;
        let behind = std::mem::take(&mut state.pending);
        drop(state);
        let outcome = Err(error);
        self.complete(behind, &outcome);
        self.complete(batch, &outcome);
    }

    /// The log cannot be trusted any more.
    fn fail(&self, error: &LogError) {
        tracing::error!(%error, "log failed");
        let mut state = self.state();
        state.ended = Some(error.clone());
        let pending = std::mem::take(&mut state.pending);
        drop(state);
        self.complete(pending, &Err(error.clone()));
        self.failed.send_replace(Some(error.clone()));
    }
}

/// The thread.
fn run(shared: &Shared, mut disk: Box<dyn Disk>, policy: FsyncPolicy, mut good_bytes: u64) {
    // When the oldest data that is not forced yet was written.
    let mut unforced_since: Option<Instant> = None;
    loop {
        let sync_due = unforced_since
            .filter(|_| policy == FsyncPolicy::EverySec)
            .map(|since| since + SYNC_EVERY);
        let outcome = match shared.next_task(sync_due) {
            Task::Write(batch) => {
                let written =
                    write(shared, disk.as_mut(), batch, policy, &mut good_bytes);
                if written == Ok(true) {
                    unforced_since.get_or_insert_with(Instant::now);
                }
                let overdue = sync_due.is_some_and(|due| Instant::now() >= due);
                written.and_then(|_| if overdue { sync(shared, disk.as_mut()) } else { Ok(()) })
                    .map(|()| if overdue { unforced_since = None })
            }
            Task::Sync => sync(shared, disk.as_mut()).map(|()| unforced_since = None),
            Task::End => {
                if unforced_since.is_some()
                    && let Err(error) = sync(shared, disk.as_mut())
                {
                    shared.fail(&error);
                }
                return;
            }
        };
        if let Err(error) = outcome {
            return shared.fail(&error);
        }
    }
}

/// Writes a batch and completes it. `Ok(true)`: the file has data that is not forced; an error ends
/// the log.
fn write(
    shared: &Shared,
    disk: &mut dyn Disk,
    batch: Batch,
    policy: FsyncPolicy,
    good_bytes: &mut u64,
) -> Result<bool, LogError> {
    if let Err(error) = disk.append(&batch.bytes) {
        return undo(shared, disk, batch, &error, *good_bytes).map(|()| false);
    }
    if policy == FsyncPolicy::Always
        && let Err(error) = sync(shared, disk)
    {
        shared.complete(batch, &Err(error.clone()));
        return Err(error);
    }
    *good_bytes += batch.bytes.len() as u64;
    shared.bytes.store(*good_bytes, Ordering::Relaxed);
    shared.appended.fetch_add(batch.records, Ordering::Relaxed);
    shared.complete(batch, &Ok(()));
    Ok(policy != FsyncPolicy::Always)
}

/// Takes back what a failed write left in the file.
fn undo(
    shared: &Shared,
    disk: &mut dyn Disk,
    batch: Batch,
    error: &io::Error,
    good_bytes: u64,
) -> Result<(), LogError> {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let undone = disk.truncate(good_bytes);
    if full && undone.is_ok() {
        tracing::warn!(%error, "disk full: writes are refused until there is space");
        shared.refuse(batch, LogError::DiskFull);
        return Ok(());
    }
    let failed = LogError::Failed(format!("write: {error}"));
    shared.complete(batch, &Err(failed.clone()));
    Err(failed)
}

fn sync(shared: &Shared, disk: &mut dyn Disk) -> Result<(), LogError> {
    shared.syncs.fetch_add(1, Ordering::Relaxed);
    disk.sync().map_err(|error| LogError::Failed(format!("fdatasync: {error}")))
}
