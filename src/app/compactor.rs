//! `Compactor`: has the log compacted to what the store holds, when that pays and when asked.
//!
//! Writes go on meanwhile. What the log needs to know of the store are two things: that everything
//! logged before is in it (`underway`), and then its entries, a few at a time.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::{BucketSet, Key, KeyedEntry};
use crate::ports::{
    ClientError, Compacted, LogError, OpLog, SnapshotEntries, SnapshotSource, Store,
};

use super::apply::Replica;

/// How often the length of the log is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long after a failed compaction the next one is tried.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// How long changes that were logged may take to reach the store.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);

/// Entries handed to the log at a time.
const CHUNK_ENTRIES: usize = 256;

/// Compacts the log.
pub(crate) struct Compactor {
    pub(crate) replica: Arc<Replica>,
    pub(crate) log: Arc<dyn OpLog>,
}

impl Compactor {
    /// Compacts whenever it pays, until dropped.
    pub(crate) async fn run(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let weight = self.log.stats().weight(&self.replica.store().stats());
            if weight.is_compaction_due() && self.compact().await.is_err() {
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }

    /// Compacts now. Not cancel safe in this sense only: the work may end halfway; nothing is lost.
    ///
    /// # Errors
    /// Those of [`OpLog::compact`], as a client sees them; the log is as it was then.
    pub(crate) async fn compact(&self) -> Result<Compacted, ClientError> {
        let source = Source { replica: Arc::clone(&self.replica) };
        match self.log.compact(Box::new(source)).await {
            Ok(compacted) => {
                let Compacted { records, bytes_before, bytes_after } = compacted;
                tracing::info!(records, bytes_before, bytes_after, "log compacted");
                Ok(compacted)
            }
            Err(LogError::Overloaded) => Err(ClientError::Overloaded(BUSY)),
            // Of the copy; if it is the log itself, the node ends.
            Err(LogError::Failed(reason)) => {
                tracing::warn!(%reason, "log not compacted");
                Err(ClientError::LogFailed(format!("the log is not compacted: {reason}")))
            }
            Err(error) => {
                tracing::warn!(%error, "log not compacted");
                Err(ClientError::from(&error))
            }
        }
    }
}

const BUSY: &str = "the log is being compacted already";

struct Source {
    replica: Arc<Replica>,
}

#[async_trait]
impl SnapshotSource for Source {
    async fn settle(&mut self) -> Result<Box<dyn SnapshotEntries>, LogError> {
        let settled = self.replica.settled();
        if tokio::time::timeout(SETTLE_WITHIN, settled).await.is_err() {
            return Err(LogError::Failed("writes that were logged do not reach the store".into()));
        }
        Ok(Box::new(Entries { store: Arc::clone(self.replica.store()), left: None }))
    }
}

struct Entries {
    store: Arc<dyn Store>,
    /// The keys not given yet, once the walk over all of them is done.
    left: Option<std::vec::IntoIter<Key>>,
}

impl SnapshotEntries for Entries {
    fn next(&mut self) -> Option<Vec<KeyedEntry>> {
        let store = &self.store;
        let left = self.left.get_or_insert_with(|| store.keys_in(&BucketSet::all()).into_iter());
        if left.len() == 0 {
            return None;
        }
        // A key that is gone by now was expunged, which the log says behind the snapshot.
        let entry = |key: Key| store.get(&key).map(|entry| KeyedEntry::new(key, entry));
        Some(left.take(CHUNK_ENTRIES).filter_map(entry).collect())
    }
}
