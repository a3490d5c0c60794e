//! `MemoryLog`: a log whose disk is a vector.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use crate::ports::{
    Compacted, LogError, LogRecord, LogStats, OpLog, ReplayVisitor, Replayed, SnapshotSource,
};

/// A log in memory. The records outlive it: [`reopen`](Self::reopen) is the log of the next life.
#[derive(Debug, Default)]
pub struct MemoryLog {
    disk: Arc<Mutex<Disk>>,
    life: Mutex<Life>,
}

#[derive(Debug, Default)]
struct Disk {
    records: Vec<LogRecord>,
    is_full: bool,
}

#[derive(Debug, Default)]
struct Life {
    replayed: bool,
    appended: u64,
    ended: Option<LogError>,
    compacting: bool,
}

impl MemoryLog {
    /// The log of the next life, on the same disk.
    #[must_use]
    pub fn reopen(&self) -> Self {
        Self { disk: Arc::clone(&self.disk), life: Mutex::default() }
    }

    /// From now on every append fails like this.
    pub fn fail(&self, error: LogError) {
        self.life().ended = Some(error);
    }

    /// From now on there is no space for values; its reserve for removals has no end.
    pub fn fill_disk(&self) {
        self.disk().is_full = true;
    }

    /// From now on there is space again.
    pub fn free_disk(&self) {
        self.disk().is_full = false;
    }

    async fn compact_alone(
        &self,
        mut source: Box<dyn SnapshotSource>,
    ) -> Result<Compacted, LogError> {
        let before = self.disk().records.len();
        let mut entries = source.settle().await?;
        let mut snapshot = Vec::new();
        while let Some(chunk) = entries.next() {
            snapshot.extend(chunk.into_iter().map(LogRecord::Write));
        }
        let mut disk = self.disk();
        let since = disk.records.split_off(before);
        // All of them are as good as the highest alone.
        let is_mark =
            |record: &LogRecord| matches!(record, LogRecord::ClockBound(_) | LogRecord::Horizon(_));
        disk.records.retain(is_mark);
        disk.records.extend(snapshot);
        let records = disk.records.len() as u64;
        disk.records.extend(since);
        Ok(Compacted { records, ..Compacted::default() })
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl OpLog for MemoryLog {
    async fn replay(&self, mut visitor: Box<dyn ReplayVisitor>) -> Result<Replayed, LogError> {
        self.life().replayed = true;
        let records = self.disk().records.clone();
        let replayed = Replayed { records: records.len() as u64, ..Replayed::default() };
        for record in records {
            visitor.visit(record);
        }
        Ok(replayed)
    }

    async fn append(&self, records: &[LogRecord]) -> Result<(), LogError> {
        let mut life = self.life();
        if let Some(error) = &life.ended {
            return Err(error.clone());
        }
        if !life.replayed {
            return Err(LogError::Failed("append before replay".into()));
        }
        let mut disk = self.disk();
        if disk.is_full && records.iter().any(LogRecord::holds_value) {
            return Err(LogError::DiskFull);
        }
        life.appended += records.len() as u64;
        disk.records.extend_from_slice(records);
        Ok(())
    }

    async fn compact(&self, source: Box<dyn SnapshotSource>) -> Result<Compacted, LogError> {
        {
            let mut life = self.life();
            if let Some(error) = &life.ended {
                return Err(error.clone());
            }
            if !life.replayed {
                return Err(LogError::Failed("compaction before replay".into()));
            }
            if std::mem::replace(&mut life.compacting, true) {
                return Err(LogError::Overloaded);
            }
        }
        let compacted = self.compact_alone(source).await;
        self.life().compacting = false;
        compacted
    }

    fn stats(&self) -> LogStats {
        LogStats { appended: self.life().appended, ..LogStats::default() }
    }

    async fn close(&self) -> Result<(), LogError> {
        self.life().ended.get_or_insert(LogError::Closed);
        Ok(())
    }
}
