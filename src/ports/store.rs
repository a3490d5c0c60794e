//! The `Store` port: the entries of this node, in memory.

use crate::domain::{BucketSet, Digest, Entry, Key, KeyedEntry, Timestamp, Version};

/// The entries of this node, tombstones included.
///
/// Contract (suite: `tests/it/contracts/store.rs`):
/// * `merge` MUST leave the larger of the held and the given entry ([`Entry::merge`]), atomically
///   per key, from any number of threads.
/// * A `get` that begins after a `merge` returned MUST see that entry or a larger one.
/// * The digests and counts MUST be exact whenever nothing that changes the store is running, and
///   MUST cost O(1) per changed entry to keep.
/// * `recount` MUST leave a right digest as it is, whatever changes the store meanwhile, and MUST make
///   a wrong one right.
/// * `drop_tombstones` and `expunge` MUST look and remove atomically per key.
/// * No method may block on anything but its own locks, and none may hold one when it returns.
#[cfg_attr(test, mockall::automock)]
pub trait Store: Send + Sync + 'static {
    /// The entry of this key, tombstones included.
    fn get(&self, key: &Key) -> Option<Entry>;

    /// Merges an entry in and says what came of it.
    fn merge(&self, write: KeyedEntry) -> Merged;

    /// The digest of all entries. Costs a pass over the digests of the buckets at most.
    fn digest(&self) -> Digest;

    /// The digests of all [`BUCKETS`](crate::domain::BUCKETS), by bucket number.
    fn bucket_digests(&self) -> Vec<u64>;

    /// The keys in these buckets, tombstones' too, ordered by bucket (within one, in any order).
    /// Keys merged in while this runs may be missing. Costs a walk over all keys.
    fn keys_in(&self, buckets: &BucketSet) -> Vec<Key>;

    /// Counts the digests of these buckets anew from the entries, and repairs those that have drifted
    /// from them. Returns how many had. Costs a walk over all keys, a hash of the values in the
    /// buckets, and memory for the keys in them; one at a time, others wait.
    fn recount(&self, buckets: &BucketSet) -> u64;

    /// Forgets every tombstone stamped up to here; live entries stay. Returns how many there were.
    /// Costs a walk over all keys.
    fn drop_tombstones(&self, through: Timestamp) -> u64;

    /// Forgets the entry of this key if it is exactly this version, a live one too. Says whether it
    /// was.
    fn expunge(&self, key: &Key, version: Version) -> bool;

    /// Counts.
    fn stats(&self) -> StoreStats;
}

/// What came of a merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Merged {
    /// The entry is held now; it replaced this one.
    Applied {
        /// What was held before.
        previous: Option<Entry>,
    },
    /// The same entry was held already.
    Unchanged,
    /// A larger entry is held, and stays.
    Superseded {
        /// The version of the held entry.
        by: Version,
    },
}

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Keys with a live value.
    pub keys: u64,
    /// Removed keys that are remembered.
    pub tombstones: u64,
    /// Bytes of all keys and values, without overhead.
    pub payload_bytes: u64,
    /// Bytes that the entries take in memory: the sum of [`Content::memory_bytes`](crate::domain::Content::memory_bytes).
    pub memory_bytes: u64,
}
