//! The disk of a simulated node: its log and its book, which outlive the node that writes them.
//!
//! Under the policy `always` an append returns when it is synced; what a crash or a power cut finds
//! unsynced may be gone, from any place on. Under `everysec` an append returns when the operating
//! system has it: a crash of the process loses nothing, and power cuts are not simulated, since then
//! acknowledged writes may be lost.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use lally::domain::{Entry, Key};
use lally::ports::{
    Book, BookError, Compacted, LogError, LogRecord, LogStats, MemberBook, OpLog, ReplayVisitor,
    Replayed, SnapshotSource,
};
use tokio_util::sync::CancellationToken;

use super::world::{Detail, Site, World};

/// What survives the end of a process.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    records: Vec<LogRecord>,
    /// How many of them are synced.
    synced: usize,
    book: Option<Book>,
    full: bool,
}

impl Disk {
    /// A crash: what is not synced may be gone.
    pub fn crash(&self, world: &World) {
        let mut contents = self.contents();
        let (synced, written) = (contents.synced as u64, contents.records.len() as u64);
        let left = world.pick(synced..written + 1);
        contents.records.truncate(usize::try_from(left).unwrap());
        contents.synced = contents.records.len();
    }

    /// The log is lost, the book is not.
    pub fn lose_log(&self) {
        let mut contents = self.contents();
        contents.records.clear();
        contents.synced = 0;
    }

    pub fn set_full(&self, full: bool) {
        self.contents().full = full;
    }

    /// The newest entry of every key that is certainly on this disk.
    pub fn newest(&self) -> BTreeMap<Key, Entry> {
        let contents = self.contents();
        let mut newest: BTreeMap<Key, Entry> = BTreeMap::new();
        for record in contents.records.iter().take(contents.synced) {
            if let LogRecord::Write(write) = record {
                match newest.get(&write.key) {
                    Some(held) if held.supersedes(&write.entry) => {}
                    _ => drop(newest.insert(write.key.clone(), write.entry.clone())),
                }
            }
        }
        newest
    }

    /// The disk as one life of a node uses it.
    pub fn open(&self, world: &Arc<World>, site: Site, life: &CancellationToken) -> Arc<OpenDisk> {
        Arc::new(OpenDisk {
            disk: self.clone(),
            world: Arc::clone(world),
            site,
            life: life.clone(),
            life_state: Mutex::default(),
        })
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap()
    }
}

/// The disk in the hands of one life of a node. When that is over it does nothing any more, and
/// whoever waits for it waits for ever.
pub struct OpenDisk {
    disk: Disk,
    world: Arc<World>,
    site: Site,
    life: CancellationToken,
    life_state: Mutex<LifeState>,
}

#[derive(Default)]
struct LifeState {
    replayed: bool,
    closed: bool,
    appended: u64,
}

impl OpenDisk {
    async fn alive(&self) {
        if self.life.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    /// How long this disk takes for an append.
    fn delay(&self) -> Duration {
        if !self.world.always_syncs {
            return self.world.millis(0..2);
        }
        if self.world.chance(10) { self.world.millis(20..120) } else { self.world.millis(1..5) }
    }
}

#[async_trait]
impl OpLog for OpenDisk {
    async fn replay(&self, mut visitor: Box<dyn ReplayVisitor>) -> Result<Replayed, LogError> {
        self.life_state.lock().unwrap().replayed = true;
        let records = self.disk.contents().records.clone();
        let replayed = Replayed { records: records.len() as u64, ..Replayed::default() };
        for record in records {
            visitor.visit(record);
        }
        Ok(replayed)
    }

    async fn append(&self, records: &[LogRecord]) -> Result<(), LogError> {
        self.alive().await;
        {
            let mut state = self.life_state.lock().unwrap();
            assert!(state.replayed, "append before replay");
            if state.closed {
                return Err(LogError::Closed);
            }
            state.appended += records.len() as u64;
        }
        let end = {
            let mut contents = self.disk.contents();
            if contents.full {
                return Err(LogError::DiskFull);
            }
            contents.records.extend_from_slice(records);
            if !self.world.always_syncs {
                contents.synced = contents.records.len();
            }
            contents.records.len()
        };
        for record in records {
            if let LogRecord::Write(write) = record {
                self.world.saw(write);
                self.world.note("logs", self.site, self.site, Detail::Entry(write.clone()));
            }
        }
        let delay = self.delay();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.alive().await;
        let mut contents = self.disk.contents();
        contents.synced = contents.synced.max(end);
        Ok(())
    }

    async fn compact(&self, mut source: Box<dyn SnapshotSource>) -> Result<Compacted, LogError> {
        self.alive().await;
        let before = {
            let mut contents = self.disk.contents();
            contents.synced = contents.records.len();
            contents.synced
        };
        let mut entries = source.settle().await?;
        let mut snapshot = Vec::new();
        while let Some(chunk) = entries.next() {
            snapshot.extend(chunk.into_iter().map(LogRecord::Write));
            // A crash in the middle leaves the old log.
            tokio::time::sleep(self.world.millis(1..4)).await;
            self.alive().await;
        }
        let mut contents = self.disk.contents();
        let since = contents.records.split_off(before);
        let is_mark =
            |record: &LogRecord| matches!(record, LogRecord::ClockBound(_) | LogRecord::Horizon(_));
        contents.records.retain(is_mark);
        contents.records.extend(snapshot);
        let records = contents.records.len();
        contents.synced = contents.synced - before + records;
        contents.records.extend(since);
        Ok(Compacted { records: records as u64, ..Compacted::default() })
    }

    fn stats(&self) -> LogStats {
        let appended = self.life_state.lock().unwrap().appended;
        LogStats { appended, ..LogStats::default() }
    }

    async fn close(&self) -> Result<(), LogError> {
        self.alive().await;
        self.life_state.lock().unwrap().closed = true;
        let mut contents = self.disk.contents();
        contents.synced = contents.records.len();
        Ok(())
    }
}

#[async_trait]
impl MemberBook for OpenDisk {
    async fn load(&self) -> Result<Option<Book>, BookError> {
        Ok(self.disk.contents().book.clone())
    }

    async fn save(&self, book: &Book) -> Result<(), BookError> {
        self.alive().await;
        tokio::time::sleep(self.world.millis(1..4)).await;
        // A crash in the middle leaves the old book.
        self.alive().await;
        self.disk.contents().book = Some(book.clone());
        Ok(())
    }
}
