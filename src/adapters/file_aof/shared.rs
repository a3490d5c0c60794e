//! `Shared`: what those who append and the thread share, and what either does with it: writing,
//! forcing, ending a segment, failing. Who does which, and why, `writer` says.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use crate::ports::LogError;

use super::batch::{Batch, Pending, tell};
use super::disk::{FsyncPolicy, SyncSchedule, allocate, is_full};
use super::files::Unmade;
use super::forcing::Forcing;
use super::queue::{Next, State, Task, Thread, Writing};
use super::reserve::Ahead;
use super::rotation::{Begun, Older, OpenSegment, Segments, Switched};

/// Batches up to this size are written by those that append. Copying more takes as long as waking
/// the thread, many times over.
pub(super) const WRITTEN_HERE_BYTES: usize = 128 * 1_024;

/// Batches that one append writes for others, after its own, before it hands over.
const WRITTEN_FOR_OTHERS: usize = 16;

/// What those who append and the thread share.
pub(super) struct Shared {
    segments: Box<dyn Segments>,
    pub(super) schedule: SyncSchedule,
    state: Mutex<State>,
    /// Wakes the thread.
    work: Condvar,
    /// Wakes those who wait for room in the queue.
    pub(super) room: Notify,
    pub(super) failed: watch::Sender<Option<LogError>>,
    pub(super) forcing: Forcing,
    /// Of the file that is written.
    pub(super) bytes: AtomicU64,
    /// Of the files before.
    pub(super) older_bytes: AtomicU64,
    pub(super) appended: AtomicU64,
    /// Whether the node's log says already that the device is behind.
    lag_is_told: AtomicBool,
}

