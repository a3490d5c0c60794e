//! What waits for the file, and what is known of it: the state that those who append and the thread
//! of the writer share, without the waiting.
//!
//! Records are encoded when they are queued, and numbered when they are written: so one append that
//! is refused takes no other with it, whether before or behind it in the queue.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::ports::{LogError, LogRecord, SyncTimes};

use super::batch::{Batch, Done, Pending};
use super::gathering::Gathering;
use super::marks::Marks;
use super::reserve::Reserve;
use super::rotation::{Begun, OpenSegment, Rotation, SEGMENT_BYTES};

/// Buffers larger than this are not kept for the next batch.
const KEPT_BUFFER_BYTES: usize = 4 << 20;

/// A write into the page cache that takes this long waits for the device.
pub(super) const SLOW_WRITE: Duration = Duration::from_millis(5);

/// How long the thread writes alone then: so many times as long as the write took, and at most this
/// long. So those that append lose a tenth of their time to a slow disk, and a single slow write, as
/// every sync may cause one, does not turn all appends of a second into switches of threads.
const THREAD_WRITES_TIMES: u32 = 10;
const THREAD_WRITES_FOR_MAX: Duration = Duration::from_secs(1);

/// A batch that was taken, and the file it goes to.
pub(super) struct Writing {
    pub(super) batch: Box<Batch>,
    pub(super) segment: Arc<OpenSegment>,
}

/// What the thread finds to do.
pub(super) enum Task {
    Write(Writing),
    Sync,
    Rotate,
    End,
}

/// What the thread is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thread {
    /// It has nothing to do, and wants to be woken.
    Waits,
    /// It waits for the device, and so writes nothing.
    IsAway,
    /// Anything else.
    Works,
}

/// What the thread does next.
pub(super) enum Next {
    Do(Task),
    /// Wait until it is woken, or this time has passed, if there is one.
    Wait(Option<Duration>),
}

/// How much may wait for the file, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLimits {
    pub(super) bytes: usize,
    pub(super) wait: Duration,
}

/// The queue, and where the file ends.
pub(super) struct State {
    /// Boxed, as all batches are: it changes hands with every append.
    pending: Box<Batch>,
    /// An empty batch with its buffers, for the next one while one is written.
    spare: Option<Box<Batch>>,
    /// Bytes of the batch that is being written, if one is.
    writing: Option<usize>,
    next_sequence: u64,
    /// The file that is written.
    pub(super) segment: Arc<OpenSegment>,
    /// Set while that is to be ended, and the next one begun.
    pub(super) rotation: Option<Rotation>,
    /// A file of this length is to be ended.
    pub(super) rotate_at: u64,
    /// What the clock bounds and horizons in all files come to.
    pub(super) marks: Marks,
    /// The space behind the end of the file.
    pub(super) reserve: Reserve,
    /// Length of the file up to the end of the last complete batch.
    pub(super) good_bytes: u64,
    /// When the oldest data that is not forced to the device yet was written, but for what a sync
    /// that runs forces.
    pub(super) unforced_since: Option<Instant>,
    /// When the oldest data was written that the sync that runs forces.
    forcing_since: Option<Instant>,
    /// Who is told once what is written now is forced, and who once the sync that runs has ended.
    until_forced: Vec<Done>,
    being_forced: Vec<Done>,
    /// How long batches took to be written.
    pub(super) writes: SyncTimes,
    /// Until then the thread writes alone.
    pub(super) slow_until: Option<Instant>,
    /// What the next batch waits for, with the policy `always`.
    pub(super) gathering: Gathering,
    /// Whether somebody waits for room in the queue.
    pub(super) room_is_wanted: bool,
    /// What the thread is at.
    pub(super) thread: Thread,
    /// Whether it wakes by itself when a sync is due.
    pub(super) sync_is_planned: bool,
    /// Why nothing more is taken.
    pub(super) ended: Option<LogError>,
}

