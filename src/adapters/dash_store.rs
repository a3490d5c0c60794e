//! `DashStore`: the entries of a node in a sharded hash map.
//!
//! A merge happens inside the map's lock for the key, through the entry API: there is no moment
//! between looking and writing. Under the same lock the digests and counts are brought up to date;
//! they are plain atomics, since XOR and addition do not care about order. No guard of the map
//! leaves this file.
//!
//! The map's hasher is seeded at random, so that nobody can choose keys that fall into one slot;
//! digests use the stable hash of [`Fingerprint`] instead.

use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use rapidhash::quality::SeedableState;

use crate::domain::{
    BUCKETS, Bucket, BucketSet, Digest, Entry, Fingerprint, Key, KeyedEntry, Timestamp, Version,
};
use crate::ports::{Merged, Store, StoreStats};

/// Parts of the map with a lock each. Many more than cores, so that two requests seldom meet.
const SHARDS: usize = 128;

/// A store for many threads.
pub struct DashStore {
    map: DashMap<Key, Entry, SeedableState<'static>>,
    buckets: Box<[AtomicU64]>,
    digest: AtomicU64,
    keys: AtomicU64,
    tombstones: AtomicU64,
    payload_bytes: AtomicU64,
    memory_bytes: AtomicU64,
}

impl DashStore {
    /// An empty store, its hasher seeded at random.
    pub fn new() -> Self {
        Self::with_hasher(SeedableState::random())
    }

    /// An empty store whose walks have the same order in every run, for simulations.
    pub fn with_seed(seed: u64) -> Self {
        Self::with_hasher(SeedableState::new(seed))
    }

    fn with_hasher(hasher: SeedableState<'static>) -> Self {
        Self {
            map: DashMap::with_capacity_and_hasher_and_shard_amount(0, hasher, SHARDS),
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            digest: AtomicU64::new(0),
            keys: AtomicU64::new(0),
            tombstones: AtomicU64::new(0),
            payload_bytes: AtomicU64::new(0),
            memory_bytes: AtomicU64::new(0),
        }
    }

    fn count_in(&self, key: &Key, entry: &Entry) {
        self.flip(key, entry);
        self.payload_bytes.fetch_add(entry.payload_bytes(key) as u64, Ordering::Relaxed);
        let memory_bytes = entry.content.memory_bytes(key) as u64;
        self.memory_bytes.fetch_add(memory_bytes, Ordering::Relaxed);
        self.counter(entry).fetch_add(1, Ordering::Relaxed);
    }

    fn count_out(&self, key: &Key, entry: &Entry) {
        self.flip(key, entry);
        self.payload_bytes.fetch_sub(entry.payload_bytes(key) as u64, Ordering::Relaxed);
        let memory_bytes = entry.content.memory_bytes(key) as u64;
        self.memory_bytes.fetch_sub(memory_bytes, Ordering::Relaxed);
        self.counter(entry).fetch_sub(1, Ordering::Relaxed);
    }

    fn flip(&self, key: &Key, entry: &Entry) {
        let print = Fingerprint::of(key, entry);
        self.digest.fetch_xor(print.hash, Ordering::Relaxed);
        if let Some(bucket) = self.buckets.get(print.bucket.index()) {
            bucket.fetch_xor(print.hash, Ordering::Relaxed);
        }
    }

    const fn counter(&self, entry: &Entry) -> &AtomicU64 {
        if entry.is_tombstone() { &self.tombstones } else { &self.keys }
    }
}

impl Default for DashStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for DashStore {
    fn get(&self, key: &Key) -> Option<Entry> {
        self.map.get(key).map(|held| held.value().clone())
    }

    fn merge(&self, write: KeyedEntry) -> Merged {
        match self.map.entry(write.key) {
            Slot::Vacant(slot) => {
                self.count_in(slot.key(), &write.entry);
                slot.insert(write.entry);
                Merged::Applied { previous: None }
            }
            Slot::Occupied(slot) if *slot.get() == write.entry => Merged::Unchanged,
            Slot::Occupied(slot) if slot.get().supersedes(&write.entry) => {
                Merged::Superseded { by: slot.get().version }
            }
            Slot::Occupied(mut slot) => {
                self.count_in(slot.key(), &write.entry);
                let previous = slot.insert(write.entry);
                self.count_out(slot.key(), &previous);
                Merged::Applied { previous: Some(previous) }
            }
        }
    }

    fn digest(&self) -> Digest {
        Digest::from_u64(self.digest.load(Ordering::Relaxed))
    }

    fn bucket_digests(&self) -> Vec<u64> {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect()
    }

    fn keys_in(&self, buckets: &BucketSet) -> Vec<Key> {
        let mut keys = Vec::new();
        for held in &self.map {
            let bucket = Bucket::of(held.key());
            if buckets.contains(bucket) {
                keys.push((bucket, held.key().clone()));
            }
        }
        keys.sort_unstable_by_key(|(bucket, _)| *bucket);
        keys.into_iter().map(|(_, key)| key).collect()
    }

    fn drop_tombstones(&self, through: Timestamp) -> u64 {
        let mut dropped = 0;
        self.map.retain(|key, entry| {
            let goes = entry.is_tombstone() && entry.version.timestamp <= through;
            if goes {
                self.count_out(key, entry);
                dropped += 1;
            }
            !goes
        });
        dropped
    }

    fn expunge(&self, key: &Key, version: Version) -> bool {
        let is_it = |key: &Key, entry: &Entry| {
            let goes = entry.version == version;
            if goes {
                self.count_out(key, entry);
            }
            goes
        };
        self.map.remove_if(key, is_it).is_some()
    }

    fn stats(&self) -> StoreStats {
        StoreStats {
            keys: self.keys.load(Ordering::Relaxed),
            tombstones: self.tombstones.load(Ordering::Relaxed),
            payload_bytes: self.payload_bytes.load(Ordering::Relaxed),
            memory_bytes: self.memory_bytes.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{NodeId, Timestamp, Value, Version};

    /// The slots of the map are what [`memory_bytes`](crate::domain::Content::memory_bytes) counts
    /// for them, if not less.
    #[test]
    fn the_map_takes_no_more_memory_than_is_counted_for_it() {
        let store = DashStore::with_seed(1);
        let slot_bytes = size_of::<(Key, Entry)>() + 1;
        for n in 1..=60_000_u64 {
            let entry = Entry::live(Version::new(Timestamp::ZERO, NodeId::new(1)), Value::new(""));
            store.merge(KeyedEntry::new(Key::new(&n.to_string()).unwrap(), entry));
            // With a few keys per shard, smallest tables and chance count for too much.
            if n >= 10_000 && n % 100 == 0 {
                let taken = store.map.capacity() * 8 / 7 * slot_bytes;
                // Each entry has two short texts of 32 and 16 bytes.
                let counted = usize::try_from(store.stats().memory_bytes - n * 48).unwrap();
                assert!(taken <= counted, "{n}: {taken} of {counted}");
            }
        }
    }
}
