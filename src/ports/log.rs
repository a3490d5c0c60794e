//! The `OpLog` port: what makes an in-memory node come back.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::domain::{Key, KeyedEntry, LogWeight, Timestamp, Version};

use super::StoreStats;

/// The node's log.
///
/// Contract (suite: `tests/it/contracts/log.rs`):
/// * `replay` is called once, before the first `append`, and MUST visit every record of every
///   `append` that returned `Ok` in an earlier life, in order (of each key, if the visitor can be had
///   for [`another`](ReplayVisitor::another) thread); it MAY visit records of appends that
///   did not return. Replaying merges, so nothing else depends on the order. An `append` without it
///   MUST fail.
/// * `append` MUST return `Ok` only when the records are as durable as the configured policy says:
///   at least handed to the operating system, so that they survive the end of this process. Where
///   the policy bounds how far the device may be behind, and it is further, `append` MUST fail with
///   [`LogError::DurabilityLag`].
/// * The records of one `append` stay together and in order.
/// * `append` is not atomic across a crash: a prefix of its records may survive.
/// * While values are refused with [`LogError::DiskFull`], an `append` without values (of removals
///   and clock bounds alone) MUST still be taken for as long as a reserve lasts, if the disk can
///   hold one. An `append` is refused as a whole, and takes no other one with it.
/// * `compact` replaces the records of appends before it by what they come to: a later replay MUST
///   visit every entry of the source, the highest clock bound, the highest horizon since the last that is zero, and
///   every record of every append that begins after [`SnapshotSource::settle`] was called; records
///   of appends before that it MAY leave out. It MUST NOT hold up appends for longer than a few
///   syncs, and a crash at any moment MUST leave what was there before or what is there after.
/// * What a `backup` gives, put in the place of a log, MUST make a replay visit what the log's own would
///   have visited at some moment after `backup` was called: every record of an append that returned
///   before that, or what those come to, and of the later ones none without all before it. It MUST NOT
///   hold up appends or compactions, however long the reader takes, and nothing that is cut off or
///   changed on its way may pass for one. A log whose records cannot be taken elsewhere refuses.
/// * After [`LogError::Failed`] from `append` every later `append` MUST fail: a log that could not be written
///   once is never believed again.
#[cfg_attr(test, mockall::automock)]
#[async_trait]
pub trait OpLog: Send + Sync + 'static {
    /// Visits every record, oldest first. Long replays report their progress in the node's log.
    async fn replay(&self, visitor: Box<dyn ReplayVisitor>) -> Result<Replayed, LogError>;

    /// Appends these records.
    ///
    /// Cancel safety: dropping the future does not take the records back; they may or may not be
    /// in the log.
    async fn append(&self, records: &[LogRecord]) -> Result<(), LogError>;

    /// Makes the log as short as what it says. One at a time.
    ///
    /// Cancel safety: dropping the future may leave the work unfinished; nothing is lost.
    ///
    /// # Errors
    /// [`LogError::Overloaded`] when a compaction runs already, [`LogError::DiskFull`] when there is
    /// no space for the copy, [`LogError::Closed`] when the log is closed meanwhile; what the source
    /// failed with; and [`LogError::Failed`]. After any of them the log is as it was, and appends go
    /// on unless they say otherwise.
    async fn compact(&self, source: Box<dyn SnapshotSource>) -> Result<Compacted, LogError>;

    /// Begins a backup: what this log says now, as one file, a piece at a time. Dropping the stream
    /// ends it. What the bytes are is the adapter's business.
    ///
    /// # Errors
    /// [`LogError::NoBackups`], [`LogError::Closed`], [`LogError::Overloaded`] when the log changes too
    /// often to be got hold of, and [`LogError::Failed`].
    async fn backup(&self) -> Result<Box<dyn BackupStream>, LogError> {
        Err(LogError::NoBackups)
    }

    /// Sizes and counts.
    fn stats(&self) -> LogStats;

    /// Writes and syncs everything that is queued, whatever the policy, and refuses more. A second
    /// call does nothing.
    async fn close(&self) -> Result<(), LogError>;
}

/// What a log is compacted to.
#[async_trait]
pub trait SnapshotSource: Send + 'static {
    /// Called once, when the log has gone on to a new part: waits until every record appended
    /// before is in what the entries are taken from.
    ///
    /// # Errors
    /// When that takes too long; the compaction ends with this error.
    async fn settle(&mut self) -> Result<Box<dyn SnapshotEntries>, LogError>;
}

/// The entries of a snapshot.
pub trait SnapshotEntries: Send + 'static {
    /// Some of the entries, each as it is now or was since `settle`; `None` when there are no more.
    /// May block.
    fn next(&mut self) -> Option<Vec<KeyedEntry>>;
}

/// A backup on its way.
#[cfg_attr(test, mockall::automock)]
#[async_trait]
pub trait BackupStream: Send + 'static {
    /// Its length in bytes, about: for those who show how far it is.
    fn expected_bytes(&self) -> u64;

    /// The next piece; `None` when that was all. What ends otherwise is no backup. Cancel safe.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when a record of the log does not read back, [`LogError::Failed`] when a
    /// file does not, [`LogError::Closed`] when the node stops. The log itself is as it was.
    async fn next(&mut self) -> Result<Option<Bytes>, LogError>;
}

