//! The writer: who writes to the file, and when it is forced to the device.
//!
//! Appends are encoded by those that ask for them, straight into one pending buffer. Whoever finds
//! nobody writing writes the buffer at once, itself: a write into the page cache takes less time than
//! waking somebody else for it. What comes meanwhile is written with the next write (group commit),
//! so batches follow the load by themselves.
//!
//! A thread does what may take long: it forces data to the device, writes with the policy `always`
//! (where each batch is forced before it is acknowledged, and waits a moment for more: `gathering`),
//! and writes large batches. If a write took long, the disk is behind, and for a while everything is
//! handed over to the thread, unless that waits for the device: no thread that serves requests waits
//! for a slow disk twice.
//!
//! With `everysec`, acknowledged data waits for the device, and how much is bounded: if a sync hangs,
//! nothing more is taken until it has ended, and what was taken before is acknowledged only once it is
//! forced; so that a power cut never takes more than what was acknowledged within two seconds.
//!
//! Values are refused before they use the reserve of the disk (see `reserve`); what was queued with
//! them is written. A failed write is undone by cutting the file back to the last good record; if the
//! disk was only full, the log goes on. Anything else, and any failed sync, ends it: after a failed sync the
//! kernel may have dropped the data and say nothing the next time (Rebello et al., "Can
//! applications recover from fsync failures?", 2020).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::ports::{LogError, LogRecord, LogStats};

use super::batch::Pending;
use super::disk::{FsyncPolicy, SyncSchedule};
use super::format::max_encoded_bytes;
use super::marks::Marks;
use super::queue::{QueueLimits, Thread};
use super::rotation::{Begun, Older, Segments, Switched};
use super::shared::{Shared, WRITTEN_HERE_BYTES};

/// The writer as those who append see it.
pub(super) struct Writer {
    shared: Arc<Shared>,
    limits: QueueLimits,
}

/// Where the log ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WrittenTo {
    /// The segment that is written.
    pub(super) number: u64,
    /// Its length up to the end of the last complete record.
    pub(super) bytes: u64,
}

/// An append that was taken.
enum Taken {
    /// And written.
    Written(Result<(), LogError>),
    /// And will be, or will be forced.
    Queued(Pending),
}

impl Writer {
    /// A writer that goes on at this position, and the work for its thread.
    pub(super) fn new(
        begun: Begun,
        older: Older,
        segments: Box<dyn Segments>,
        schedule: SyncSchedule,
        limits: QueueLimits,
    ) -> (Self, impl FnOnce() + Send + 'static) {
        let shared = Arc::new(Shared::new(begun, older, segments, schedule));
        let for_thread = Arc::clone(&shared);
        (Self { shared, limits }, move || for_thread.run())
    }

    /// Appends records and waits until they are as durable as the policy says.
    pub(super) async fn append(&self, records: &[LogRecord]) -> Result<(), LogError> {
        let taken = match self.try_append(records)? {
            Some(taken) => taken,
            // Boxed: the way of nearly all appends need not have room for a timer.
            None => Box::pin(self.append_when_there_is_room(records)).await?,
        };
        let ended = || LogError::Failed("whoever wrote it ended".into());
        match taken {
            Taken::Written(outcome) => outcome,
            Taken::Queued(done) => done.await.unwrap_or_else(|_| Err(ended())),
        }
    }

    /// Ends the segment, and goes on in the next one: which that is. Cancel safe; the switch happens
    /// all the same.
    pub(super) async fn rotate(&self) -> Result<Switched, LogError> {
        let switched = self.ask_for_rotation()?;
        switched.await.unwrap_or(Err(LogError::Closed))
    }

    fn ask_for_rotation(&self) -> Result<oneshot::Receiver<Result<Switched, LogError>>, LogError> {
        let (tell, told) = oneshot::channel();
        let mut state = self.shared.state();
        if let Some(ended) = &state.ended {
            return Err(ended.clone());
        }
        state.rotation.get_or_insert_default().waiting.push(tell);
        self.shared.wake_thread(state);
        Ok(told)
    }

    /// What those who append and the thread share.
    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What the clock bounds and horizons so far come to.
    pub(super) fn marks(&self) -> Marks {
        self.shared.state().marks
    }