impl State {
    pub(super) fn new(begun: Begun, marks: Marks) -> Self {
        let Begun { segment, position, reserve } = begun;
        Self {
            pending: Box::default(),
            spare: None,
            writing: None,
            next_sequence: position.next_sequence,
            segment: Arc::new(segment),
            rotation: None,
            rotate_at: SEGMENT_BYTES,
            marks,
            reserve,
            good_bytes: position.good_bytes,
            unforced_since: None,
            forcing_since: None,
            until_forced: Vec::new(),
            being_forced: Vec::new(),
            writes: SyncTimes::default(),
            slow_until: None,
            gathering: Gathering::default(),
            room_is_wanted: false,
            thread: Thread::Works,
            sync_is_planned: false,
            ended: None,
        }
    }

    /// Adds records to the next batch; `done` is told how it went.
    pub(super) fn queue(&mut self, records: &[LogRecord], done: Option<Done>) {
        self.pending.add(records, done);
    }

    /// Takes the next batch to write it. Nobody else writes until it is [put
    /// back](Self::put_back).
    pub(super) fn take(&mut self) -> Writing {
        // Also if it is taken although it waited: otherwise the next one would wait in its place.
        self.gathering.end();
        let next = self.spare.take().unwrap_or_default();
        let mut batch = std::mem::replace(&mut self.pending, next);
        let bytes = batch.records.bytes();
        self.writing = Some(bytes);
        // Whoever was queued before and refused has used no sequence.
        batch.first_sequence = self.next_sequence;
        let holds_values = batch.holds_values();
        batch.ahead = self.reserve.ahead_of(self.good_bytes, bytes as u64, holds_values);
        Writing { batch, segment: Arc::clone(&self.segment) }
    }

    /// This batch is in the file.
    pub(super) fn record_written(&mut self, batch: &Batch) {
        self.good_bytes += batch.records.bytes() as u64;
        self.next_sequence += batch.records.count() as u64;
        self.marks.raise_to(batch.marks);
    }

    /// A write took this long: if that is long, the thread writes alone for a while.
    pub(super) fn note_time(&mut self, took: Duration) {
        self.writes.record(took);
        if took >= SLOW_WRITE {
            let alone_for = (took * THREAD_WRITES_TIMES).min(THREAD_WRITES_FOR_MAX);
            self.slow_until = Some(Instant::now() + alone_for);
        }
    }

    /// The batch was written, or was not: whom to tell.
    pub(super) fn put_back(&mut self, mut batch: Box<Batch>) -> Vec<Done> {
        self.writing = None;
        let waiting = batch.empty();
        if batch.records.capacity() <= KEPT_BUFFER_BYTES {
            self.spare = Some(batch);
        }
        waiting
    }

    /// The batch was written, but those who wait for it, and whoever wrote it, are told when it is
    /// forced as well.
    pub(super) fn put_back_until_forced(&mut self, batch: Box<Batch>) -> Pending {
        let (done, pending) = oneshot::channel();
        let mut waiting = self.put_back(batch);
        self.until_forced.append(&mut waiting);
        self.until_forced.push(done);
        pending
    }

    /// Whether somebody waits for what is written to be forced.
    pub(super) const fn forcing_is_awaited(&self) -> bool {
        !self.until_forced.is_empty()
    }

    /// Empties the queue: whom to tell.
    pub(super) fn give_up(&mut self) -> Vec<Done> {
        self.writing = None;
        let mut waiting = std::mem::take(&mut self.pending).into_waiting();
        waiting.append(&mut self.until_forced);
        waiting.append(&mut self.being_forced);
        waiting
    }

    /// What the thread has to do, if a sync is due in this time.
    pub(super) fn next(&mut self, sync_due: Option<Duration>) -> Next {
        let next = self.find_next(sync_due);
        self.thread = match next {
            Next::Wait(_) => Thread::Waits,
            Next::Do(Task::Sync) => Thread::IsAway,
            Next::Do(_) => Thread::Works,
        };
        next
    }

