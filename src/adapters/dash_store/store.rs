//! `DashStore`: the entries of a node in a sharded hash map.
//!
//! A merge happens inside the map's lock for the key, through the entry API: there is no moment
//! between looking and writing. Under the same lock the digests and counts are brought up to date;
//! they are plain atomics, since XOR and addition do not care about order. No guard of the map
//! leaves this file.
//!
//! A recount walks over the map while entries change. From before the walk on, changes in the
//! buckets that are counted are noted in the [`Recount`] too, under the lock of their key, as the
//! walk notes what it finds: so in whatever order the two pass a key, what is noted last is what is
//! held. From the moment the walk has passed a shard, its changes flip digest and recount in one
//! step, under the lock of the recount; under that lock the two are compared at the end. What a
//! change pays for this is a look at a bitmap.
//!
//! The shards of the map grow one after the other ([`StaggeredHash`]). Its hasher is seeded at random, so
//! that nobody can choose keys that fall into one slot; digests use the stable hash of [`Fingerprint`]
//! instead.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;
use rapidhash::quality::SeedableState;

use crate::domain::{
    BUCKETS, Bucket, BucketSet, Digest, Entry, Fingerprint, Key, KeyedEntry, Recount, Timestamp,
    Version,
};
use crate::ports::{Merged, Store, StoreStats};

use super::kept_prints::KeptPrints;
use super::staggered_hash::StaggeredHash;

/// Parts of the map with a lock each. Many more than cores, so that two requests seldom meet.
const SHARDS: usize = 128;

/// A store for many threads.
pub struct DashStore {
    map: DashMap<Key, Entry, StaggeredHash<SeedableState<'static>>>,
    buckets: Box<[AtomicU64]>,
    prints: KeptPrints,
    recount: Mutex<Option<Recount>>,
    /// The buckets that are counted anew right now: those of `recount`, or about to be.
    recounted: Box<[AtomicU64]>,
    /// Held by whoever recounts.
    recounting: Mutex<()>,
    keys: AtomicU64,
    tombstones: AtomicU64,
    payload_bytes: AtomicU64,
    memory_bytes: AtomicU64,
}

/// What an entry adds to the counts.
#[derive(Default)]
struct Counts {
    keys: u64,
    tombstones: u64,
    payload_bytes: u64,
    memory_bytes: u64,
}

