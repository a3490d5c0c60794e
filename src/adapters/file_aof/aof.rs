//! `FileAof`: the files behind the `OpLog` port.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::NodeId;
use crate::ports::{LogError, LogRecord, LogStats, OpLog, ReplayVisitor, Replayed};

use super::disk::{FsyncPolicy, allocate, file_system_bytes};
use super::queue::{Position, QueueLimits};
use super::reader::{End, read_all};
use super::reserve::Reserve;
use super::segment::{SegmentHeader, create, failed, list, sync_dir};
use super::writer::Writer;

/// Bytes of records that may wait for the disk.
pub const DEFAULT_QUEUE_BYTES: usize = 64 << 20;

/// How long an append waits for room in a full queue.
pub const DEFAULT_QUEUE_WAIT: Duration = Duration::from_secs(1);

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
}

/// A log in a directory.
pub struct FileAof {
    options: AofOptions,
    /// Set by the replay.
    writer: OnceLock<Writer>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl FileAof {
    /// A log in the directory of the options. Reads and changes nothing before the replay.
    ///
    /// # Errors
    /// [`LogError::Failed`] when the directory cannot be created.
    pub fn open(options: AofOptions) -> Result<Self, LogError> {
        let made = fs::create_dir_all(&options.dir).and_then(|()| match options.dir.parent() {
            // The name of the directory must survive a power cut, too.
            Some(parent) => sync_dir(parent),
            None => Ok(()),
        });
        made.map_err(|error| failed(&options.dir, &error))?;
        Ok(Self { options, writer: OnceLock::new(), thread: Arc::default() })
    }

    /// Resolves once the log has failed: then the node must end. Cancel safe.
    pub async fn wait_failed(&self) -> LogError {
        match self.writer.get() {
            Some(writer) => writer.failed().await,
            None => std::future::pending().await,
        }
    }

    fn start_writer(&self, mended: Mended) -> Result<(), LogError> {
        let Mended { position, reserve, file, .. } = mended;
        let AofOptions { fsync, queue_bytes: bytes, queue_wait: wait, .. } = self.options;
        let limits = QueueLimits { bytes, wait };
        let (writer, work) = Writer::new(position, reserve, Box::new(file), fsync, limits);
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

    async fn close(&self) -> Result<(), LogError> {
        let Some(writer) = self.writer.get() else { return Ok(()) };
        writer.close();
        let thread = Arc::clone(&self.thread);
        let joined = tokio::task::spawn_blocking(move || join(&thread)).await;
        joined.map_err(|error| LogError::Failed(error.to_string()))?;
        writer.failure().map_or(Ok(()), Err)
    }
}

impl Drop for FileAof {
    /// Writes what is queued; a log that is dropped without `close` loses nothing acknowledged.
    fn drop(&mut self) {
        if let Some(writer) = self.writer.get() {
            writer.close();
            join(&self.thread);
        }
    }
}

/// A log that was read, and can be written.
struct Mended {
    replayed: Replayed,
    position: Position,
    reserve: Reserve,
    file: File,
}

/// Replays the segments, cuts a torn tail, opens the last one for appending, and takes the reserve.
fn read_and_mend(
    options: &AofOptions,
    mut visitor: Box<dyn ReplayVisitor>,
) -> Result<Mended, LogError> {
    let segments = list(&options.dir)?;
    let read = read_all(&segments, &options.cluster, |record| visitor.visit(record))?;
    let (replayed, path, position) = match read {
        None => begin_segment(options, 1, 1).map(|(path, at)| (Replayed::default(), path, at))?,
        Some((replayed, end)) => {
            let salt = end.header.salt;
            let (good_bytes, next_sequence) = (end.good_bytes, end.next_sequence);
            cut_torn_tail(&end)?;
            (replayed, end.path, Position { good_bytes, next_sequence, salt })
        }
    };
    let file = OpenOptions::new().append(true).open(&path).map_err(|e| failed(&path, &e))?;
    let reserve = take_reserve(&file, position.good_bytes);
    Ok(Mended { replayed, position, reserve, file })
}

/// Takes the space behind the end that no value may use. A disk that has not got it starts all the
/// same: it may have less to write than the disk holds, and reads need no disk.
fn take_reserve(file: &File, end: u64) -> Reserve {
    let mut reserve = Reserve::new(end, file_system_bytes(file));
    if let Some(ahead) = reserve.ahead_of(end, 0, false) {
        reserve.record(allocate(file, ahead, false));
    }
    reserve
}

/// Creates a segment for records from `first_sequence` on.
pub(super) fn begin_segment(
    options: &AofOptions,
    number: u64,
    first_sequence: u64,
) -> Result<(PathBuf, Position), LogError> {
    let header = SegmentHeader {
        number,
        node: options.node,
        first_sequence,
        salt: rand::random(),
        cluster: options.cluster.clone(),
    };
    let path = create(&options.dir, &header)?;
    let good_bytes = header.bytes() as u64;
    Ok((path, Position { good_bytes, next_sequence: first_sequence, salt: header.salt }))
}

fn cut_torn_tail(end: &End) -> Result<(), LogError> {
    if end.torn_bytes == 0 {
        return Ok(());
    }
    tracing::warn!(file = %end.path.display(), offset = end.good_bytes, bytes = end.torn_bytes,
        "torn tail of the log cut: the rest of a write that was interrupted");
    let cut = || {
        let file = OpenOptions::new().write(true).open(&end.path)?;
        file.set_len(end.good_bytes)?;
        file.sync_all()
    };
    cut().map_err(|error| failed(&end.path, &error))
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