impl Shared {
    pub(super) fn new(
        begun: Begun,
        older: Older,
        segments: Box<dyn Segments>,
        schedule: SyncSchedule,
    ) -> Self {
        Self {
            segments,
            schedule,
            bytes: AtomicU64::new(begun.position.good_bytes),
            older_bytes: AtomicU64::new(older.bytes),
            state: Mutex::new(State::new(begun, older.marks)),
            work: Condvar::new(),
            room: Notify::new(),
            failed: watch::Sender::new(None),
            forcing: Forcing::default(),
            appended: AtomicU64::new(0),
            lag_is_told: AtomicBool::new(false),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an append may write, rather than the thread. While the thread waits for the device, what
    /// it would have to write would wait with it.
    pub(super) fn may_write_here(&self, state: &State) -> bool {
        let is_slow = || state.slow_until.is_some_and(|until| Instant::now() < until);
        self.schedule.policy != FsyncPolicy::Always
            && state.rotation.is_none()
            && (state.thread == Thread::IsAway || !is_slow())
    }

    /// Whether the device is so far behind that nothing more may be acknowledged.
    pub(super) fn lags(&self, state: &State, now: Instant) -> bool {
        let lags = |since| now.saturating_duration_since(since) > self.schedule.lag_max;
        self.schedule.policy == FsyncPolicy::EverySec && state.oldest_unforced().is_some_and(lags)
    }

    /// Says in the log of the node, once, that the device is behind.
    pub(super) fn tell_lag(&self) {
        if !self.lag_is_told.swap(true, Ordering::Relaxed) {
            tracing::warn!("the disk is behind: writes are refused until it has caught up");
        }
    }

    /// Writes a batch, and what came meanwhile, as far as it is not much. The outcome is that of the
    /// first batch.
    pub(super) fn write_here(
        &self,
        writing: Writing,
        began: Instant,
    ) -> Result<Option<Pending>, LogError> {
        let outcome = self.write(writing, began);
        for _ in 0..WRITTEN_FOR_OTHERS {
            let mut state = self.state();
            let is_small = state.pending_bytes() <= WRITTEN_HERE_BYTES;
            if !state.has_work() || !is_small || !self.may_write_here(&state) {
                self.wake_thread(state);
                return outcome;
            }
            let writing = state.take();
            drop(state);
            if self.write(writing, Instant::now()).is_err() {
                // Those who wait for it have been told.
                break;
            }
        }
        self.wake_thread(self.state());
        outcome
    }

    /// Wakes the thread if it waits and there is something to do for it.
    pub(super) fn wake_thread(&self, mut state: MutexGuard<'_, State>) {
        let sync_begins =
            self.schedule.policy == FsyncPolicy::EverySec && state.sync_is_unplanned();
        let is_wanted = state.has_work_for_thread() || state.has_chores();
        if state.thread == Thread::Waits && (is_wanted || sync_begins) {
            state.thread = Thread::Works;
            drop(state);
            self.work.notify_one();
        }
    }

    /// The work of the thread.
    pub(super) fn run(&self) {
        while self.failed.borrow().is_none() {
            match self.next_task() {
                // Those who wait have been told how it went.
                Task::Write(writing) => drop(self.write(writing, Instant::now())),
                Task::Rotate => self.rotate(),
                Task::Sync => self.sync_and_tell(),
                Task::End => {
                    if self.state().begin_sync() && self.failed.borrow().is_none() {
                        self.sync_and_tell();
                    }
                    return;
                }
            }
        }
    }

    /// Waits for something to do; for a sync no longer than until it is due.
    fn next_task(&self) -> Task {
        let mut state = self.state();
        loop {
            let since =
                state.unforced_since.filter(|_| self.schedule.policy == FsyncPolicy::EverySec);
            let every =
                if state.forcing_is_awaited() { Duration::ZERO } else { self.schedule.every };
            let left = since.map(|since| (since + every).saturating_duration_since(Instant::now()));
            let wait = match state.next(left) {
                Next::Do(task) => return task,
                Next::Wait(wait) => wait,
            };
            state = match wait {
                Some(wait) => {
                    let waited = self.work.wait_timeout(state, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.thread = Thread::Works;
        }
    }

    /// Writes a batch, which was taken, and tells everybody in it how that went; or, if that cannot
    /// be said yet, will tell them and whoever wrote it.
    fn write(&self, writing: Writing, began: Instant) -> Result<Option<Pending>, LogError> {
        let Writing { mut batch, segment } = writing;
        // Whatever happens here, nobody must wait for it for ever.
        let _guard = FailOnPanic(self);
        if let Some(ahead) = batch.ahead
            && !self.allocate(&segment, ahead)
        {
            tell(batch.drop_values(), &Err(LogError::DiskFull));
            if batch.is_empty() {
                self.state().note_time(began.elapsed());
                self.put_back(self.state(), batch, &Err(LogError::DiskFull));
                return Err(LogError::DiskFull);
            }
        }
        batch.number(segment.salt);
        if let Err(error) = batch.records.append_to(segment.disk.as_ref()) {
            return Err(self.undo(batch, &segment, &error));
        }
        if self.schedule.policy == FsyncPolicy::Always {
            match self.sync() {
                Ok(took) => self.state().record_forced(&batch, took),
                Err(error) => {
                    self.put_back(self.state(), batch, &Err(error.clone()));
                    self.fail(&error);
                    return Err(error);
                }
            }
        }
        let mut state = self.state();
        let now = Instant::now();
        let lags = self.lags(&state, now);
        let outcome = self.note_written(&mut state, &batch, (began, now));
        if lags && outcome.is_ok() {
            // It took so long, or waited, that its answer would widen what a power cut takes. It is in the
            // file, so it is not refused any more, but acknowledged when it is forced.
            let pending = state.put_back_until_forced(batch);
            self.make_room(state);
            return Ok(Some(pending));
        }
        self.put_back(state, batch, &outcome);
        outcome.map(|()| None)
    }

    /// Ends the segment and begins the next one. Nobody writes meanwhile.
    fn rotate(&self) {
        let _guard = FailOnPanic(self);
        let synced = self.sync().map_err(Unmade::Unforced);
        let outcome = match synced.and_then(|_| self.begin_next()) {
            Ok(switched) => Ok(switched),
            Err(Unmade::Undone(error)) => {
                self.state().put_rotation_off();
                tracing::warn!(%error, "the log goes on in its present segment");
                Err(error)
            }
            Err(Unmade::Unforced(error)) => {
                self.fail(&error);
                Err(error)
            }
        };
        let rotation = self.state().end_rotation();
        if let Some(rotation) = rotation {
            rotation.tell(&outcome);
        }
        self.room.notify_waiters();
    }

    fn begin_next(&self) -> Result<Switched, Unmade> {
        let (before, first_sequence, good_bytes) = {
            let state = self.state();
            (Arc::clone(&state.segment), state.next_sequence(), state.good_bytes)
        };
        let number = before.number + 1;
        let begun = self.segments.begin(number, first_sequence)?;
        self.bytes.store(begun.position.good_bytes, Ordering::Relaxed);
        let older_bytes = self.older_bytes.fetch_add(good_bytes, Ordering::Relaxed) + good_bytes;
        let forced = self.state().enter(begun);
        tell(forced, &Ok(()));
        // Gives back the reserve behind its end. If it stays, it only takes space.
        before.disk.truncate(good_bytes).ok();
        Ok(Switched { number, first_sequence, older_bytes })
    }

    /// A snapshot stands for the oldest files, which had so many bytes.
    pub(super) fn replace_older(&self, before: u64, after: u64) {
        self.older_bytes.fetch_add(after, Ordering::Relaxed);
        self.older_bytes.fetch_sub(before, Ordering::Relaxed);
    }

    fn note_written(
        &self,
        state: &mut State,
        batch: &Batch,
        (began, written): (Instant, Instant),
    ) -> Result<(), LogError> {
        if let Some(error @ LogError::Failed(_)) = &state.ended {
            // A sync failed meanwhile: nothing is acknowledged after that.
            return Err(error.clone());
        }
        state.record_written(batch);
        if self.schedule.policy != FsyncPolicy::Always {
            state.unforced_since.get_or_insert(began);
        }
        state.note_time(written.saturating_duration_since(began));
        self.bytes.store(state.good_bytes, Ordering::Relaxed);
        if state.good_bytes >= state.rotate_at {
            state.rotation.get_or_insert_default();
        }
        self.appended.fetch_add(batch.records.count() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Asks the disk for space. Whether values may be written.
    fn allocate(&self, segment: &OpenSegment, ahead: Ahead) -> bool {
        let was_short = self.state().reserve.is_short();
        let answer = allocate(segment.disk.as_ref(), ahead, was_short);
        self.state().reserve.record(answer)
    }

    /// Takes back what a failed write left in the file.
    fn undo(&self, batch: Box<Batch>, segment: &OpenSegment, error: &io::Error) -> LogError {
        let good_bytes = self.state().good_bytes;
        let undone = segment.disk.truncate(good_bytes);
        if is_full(error) && undone.is_ok() {
            let cut = self.state().reserve.record_cut(good_bytes);
            if let Some(ahead) = cut {
                self.allocate(segment, ahead);
            }
            self.put_back(self.state(), batch, &Err(LogError::DiskFull));
            tracing::warn!(%error, "disk full: nothing is written until there is space");
            return LogError::DiskFull;
        }
        let failed = LogError::Failed(format!("{}: write: {error}", segment.path.display()));
        self.put_back(self.state(), batch, &Err(failed.clone()));
        self.fail(&failed);
        failed
    }

    /// Tells everybody in a batch how it went, and lets the next one be taken.
    fn put_back(
        &self,
        mut state: MutexGuard<'_, State>,
        batch: Box<Batch>,
        outcome: &Result<(), LogError>,
    ) {
        let waiting = state.put_back(batch);
        self.make_room(state);
        tell(waiting, outcome);
    }

    /// Tells those who want it that there is room in the queue.
    fn make_room(&self, mut state: MutexGuard<'_, State>) {
        let is_wanted = std::mem::take(&mut state.room_is_wanted);
        drop(state);
        if is_wanted {
            self.room.notify_waiters();
        }
    }

    /// The log cannot be trusted any more.
    pub(super) fn fail(&self, error: &LogError) {
        let mut state = self.state();
        state.ended = Some(error.clone());
        let waiting = state.give_up();
        let rotation = state.rotation.take();
        drop(state);
        if let Some(rotation) = rotation {
            rotation.tell(&Err(error.clone()));
        }
        tell(waiting, &Err(error.clone()));
        self.room.notify_waiters();
        self.failed.send_replace(Some(error.clone()));
        self.work.notify_one();
        // Last: a logger may fail, too.
        tracing::error!(%error, "log failed");
    }

    /// The sync that is the task of the thread.
    fn sync_and_tell(&self) {
        if let Err(error) = self.sync() {
            return self.fail(&error);
        }
        let forced = self.state().end_sync();
        tell(forced, &Ok(()));
        if self.lag_is_told.swap(false, Ordering::Relaxed) {
            tracing::info!("the disk has caught up: writes are taken");
        }
    }

    /// Forces everything that was written before this is called; a failure ends the log.
    pub(super) fn force(&self) -> Result<(), LogError> {
        self.sync().map(drop).inspect_err(|error| self.fail(error))
    }

    /// Forces the segment: how long it took.
    fn sync(&self) -> Result<Duration, LogError> {
        let (segment, bytes) = {
            let state = self.state();
            (Arc::clone(&state.segment), state.good_bytes)
        };
        self.forcing.force(&segment, bytes)
    }
}

/// Fails the log if whoever writes panics.
struct FailOnPanic<'a>(&'a Shared);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(&LogError::Failed("a write panicked".into()));
        }
    }
}