impl Counts {
    fn of(key: &Key, entry: &Entry) -> Self {
        let is_tombstone = u64::from(entry.is_tombstone());
        Self {
            keys: 1 - is_tombstone,
            tombstones: is_tombstone,
            payload_bytes: entry.payload_bytes(key) as u64,
            memory_bytes: entry.content.memory_bytes(key) as u64,
        }
    }
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
            map: DashMap::with_capacity_and_hasher_and_shard_amount(
                0,
                StaggeredHash(hasher),
                SHARDS,
            ),
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            prints: KeptPrints::default(),
            recount: Mutex::default(),
            recounted: (0..BUCKETS / 64).map(|_| AtomicU64::new(0)).collect(),
            recounting: Mutex::default(),
            keys: AtomicU64::new(0),
            tombstones: AtomicU64::new(0),
            payload_bytes: AtomicU64::new(0),
            memory_bytes: AtomicU64::new(0),
        }
    }

    /// Brings digests and counts up to date with a change, under the lock of the key.
    fn count(&self, key: &Key, before: Option<&Entry>, after: Option<&Entry>) {
        let change = |count: &AtomicU64, before: u64, after: u64| {
            // Most writes replace like by like, and what all cores share is dear to touch.
            if before != after {
                count.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
            }
        };
        let counts =
            |entry: Option<&Entry>| entry.map_or(Counts::default(), |e| Counts::of(key, e));
        let (was, is) = (counts(before), counts(after));
        change(&self.keys, was.keys, is.keys);
        change(&self.tombstones, was.tombstones, is.tombstones);
        change(&self.payload_bytes, was.payload_bytes, is.payload_bytes);
        change(&self.memory_bytes, was.memory_bytes, is.memory_bytes);
        self.flip(key, self.prints.exchange(key, before, after));
    }

    fn flip(&self, key: &Key, [before, after]: [Option<Fingerprint>; 2]) {
        let Some(Fingerprint { bucket, .. }) = after.or(before) else { return };
        let Some(digest) = self.buckets.get(bucket.index()) else { return };
        let change = [before, after].iter().flatten().fold(0, |all, print| all ^ print.hash);
        if !self.is_recounted(bucket) {
            digest.fetch_xor(change, Ordering::Relaxed);
            return;
        }
        let mut recount = lock(&self.recount);
        match (recount.as_mut(), after) {
            (Some(recount), Some(print)) => recount.note_held(key, print),
            (Some(recount), None) => recount.note_gone(key),
            // It has just ended.
            (None, _) => {}
        }
        digest.fetch_xor(change, Ordering::Relaxed);
        drop(recount);
    }

    fn is_recounted(&self, bucket: Bucket) -> bool {
        let word = self.recounted.get(bucket.index() / 64);
        word.is_some_and(|word| word.load(Ordering::Acquire) & (1 << (bucket.index() % 64)) != 0)
    }

    fn begin_recount(&self, buckets: &BucketSet) {
        *lock(&self.recount) = Some(Recount::of(buckets.clone()));
        for number in (0..=u16::MAX).filter(|number| buckets.contains(Bucket::new(*number))) {
            if let Some(word) = self.recounted.get(usize::from(number / 64)) {
                word.fetch_or(1 << (number % 64), Ordering::Release);
            }
        }
    }

    /// Repairs what has drifted, and lets changes pass as usual again.
    fn end_recount(&self) -> u64 {
        let mut running = lock(&self.recount);
        let mut drifted = 0;
        if let Some(recount) = running.take() {
            for (number, digest) in (0..=u16::MAX).zip(&self.buckets) {
                let drift = recount.drift(Bucket::new(number), digest.load(Ordering::Relaxed));
                if drift != 0 {
                    digest.fetch_xor(drift, Ordering::Relaxed);
                    drifted += 1;
                }
            }
        }
        drop(running);
        self.recounted.iter().for_each(|word| word.store(0, Ordering::Release));
        drifted
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
                let slot = slot.insert_entry(write.entry);
                self.count(slot.key(), None, Some(slot.get()));
                Merged::Applied { previous: None }
            }
            Slot::Occupied(slot) if *slot.get() == write.entry => Merged::Unchanged,
            Slot::Occupied(slot) if slot.get().supersedes(&write.entry) => {
                Merged::Superseded { by: slot.get().version }
            }
            Slot::Occupied(mut slot) => {
                let previous = slot.insert(write.entry);
                self.count(slot.key(), Some(&previous), Some(slot.get()));
                Merged::Applied { previous: Some(previous) }
            }
        }
    }

    fn digest(&self) -> Digest {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        // Not kept beside them: it could not drift from them alone, and a write has less to do.
        Digest::from_u64(buckets.fold(0, |all, bucket| all ^ bucket))
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

    fn recount(&self, buckets: &BucketSet) -> u64 {
        let _alone = lock(&self.recounting);
        self.begin_recount(buckets);
        for held in &self.map {
            if buckets.contains(Bucket::of(held.key())) {
                let print = Fingerprint::of(held.key(), held.value());
                if let Some(recount) = lock(&self.recount).as_mut() {
                    recount.note_held(held.key(), print);
                }
            }
        }
        self.end_recount()
    }

    fn drop_tombstones(&self, through: Timestamp) -> u64 {
        let mut dropped = 0;
        self.map.retain(|key, entry| {
            let goes = entry.is_tombstone() && entry.version.timestamp <= through;
            if goes {
                self.count(key, Some(entry), None);
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
                self.count(key, Some(entry), None);
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Damaged digests, repaired while eight threads write, remove and drop in the same buckets.
    #[test]
    fn a_damaged_digest_is_repaired_once_whatever_is_written_meanwhile() {
        let entry = |time: u64, thread: u64| {
            let version = Version::new(Timestamp::from_nanos(time), NodeId::new(thread));
            if time.is_multiple_of(3) {
                Entry::tombstone(version)
            } else {
                Entry::live(version, Value::new("v"))
            }
        };
        let key = |number: u64| Key::new(&format!("key-{number}")).unwrap();
        let store = DashStore::with_seed(1);
        for number in 0..3_000 {
            store.merge(KeyedEntry::new(key(number), entry(1, 1)));
        }
        let damaged = [0, 7, 65_535, Bucket::of(&key(1)).index(), Bucket::of(&key(2)).index()];
        let (writing, begun) = (AtomicU64::new(8), std::sync::Barrier::new(9));
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (store, writing, begun) = (&store, &writing, &begun);
                scope.spawn(move || {
                    begun.wait();
                    for time in 2..3_000 {
                        let number = (time * 7 + thread) % 200;
                        store.merge(KeyedEntry::new(key(number), entry(time, thread)));
                        if time.is_multiple_of(5) {
                            store.expunge(&key(number), entry(time, thread).version);
                        }
                        if time.is_multiple_of(500) {
                            store.drop_tombstones(Timestamp::from_nanos(time));
                        }
                    }
                    writing.fetch_sub(1, Ordering::Relaxed);
                });
            }
            begun.wait();
            let mut last = false;
            while !last {
                last = writing.load(Ordering::Relaxed) == 0;
                for (by, bucket) in (1..).zip(damaged) {
                    store.buckets[bucket].fetch_xor(by, Ordering::Relaxed);
                }
                assert_eq!(store.recount(&BucketSet::all()), 5);
                assert_eq!(store.recount(&BucketSet::all()), 0);
            }
        });
        let mut expected = vec![0; BUCKETS];
        for held in &store.map {
            let print = Fingerprint::of(held.key(), held.value());
            expected[print.bucket.index()] ^= print.hash;
        }
        assert!(store.bucket_digests() == expected);
        assert!(lock(&store.recount).is_none());
        assert!(store.recounted.iter().all(|word| word.load(Ordering::Relaxed) == 0));
    }
}
