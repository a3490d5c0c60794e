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
        let work = move |disk, policy| {
            let (shared, good_bytes) = (&*for_thread, position.good_bytes);
            // Whatever ends the thread, nobody must wait for it for ever.
            let _ended = FailOnPanic(shared);
            Thread { shared, disk, policy, good_bytes, unforced_since: None }.run();
        };
        (Self { shared, salt: position.salt, queue_bytes, queue_wait }, work)
    }

    /// Appends records and waits until they are as durable as the policy says.
    pub(super) async fn append(&self, records: &[LogRecord]) -> Result<(), LogError> {
        let done = match self.try_append(records)? {
            Some(done) => done,
            // Boxed: the way of nearly all appends need not have room for a timer.
            None => Box::pin(self.append_when_there_is_room(records)).await?,
        };
        let ended = || LogError::Failed("its thread ended".into());
        done.await.unwrap_or_else(|_| Err(ended()))
    }

    async fn append_when_there_is_room(&self, records: &[LogRecord]) -> Result<Waiting, LogError> {
        let deadline = tokio::time::Instant::now() + self.queue_wait;
        loop {
            let room = self.shared.room.notified();
            if let Some(done) = self.try_append(records)? {
                return Ok(done);
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
    fn try_append(&self, records: &[LogRecord]) -> Result<Option<Waiting>, LogError> {
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

/// The outcome of an append to come.
type Waiting = oneshot::Receiver<Result<(), LogError>>;

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
        let mut state = self.state();
        state.ended = Some(error.clone());
        let pending = std::mem::take(&mut state.pending);
        drop(state);
        self.complete(pending, &Err(error.clone()));
        self.failed.send_replace(Some(error.clone()));
        // Last: a logger may fail, too.
        tracing::error!(%error, "log failed");
    }
}

/// Fails the log if its thread panics.
struct FailOnPanic<'a>(&'a Shared);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(&LogError::Failed("the thread of the log panicked".into()));
        }
    }
}

/// The thread that owns the file.
struct Thread<'a> {
    shared: &'a Shared,
    disk: Box<dyn Disk>,
    policy: FsyncPolicy,
    /// Length of the file up to the end of the last complete batch.
    good_bytes: u64,
    /// When the oldest data that is not forced to the device yet was written.
    unforced_since: Option<Instant>,
}

