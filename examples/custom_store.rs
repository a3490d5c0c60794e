//! A store of the program's own, plugged into a node: here a plain map that also counts its reads.
//!
//! A store keeps the contract of [`lally::ports::Store`]; whoever writes one for real runs the suite
//! in `tests/it/contracts/store.rs` over it.
//!
//! ```sh
//! cargo run --example custom_store
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lally::adapters::clock::SystemClock;
use lally::adapters::memory::{
    MemoryBook, MemoryLog, MemoryNetwork, MemoryQuarantine, TrustingDetector,
};
use lally::app::{Node, NodeParts, NodeSettings, claim_identity};
use lally::domain::{
    BUCKETS, Bucket, BucketSet, Digest, Entry, Fingerprint, KeptData, Key, KeyedEntry, NodeId,
    Start, Timestamp, Value, Version,
};
use lally::ports::{Merged, RequestOptions, Store, StoreStats};

/// A map behind one lock. Digests and counts are computed when they are asked for, which the
/// contract of a store for real use does not allow: it costs a walk each time.
#[derive(Default)]
pub struct CountingStore {
    entries: Mutex<HashMap<Key, Entry>>,
    reads: AtomicU64,
}

impl CountingStore {
    /// How often a key was read.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for CountingStore {
    fn get(&self, key: &Key) -> Option<Entry> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.entries().get(key).cloned()
    }

    fn merge(&self, write: KeyedEntry) -> Merged {
        let mut entries = self.entries();
        match entries.get(&write.key) {
            Some(held) if *held == write.entry => Merged::Unchanged,
            Some(held) if held.supersedes(&write.entry) => Merged::Superseded { by: held.version },
            _ => Merged::Applied { previous: entries.insert(write.key, write.entry) },
        }
    }

    fn digest(&self) -> Digest {
        Digest::from_u64(self.bucket_digests().into_iter().fold(0, |all, bucket| all ^ bucket))
    }

    fn bucket_digests(&self) -> Vec<u64> {
        let mut digests = vec![0; BUCKETS];
        for (key, entry) in self.entries().iter() {
            let print = Fingerprint::of(key, entry);
            if let Some(digest) = digests.get_mut(print.bucket.index()) {
                *digest ^= print.hash;
            }
        }
        digests
    }

    fn keys_in(&self, buckets: &BucketSet) -> Vec<Key> {
        let entries = self.entries();
        let inside = entries.keys().filter(|key| buckets.contains(Bucket::of(key)));
        let mut keys: Vec<Key> = inside.cloned().collect();
        keys.sort_by_key(Bucket::of);
        keys
    }

    fn recount(&self, _buckets: &BucketSet) -> u64 {
        // Nothing is kept that could drift: every digest is counted when it is asked for.
        0
    }

    fn drop_tombstones(&self, through: Timestamp) -> u64 {
        let mut entries = self.entries();
        let before = entries.len();
        entries.retain(|_, e| !e.is_tombstone() || e.version.timestamp > through);
        (before - entries.len()) as u64
    }

    fn expunge(&self, key: &Key, version: Version) -> bool {
        let mut entries = self.entries();
        let held = entries.get(key).is_some_and(|held| held.version == version);
        held && entries.remove(key).is_some()
    }

    fn stats(&self) -> StoreStats {
        let mut stats = StoreStats::default();
        for (key, entry) in self.entries().iter() {
            stats.payload_bytes += entry.payload_bytes(key) as u64;
            stats.memory_bytes += entry.content.memory_bytes(key) as u64;
            if entry.is_tombstone() { stats.tombstones += 1 } else { stats.keys += 1 }
        }
        stats
    }
}

/// One node over the store above.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = Arc::new(CountingStore::default());
    let book_file = MemoryBook::default();
    let (book, last_phase) = claim_identity(&book_file, "example", NodeId::new(1)).await?;
    let parts = NodeParts {
        store: Arc::clone(&store) as _,
        log: Arc::new(MemoryLog::default()),
        transport: MemoryNetwork::new().transport("alone:1", "example"),
        detector: Arc::new(TrustingDetector::new()),
        book: Arc::new(book_file),
        quarantine: Arc::new(MemoryQuarantine::default()),
        clock: Arc::new(SystemClock),
        hooks: Vec::new(),
    };
    let settings = NodeSettings::new("example", "alone:1", "none");
    let start = Start::decide(last_phase, KeptData::All, false);
    let node = Node::new(parts, settings, &book, start);
    node.replay().await?;
    node.start();
    let client = node.client_api();
    while client.readiness().is_err() {
        tokio::task::yield_now().await;
    }

    let key = Key::new("k")?;
    client.add(key.clone(), Value::new("v"), RequestOptions::default()).await?;
    let before = store.reads();
    let read = client.get(key.clone(), RequestOptions::default()).await?;
    assert_eq!(read.value, Some(Value::new("v")));
    assert_eq!(store.reads(), before + 1);
    client.remove(key, RequestOptions::default()).await?;
    assert_eq!((store.stats().keys, store.stats().tombstones), (0, 1));

    node.leave().await;
    node.close().await?;
    Ok(())
}