    fn find_next(&mut self, sync_due: Option<Duration>) -> Next {
        if sync_due == Some(Duration::ZERO) {
            self.begin_sync();
            return Next::Do(Task::Sync);
        }
        if let Some(rotation) = &mut self.rotation {
            if !rotation.is_prepared {
                // The most of the file, so that what is written meanwhile is soon forced, too.
                rotation.is_prepared = true;
                self.begin_sync();
                return Next::Do(Task::Sync);
            }
            if self.writing.is_none() {
                self.writing = Some(0);
                return Next::Do(Task::Rotate);
            }
        }
        let mut left = sync_due;
        if self.has_work() {
            let queued = self.pending.appends();
            match self.gathering.left(queued, Instant::now()).filter(|_| self.takes_more()) {
                None => return Next::Do(Task::Write(self.take())),
                waits => left = waits,
            }
        } else if self.is_over() {
            return Next::Do(Task::End);
        }
        self.sync_is_planned = sync_due.is_some();
        Next::Wait(left)
    }

    /// A sync begins, of everything that is written. Whether there is anything to force.
    pub(super) fn begin_sync(&mut self) -> bool {
        self.forcing_since = self.unforced_since.take();
        self.being_forced.append(&mut self.until_forced);
        self.forcing_since.is_some()
    }

    /// It has ended: whom to tell.
    pub(super) fn end_sync(&mut self) -> Vec<Done> {
        self.forcing_since = None;
        std::mem::take(&mut self.being_forced)
    }

    /// When the oldest data was written that is not known to be on the device.
    pub(super) fn oldest_unforced(&self) -> Option<Instant> {
        self.forcing_since.or(self.unforced_since)
    }

    /// Sequence of the next record that is written.
    pub(super) const fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Goes on in the next file, all of the one before being forced: whom to tell.
    pub(super) fn enter(&mut self, begun: Begun) -> Vec<Done> {
        self.segment = Arc::new(begun.segment);
        self.good_bytes = begun.position.good_bytes;
        self.reserve = begun.reserve;
        self.rotate_at = SEGMENT_BYTES;
        self.unforced_since = None;
        std::mem::take(&mut self.until_forced)
    }

    /// The next file could not be begun: not to be tried again with every write.
    pub(super) fn put_rotation_off(&mut self) {
        self.rotate_at = self.good_bytes + SEGMENT_BYTES / 4;
    }

    /// The rotation has ended: whom to tell. What waited for it may be written.
    pub(super) fn end_rotation(&mut self) -> Option<Rotation> {
        self.writing = None;
        self.rotation.take()
    }

    /// Whether there is something for the thread to do beside writing.
    pub(super) fn has_chores(&self) -> bool {
        self.forcing_is_awaited() || self.rotation_goes_on() || self.is_over()
    }

    /// Whether there is something to do for a rotation.
    fn rotation_goes_on(&self) -> bool {
        self.rotation.as_ref().is_some_and(|r| !r.is_prepared || self.writing.is_none())
    }

    /// Bytes that are queued or being written.
    pub(super) fn queued_bytes(&self) -> usize {
        self.pending.records.bytes() + self.writing.unwrap_or(0)
    }

    /// Bytes that are queued.
    pub(super) const fn pending_bytes(&self) -> usize {
        self.pending.records.bytes()
    }

    /// Whether nobody writes and nothing is queued.
    pub(super) const fn is_idle(&self) -> bool {
        self.writing.is_none() && self.pending.is_empty()
    }

    /// Whether something is queued and nobody writes.
    pub(super) const fn has_work(&self) -> bool {
        self.writing.is_none() && !self.pending.is_empty()
    }

    /// Whether something is queued that the thread is to write now, if it does not already.
    pub(super) fn has_work_for_thread(&self) -> bool {
        let waits = self.takes_more() && self.gathering.waits_for_more(self.pending.appends());
        self.has_work() && !waits
    }

    /// Whether there may be more appends soon.
    const fn takes_more(&self) -> bool {
        self.ended.is_none() && !self.room_is_wanted
    }

    /// This batch is forced and about to be answered.
    pub(super) fn record_forced(&mut self, batch: &Batch, took: Duration) {
        self.gathering.record(batch.appends(), took, self.pending.appends());
    }

    /// Whether nothing more is taken and everything is written.
    pub(super) const fn is_over(&self) -> bool {
        self.ended.is_some() && self.is_idle()
    }