    /// Tells up to where the log is written, each time it is asked.
    pub(super) fn end(&self) -> impl Fn() -> Result<WrittenTo, LogError> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            let state = shared.state();
            match &state.ended {
                Some(ended) => Err(ended.clone()),
                None => Ok(WrittenTo { number: state.segment.number, bytes: state.good_bytes }),
            }
        }
    }

    /// Takes no more; the thread writes and forces what there is, and ends.
    pub(super) fn close(&self) {
        let mut state = self.shared.state();
        state.ended.get_or_insert(LogError::Closed);
        // Nobody needs the next segment any more.
        state.rotation = None;
        self.shared.wake_thread(state);
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
        let (writes, queued) = {
            let state = self.shared.state();
            (state.writes, state.pending_bytes())
        };
        LogStats {
            bytes: load(&self.shared.bytes) + load(&self.shared.older_bytes),
            appended: load(&self.shared.appended),
            syncs: self.shared.forcing.syncs.times(),
            writes,
            queued_bytes: queued as u64,
            unforced_for: self.unforced_for(),
        }
    }

    fn unforced_for(&self) -> Option<Duration> {
        let is_to_be_forced = self.shared.schedule.policy != FsyncPolicy::Never;
        let since = self.shared.state().oldest_unforced().filter(|_| is_to_be_forced);
        since.map(|since| since.elapsed())
    }

    async fn append_when_there_is_room(&self, records: &[LogRecord]) -> Result<Taken, LogError> {
        let deadline = tokio::time::Instant::now() + self.limits.wait;
        loop {
            let room = self.shared.room.notified();
            if let Some(taken) = self.try_append(records)? {
                return Ok(taken);
            }
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                return Err(LogError::Overloaded);
            }
        }
    }

    /// Takes records in, and writes them if nobody else does; `None` if there is no room. A batch
    /// larger than the queue is taken when the queue is empty.
    fn try_append(&self, records: &[LogRecord]) -> Result<Option<Taken>, LogError> {
        let needed: usize = records.iter().map(max_encoded_bytes).sum();
        let mut state = self.shared.state();
        if let Some(ended) = &state.ended {
            return Err(ended.clone());
        }
        if records.is_empty() {
            return Ok(Some(Taken::Written(Ok(()))));
        }
        let now = Instant::now();
        if self.shared.lags(&state, now) {
            drop(state);
            self.shared.tell_lag();
            return Err(LogError::DurabilityLag);
        }
        if state.queued_bytes() > 0 && state.queued_bytes() + needed > self.limits.bytes {
            state.room_is_wanted = true;
            self.shared.wake_thread(state);
            return Ok(None);
        }
        if state.is_idle() && needed <= WRITTEN_HERE_BYTES && self.shared.may_write_here(&state) {
            state.queue(records, None);
            let writing = state.take();
            drop(state);
            return Ok(Some(match self.shared.write_here(writing, now) {
                Ok(Some(pending)) => Taken::Queued(pending),
                Ok(None) => Taken::Written(Ok(())),
                Err(error) => Taken::Written(Err(error)),
            }));
        }
        let (done, waiting) = oneshot::channel();
        state.queue(records, Some(done));
        let is_small = state.pending_bytes() <= WRITTEN_HERE_BYTES;
        if state.thread == Thread::IsAway && is_small && self.shared.may_write_here(&state) {
            // What the thread was to write does not wait for the device, either.
            let batch = state.has_work().then(|| state.take());
            drop(state);
            if let Some(batch) = batch {
                // All in it are told, and so this one.
                drop(self.shared.write_here(batch, now));
            }
        } else {
            self.shared.wake_thread(state);
        }
        Ok(Some(Taken::Queued(waiting)))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use futures_util::FutureExt;

    use super::*;
    use crate::adapters::file_aof::disk::Disk;
    use crate::adapters::file_aof::files::Unmade;
    use crate::adapters::file_aof::format::encode;
    use crate::adapters::file_aof::queue::SLOW_WRITE;
    use crate::adapters::file_aof::reserve::Reserve;
    use crate::adapters::file_aof::rotation::{OpenSegment, Position};
    use crate::domain::{Entry, Key, KeyedEntry, NodeId, Timestamp, Value, Version};

    /// A file in memory that fails when it is told to.
    #[derive(Default)]
    struct Faulty {
        bytes: Vec<u8>,
        /// Appends fail like this, after half of the bytes.
        append_error: Option<i32>,
        append_takes: Duration,
        sync_error: bool,
        /// Syncs wait for a token each.
        sync_gate: Option<std::sync::mpsc::Receiver<()>>,
        syncs_begun: usize,
        /// Bytes that the disk has; `None`: it cannot promise space, and has no end.
        size: Option<usize>,
        allocated: usize,
        allocations: usize,
    }

    const ENOSPC: i32 = 28;
    const EIO: i32 = 5;
    const EOPNOTSUPP: i32 = 95;

    const SEGMENT: &str = "log/7.log";

    /// The reserve of a small disk, in bytes.
    const SMALL_RESERVE: usize = 1_000;

    fn small_reserve() -> Reserve {
        Reserve::new(0, Some(16 * SMALL_RESERVE as u64))
    }

    impl Disk for Arc<Mutex<Faulty>> {
        fn append(&self, bytes: &[u8]) -> io::Result<()> {
            let mut faulty = self.lock().unwrap();
            // A disk that takes its time, not a test that waits.
            std::thread::sleep(faulty.append_takes);
            if let Some(code) = faulty.append_error {
                faulty.bytes.extend_from_slice(&bytes[..bytes.len() / 2]);
                return Err(io::Error::from_raw_os_error(code));
            }
            let end = faulty.bytes.len() + bytes.len();
            if faulty.size.is_some_and(|size| end > size.max(faulty.allocated)) {
                faulty.bytes.extend_from_slice(&bytes[..bytes.len() / 2]);
                return Err(io::Error::from_raw_os_error(ENOSPC));
            }
            faulty.bytes.extend_from_slice(bytes);
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            let gate = {
                let mut faulty = self.lock().unwrap();
                faulty.syncs_begun += 1;
                faulty.sync_gate.take()
            };
            if let Some(gate) = gate {
                gate.recv().unwrap();
                self.lock().unwrap().sync_gate = Some(gate);
            }
            let failing = self.lock().unwrap().sync_error;
            if failing { Err(io::Error::from_raw_os_error(EIO)) } else { Ok(()) }
        }

        fn truncate(&self, length: u64) -> io::Result<()> {
            let mut faulty = self.lock().unwrap();
            faulty.bytes.truncate(usize::try_from(length).unwrap());
            faulty.allocated = faulty.bytes.len();
            Ok(())
        }

        fn allocate(&self, from: u64, to: u64) -> io::Result<()> {
            let mut faulty = self.lock().unwrap();
            faulty.allocations += 1;
            let (from, to) = (usize::try_from(from).unwrap(), usize::try_from(to).unwrap());
            assert!(from <= faulty.allocated.max(faulty.bytes.len()), "a hole");
            match faulty.size {
                None => Err(io::Error::from_raw_os_error(EOPNOTSUPP)),
                Some(size) if to > size => Err(io::Error::from_raw_os_error(ENOSPC)),
                Some(_) => {
                    faulty.allocated = faulty.allocated.max(to);
                    Ok(())
                }
            }
        }
    }

    /// The segments that are begun, and how often that fails before.
    #[derive(Default, Clone)]
    struct Next {
        disks: Arc<Mutex<Vec<Arc<Mutex<Faulty>>>>>,
        failures: Arc<Mutex<u32>>,
        /// Segments that have their name, though not for sure: like this.
        unforced: Arc<Mutex<Option<LogError>>>,
    }

    impl Segments for Next {
        fn begin(&self, number: u64, first_sequence: u64) -> Result<Begun, Unmade> {
            if let Some(error) = &*self.unforced.lock().unwrap() {
                return Err(Unmade::Unforced(error.clone()));
            }
            let mut failures = self.failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return Err(Unmade::Undone(LogError::DiskFull));
            }
            let disk = Arc::new(Mutex::new(Faulty::default()));
            self.disks.lock().unwrap().push(Arc::clone(&disk));
            Ok(Begun { position: at(first_sequence), ..begun_as(number, Box::new(disk)) })
        }
    }

    fn at(next_sequence: u64) -> Position {
        Position { good_bytes: 0, next_sequence }
    }

    fn begun_as(number: u64, disk: Box<dyn Disk>) -> Begun {
        let segment = OpenSegment { number, path: SEGMENT.into(), disk, salt: 7 };
        Begun { segment, position: at(1), reserve: small_reserve() }
    }

    fn writer(
        disk: Box<dyn Disk>,
        policy: FsyncPolicy,
        queue_bytes: usize,
    ) -> (Writer, impl FnOnce() + Send + 'static) {
        let limits = QueueLimits { bytes: queue_bytes, wait: Duration::from_millis(20) };
        let next = Box::new(Next::default());
        Writer::new(begun_as(1, disk), Older::default(), next, SyncSchedule::of(policy), limits)
    }

    struct Log {
        writer: Arc<Writer>,
        disk: Arc<Mutex<Faulty>>,
        thread: std::thread::JoinHandle<()>,
    }

    fn start(policy: FsyncPolicy, queue_bytes: usize, faulty: Faulty) -> Log {
        let disk = Arc::new(Mutex::new(faulty));
        let (writer, work) = writer(Box::new(Arc::clone(&disk)), policy, queue_bytes);
        let thread = std::thread::spawn(work);
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
            assert_eq!(stats.syncs.count(), if policy == FsyncPolicy::Always { 10 } else { 1 });
        }
    }

    #[tokio::test]
    async fn an_append_writes_by_itself_but_not_where_it_would_wait_for_the_device() {
        for policy in [FsyncPolicy::EverySec, FsyncPolicy::Never, FsyncPolicy::Always] {
            let disk = Arc::new(Mutex::new(Faulty::default()));
            // There is no thread.
            let (writer, _work) = writer(Box::new(Arc::clone(&disk)), policy, 1 << 20);
            let taken = writer.try_append(&[record(1)]).unwrap().unwrap();
            let written = matches!(taken, Taken::Written(Ok(())));
            assert_eq!(written, policy != FsyncPolicy::Always);
            let expected = if written { encoded(&[record(1)]) } else { Vec::new() };
            assert_eq!(disk.lock().unwrap().bytes, expected);
        }
    }

    #[tokio::test]
    async fn after_a_slow_write_the_thread_writes() {
        // The longer, the more time this test has until appends write again themselves.
        let slow = Faulty { append_takes: 40 * SLOW_WRITE, ..Faulty::default() };
        let disk = Arc::new(Mutex::new(slow));
        let (writer, work) = writer(Box::new(Arc::clone(&disk)), FsyncPolicy::Never, 1 << 20);
        writer.append(&[record(1)]).await.unwrap();
        let Some(Taken::Queued(second)) = writer.try_append(&[record(2)]).unwrap() else {
            panic!("written by the one who appends")
        };
        let thread = std::thread::spawn(work);
        second.await.unwrap().unwrap();
        assert_eq!(disk.lock().unwrap().bytes, encoded(&[record(1), record(2)]));
        writer.close();
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn after_a_slow_write_appends_do_not_wait_for_the_sync_of_the_thread() {
        let (open, gate) = std::sync::mpsc::sync_channel(64);
        let schedule =
            SyncSchedule { every: Duration::ZERO, ..SyncSchedule::of(FsyncPolicy::EverySec) };
        let (append_takes, sync_gate) = (40 * SLOW_WRITE, Some(gate));
        let slow = Faulty { append_takes, sync_gate, ..Faulty::default() };
        let log = start_with(&Next::default(), schedule, slow);
        log.writer.append(&[record(1)]).await.unwrap();
        while log.disk.lock().unwrap().syncs_begun == 0 {
            tokio::task::yield_now().await;
        }
        log.disk.lock().unwrap().append_takes = Duration::ZERO;
        log.writer.append(&[record(2)]).await.unwrap();
        assert_eq!(log.disk.lock().unwrap().bytes, encoded(&[record(1), record(2)]));
        assert_eq!(log.writer.stats().syncs.count(), 0);
        for _ in 0..2 {
            open.send(()).unwrap();
        }
    }

    #[tokio::test]
    async fn what_the_thread_was_to_write_does_not_wait_for_its_sync_either() {
        let (open, gate) = std::sync::mpsc::sync_channel(64);
        let schedule =
            SyncSchedule { every: Duration::ZERO, ..SyncSchedule::of(FsyncPolicy::EverySec) };
        let (append_takes, sync_gate) = (40 * SLOW_WRITE, Some(gate));
        let disk = Arc::new(Mutex::new(Faulty { append_takes, sync_gate, ..Faulty::default() }));
        let limits = QueueLimits { bytes: 1 << 20, wait: Duration::from_millis(20) };
        let (begun, next) = (begun_as(1, Box::new(Arc::clone(&disk))), Box::new(Next::default()));
        let (writer, work) = Writer::new(begun, Older::default(), next, schedule, limits);
        writer.append(&[record(1)]).await.unwrap();
        let Some(Taken::Queued(second)) = writer.try_append(&[record(2)]).unwrap() else {
            panic!("written by the one who appends")
        };
        disk.lock().unwrap().append_takes = Duration::ZERO;
        let thread = std::thread::spawn(work);
        while disk.lock().unwrap().syncs_begun == 0 {
            tokio::task::yield_now().await;
        }
        writer.append(&[record(3)]).await.unwrap();
        assert_eq!(second.now_or_never(), Some(Ok(Ok(()))));
        assert_eq!(disk.lock().unwrap().bytes, encoded(&[record(1), record(2), record(3)]));
        open.send(()).unwrap();
        open.send(()).unwrap();
        writer.close();
        thread.join().unwrap();
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
        assert!(log.writer.stats().syncs.count() <= 3, "{:?}", log.writer.stats());
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

    fn write(n: u64, text: Option<&str>) -> LogRecord {
        let version = Version::new(Timestamp::from_nanos(n), NodeId::new(1));
        let value = text.map(Value::new);
        let entry = value.map_or_else(|| Entry::tombstone(version), |v| Entry::live(version, v));
        LogRecord::Write(KeyedEntry::new(Key::new("k").unwrap(), entry))
    }

    fn value(n: u64) -> LogRecord {
        write(n, Some(&"v".repeat(100)))
    }

    fn removal(n: u64) -> LogRecord {
        write(n, None)
    }

    /// Writes values until one is refused: those that were taken.
    async fn fill(log: &Log) -> Vec<LogRecord> {
        let mut taken = Vec::new();
        loop {
            let next = value(taken.len() as u64);
            match log.writer.append(std::slice::from_ref(&next)).await {
                Ok(()) => taken.push(next),
                Err(error) => {
                    assert_eq!(error, LogError::DiskFull);
                    return taken;
                }
            }
        }
    }

    #[tokio::test]
    async fn values_leave_the_reserve_to_removals_and_clock_bounds() {
        for policy in [FsyncPolicy::Always, FsyncPolicy::EverySec] {
            let size = 5_000;
            let log = start(policy, 1 << 20, Faulty { size: Some(size), ..Faulty::default() });
            let mut taken = fill(&log).await;
            let end = log.disk.lock().unwrap().bytes.len();
            assert!(end + SMALL_RESERVE <= size && end + SMALL_RESERVE + 200 > size, "{end}");
            for n in 100..105 {
                for record in [removal(n), record(n)] {
                    log.writer.append(std::slice::from_ref(&record)).await.unwrap();
                    taken.push(record);
                }
                // Not even one that would fit into the reserve.
                assert_eq!(log.writer.append(&[value(n)]).await, Err(LogError::DiskFull));
                let mixed = [removal(n), value(n)];
                assert_eq!(log.writer.append(&mixed).await, Err(LogError::DiskFull));
            }
            assert_eq!(log.disk.lock().unwrap().bytes, encoded(&taken));
            // The reserve is full again before a value is taken.
            log.disk.lock().unwrap().size = Some(size + 500);
            assert_eq!(log.writer.append(&[value(200)]).await, Err(LogError::DiskFull));
            log.disk.lock().unwrap().size = Some(2 * size);
            log.writer.append(&[value(200)]).await.unwrap();
            taken.push(value(200));
            let disk = log.disk.lock().unwrap();
            assert_eq!(disk.bytes, encoded(&taken));
            assert!(disk.allocated >= disk.bytes.len() + SMALL_RESERVE);
        }
    }

    #[tokio::test]
    async fn when_the_reserve_is_used_up_removals_are_refused_and_leave_no_trace() {
        let faulty = Faulty { size: Some(3_000), ..Faulty::default() };
        let log = start(FsyncPolicy::Never, 1 << 20, faulty);
        let mut taken = fill(&log).await;
        loop {
            let next = removal(100);
            match log.writer.append(std::slice::from_ref(&next)).await {
                Ok(()) => taken.push(next),
                Err(error) => break assert_eq!(error, LogError::DiskFull),
            }
        }
        assert_eq!(log.disk.lock().unwrap().bytes, encoded(&taken));
        assert_eq!(log.writer.append(&[removal(101)]).await, Err(LogError::DiskFull));
        log.disk.lock().unwrap().size = Some(10_000);
        log.writer.append(&[removal(102)]).await.unwrap();
        log.writer.append(&[value(103)]).await.unwrap();
        taken.extend([removal(102), value(103)]);
        let disk = log.disk.lock().unwrap();
        assert_eq!(disk.bytes, encoded(&taken));
        assert!(disk.allocated >= disk.bytes.len() + SMALL_RESERVE);
    }

    #[tokio::test]
    async fn a_refused_value_takes_no_removal_with_it_that_was_queued_beside_it() {
        // No space for a single value; the reserve was taken when the log was opened.
        let faulty =
            Faulty { size: Some(SMALL_RESERVE), allocated: SMALL_RESERVE, ..Faulty::default() };
        let disk = Arc::new(Mutex::new(faulty));
        let (writer, work) = writer(Box::new(Arc::clone(&disk)), FsyncPolicy::Always, 1 << 20);
        // One batch: the thread is not there yet.
        let appends =
            [vec![value(1)], vec![removal(2)], vec![removal(3), value(3)], vec![record(4)]];
        let queued: Vec<_> = appends
            .iter()
            .map(|records| match writer.try_append(records).unwrap().unwrap() {
                Taken::Queued(done) => done,
                Taken::Written(_) => panic!("written before there is a thread"),
            })
            .collect();
        let thread = std::thread::spawn(work);
        let full = Err(LogError::DiskFull);
        let mut outcomes = Vec::new();
        for done in queued {
            outcomes.push(done.await.unwrap());
        }
        assert_eq!(outcomes, [full.clone(), Ok(()), full, Ok(())]);
        assert_eq!(disk.lock().unwrap().bytes, encoded(&[removal(2), record(4)]));
        writer.append(&[removal(5)]).await.unwrap();
        assert_eq!(disk.lock().unwrap().bytes, encoded(&[removal(2), record(4), removal(5)]));
        assert_eq!(writer.stats().appended, 3);
        writer.close();
        thread.join().unwrap();
    }

    #[tokio::test]
    async fn a_write_that_was_cut_off_again_costs_no_reserve() {
        let faulty = Faulty { size: Some(1 << 20), ..Faulty::default() };
        let log = start(FsyncPolicy::Never, 1 << 20, faulty);
        log.writer.append(&[value(1)]).await.unwrap();
        log.disk.lock().unwrap().append_error = Some(ENOSPC);
        assert_eq!(log.writer.append(&[value(2)]).await, Err(LogError::DiskFull));
        let disk = log.disk.lock().unwrap();
        assert_eq!(disk.allocated, disk.bytes.len() + SMALL_RESERVE);
    }

    #[tokio::test]
    async fn few_writes_ask_for_space_and_none_where_it_cannot_be_promised() {
        for (size, most) in [(Some(1 << 20), 17), (None, 1)] {
            let log = start(FsyncPolicy::Never, 1 << 20, Faulty { size, ..Faulty::default() });
            for n in 0..100 {
                log.writer.append(&[value(n)]).await.unwrap();
            }
            let disk = log.disk.lock().unwrap();
            assert!((1..=most).contains(&disk.allocations), "{size:?}: {}", disk.allocations);
        }
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
        fn append(&self, _: &[u8]) -> io::Result<()> {
            // Without the panic hook, which would print.
            std::panic::resume_unwind(Box::new("on purpose"))
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }

        fn truncate(&self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_thread_that_panics_fails_the_log_and_leaves_nobody_waiting() {
        let (writer, work) = writer(Box::new(Panicking), FsyncPolicy::Always, 1 << 20);
        let thread = std::thread::spawn(work);
        assert!(writer.append(&[record(1)]).await.is_err());
        assert!(matches!(writer.failed().await, LogError::Failed(_)));
        assert!(matches!(writer.append(&[record(2)]).await, Err(LogError::Failed(_))));
        assert!(thread.join().is_err());
    }

    #[tokio::test]
    async fn while_the_device_is_behind_nothing_more_is_acknowledged_with_everysec_and_only_there()
    {
        let now = |policy| SyncSchedule { every: Duration::ZERO, lag_max: Duration::ZERO, policy };
        let (open, gate) = std::sync::mpsc::sync_channel(64);
        let faulty = Faulty { sync_gate: Some(gate), ..Faulty::default() };
        let log = start_with(&Next::default(), now(FsyncPolicy::EverySec), faulty);
        log.writer.append(&[record(1)]).await.unwrap();
        for refused in [[record(2)], [value(2)], [removal(2)]] {
            assert_eq!(log.writer.append(&refused).await, Err(LogError::DurabilityLag));
            assert!(log.writer.stats().unforced_for.is_some());
        }
        open.send(()).unwrap();
        while log.writer.stats().unforced_for.is_some() {
            tokio::task::yield_now().await;
        }
        log.writer.append(&[record(3)]).await.unwrap();
        assert_eq!(log.disk.lock().unwrap().bytes, encoded(&[record(1), record(3)]));
        open.send(()).unwrap();

        for policy in [FsyncPolicy::Always, FsyncPolicy::Never] {
            let log = start_with(&Next::default(), now(policy), Faulty::default());
            for n in 0..3 {
                log.writer.append(&[record(n)]).await.unwrap();
                assert_eq!(log.writer.stats().unforced_for, None);
            }
        }
    }

    /// A log whose syncs wait for a token each, with a write that ended when the device was behind: how
    /// that will be acknowledged.
    async fn with_a_late_write() -> (Log, std::sync::mpsc::SyncSender<()>, Acknowledged) {
        let (open, gate) = std::sync::mpsc::sync_channel(64);
        let (policy, lag_max) = (FsyncPolicy::EverySec, Duration::from_millis(500));
        let schedule = SyncSchedule { policy, every: Duration::from_secs(3_600), lag_max };
        let faulty = Faulty { sync_gate: Some(gate), ..Faulty::default() };
        let log = start_with(&Next::default(), schedule, faulty);
        log.writer.append(&[record(1)]).await.unwrap();
        assert_eq!(log.disk.lock().unwrap().syncs_begun, 0);
        log.disk.lock().unwrap().append_takes = Duration::from_millis(600);
        let writer = Arc::clone(&log.writer);
        let mut late: Acknowledged = Box::pin(async move { writer.append(&[record(2)]).await });
        // Whoever appends does not wait for the device on its thread.
        assert_eq!(late.as_mut().now_or_never(), None);
        while log.disk.lock().unwrap().syncs_begun == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(late.as_mut().now_or_never(), None);
        assert_eq!(log.writer.append(&[record(3)]).await, Err(LogError::DurabilityLag));
        (log, open, late)
    }

    type Acknowledged = futures_util::future::BoxFuture<'static, Result<(), LogError>>;

    #[tokio::test]
    async fn a_write_that_ends_when_the_device_is_behind_is_acknowledged_when_it_is_forced() {
        let (log, open, late) = with_a_late_write().await;
        open.send(()).unwrap();
        assert_eq!(late.await, Ok(()));
        log.writer.append(&[record(3)]).await.unwrap();
        assert_eq!(log.disk.lock().unwrap().bytes, encoded(&[record(1), record(2), record(3)]));
        open.send(()).unwrap();
    }

    #[tokio::test]
    async fn a_write_that_waits_to_be_forced_hears_of_a_sync_that_fails() {
        let (log, open, late) = with_a_late_write().await;
        log.disk.lock().unwrap().sync_error = true;
        open.send(()).unwrap();
        assert!(matches!(late.await, Err(LogError::Failed(_))));
    }

    #[tokio::test]
    async fn a_write_that_waits_to_be_forced_is_acknowledged_by_a_stop() {
        let (log, open, late) = with_a_late_write().await;
        log.writer.close();
        open.send(()).unwrap();
        assert_eq!(late.await, Ok(()));
        log.thread.join().unwrap();
    }

    #[tokio::test]
    async fn a_full_queue_refuses_after_a_while_and_takes_more_when_there_is_room() {
        let (open, gate) = std::sync::mpsc::sync_channel(64);
        let faulty = Faulty { sync_gate: Some(gate), ..Faulty::default() };
        let log = start(FsyncPolicy::Always, 100, faulty);
        let records = [record(1)];
        let first = log.writer.append(&records);
        let rest = async {
            while log.disk.lock().unwrap().syncs_begun == 0 {
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
        assert_eq!(log.writer.stats().syncs.count(), 1);
    }

    fn start_with(next: &Next, schedule: SyncSchedule, faulty: Faulty) -> Log {
        let disk = Arc::new(Mutex::new(faulty));
        let limits = QueueLimits { bytes: 1 << 20, wait: Duration::from_millis(20) };
        let begun = begun_as(1, Box::new(Arc::clone(&disk)));
        let next = Box::new(next.clone());
        let (writer, work) = Writer::new(begun, Older::default(), next, schedule, limits);
        Log { writer: Arc::new(writer), disk, thread: std::thread::spawn(work) }
    }

    #[tokio::test]
    async fn a_rotation_forces_the_segment_and_goes_on_in_the_next() {
        for policy in [FsyncPolicy::Always, FsyncPolicy::EverySec, FsyncPolicy::Never] {
            let next = Next::default();
            let log = start_with(&next, SyncSchedule::of(policy), Faulty::default());
            log.writer.append(&[record(1), record(2)]).await.unwrap();
            let before = log.writer.stats().syncs.count();
            let switched = log.writer.rotate().await.unwrap();
            let older_bytes = encoded(&[record(1), record(2)]).len() as u64;
            assert_eq!(switched, Switched { number: 2, first_sequence: 3, older_bytes });
            assert!(log.writer.stats().syncs.count() >= before + 2);
            log.writer.append(&[record(3)]).await.unwrap();
            assert_eq!(log.disk.lock().unwrap().bytes, encoded(&[record(1), record(2)]));
            let mut expected = Vec::new();
            encode(&record(3), 3, 7, &mut expected);
            let second = Arc::clone(&next.disks.lock().unwrap()[0]);
            assert_eq!(second.lock().unwrap().bytes, expected);
            let bytes = encoded(&[record(1), record(2)]).len() + expected.len();
            assert_eq!(log.writer.stats().bytes, bytes as u64);
            log.writer.close();
            log.thread.join().unwrap();
        }
    }

    #[tokio::test]
    async fn a_segment_that_cannot_be_begun_leaves_the_log_in_the_one_before() {
        let next = Next::default();
        *next.failures.lock().unwrap() = 1;
        let log = start_with(&next, SyncSchedule::of(FsyncPolicy::EverySec), Faulty::default());
        log.writer.append(&[record(1)]).await.unwrap();
        assert_eq!(log.writer.rotate().await, Err(LogError::DiskFull));
        log.writer.append(&[record(2)]).await.unwrap();
        assert_eq!(log.disk.lock().unwrap().bytes, encoded(&[record(1), record(2)]));
        log.writer.rotate().await.unwrap();
        log.writer.append(&[record(3)]).await.unwrap();
        assert_eq!(log.disk.lock().unwrap().bytes, encoded(&[record(1), record(2)]));
    }

    #[tokio::test]
    async fn a_segment_that_cannot_be_forced_ends_the_log() {
        let faulty = Faulty { sync_error: true, ..Faulty::default() };
        let log = start_with(&Next::default(), SyncSchedule::of(FsyncPolicy::Never), faulty);
        log.writer.append(&[record(1)]).await.unwrap();
        let failed = log.writer.rotate().await.unwrap_err();
        assert!(matches!(failed, LogError::Failed(_)), "{failed}");
        assert_eq!(log.writer.append(&[record(2)]).await, Err(failed));
    }

    /// What a power cut leaves of it may be the next segment without what was written since to the one
    /// before, or the other way round.
    #[tokio::test]
    async fn a_segment_whose_name_cannot_be_forced_ends_the_log() {
        let next = Next::default();
        let unforced = LogError::Failed("log: sync: the disk fails".into());
        *next.unforced.lock().unwrap() = Some(unforced.clone());
        let log = start_with(&next, SyncSchedule::of(FsyncPolicy::EverySec), Faulty::default());
        log.writer.append(&[record(1)]).await.unwrap();
        assert_eq!(log.writer.rotate().await, Err(unforced.clone()));
        assert_eq!(log.writer.append(&[record(2)]).await, Err(unforced.clone()));
        assert_eq!(log.writer.failed().await, unforced);
    }

    #[tokio::test]
    async fn a_log_that_fails_names_the_file() {
        let sync = Faulty { sync_error: true, ..Faulty::default() };
        let write = Faulty { append_error: Some(EIO), ..Faulty::default() };
        for faulty in [sync, write] {
            let log = start(FsyncPolicy::Always, 1 << 20, faulty);
            let failed = log.writer.append(&[record(1)]).await.unwrap_err();
            assert!(failed.to_string().contains(SEGMENT), "{failed}");
        }
    }

    #[tokio::test]
    async fn appends_during_a_rotation_wait_and_are_in_the_next_segment() {
        let (open, gate) = std::sync::mpsc::sync_channel(64);
        let faulty = Faulty { sync_gate: Some(gate), ..Faulty::default() };
        let next = Next::default();
        let log = start_with(&next, SyncSchedule::of(FsyncPolicy::Never), faulty);
        log.writer.append(&[record(1)]).await.unwrap();
        let records = [record(2)];
        let rotating = async {
            let switched = log.writer.rotate().await.unwrap();
            assert_eq!(switched.first_sequence, 2);
        };
        let appending = async {
            // Rotation was asked for.
            while log.disk.lock().unwrap().syncs_begun == 0 {
                tokio::task::yield_now().await;
            }
            let append = log.writer.append(&records);
            let opening = async {
                open.send(()).unwrap();
                open.send(()).unwrap();
            };
            let (appended, ()) = futures_util::future::join(append, opening).await;
            appended.unwrap();
        };
        futures_util::future::join(rotating, appending).await;
        assert_eq!(log.disk.lock().unwrap().bytes, encoded(&[record(1)]));
        let second = Arc::clone(&next.disks.lock().unwrap()[0]);
        assert!(!second.lock().unwrap().bytes.is_empty());
    }
}
