//! The disk of a simulated node: its log and its book, which outlive the node that writes them.
//!
//! Under the policy `always` an append returns when it is synced; what a crash or a power cut finds
//! unsynced may be gone, from any place on. Under `everysec` an append returns when the operating
//! system has it: a crash of the process loses nothing, a power cut what came in the last two seconds,
//! from any place on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use lally::domain::{Entry, Key, KeyedEntry, Timestamp, Version};
use lally::ports::{
    Book, BookError, Compacted, LogError, LogRecord, LogStats, MemberBook, OpLog, Quarantine,
    QuarantineError, ReplayVisitor, Replayed, SnapshotSource,
};
use tokio_util::sync::CancellationToken;

use super::world::{Detail, Site, World};

/// What survives the end of a process.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Contents>>);

/// How far ahead of everything that a node's clock ever said an entry may be that it takes in: the
/// drift that is allowed, and the little by which a node that restarts may be ahead itself.
const MAX_AHEAD_NS: u64 = 600_000_000;

/// What a power cut may take under `everysec`: a sync every second, and one that takes as long.
const UNSYNCED: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Contents {
    records: Vec<LogRecord>,
    /// When each of them was appended.
    appended: Vec<Duration>,
    /// How many of them are synced.
    synced: usize,
    /// How many places records have moved towards the beginning when the log was compacted.
    moved: i64,
    book: Option<Book>,
    full: bool,
    /// The latest that the clock beside this disk ever said.
    latest: Timestamp,
}

impl Contents {
    /// The place of a record, wherever it moves.
    fn place(&self, at: usize) -> i64 {
        i64::try_from(at).unwrap() + self.moved
    }

    fn sync_up_to(&mut self, place: i64) {
        let at = usize::try_from(place - self.moved).unwrap_or(0);
        self.synced = self.synced.max(at);
    }

    /// Puts this in the place of so many records, clock bounds and horizons aside. How many there
    /// are instead.
    fn compact(&mut self, before: usize, snapshot: Vec<LogRecord>) -> usize {
        let (since, appended) = (self.records.split_off(before), self.appended.split_off(before));
        let is_mark =
            |record: &LogRecord| matches!(record, LogRecord::ClockBound(_) | LogRecord::Horizon(_));
        self.records.retain(is_mark);
        self.records.extend(snapshot);
        let after = self.records.len();
        self.moved += i64::try_from(before).unwrap() - i64::try_from(after).unwrap();
        self.synced = self.synced - before + after;
        self.appended = vec![Duration::ZERO; after];
        self.records.extend(since);
        self.appended.extend(appended);
        after
    }

    /// Only this many records are left.
    fn cut(&mut self, left: usize) {
        self.records.truncate(left);
        self.appended.truncate(left);
        self.synced = left;
    }
}

/// What a log says.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// The newest entry of every key, tombstones that may be forgotten included.
    pub newest: BTreeMap<Key, Entry>,
    /// Up to where they may be.
    pub horizon: Timestamp,
}

impl Kept {
    fn read(&mut self, record: &LogRecord) {
        match record {
            LogRecord::Write(write) => match self.newest.get(&write.key) {
                Some(held) if held.supersedes(&write.entry) => {}
                _ => drop(self.newest.insert(write.key.clone(), write.entry.clone())),
            },
            LogRecord::Expunged { key, version } => {
                if self.newest.get(key).is_some_and(|held| held.version == *version) {
                    self.newest.remove(key);
                }
            }
            LogRecord::Horizon(Timestamp::ZERO) => self.horizon = Timestamp::ZERO,
            LogRecord::Horizon(reached) => self.horizon = self.horizon.max(*reached),
            LogRecord::ClockBound(_) => {}
        }
    }

    /// What a node holds that reads this log.
    pub fn held(&self) -> BTreeMap<Key, Entry> {
        let held = self.newest.iter().filter(|(_, entry)| !self.is_forgotten(entry));
        held.map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    /// The tombstones that it forgets.
    pub fn forgotten(&self) -> BTreeMap<Key, Version> {
        let forgotten = self.newest.iter().filter(|(_, entry)| self.is_forgotten(entry));
        forgotten.map(|(key, entry)| (key.clone(), entry.version)).collect()
    }

    fn is_forgotten(&self, entry: &Entry) -> bool {
        entry.is_tombstone() && entry.version.timestamp <= self.horizon
    }
}

impl Disk {
    /// A crash: what is not synced may be gone.
    pub fn crash(&self, world: &World) {
        let mut contents = self.contents();
        let (synced, written) = (contents.synced as u64, contents.records.len() as u64);
        let left = world.pick(synced..written + 1);
        contents.cut(usize::try_from(left).unwrap());
    }

