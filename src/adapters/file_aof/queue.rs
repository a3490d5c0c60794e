//! What waits for the file, and what is known of it: the state that those who append and the thread
//! of the writer share, without the waiting.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::ports::{LogError, LogRecord};

use super::format::encode;

/// Buffers larger than this are not kept for the next batch.
const KEPT_BUFFER_BYTES: usize = 4 << 20;

type Done = oneshot::Sender<Result<(), LogError>>;

/// Records that are written together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) records: u64,
    pub(super) waiting: Vec<Done>,
    first_sequence: u64,
}

/// Where a writer goes on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) good_bytes: u64,
    pub(super) next_sequence: u64,
    pub(super) salt: u64,
}

/// How much may wait for the file, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueLimits {
    pub(super) bytes: usize,
    pub(super) wait: Duration,
}

/// The queue, and where the file ends.
pub(super) struct State {
    pending: Batch,
    /// An empty buffer for the next batch, while one is written.
    spare: Vec<u8>,
    /// Bytes of the batch that is being written, if one is.
    writing: Option<usize>,
    next_sequence: u64,
    salt: u64,
    /// Length of the file up to the end of the last complete batch.
    pub(super) good_bytes: u64,
    /// When the oldest data that is not forced to the device yet was written.
    pub(super) unforced_since: Option<Instant>,
    /// Until then the thread writes alone.
    pub(super) slow_until: Option<Instant>,
    /// Whether the thread has nothing to do and wants to be woken.
    pub(super) thread_waits: bool,
    /// Whether it wakes by itself when a sync is due.
    pub(super) sync_is_planned: bool,
    /// Why nothing more is taken.
    pub(super) ended: Option<LogError>,
}

impl State {
    pub(super) fn new(position: Position) -> Self {
        Self {
            pending: Batch::default(),
            spare: Vec::new(),
            writing: None,
            next_sequence: position.next_sequence,
            salt: position.salt,
            good_bytes: position.good_bytes,
            unforced_since: None,
            slow_until: None,
            thread_waits: false,
            sync_is_planned: false,
            ended: None,
        }
    }

    /// Adds records to the next batch; `done` is told how it went.
    pub(super) fn queue(&mut self, records: &[LogRecord], done: Option<Done>) {
        if self.pending.records == 0 {
            self.pending.first_sequence = self.next_sequence;
        }
        for record in records {
            encode(record, self.next_sequence, self.salt, &mut self.pending.bytes);
            self.next_sequence += 1;
        }
        self.pending.records += records.len() as u64;
        self.pending.waiting.extend(done);
    }

    /// Takes the next batch to write it. Nobody else writes until it is [put
    /// back](Self::put_back).
    pub(super) fn take(&mut self) -> Batch {
        let next = Batch { bytes: std::mem::take(&mut self.spare), ..Batch::default() };
        let batch = std::mem::replace(&mut self.pending, next);
        self.writing = Some(batch.bytes.len());
        batch
    }

    /// The batch was written, or was not: whom to tell.
    pub(super) fn put_back(&mut self, batch: Batch) -> Vec<Done> {
        let Batch { mut bytes, waiting, .. } = batch;
        self.writing = None;
        if bytes.capacity() <= KEPT_BUFFER_BYTES {
            bytes.clear();
            self.spare = bytes;
        }
        waiting
    }

    /// Uses the sequences of this batch, which is not in the file, and of those behind it again:
    /// whom to tell of what was queued behind it.
    pub(super) fn rewind_to(&mut self, batch: &Batch) -> Vec<Done> {
        self.next_sequence = batch.first_sequence;
        std::mem::take(&mut self.pending).waiting
    }

    /// Empties the queue: whom to tell.
    pub(super) fn give_up(&mut self) -> Vec<Done> {
        self.writing = None;
        std::mem::take(&mut self.pending).waiting
    }

    /// Bytes that are queued or being written.
    pub(super) fn queued_bytes(&self) -> usize {
        self.pending.bytes.len() + self.writing.unwrap_or(0)
    }

    /// Bytes that are queued.
    pub(super) const fn pending_bytes(&self) -> usize {
        self.pending.bytes.len()
    }

    /// Whether nobody writes and nothing is queued.
    pub(super) const fn is_idle(&self) -> bool {
        self.writing.is_none() && self.pending.records == 0
    }

    /// Whether something is queued and nobody writes.
    pub(super) const fn has_work(&self) -> bool {
        self.writing.is_none() && self.pending.records > 0
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
