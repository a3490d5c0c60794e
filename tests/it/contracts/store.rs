//! The contract of the `Store` port, over `DashStore` and its in-memory twin.
//!
//! What a store must hold is computed by a model: the larger entry per key, and from those the
//! digests and counts, anew each time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use lally::adapters::dash_store::DashStore;
use lally::adapters::memory::MemoryStore;
use lally::domain::{
    BUCKETS, Bucket, BucketSet, Digest, Entry, Fingerprint, Key, KeyedEntry, NodeId, Recount,
    Timestamp, Value, Version,
};
use lally::ports::{Merged, Store, StoreStats};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::suite::contract;

/// Threads that merge at a time: more than cores, so that some are interrupted anywhere.
const THREADS: u64 = 8;

/// An empty store.
type NewStore = fn() -> Box<dyn Store>;

contract! {
    over {
        dash: #[test] => || Box::new(DashStore::new());
        dash_with_a_seed: #[test] => || Box::new(DashStore::with_seed(7));
        memory: #[test] => || Box::new(MemoryStore::new());
    }
    holds {
        an_empty_store_holds_nothing,
        what_was_merged_is_held_as_it_was,
        random_merges_leave_the_larger_entry_and_say_what_came_of_it,
        the_order_of_merges_leaves_no_trace,
        of_equal_versions_the_same_content_stays_whichever_came_first,
        a_merge_keeps_the_larger_entry_from_any_number_of_threads,
        every_held_entry_is_replaced_once_however_many_threads_merge,
        a_get_after_a_merge_sees_that_entry_or_a_larger_one,
        what_is_read_while_others_merge_never_goes_back,
        counts_are_of_keys_tombstones_and_bytes_not_characters,
        the_keys_of_some_buckets_come_by_bucket_removed_ones_too,
        a_walk_misses_no_key_held_before_it_began,
        old_tombstones_are_dropped_and_nothing_else,
        exactly_the_version_named_is_expunged,
        a_merge_beside_a_drop_is_counted_right,
        a_recount_of_right_digests_changes_nothing_whatever_is_written_meanwhile,
    }
}

#[test]
fn stores_of_different_kinds_agree_about_the_same_entries() {
    let stores: [Box<dyn Store>; 3] = [
        Box::new(DashStore::new()),
        Box::new(DashStore::with_seed(1)),
        Box::new(MemoryStore::new()),
    ];
    let mut writes = random_writes(1, 5_000, 700);
    for (seed, store) in (0..).zip(&stores) {
        writes.shuffle(&mut StdRng::seed_from_u64(seed));
        for write in writes.clone() {
            store.merge(write);
        }
    }
    let seen = |store: &dyn Store| (store.digest(), store.bucket_digests(), store.stats());
    let first = seen(stores[0].as_ref());
    assert!(stores.iter().all(|store| seen(store.as_ref()) == first));
    let buckets = |store: &dyn Store| -> Vec<Bucket> {
        store.keys_in(&BucketSet::all()).iter().map(Bucket::of).collect()
    };
    let first = buckets(stores[0].as_ref());
    assert!(stores.iter().all(|store| buckets(store.as_ref()) == first));
}

fn an_empty_store_holds_nothing(new: NewStore) {
    assert_holds(new().as_ref(), &Model::default());
    assert_eq!(new().get(&key("k")), None);
    assert_eq!(new().digest(), Digest::default());
}

fn what_was_merged_is_held_as_it_was(new: NewStore) {
    let store = new();
    let mut model = Model::default();
    let long_key = "k".repeat(1_024);
    let long_value = "v".repeat(1 << 20);
    for (time, name) in (1..).zip(["k", " ", "a\nb", "\0", "🦀", "../../etc", &long_key]) {
        for (node, text) in (1..).zip([None, Some(""), Some("\0"), Some("🦀\n"), Some(&long_value)])
        {
            let name = format!("{name}{node}");
            let Ok(key) = Key::new(&name[..name.len().min(1_024)]) else { continue };
            let write = KeyedEntry::new(key, entry(time, node, text));
            model.merge(write.clone());
            store.merge(write);
        }
    }
    assert_holds(store.as_ref(), &model);
    assert_eq!(store.get(&key("somebody else")), None);
}