    /// A power cut under `everysec`, where the operating system has what is not on the disk.
    pub fn lose_power(&self, world: &World) {
        let mut contents = self.contents();
        let since = world.now().saturating_sub(UNSYNCED);
        let certain = contents.appended.partition_point(|at| *at <= since) as u64;
        let left = world.pick(certain..contents.records.len() as u64 + 1);
        contents.cut(usize::try_from(left).unwrap());
    }

    /// The log is lost, the book is not.
    pub fn lose_log(&self) {
        let mut contents = self.contents();
        contents.cut(0);
    }

    /// The clock beside this disk says that it is now.
    pub fn note_time(&self, now: Timestamp) {
        let mut contents = self.contents();
        contents.latest = contents.latest.max(now);
    }

    pub fn set_full(&self, full: bool) {
        self.contents().full = full;
    }

    /// What is certainly on this disk.
    pub fn kept(&self) -> Kept {
        let contents = self.contents();
        let mut kept = Kept::default();
        for record in contents.records.iter().take(contents.synced) {
            kept.read(record);
        }
        kept
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

    /// No version enters a node that is further ahead than the drift that is allowed.
    fn check_time(&self, write: &KeyedEntry) {
        let ahead = write.entry.version.timestamp.nanos_after(self.disk.contents().latest);
        if ahead > MAX_AHEAD_NS {
            let (site, ahead) = (self.site, ahead / 1_000_000);
            self.world.overrun(format!("site {site} takes in what is {ahead} ms ahead: {write:?}"));
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
        self.world.thawed(self.site).await;
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
            let end = contents.records.len();
            contents.appended.resize(end, self.world.now());
            if !self.world.always_syncs {
                contents.synced = contents.records.len();
            }
            contents.place(end)
        };
        for record in records {
            if let LogRecord::Write(write) = record {
                self.check_time(write);
                self.world.saw(write);
                self.world.note("logs", self.site, self.site, Detail::Entry(write.clone()));
            }
            if let LogRecord::Expunged { key, version } = record {
                self.world.expunged(key, *version);
            }
        }
        let delay = self.delay();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.world.thawed(self.site).await;
        self.alive().await;
        let mut contents = self.disk.contents();
        contents.sync_up_to(end);
        Ok(())
    }

    async fn compact(&self, mut source: Box<dyn SnapshotSource>) -> Result<Compacted, LogError> {
        self.world.thawed(self.site).await;
        self.alive().await;
        let before = {
            let mut contents = self.disk.contents();
            if contents.full {
                return Err(LogError::DiskFull);
            }
            contents.synced = contents.records.len();
            contents.synced
        };
        let mut entries = source.settle().await?;
        let mut snapshot = Vec::new();
        while let Some(chunk) = entries.next() {
            snapshot.extend(chunk.into_iter().map(LogRecord::Write));
            // A crash in the middle leaves the old log.
            tokio::time::sleep(self.world.millis(1..4)).await;
        }
        self.world.thawed(self.site).await;
        self.alive().await;
        let mut contents = self.disk.contents();
        let records = contents.compact(before, snapshot);
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
        self.world.thawed(self.site).await;
        self.alive().await;
        tokio::time::sleep(self.world.millis(1..4)).await;
        // A crash in the middle leaves the old book.
        self.alive().await;
        self.disk.contents().book = Some(book.clone());
        Ok(())
    }
}

/// What nodes found to be of keys removed and forgotten; it is never lost.
pub struct SimQuarantine {
    pub world: Arc<World>,
    pub site: Site,
}

#[async_trait]
impl Quarantine for SimQuarantine {
    async fn keep(
        &self,
        entries: &[KeyedEntry],
        _now: Timestamp,
        _reason: &str,
    ) -> Result<String, QuarantineError> {
        tokio::time::sleep(self.world.millis(1..4)).await;
        for ghost in entries {
            self.world.quarantined(self.site, ghost);
        }
        Ok("there".into())
    }
}