impl Thread<'_> {
    fn run(mut self) {
        loop {
            let outcome = match self.shared.next_task(self.sync_due()) {
                Task::Write(batch) => self.write(batch).and_then(|()| self.sync_if_due()),
                Task::Sync => self.sync(),
                Task::End => {
                    if self.unforced_since.is_some()
                        && let Err(error) = self.sync()
                    {
                        self.shared.fail(&error);
                    }
                    return;
                }
            };
            if let Err(error) = outcome {
                return self.shared.fail(&error);
            }
        }
    }

    /// Writes a batch and completes it. An error ends the log.
    fn write(&mut self, batch: Batch) -> Result<(), LogError> {
        if let Err(error) = self.disk.append(&batch.bytes) {
            return self.undo(batch, &error);
        }
        self.unforced_since.get_or_insert_with(Instant::now);
        if self.policy == FsyncPolicy::Always
            && let Err(error) = self.sync()
        {
            self.shared.complete(batch, &Err(error.clone()));
            return Err(error);
        }
        self.good_bytes += batch.bytes.len() as u64;
        self.shared.bytes.store(self.good_bytes, Ordering::Relaxed);
        self.shared.appended.fetch_add(batch.records, Ordering::Relaxed);
        self.shared.complete(batch, &Ok(()));
        Ok(())
    }

    /// Takes back what a failed write left in the file.
    fn undo(&mut self, batch: Batch, error: &io::Error) -> Result<(), LogError> {
        let full =
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let undone = self.disk.truncate(self.good_bytes);
        if full && undone.is_ok() {
            tracing::warn!(%error, "disk full: writes are refused until there is space");
            self.shared.refuse(batch, LogError::DiskFull);
            return Ok(());
        }
        let failed = LogError::Failed(format!("write: {error}"));
        self.shared.complete(batch, &Err(failed.clone()));
        Err(failed)
    }

    /// With `everysec`: when acknowledged data must be forced to the device.
    fn sync_due(&self) -> Option<Instant> {
        let since = self.unforced_since.filter(|_| self.policy == FsyncPolicy::EverySec);
        since.map(|since| since + SYNC_EVERY)
    }

    fn sync_if_due(&mut self) -> Result<(), LogError> {
        match self.sync_due() {
            Some(due) if Instant::now() >= due => self.sync(),
            _ => Ok(()),
        }
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        self.unforced_since = None;
        self.disk.sync().map_err(|error| LogError::Failed(format!("fdatasync: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Timestamp;

    /// A file in memory that fails when it is told to.
    #[derive(Default)]
    struct Faulty {
        bytes: Vec<u8>,
        /// Appends fail like this, after half of the bytes.
        append_error: Option<i32>,
        sync_error: bool,
        /// Syncs wait for a token each.
        sync_gate: Option<std::sync::mpsc::Receiver<()>>,
    }

    const ENOSPC: i32 = 28;
    const EIO: i32 = 5;

    impl Disk for Arc<Mutex<Faulty>> {
        fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
            let mut faulty = self.lock().unwrap();
            if let Some(code) = faulty.append_error {
                faulty.bytes.extend_from_slice(&bytes[..bytes.len() / 2]);
                return Err(io::Error::from_raw_os_error(code));
            }
            faulty.bytes.extend_from_slice(bytes);
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            let gate = self.lock().unwrap().sync_gate.take();
            if let Some(gate) = gate {
                gate.recv().unwrap();
                self.lock().unwrap().sync_gate = Some(gate);
            }
            let failing = self.lock().unwrap().sync_error;
            if failing { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
        }

        fn truncate(&mut self, length: u64) -> io::Result<()> {
            self.lock().unwrap().bytes.truncate(usize::try_from(length).unwrap());
            Ok(())
        }
    }

    struct Log {
        writer: Arc<Writer>,
        disk: Arc<Mutex<Faulty>>,
        thread: std::thread::JoinHandle<()>,
    }

    fn start(policy: FsyncPolicy, queue_bytes: usize, faulty: Faulty) -> Log {
        let position = Position { good_bytes: 0, next_sequence: 1, salt: 7 };
        let (writer, work) = Writer::new(position, queue_bytes, Duration::from_millis(20));
        let disk = Arc::new(Mutex::new(faulty));
        let owned = Box::new(Arc::clone(&disk));
        let thread = std::thread::spawn(move || work(owned, policy));
        Log { writer: Arc::new(writer), disk, thread }
    }

    fn record(n: u64) -> LogRecord {
        LogRecord::ClockBound(Timestamp::from_nanos(n))
    }

    /// The bytes of these records, numbered from 1.
    fn encoded(records: &[LogRecord]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (sequence, record) in (1..).zip(records) {
            encode(record, sequence, 7, &mut bytes);
        }
        bytes
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_in_the_file() {
        for policy in [FsyncPolicy::Always, FsyncPolicy::EverySec, FsyncPolicy::Never] {
            let log = start(policy, 1 << 20, Faulty::default());
            for n in 0..10 {
                log.writer.append(&[record(n)]).await.unwrap();
                let expected: Vec<_> = (0..=n).map(record).collect();
                assert_eq!(log.disk.lock().unwrap().bytes, encoded(&expected));
            }
            log.writer.close();
            log.thread.join().unwrap();
            let stats = log.writer.stats();
            assert_eq!(stats.appended, 10);
            assert_eq!(stats.syncs, if policy == FsyncPolicy::Always { 10 } else { 1 });
        }
    }

    #[tokio::test]
    async fn appends_that_wait_for_a_sync_share_the_next_one() {
        let (open, gate) = std::sync::mpsc::sync_channel(64);
        let faulty = Faulty { sync_gate: Some(gate), ..Faulty::default() };
        let log = start(FsyncPolicy::Always, 1 << 20, faulty);
        let appends: Vec<_> = (0..64)
            .map(|n| {
                let writer = Arc::clone(&log.writer);
                async move { writer.append(&[record(n)]).await }
            })
            .collect();
        // All are queued before the first sync may end.
        let opening = async {
            for _ in 0..64 {
                open.send(()).unwrap();
            }
        };
        let all = futures_util::future::join_all(appends);
        let (outcomes, ()) = futures_util::future::join(all, opening).await;
        assert!(outcomes.iter().all(Result::is_ok));
        assert!(log.writer.stats().syncs <= 3, "{:?}", log.writer.stats());
    }

    #[tokio::test]
    async fn a_full_disk_refuses_leaves_no_trace_and_goes_on_without_a_gap() {
        let log = start(FsyncPolicy::Never, 1 << 20, Faulty::default());
        log.writer.append(&[record(1)]).await.unwrap();
        log.disk.lock().unwrap().append_error = Some(ENOSPC);
        for _ in 0..3 {
            assert_eq!(log.writer.append(&[record(2), record(3)]).await, Err(LogError::DiskFull));
            assert_eq!(log.disk.lock().unwrap().bytes, encoded(&[record(1)]));
        }
        log.disk.lock().unwrap().append_error = None;
        log.writer.append(&[record(4)]).await.unwrap();
        assert_eq!(log.disk.lock().unwrap().bytes, encoded(&[record(1), record(4)]));
        assert_eq!(log.writer.failure(), None);
    }

    #[tokio::test]
    async fn a_failed_write_or_sync_ends_the_log_for_good() {
        for (append_error, sync_error) in [(Some(EIO), false), (None, true)] {
            let faulty = Faulty { append_error, sync_error, ..Faulty::default() };
            let log = start(FsyncPolicy::Always, 1 << 20, faulty);
            let failed = log.writer.append(&[record(1)]).await.unwrap_err();
            assert!(matches!(failed, LogError::Failed(_)), "{failed}");
            assert_eq!(log.writer.failed().await, failed);
            *log.disk.lock().unwrap() = Faulty::default();
            assert_eq!(log.writer.append(&[record(2)]).await, Err(failed));
            log.thread.join().unwrap();
            assert_eq!(log.writer.stats().appended, 0);
        }
    }

    struct Panicking;

    impl Disk for Panicking {
        fn append(&mut self, _: &[u8]) -> io::Result<()> {
            // Without the panic hook, which would print.
            std::panic::resume_unwind(Box::new("on purpose"))
        }

        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn truncate(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_thread_that_panics_fails_the_log_and_leaves_nobody_waiting() {
        let position = Position { good_bytes: 0, next_sequence: 1, salt: 7 };
        let (writer, work) = Writer::new(position, 1 << 20, Duration::from_millis(20));
        let thread = std::thread::spawn(move || work(Box::new(Panicking), FsyncPolicy::Never));
        assert!(writer.append(&[record(1)]).await.is_err());
        assert!(matches!(writer.failed().await, LogError::Failed(_)));
        assert!(matches!(writer.append(&[record(2)]).await, Err(LogError::Failed(_))));
        assert!(thread.join().is_err());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_after_a_while_and_takes_more_when_there_is_room() {
        let (open, gate) = std::sync::mpsc::sync_channel(64);
        let faulty = Faulty { sync_gate: Some(gate), ..Faulty::default() };
        let log = start(FsyncPolicy::Always, 100, faulty);
        let records = [record(1)];
        let first = log.writer.append(&records);
        let rest = async {
            while log.writer.stats().syncs == 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(log.writer.append(&[record(2)]).await, Err(LogError::Overloaded));
            open.send(()).unwrap();
            open.send(()).unwrap();
            log.writer.append(&[record(3)]).await.unwrap();
        };
        let (first, ()) = futures_util::future::join(first, rest).await;
        first.unwrap();
        let expected = encoded(&[record(1), record(3)]);
        assert_eq!(log.disk.lock().unwrap().bytes, expected);
    }

    #[tokio::test]
    async fn a_batch_larger_than_the_queue_is_taken_by_an_empty_one() {
        let log = start(FsyncPolicy::Never, 10, Faulty::default());
        log.writer.append(&[record(1), record(2)]).await.unwrap();
        assert_eq!(log.disk.lock().unwrap().bytes, encoded(&[record(1), record(2)]));
    }

    #[tokio::test]
    async fn closing_writes_what_is_queued_and_refuses_more() {
        let log = start(FsyncPolicy::Never, 1 << 20, Faulty::default());
        log.writer.append(&[record(1)]).await.unwrap();
        log.writer.close();
        log.writer.close();
        assert_eq!(log.writer.append(&[record(2)]).await, Err(LogError::Closed));
        log.thread.join().unwrap();
        assert_eq!(log.writer.stats().syncs, 1);
    }
}