    /// Whether data waits for a sync of which the thread does not know yet.
    pub(super) const fn sync_is_unplanned(&self) -> bool {
        self.unforced_since.is_some() && !self.sync_is_planned
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::adapters::file_aof::batch::tell;
    use crate::adapters::file_aof::disk::Disk;
    use crate::adapters::file_aof::rotation::Position;
    use crate::domain::Timestamp;

    struct NoDisk;

    impl Disk for NoDisk {
        fn append(&self, _: &[u8]) -> std::io::Result<()> {
            Ok(())
        }

        fn sync(&self) -> std::io::Result<()> {
            Ok(())
        }

        fn truncate(&self, _: u64) -> std::io::Result<()> {
            Ok(())
        }

        fn allocate(&self, _: u64, _: u64) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn begun(number: u64) -> Begun {
        let disk = Box::new(NoDisk);
        let segment = OpenSegment { number, path: "log/1.log".into(), disk, salt: 7 };
        let position = Position { good_bytes: 0, next_sequence: 1 };
        Begun { segment, position, reserve: Reserve::new(0, None) }
    }

    fn told(pending: &mut Pending) -> bool {
        pending.now_or_never().is_some()
    }

    /// Whatever ends the wait for the device, nobody waits on.
    #[test]
    fn who_waits_for_a_sync_is_told_by_one_that_begins_later_by_the_next_file_and_by_the_end() {
        let mut state = State::new(begun(1), Marks::default());
        let mut first = state.put_back_until_forced(Box::default());
        state.begin_sync();
        let mut second = state.put_back_until_forced(Box::default());
        tell(state.end_sync(), &Ok(()));
        assert!(told(&mut first) && !told(&mut second) && state.forcing_is_awaited());
        tell(state.enter(begun(2)), &Ok(()));
        assert!(told(&mut second) && !state.forcing_is_awaited());
        let mut third = state.put_back_until_forced(Box::default());
        state.begin_sync();
        let mut fourth = state.put_back_until_forced(Box::default());
        tell(state.give_up(), &Err(LogError::Closed));
        assert!(told(&mut third) && told(&mut fourth));
    }

    /// One append is queued, after two were answered at once.
    fn after_two_were_answered() -> State {
        let mut state = State::new(begun(1), Marks::default());
        let record = [LogRecord::ClockBound(Timestamp::from_nanos(1))];
        state.queue(&record, None);
        state.queue(&record, None);
        let Writing { batch, .. } = state.take();
        state.record_forced(&batch, Duration::from_secs(1));
        state.put_back(batch);
        state.queue(&record, None);
        state
    }

    fn is_written_now(state: &mut State) -> bool {
        let wanted = state.has_work_for_thread();
        let written = matches!(state.next(None), Next::Do(Task::Write(_)));
        assert!(written || !state.has_work_for_thread());
        assert!(wanted || !written);
        written
    }

    #[test]
    fn a_batch_waits_for_those_just_answered_unless_no_more_can_come() {
        let mut state = after_two_were_answered();
        assert!(matches!(state.next(None), Next::Wait(Some(_))));
        assert!(!state.has_work_for_thread());
        state.queue(&[LogRecord::ClockBound(Timestamp::from_nanos(2))], None);
        assert!(is_written_now(&mut state));

        let mut state = after_two_were_answered();
        assert!(matches!(state.next(None), Next::Wait(Some(_))));
        state.ended = Some(LogError::Closed);
        assert!(is_written_now(&mut state));

        let mut state = after_two_were_answered();
        assert!(matches!(state.next(None), Next::Wait(Some(_))));
        state.room_is_wanted = true;
        assert!(is_written_now(&mut state));
    }

    #[test]
    fn a_batch_that_is_written_before_all_have_come_leaves_nobody_waiting_in_its_place() {
        let mut state = after_two_were_answered();
        assert!(matches!(state.next(None), Next::Wait(Some(_))));
        state.room_is_wanted = true;
        let Next::Do(Task::Write(writing)) = state.next(None) else { panic!("it waits") };
        // The disk is full, say: it is not forced.
        state.put_back(writing.batch);
        state.room_is_wanted = false;
        state.queue(&[LogRecord::ClockBound(Timestamp::from_nanos(2))], None);
        assert!(state.has_work_for_thread());
    }
}