/// What a compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compacted {
    /// Records that the log was compacted to.
    pub records: u64,
    /// Length of the log before, in bytes.
    pub bytes_before: u64,
    /// And after.
    pub bytes_after: u64,
}

/// Takes in what a replay reads. Closures are visitors.
pub trait ReplayVisitor: Send + 'static {
    /// The next record.
    fn visit(&mut self, record: LogRecord);

    /// A visitor that does the same on another thread, if that is possible: then records of different
    /// keys come in any order and at the same time, those of one key in order and to one visitor, and
    /// those of no key in order and to the first. All are dropped when the replay returns.
    fn another(&self) -> Option<Box<dyn ReplayVisitor>> {
        None
    }
}

impl<F: FnMut(LogRecord) + Send + 'static> ReplayVisitor for F {
    fn visit(&mut self, record: LogRecord) {
        self(record);
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogRecord {
    /// An entry that entered this node.
    Write(KeyedEntry),
    /// The node's clock may have handed out stamps up to here: it never goes back below this.
    ClockBound(Timestamp),
    /// This node held every entry stamped up to here that exists, and forgot the tombstones up to
    /// here. Nothing so old that it did not hold entered it afterwards. Zero takes back all before:
    /// the node went over to members that had not been there.
    Horizon(Timestamp),
    /// This version of a key, held until here, was taken out of the store.
    Expunged {
        /// The key.
        key: Key,
        /// The version that was held; another one stays.
        version: Version,
    },
}

impl LogRecord {
    /// Whether it holds a value: all but writes of values do not.
    pub const fn holds_value(&self) -> bool {
        match self {
            Self::Write(write) => !write.entry.is_tombstone(),
            Self::ClockBound(_) | Self::Horizon(_) | Self::Expunged { .. } => false,
        }
    }
}

/// What a replay found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replayed {
    /// Records visited.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Bytes of a torn tail that were cut: the rest of a write that a crash interrupted.
    pub cut_bytes: u64,
}

/// The state of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogStats {
    /// Bytes on disk.
    pub bytes: u64,
    /// Records appended since the start.
    pub appended: u64,
    /// How long forcing data to disk took, each time since the start.
    pub syncs: SyncTimes,
    /// How long writing data to the file took, each batch since the start.
    pub writes: SyncTimes,
    /// Bytes of records that wait to be written.
    pub queued_bytes: u64,
    /// How long the oldest data that is to be forced to disk has waited for that; `None` when none
    /// waits.
    pub unforced_for: Option<Duration>,
}

impl LogStats {
    /// From which it follows whether compaction pays, of the log of what this store holds.
    pub const fn weight(&self, held: &StoreStats) -> LogWeight {
        LogWeight {
            log_bytes: self.bytes,
            entries: held.keys + held.tombstones,
            payload_bytes: held.payload_bytes,
        }
    }
}

/// How long the disk took for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SyncTimes {
    /// How many took no longer than the bound of this place and longer than the one before; the last
    /// is of those that took longer than all bounds.
    pub counts: [u64; Self::BOUNDS.len() + 1],
    /// All of them together.
    pub total: Duration,
}

impl SyncTimes {
    /// From a device with a cache of its own to one that hangs.
    pub const BOUNDS: [Duration; 10] = [
        Duration::from_micros(100),
        Duration::from_micros(500),
        Duration::from_millis(1),
        Duration::from_millis(5),
        Duration::from_millis(20),
        Duration::from_millis(100),
        Duration::from_millis(500),
        Duration::from_secs(1),
        Duration::from_secs(2),
        Duration::from_secs(10),
    ];

    /// Where something that took this long is counted.
    pub fn place(took: Duration) -> usize {
        Self::BOUNDS.partition_point(|bound| *bound < took)
    }

    /// It took this long once more.
    pub fn record(&mut self, took: Duration) {
        if let Some(count) = self.counts.get_mut(Self::place(took)) {
            *count += 1;
        }
        self.total = self.total.saturating_add(took);
    }

    /// How many times it was done.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Why the log did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The queue of the writer stayed full. Nothing was written; a retry may help.
    #[error("the log cannot keep up: its queue stayed full")]
    Overloaded,
    /// The device takes longer to force data than the policy allows acknowledged data to wait.
    /// Nothing was written; a retry helps once the device has caught up.
    #[error("the disk is behind: what was acknowledged before is not forced to it yet")]
    DurabilityLag,
    /// The disk is full. Nothing was written; a retry helps once there is space. To an append that
    /// holds a value it says that there is no space beyond the reserve; one without values may still
    /// be taken.
    #[error("the disk of the log is full")]
    DiskFull,
    /// A write or sync failed, now or earlier. The records may be in the log or not; no retry
    /// helps, and the node must end.
    #[error("the log failed and cannot be trusted any more: {0}")]
    Failed(String),
    /// Records of this log cannot be taken elsewhere. Nothing was done; no retry helps.
    #[error("this log has no backups")]
    NoBackups,
    /// The log was closed. Nothing was written.
    #[error("the log is closed")]
    Closed,
    /// A record in the middle does not read back. Nothing was changed; no retry helps.
    #[error("the log is corrupt: {file} at byte offset {offset}: {reason}")]
    Corrupt {
        /// The file.
        file: String,
        /// Where the damaged record begins, in bytes from the start of the file.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
}
