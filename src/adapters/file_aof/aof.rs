//! `FileAof`: the files behind the `OpLog` port.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::NodeId;
use crate::ports::{
    BackupStream, Compacted, LogError, LogRecord, LogStats, OpLog, ReplayVisitor, Replayed,
    SnapshotSource,
};

use super::aside::aside;
use super::backup::OpenLog;
use super::compaction::{draft_snapshot, remove_superseded};
use super::disk::{FsyncPolicy, SyncSchedule, free_bytes};
use super::files::{LogFiles, Unmade, create_dir, failed};
use super::own::{Owner, read_own};
use super::queue::QueueLimits;
use super::replay::Fanout;
use super::rotation::{Begun, Older, Position, SegmentDir, Segments};
use super::tail::end_with_records;
use super::writer::Writer;

/// Bytes of records that may wait for the disk.
pub const DEFAULT_QUEUE_BYTES: usize = 64 << 20;

/// How long an append waits for room in a full queue.
pub const DEFAULT_QUEUE_WAIT: Duration = Duration::from_secs(1);

/// How long a compaction may take to give up when the log is closed.
const GIVE_UP_WITHIN: Duration = Duration::from_millis(500);

/// How to open a log.
#[derive(Debug, Clone)]
pub struct AofOptions {
    /// The directory of the segments; created if it does not exist.
    pub dir: PathBuf,
    /// When acknowledged data is forced to the device.
    pub fsync: FsyncPolicy,
    /// The cluster whose data this is; a log of another one is refused.
    pub cluster: String,
    /// The node that writes.
    pub node: NodeId,
    /// Bound of the queue, in bytes.
    pub queue_bytes: usize,
    /// How long an append waits for room in it.
    pub queue_wait: Duration,
}

impl AofOptions {
    /// The defaults, for the log in this directory.
    pub fn new(dir: &Path, cluster: &str, node: NodeId) -> Self {
        Self {
            dir: dir.to_owned(),
            fsync: FsyncPolicy::default(),
            cluster: cluster.to_owned(),
            node,
            queue_bytes: DEFAULT_QUEUE_BYTES,
            queue_wait: DEFAULT_QUEUE_WAIT,
        }
    }

    pub(super) fn owner(&self) -> Owner {
        Owner { cluster: self.cluster.clone(), node: self.node }
    }

    pub(super) fn segments(&self) -> SegmentDir {
        SegmentDir { dir: self.dir.clone(), cluster: self.cluster.clone(), node: self.node }
    }
}

/// A log in a directory.
pub struct FileAof {
    options: AofOptions,
    /// Set by the replay.
    writer: OnceLock<Writer>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    /// Held by the compaction that runs, until its thread is done.
    compacting: Arc<tokio::sync::Mutex<()>>,
    /// Whether one is to stop.
    closing: Arc<AtomicBool>,
}

impl FileAof {
    /// A log in the directory of the options. Reads and changes nothing before the replay.
    ///
    /// # Errors
    /// [`LogError::Failed`] when the directory cannot be created.
    pub fn open(options: AofOptions) -> Result<Self, LogError> {
        create_dir(&options.dir)?;
        let (writer, thread, compacting) = (OnceLock::new(), Arc::default(), Arc::default());
        Ok(Self { options, writer, thread, compacting, closing: Arc::default() })
    }

    /// Free space on the disk of the log, if it says so.
    pub fn free_bytes(&self) -> Option<u64> {
        free_bytes(&self.options.dir)
    }

    /// Resolves once the log has failed: then the node must end. Cancel safe.
    pub async fn wait_failed(&self) -> LogError {
        match self.writer.get() {
            Some(writer) => writer.failed().await,
            None => std::future::pending().await,
        }
    }

    fn start_writer(&self, mended: Mended) -> Result<(), LogError> {
        let Mended { begun, older, .. } = mended;
        let AofOptions { fsync, queue_bytes: bytes, queue_wait: wait, .. } = self.options;
        let (limits, segments) = (QueueLimits { bytes, wait }, Box::new(self.options.segments()));
        let (writer, work) = Writer::new(begun, older, segments, SyncSchedule::of(fsync), limits);
        let thread = std::thread::Builder::new()
            .name("lally-log".into())
            .spawn(work)
            .map_err(|error| failed(&self.options.dir, &error))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        self.writer.set(writer).map_err(|_| already_replayed())
    }
}

#[async_trait]
impl OpLog for FileAof {
    async fn replay(&self, visitor: Box<dyn ReplayVisitor>) -> Result<Replayed, LogError> {
        if self.writer.get().is_some() {
            return Err(already_replayed());
        }
        let options = self.options.clone();
        let reading = tokio::task::spawn_blocking(move || read_and_mend(&options, visitor));
        let mended = reading.await.map_err(|error| LogError::Failed(error.to_string()))??;
        let replayed = mended.replayed;
        self.start_writer(mended)?;
        Ok(replayed)
    }

