//! `Replica`: the one path by which entries enter this node.
//!
//! Client, peer, repair, hint, comparison, join: all end here. First the log, then the store, then
//! the clock and the hooks. A value is readable only once it is as durable as the policy says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::{Entry, Key, KeyedEntry};
use crate::ports::{
    ApplyError, LogError, LogRecord, Merged, OpLog, Origin, Replayed, Store, WriteReply,
};

use super::hook_chain::HookChain;
use super::stage::Stage;
use super::stamps::Stamps;

/// This node's copy of the data.
pub struct Replica {
    store: Arc<dyn Store>,
    log: Arc<dyn OpLog>,
    stamps: Arc<Stamps>,
    hooks: Arc<HookChain>,
    stage: Arc<Stage>,
    entries_synced: AtomicU64,
    drift_refusals: AtomicU64,
}

impl Replica {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        log: Arc<dyn OpLog>,
        stamps: Arc<Stamps>,
        hooks: Arc<HookChain>,
        stage: Arc<Stage>,
    ) -> Self {
        let (entries_synced, drift_refusals) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { store, log, stamps, hooks, stage, entries_synced, drift_refusals }
    }

    /// Fills the store and the clock from the log.
    pub(crate) async fn replay(&self) -> Result<Replayed, LogError> {
        let (store, stamps) = (Arc::clone(&self.store), Arc::clone(&self.stamps));
        let visitor = move |record| match record {
            LogRecord::Write(write) => {
                stamps.restore(write.entry.version.timestamp);
                store.merge(write);
            }
            LogRecord::ClockBound(bound) => stamps.restore(bound),
        };
        self.log.replay(Box::new(visitor)).await
    }

    /// Merges one write in. Not cancel safe between log and store.
    pub(crate) async fn apply_one(
        &self,
        write: KeyedEntry,
        origin: Origin,
    ) -> Result<WriteReply, ApplyError> {
        if let Some(reply) = self.admit(&write, origin)? {
            return Ok(reply);
        }
        self.log.append(&[LogRecord::Write(write.clone())]).await?;
        Ok(self.settle(write, origin))
    }

    /// Merges many writes in, with one wait for the log; the replies are in their order. Not cancel
    /// safe between log and store.
    pub(crate) async fn apply(
        &self,
        writes: Vec<KeyedEntry>,
        origin: Origin,
    ) -> Vec<Result<WriteReply, ApplyError>> {
        let mut replies = Vec::with_capacity(writes.len());
        let mut records = Vec::with_capacity(writes.len());
        let mut places = Vec::with_capacity(writes.len());
        for write in writes {
            match self.admit(&write, origin) {
                Ok(Some(reply)) => replies.push(Ok(reply)),
                Err(refused) => replies.push(Err(refused)),
                Ok(None) => {
                    places.push(replies.len());
                    replies.push(Err(ApplyError::Log(LogError::Closed)));
                    records.push(LogRecord::Write(write));
                }
            }
        }
        if records.is_empty() {
            return replies;
        }
        let logged = self.log.append(&records).await;
        let full = logged == Err(LogError::DiskFull);
        let rest = if full { self.log_removals(&records).await } else { logged.clone() };
        for (place, record) in places.into_iter().zip(records) {
            let logged = if record.holds_value() { &logged } else { &rest };
            if let (Some(reply), LogRecord::Write(write)) = (replies.get_mut(place), record) {
                *reply = match logged {
                    Ok(()) => Ok(self.settle(write, origin)),
                    Err(error) => Err(error.clone().into()),
                };
            }
        }
        replies
    }

    /// Appends the removals among records that the log had no space for: it has kept some for them.
    async fn log_removals(&self, records: &[LogRecord]) -> Result<(), LogError> {
        let is_removal = |record: &&LogRecord| !record.holds_value();
        let removals: Vec<_> = records.iter().filter(is_removal).cloned().collect();
        if removals.is_empty() || removals.len() == records.len() {
            // Nothing is left to try.
            return Err(LogError::DiskFull);
        }
        self.log.append(&removals).await
    }

    /// This node's copy of a key.
    pub(crate) fn get(&self, key: &Key) -> Option<Entry> {
        self.store.get(key)
    }

    /// The store, for walks over it. Entries enter through this type only.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Entries taken over by comparison, and entries refused for their clock.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.entries_synced), load(&self.drift_refusals))
    }

    /// Checks a write. `Some` is the answer to one that this node already knows of: it is not
    /// logged again, so repeated deliveries cost nothing. (What the store holds, the log holds.)
    fn admit(&self, write: &KeyedEntry, origin: Origin) -> Result<Option<WriteReply>, ApplyError> {
        self.stage.admit_peer().map_err(ApplyError::NotReady)?;
        if origin == Origin::Client {
            // Stamped a moment ago, by this node: nobody has it already.
            return Ok(None);
        }
        self.check_clock(write)?;
        Ok(match self.store.get(&write.key) {
            Some(held) if held == write.entry => Some(WriteReply::Applied { previous: None }),
            Some(held) if held.supersedes(&write.entry) => {
                Some(WriteReply::Superseded { by: held.version })
            }
            _ => None,
        })
    }

    fn check_clock(&self, write: &KeyedEntry) -> Result<(), ApplyError> {
        self.stamps.check(write.entry.version.timestamp).map_err(|drift| {
            self.drift_refusals.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(from = %write.entry.version.node, %drift, "write refused: clock drift");
            drift.into()
        })
    }

    /// Makes a logged write readable.
    fn settle(&self, write: KeyedEntry, origin: Origin) -> WriteReply {
        // What was checked a moment ago is at most as far ahead now: nothing to refuse any more.
        self.stamps.restore(write.entry.version.timestamp);
        let is_removal = write.entry.is_tombstone();
        let merged = if self.hooks.is_empty() {
            self.store.merge(write)
        } else {
            let merged = self.store.merge(write.clone());
            if matches!(merged, Merged::Applied { .. }) {
                self.hooks.after_write(&write, origin);
            }
            merged
        };
        match merged {
            Merged::Applied { previous } => {
                if origin == Origin::Sync {
                    self.entries_synced.fetch_add(1, Ordering::Relaxed);
                }
                WriteReply::Applied { previous: previous.filter(|_| is_removal) }
            }
            Merged::Unchanged => WriteReply::Applied { previous: None },
            Merged::Superseded { by } => WriteReply::Superseded { by },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::app::fixture::{Fixture, key, live, version};
    use crate::ports::MockOpLog;

    #[tokio::test]
    async fn the_removals_of_a_batch_are_taken_although_the_disk_has_no_space_for_its_values() {
        let logged = Arc::new(Mutex::new(Vec::new()));
        let mut log = MockOpLog::new();
        let takes = Arc::clone(&logged);
        log.expect_append().returning(move |records| {
            if records.iter().any(LogRecord::holds_value) {
                return Err(LogError::DiskFull);
            }
            takes.lock().unwrap().extend_from_slice(records);
            Ok(())
        });
        let fixture = Fixture { log, ..Fixture::with_peers([2]) };
        let node = fixture.build();
        node.hold("removed", live(1, "old"));
        let removal = |name| KeyedEntry::new(key(name), Entry::tombstone(version(9)));
        let value = |name| KeyedEntry::new(key(name), live(9, "new"));
        let batch = vec![value("a"), removal("removed"), value("b"), removal("unknown")];
        let replies = node.node.replica_api().apply(batch, Origin::Replica).await;
        let full = Err(ApplyError::Log(LogError::DiskFull));
        let previous = Some(live(1, "old"));
        let expected = [
            full.clone(),
            Ok(WriteReply::Applied { previous }),
            full.clone(),
            Ok(WriteReply::Applied { previous: None }),
        ];
        assert_eq!(replies, expected);
        assert_eq!((node.held("a"), node.held("b")), (None, None));
        assert!(node.held("removed").is_some_and(|entry| entry.is_tombstone()));
        let removals = [removal("removed"), removal("unknown")].map(LogRecord::Write);
        assert_eq!(*logged.lock().unwrap(), removals);
    }

    #[tokio::test]
    async fn what_is_of_one_kind_is_not_tried_twice_when_the_disk_is_full() {
        for entry in [Entry::tombstone(version(9)), live(9, "new")] {
            let mut log = MockOpLog::new();
            log.expect_append().times(1).returning(|_| Err(LogError::DiskFull));
            let node = Fixture { log, ..Fixture::with_peers([2]) }.build();
            let write = KeyedEntry::new(key("k"), entry);
            let replies = node.node.replica_api().apply(vec![write], Origin::Replica).await;
            assert_eq!(replies, [Err(ApplyError::Log(LogError::DiskFull))]);
            assert_eq!(node.held("k"), None);
        }
    }
}