fn random_merges_leave_the_larger_entry_and_say_what_came_of_it(new: NewStore) {
    for seed in 0..30 {
        let store = new();
        let mut model = Model::default();
        for write in random_writes(seed, 400, 20) {
            let said = store.merge(write.clone());
            assert_eq!(said, model.merge(write.clone()), "seed {seed}: {write:?}");
            assert_eq!(store.get(&write.key).as_ref(), model.0.get(&write.key), "seed {seed}");
        }
        assert_holds(store.as_ref(), &model);
    }
}

fn the_order_of_merges_leaves_no_trace(new: NewStore) {
    let mut writes = random_writes(2, 1_000, 100);
    let model = Model::of(&writes);
    for seed in 0..5 {
        writes.shuffle(&mut StdRng::seed_from_u64(seed));
        let store = new();
        for write in writes.iter().chain(&writes) {
            store.merge(write.clone());
        }
        assert_holds(store.as_ref(), &model);
    }
}

fn of_equal_versions_the_same_content_stays_whichever_came_first(new: NewStore) {
    let ascending = [entry(1, 1, Some("a")), entry(1, 1, Some("b")), entry(1, 1, None)];
    for (smaller, larger) in [(0, 1), (1, 2), (0, 2)] {
        for first in [smaller, larger] {
            let store = new();
            let second = smaller + larger - first;
            for at in [first, second] {
                store.merge(KeyedEntry::new(key("k"), ascending[at].clone()));
            }
            assert_eq!(store.get(&key("k")), Some(ascending[larger].clone()));
            let late = store.merge(KeyedEntry::new(key("k"), ascending[smaller].clone()));
            assert_eq!(late, Merged::Superseded { by: ascending[larger].version });
            let model = Model::of(&[KeyedEntry::new(key("k"), ascending[larger].clone())]);
            assert_holds(store.as_ref(), &model);
        }
    }
}

fn a_merge_keeps_the_larger_entry_from_any_number_of_threads(new: NewStore) {
    for keys in [1, 40, 2_000] {
        let store = new();
        let each = |thread| random_writes(100 + thread, 4_000, keys);
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let store = store.as_ref();
                scope.spawn(move || {
                    for write in each(thread) {
                        store.merge(write);
                    }
                });
            }
        });
        let all: Vec<_> = (0..THREADS).flat_map(each).collect();
        assert_holds(store.as_ref(), &Model::of(&all));
    }
}

/// An entry that two merges believe to have replaced would be counted out twice.
fn every_held_entry_is_replaced_once_however_many_threads_merge(new: NewStore) {
    let store = new();
    let replaced = |thread: u64| {
        let mut replaced = Vec::new();
        for time in 1..=3_000 {
            let write = KeyedEntry::new(key("k"), entry(time, thread, Some("v")));
            if let Merged::Applied { previous } = store.merge(write) {
                replaced.push(previous.map(|previous| previous.version));
            }
        }
        replaced
    };
    let mut replaced: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|t| scope.spawn(move || replaced(t))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let applied = replaced.len();
    replaced.sort_unstable();
    replaced.dedup();
    assert_eq!(replaced.len(), applied);
    assert_eq!(store.stats().keys, 1);
}

fn a_get_after_a_merge_sees_that_entry_or_a_larger_one(new: NewStore) {
    let store = new();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let store = store.as_ref();
            scope.spawn(move || {
                for write in random_writes(200 + thread, 3_000, 5) {
                    let said = store.merge(write.clone());
                    let held = store.get(&write.key).unwrap();
                    assert!(held >= write.entry, "{held:?} after {write:?}");
                    if let Merged::Superseded { by } = said {
                        assert!(by >= write.entry.version && held.version >= by);
                    }
                }
            });
        }
    });
}

