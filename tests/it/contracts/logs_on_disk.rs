//! What tests of logs on disk share: a log that is opened and replayed, records, and entries for a
//! snapshot.

use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use lally::adapters::file_aof::{AofOptions, FileAof, FsyncPolicy};
use lally::domain::{Entry, Key, KeyedEntry, NodeId, Timestamp, Value, Version};
use lally::ports::{LogError, LogRecord, OpLog, SnapshotEntries, SnapshotSource};

/// A snapshot is taken of these.
pub struct Held(pub Option<Vec<KeyedEntry>>);

#[async_trait]
impl SnapshotSource for Held {
    async fn settle(&mut self) -> Result<Box<dyn SnapshotEntries>, LogError> {
        Ok(Box::new(Self(self.0.take())))
    }
}

impl SnapshotEntries for Held {
    fn next(&mut self) -> Option<Vec<KeyedEntry>> {
        self.0.take()
    }
}

/// Of a log in this directory that is forced when it must be.
pub fn options(dir: &Path) -> AofOptions {
    AofOptions { fsync: FsyncPolicy::Never, ..AofOptions::new(dir, "lally", NodeId::new(1)) }
}

/// The log in this directory, and what was in it.
pub async fn open(dir: &Path) -> Result<(FileAof, Vec<LogRecord>), LogError> {
    let log = FileAof::open(options(dir))?;
    let visited = Arc::new(Mutex::new(Vec::new()));
    let visits = Arc::clone(&visited);
    log.replay(Box::new(move |record| visits.lock().unwrap().push(record))).await?;
    let records = std::mem::take(&mut *visited.lock().unwrap());
    Ok((log, records))
}

/// A key of this number.
pub fn key(name: u64) -> Key {
    Key::new(&format!("key {name}")).unwrap()
}

/// A write of this time to the key of this number.
pub fn write(time: u64, name: u64) -> LogRecord {
    valued(time, name, &format!("value {time}"))
}

/// The same, of this value.
pub fn valued(time: u64, name: u64, value: &str) -> LogRecord {
    let version = Version::new(Timestamp::from_nanos(time), NodeId::new(1));
    LogRecord::Write(KeyedEntry::new(key(name), Entry::live(version, Value::new(value))))
}

/// The entry that a record writes.
pub fn entry(record: &LogRecord) -> KeyedEntry {
    match record {
        LogRecord::Write(write) => write.clone(),
        other => panic!("{other:?} is no entry"),
    }
}