    async fn append(&self, records: &[LogRecord]) -> Result<(), LogError> {
        match self.writer.get() {
            Some(writer) => writer.append(records).await,
            None => Err(LogError::Failed("append before replay".into())),
        }
    }

    fn stats(&self) -> LogStats {
        self.writer.get().map(Writer::stats).unwrap_or_default()
    }

    async fn compact(&self, mut source: Box<dyn SnapshotSource>) -> Result<Compacted, LogError> {
        let Some(writer) = self.writer.get() else {
            return Err(LogError::Failed("compaction before replay".into()));
        };
        let Ok(alone) = Arc::clone(&self.compacting).try_lock_owned() else {
            return Err(LogError::Overloaded);
        };
        let before = writer.stats().bytes;
        let at = writer.rotate().await?;
        let mut entries = source.settle().await?;
        let (dir, marks, stop) =
            (self.options.segments(), writer.marks(), Arc::clone(&self.closing));
        let shared = Arc::clone(writer.shared());
        // Whoever asked may go away meanwhile: all that must come of it is in here.
        let writing = move || {
            let _alone = alone;
            let draft = draft_snapshot(&dir, at, marks, entries.as_mut(), &stop)?;
            shared.force()?;
            if stop.load(Ordering::Relaxed) {
                return Err(LogError::Closed);
            }
            let snapshot = draft.publish().map_err(|unmade| match unmade {
                Unmade::Undone(error) => error,
                // The next compaction would remove what this one may have to be replaced by.
                Unmade::Unforced(error) => {
                    shared.fail(&error);
                    error
                }
            })?;
            shared.replace_older(at.older_bytes, snapshot.bytes);
            remove_superseded(&dir.dir);
            Ok(snapshot.records)
        };
        let records = aside(writing).await??;
        Ok(Compacted { records, bytes_before: before, bytes_after: writer.stats().bytes })
    }

    async fn backup(&self) -> Result<Box<dyn BackupStream>, LogError> {
        let Some(writer) = self.writer.get() else {
            return Err(LogError::Failed("backup before replay".into()));
        };
        let (segments, end) = (self.options.segments(), writer.end());
        let opening = tokio::task::spawn_blocking(move || {
            OpenLog::open(&segments, end).map(|log| log.stream(&segments))
        });
        opening.await.map_err(|error| LogError::Failed(error.to_string()))?
    }

    async fn close(&self) -> Result<(), LogError> {
        self.closing.store(true, Ordering::Relaxed);
        let Some(writer) = self.writer.get() else { return Ok(()) };
        writer.close();
        let thread = Arc::clone(&self.thread);
        let joined = tokio::task::spawn_blocking(move || join(&thread)).await;
        joined.map_err(|error| LogError::Failed(error.to_string()))?;
        // A compaction that runs gives up now. Until it has, the files are not left alone.
        // Not for ever: everything of the log itself is on the disk by now.
        if tokio::time::timeout(GIVE_UP_WITHIN, self.compacting.lock()).await.is_err() {
            tracing::warn!("a compaction is left to the end of the process");
        }
        writer.failure().map_or(Ok(()), Err)
    }
}

impl Drop for FileAof {
    /// Writes what is queued; a log that is dropped without `close` loses nothing acknowledged.
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        if let Some(writer) = self.writer.get() {
            writer.close();
            join(&self.thread);
        }
    }
}

/// A log that was read, and can be written.
struct Mended {
    replayed: Replayed,
    begun: Begun,
    older: Older,
}

/// Replays the files, cuts a torn tail, opens the last segment for appending, and takes the reserve.
fn read_and_mend(
    options: &AofOptions,
    visitor: Box<dyn ReplayVisitor>,
) -> Result<Mended, LogError> {
    let files = LogFiles::list(&options.dir)?;
    let mut older = Older::default();
    let mut visitors = Fanout::start(visitor);
    let read = read_own(&files, options, |record| {
        older.marks.raise(&record);
        visitors.visit(record);
    });
    let taken_in = visitors.finish();
    let read = read?;
    taken_in?;
    let (replayed, begun) = match read {
        None => (Replayed::default(), options.segments().begin(1, 1)?),
        Some((replayed, end)) => {
            end_with_records(&end)?;
            let (good_bytes, next_sequence) = (end.good_bytes, end.next_sequence);
            let position = Position { good_bytes, next_sequence };
            older.bytes = replayed.bytes.saturating_sub(good_bytes);
            (replayed, SegmentDir::open(&end.path, &end.header, position)?)
        }
    };
    // Of a compaction that a crash interrupted. Now that everything else was read.
    files.remove_leftovers();
    Ok(Mended { replayed, begun, older })
}

fn join(thread: &Mutex<Option<JoinHandle<()>>>) {
    let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(thread) = thread
        && thread.join().is_err()
    {
        tracing::error!("the thread of the log panicked");
    }
}

fn already_replayed() -> LogError {
    LogError::Failed("a log is replayed once".into())
}