fn what_is_read_while_others_merge_never_goes_back(new: NewStore) {
    let store = new();
    let merging = AtomicBool::new(true);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut last = None;
                while merging.load(Ordering::Relaxed) {
                    let held = store.get(&key("k"));
                    assert!(held >= last, "{held:?} after {last:?}");
                    last = held;
                }
            });
        }
        let writers: Vec<_> = (0..2)
            .map(|node| {
                let store = store.as_ref();
                scope.spawn(move || {
                    let mut times: Vec<u64> = (1..=5_000).collect();
                    times.shuffle(&mut StdRng::seed_from_u64(node));
                    for time in times {
                        let removal = time % 3 == 0;
                        let text = (!removal).then_some("v");
                        store.merge(KeyedEntry::new(key("k"), entry(time, node, text)));
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        merging.store(false, Ordering::Relaxed);
    });
    assert_eq!(store.get(&key("k")), Some(entry(5_000, 1, Some("v"))));
}

fn counts_are_of_keys_tombstones_and_bytes_not_characters(new: NewStore) {
    let store = new();
    // What is held takes memory, and nothing else: the sum is compared with a model below.
    let counts = |keys, tombstones, payload_bytes| StoreStats {
        keys,
        tombstones,
        payload_bytes,
        ..store.stats()
    };
    let merge = |name, time, text| store.merge(KeyedEntry::new(key(name), entry(time, 1, text)));
    merge("é", 1, Some("🦀"));
    assert_eq!(store.stats(), counts(1, 0, 2 + 4));
    merge("é", 2, Some(""));
    assert_eq!(store.stats(), counts(1, 0, 2));
    merge("é", 3, None);
    assert_eq!(store.stats(), counts(0, 1, 2));
    merge("never held", 1, None);
    assert_eq!(store.stats(), counts(0, 2, 2 + 10));
    merge("é", 1, Some("late"));
    assert_eq!(store.stats(), counts(0, 2, 2 + 10));
    merge("é", 4, Some("back"));
    assert_eq!(store.stats(), counts(1, 1, 2 + 10 + 4));
}

fn the_keys_of_some_buckets_come_by_bucket_removed_ones_too(new: NewStore) {
    let store = new();
    let writes = random_writes(3, 3_000, 900);
    let model = Model::of(&writes);
    for write in writes {
        store.merge(write);
    }
    assert!(model.0.values().any(Entry::is_tombstone));
    let mut random = StdRng::seed_from_u64(3);
    for share in [0.0, 0.01, 0.5, 1.0] {
        let mut buckets = BucketSet::none();
        for number in 0..=u16::MAX {
            if random.random_bool(share) {
                buckets.insert(Bucket::new(number));
            }
        }
        let mut found = store.keys_in(&buckets);
        assert!(found.is_sorted_by_key(Bucket::of));
        found.sort();
        let inside = model.0.keys().filter(|key| buckets.contains(Bucket::of(key)));
        assert!(found.iter().eq(inside), "{share}");
    }
    let mut one = BucketSet::none();
    one.insert(Bucket::of(&key("key-7")));
    assert!(store.keys_in(&one).contains(&key("key-7")));
}

fn old_tombstones_are_dropped_and_nothing_else(new: NewStore) {
    for through in [0, 1, 3, 6, u64::MAX] {
        let store = new();
        let mut model = Model::of(&random_writes(5, 3_000, 500));
        for write in random_writes(5, 3_000, 500) {
            store.merge(write);
        }
        let goes = |e: &Entry| e.is_tombstone() && e.version.timestamp.as_nanos() <= through;
        let expected = model.0.values().filter(|entry| goes(entry)).count() as u64;
        model.0.retain(|_, entry| !goes(entry));
        assert_eq!(store.drop_tombstones(Timestamp::from_nanos(through)), expected);
        assert_holds(store.as_ref(), &model);
        assert_eq!(store.drop_tombstones(Timestamp::from_nanos(through)), 0);
    }
}

fn exactly_the_version_named_is_expunged(new: NewStore) {
    let store = new();
    let (live, removed) = (entry(5, 1, Some("v")), entry(6, 1, None));
    store.merge(KeyedEntry::new(key("live"), live.clone()));
    store.merge(KeyedEntry::new(key("removed"), removed.clone()));
    for other in [entry(4, 1, None), entry(5, 2, None)] {
        assert!(!store.expunge(&key("live"), other.version));
    }
    assert!(!store.expunge(&key("never"), live.version));
    assert_eq!(store.get(&key("live")), Some(live.clone()));
    assert!(store.expunge(&key("live"), live.version));
    assert!(store.expunge(&key("removed"), removed.version));
    assert!(!store.expunge(&key("live"), live.version));
    assert_holds(store.as_ref(), &Model::default());
    // What is older than what went is as new as anything.
    let older = KeyedEntry::new(key("live"), entry(1, 1, Some("old")));
    assert_eq!(store.merge(older.clone()), Merged::Applied { previous: None });
    assert_holds(store.as_ref(), &Model::of(&[older]));
}

fn a_merge_beside_a_drop_is_counted_right(new: NewStore) {
    let (store, ended) = (new(), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                store.drop_tombstones(Timestamp::from_nanos(u64::MAX));
            }
        });
        let threads: Vec<_> = (0..THREADS)
            .map(|seed| {
                let store = &store;
                scope.spawn(move || {
                    for write in random_writes(seed, 2_000, 50) {
                        store.merge(write);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        ended.store(true, Ordering::Relaxed);
    });
    store.drop_tombstones(Timestamp::from_nanos(u64::MAX));
    let keys = store.keys_in(&BucketSet::all());
    let held = keys.into_iter().map(|key| {
        let entry = store.get(&key).unwrap();
        KeyedEntry::new(key, entry)
    });
    let held: Vec<_> = held.collect();
    assert!(held.iter().all(|held| !held.entry.is_tombstone()));
    assert_holds(store.as_ref(), &Model::of(&held));
}

fn a_recount_of_right_digests_changes_nothing_whatever_is_written_meanwhile(new: NewStore) {
    let (store, ended) = (new(), AtomicBool::new(false));
    let parts: Vec<_> = (0..Recount::PARTS).map(Recount::part).collect();
    let each = |thread| random_writes(300 + thread, 2_000, 300);
    thread::scope(|scope| {
        let recounting = scope.spawn(|| {
            let mut rounds = 0;
            while !ended.load(Ordering::Relaxed) || rounds < 2 {
                assert_eq!(store.recount(&BucketSet::all()), 0);
                assert_eq!(store.recount(&BucketSet::none()), 0);
                assert_eq!(store.recount(&parts[rounds % parts.len()]), 0);
                rounds += 1;
            }
        });
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    for write in each(thread) {
                        store.expunge(&write.key, write.entry.version);
                        store.merge(write);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        ended.store(true, Ordering::Relaxed);
        recounting.join().unwrap();
    });
    let keys = store.keys_in(&BucketSet::all()).into_iter();
    let held: Vec<_> =
        keys.map(|key| KeyedEntry::new(key.clone(), store.get(&key).unwrap())).collect();
    assert!(held.len() > 200);
    assert_holds(store.as_ref(), &Model::of(&held));
}

#[test]
fn a_damaged_digest_is_repaired_in_its_bucket_alone() {
    let store = MemoryStore::new();
    let writes = random_writes(6, 2_000, 300);
    let model = Model::of(&writes);
    for write in writes {
        store.merge(write);
    }
    let (here, there) = (Bucket::of(&key("key-1")), Bucket::of(&key("key-2")));
    store.damage(here, 5);
    store.damage(there, 9);
    let digests = store.bucket_digests();
    assert_eq!(store.recount(&BucketSet::none()), 0);
    assert_eq!(store.bucket_digests(), digests);
    assert_eq!(store.recount(&std::iter::once(here).collect()), 1);
    assert_eq!(store.recount(&BucketSet::all()), 1);
    assert_holds(&store, &model);
    assert_eq!(store.recount(&BucketSet::all()), 0);
}

fn a_walk_misses_no_key_held_before_it_began(new: NewStore) {
    let store = new();
    let held: Vec<_> = random_writes(4, 4_000, 1_000);
    for write in &held {
        store.merge(write.clone());
    }
    let model = Model::of(&held);
    let walking = AtomicBool::new(true);
    thread::scope(|scope| {
        // Keys before, so that their place moves, and new ones, so that the store grows.
        scope.spawn(|| {
            for time in 10.. {
                if !walking.load(Ordering::Relaxed) {
                    return;
                }
                let name = format!("key-{}", time % 10_000);
                store.merge(KeyedEntry::new(key(&name), entry(time, 1, Some("v"))));
            }
        });
        let walks: Vec<_> = (0..10).map(|_| store.keys_in(&BucketSet::all())).collect();
        // Before anything is asserted: a writer that is not told runs for ever.
        walking.store(false, Ordering::Relaxed);
        for mut found in walks {
            assert!(found.is_sorted_by_key(Bucket::of));
            found.sort();
            assert!(found.is_sorted_by(|a, b| a < b), "a key was found twice");
            assert!(model.0.keys().all(|key| found.binary_search(key).is_ok()));
        }
    });
}

/// What a store must hold.
#[derive(Debug, Clone, Default)]
struct Model(BTreeMap<Key, Entry>);

impl Model {
    fn of(writes: &[KeyedEntry]) -> Self {
        let mut model = Self::default();
        for write in writes {
            model.merge(write.clone());
        }
        model
    }

    fn merge(&mut self, write: KeyedEntry) -> Merged {
        let held = self.0.get(&write.key).cloned();
        let merged =
            held.clone().map_or_else(|| write.entry.clone(), |h| h.merge(write.entry.clone()));
        self.0.insert(write.key, merged.clone());
        match held {
            Some(held) if held == write.entry => Merged::Unchanged,
            Some(held) if held == merged => Merged::Superseded { by: held.version },
            previous => Merged::Applied { previous },
        }
    }
}

/// Compares everything that can be asked of a store.
fn assert_holds(store: &dyn Store, model: &Model) {
    let mut buckets = vec![0; BUCKETS];
    let mut stats = StoreStats::default();
    for (key, entry) in &model.0 {
        assert_eq!(store.get(key).as_ref(), Some(entry), "{key}");
        let print = Fingerprint::of(key, entry);
        buckets[print.bucket.index()] ^= print.hash;
        *if entry.is_tombstone() { &mut stats.tombstones } else { &mut stats.keys } += 1;
        let value_bytes = entry.value().map_or(0, |value| value.as_str().len());
        stats.payload_bytes += (key.as_str().len() + value_bytes) as u64;
        stats.memory_bytes += entry.content.memory_bytes(key) as u64;
    }
    let digest = buckets.iter().fold(0, |all, bucket| all ^ bucket);
    assert_eq!(store.digest(), Digest::from_u64(digest));
    assert!(store.bucket_digests() == buckets, "the digests of buckets differ");
    assert_eq!(store.stats(), stats);
    let mut keys = store.keys_in(&BucketSet::all());
    keys.sort();
    assert!(keys.iter().eq(model.0.keys()), "the keys differ");
    assert_eq!(store.keys_in(&BucketSet::none()), []);
}

/// Few versions and contents, so that every kind of tie is common.
fn random_writes(seed: u64, count: usize, keys: u32) -> Vec<KeyedEntry> {
    let mut random = StdRng::seed_from_u64(seed);
    let texts = [None, Some(""), Some("a"), Some("b"), Some("bb")];
    let write = |_| {
        let name = format!("key-{}", random.random_range(0..keys));
        let (time, node) = (random.random_range(1..7), random.random_range(1..4));
        let text = texts[random.random_range(0..texts.len())];
        KeyedEntry::new(key(&name), entry(time, node, text))
    };
    (0..count).map(write).collect()
}

fn entry(time: u64, node: u64, text: Option<&str>) -> Entry {
    let version = Version::new(Timestamp::from_nanos(time), NodeId::new(node));
    text.map_or_else(|| Entry::tombstone(version), |t| Entry::live(version, Value::new(t)))
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}
