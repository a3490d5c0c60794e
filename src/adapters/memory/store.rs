//! `MemoryStore`: a sorted map behind one lock, with digests kept beside it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::{
    BUCKETS, Bucket, BucketSet, Digest, Entry, Fingerprint, Key, KeyedEntry, Recount, Timestamp,
    Version,
};
use crate::ports::{Merged, Store, StoreStats};

/// A store in the simplest form that keeps the contract.
pub struct MemoryStore(Mutex<Contents>);

struct Contents {
    entries: BTreeMap<Key, Entry>,
    buckets: Vec<u64>,
    digest: u64,
    stats: StoreStats,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        let (entries, buckets) = (BTreeMap::new(), vec![0; BUCKETS]);
        Self(Mutex::new(Contents { entries, buckets, digest: 0, stats: StoreStats::default() }))
    }

    /// Makes the digest of a bucket wrong, for tests of what finds that.
    pub fn damage(&self, bucket: Bucket, by: u64) {
        let mut contents = self.contents();
        contents.digest ^= by;
        if let Some(digest) = contents.buckets.get_mut(bucket.index()) {
            *digest ^= by;
        }
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &Key) -> Option<Entry> {
        self.contents().entries.get(key).cloned()
    }

    fn merge(&self, write: KeyedEntry) -> Merged {
        let mut contents = self.contents();
        match contents.entries.get(&write.key) {
            Some(held) if *held == write.entry => return Merged::Unchanged,
            Some(held) if held.supersedes(&write.entry) => {
                return Merged::Superseded { by: held.version };
            }
            _ => {}
        }
        contents.count_in(&write.key, &write.entry);
        let previous = contents.entries.insert(write.key.clone(), write.entry);
        if let Some(previous) = &previous {
            contents.count_out(&write.key, previous);
        }
        Merged::Applied { previous }
    }

    fn digest(&self) -> Digest {
        Digest::from_u64(self.contents().digest)
    }

    fn bucket_digests(&self) -> Vec<u64> {
        self.contents().buckets.clone()
    }

    fn keys_in(&self, buckets: &BucketSet) -> Vec<Key> {
        let contents = self.contents();
        let inside = contents.entries.keys().filter(|key| buckets.contains(Bucket::of(key)));
        let mut keys: Vec<Key> = inside.cloned().collect();
        keys.sort_by_key(Bucket::of);
        keys
    }

    fn recount(&self, buckets: &BucketSet) -> u64 {
        let mut contents = self.contents();
        let mut recount = Recount::of(buckets.clone());
        for (key, entry) in &contents.entries {
            if buckets.contains(Bucket::of(key)) {
                recount.note_held(key, Fingerprint::of(key, entry));
            }
        }
        let mut drifted = 0;
        for (number, digest) in (0..=u16::MAX).zip(&mut contents.buckets) {
            let drift = recount.drift(Bucket::new(number), *digest);
            *digest ^= drift;
            drifted += u64::from(drift != 0);
        }
        contents.digest = contents.buckets.iter().fold(0, |all, bucket| all ^ bucket);
        drifted
    }

    fn drop_tombstones(&self, through: Timestamp) -> u64 {
        let mut contents = self.contents();
        let goes = |entry: &Entry| entry.is_tombstone() && entry.version.timestamp <= through;
        let old = contents.entries.iter().filter(|(_, entry)| goes(entry));
        let old: Vec<Key> = old.map(|(key, _)| key.clone()).collect();
        for key in &old {
            contents.take_out(key);
        }
        old.len() as u64
    }

    fn expunge(&self, key: &Key, version: Version) -> bool {
        let mut contents = self.contents();
        let held = contents.entries.get(key).is_some_and(|held| held.version == version);
        if held {
            contents.take_out(key);
        }
        held
    }

    fn stats(&self) -> StoreStats {
        self.contents().stats
    }
}

impl Contents {
    fn take_out(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.count_out(key, &entry);
        }
    }

    fn count_in(&mut self, key: &Key, entry: &Entry) {
        self.flip(key, entry);
        self.stats.payload_bytes += entry.payload_bytes(key) as u64;
        self.stats.memory_bytes += entry.content.memory_bytes(key) as u64;
        *self.counter(entry) += 1;
    }

    fn count_out(&mut self, key: &Key, entry: &Entry) {
        self.flip(key, entry);
        self.stats.payload_bytes -= entry.payload_bytes(key) as u64;
        self.stats.memory_bytes -= entry.content.memory_bytes(key) as u64;
        *self.counter(entry) -= 1;
    }

    fn flip(&mut self, key: &Key, entry: &Entry) {
        let print = Fingerprint::of(key, entry);
        self.digest ^= print.hash;
        if let Some(bucket) = self.buckets.get_mut(print.bucket.index()) {
            *bucket ^= print.hash;
        }
    }

    const fn counter(&mut self, entry: &Entry) -> &mut u64 {
        if entry.is_tombstone() { &mut self.stats.tombstones } else { &mut self.stats.keys }
    }
}
