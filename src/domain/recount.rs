//! `Recount`: digests of some buckets counted anew from the entries, while entries come and go.
//!
//! A digest that is kept up to date by every change is right as long as no change was ever missed or
//! counted twice, and nothing shows when one was: two nodes with the same entries would compare them
//! for ever. So it is counted anew from time to time. Whoever walks over the entries notes each of
//! them, and whoever changes one meanwhile notes that; what was noted last of a key counts. When the
//! walk is over, everything held has been noted.

use std::collections::HashMap;

use super::{BUCKETS, Bucket, BucketSet, Fingerprint, Key};

/// Digests being counted anew.
#[derive(Debug)]
pub struct Recount {
    buckets: BucketSet,
    /// Of every key that is held, as far as is known, the hash of its fingerprint.
    held: HashMap<Key, u64>,
    digests: Vec<u64>,
}

impl Recount {
    /// The parts of the buckets that are counted one after the other. A part costs a walk over all
    /// keys, and memory for its share of them.
    pub const PARTS: u16 = 32;

    /// A recount of these buckets in which nothing is noted.
    pub fn of(buckets: BucketSet) -> Self {
        Self { buckets, held: HashMap::new(), digests: vec![0; BUCKETS] }
    }

    /// The buckets of a part, by its number below [`PARTS`](Self::PARTS).
    pub fn part(number: u16) -> BucketSet {
        (0..=u16::MAX).filter(|bucket| bucket % Self::PARTS == number).map(Bucket::new).collect()
    }

    /// Whether the bucket is counted.
    pub fn covers(&self, bucket: Bucket) -> bool {
        self.buckets.contains(bucket)
    }

    /// The buckets that are counted.
    pub const fn buckets(&self) -> &BucketSet {
        &self.buckets
    }

    /// Of this key, an entry with this fingerprint is held.
    pub fn note_held(&mut self, key: &Key, print: Fingerprint) {
        if self.covers(print.bucket) {
            let before = self.held.insert(key.clone(), print.hash);
            self.flip(print.bucket, print.hash ^ before.unwrap_or(0));
        }
    }

    /// Of this key nothing is held any more.
    pub fn note_gone(&mut self, key: &Key) {
        if let Some(before) = self.held.remove(key) {
            self.flip(Bucket::of(key), before);
        }
    }

    /// By what the digest of a bucket has drifted from what was counted; 0 if it is right.
    pub fn drift(&self, bucket: Bucket, digest: u64) -> u64 {
        let counted = self.digests.get(bucket.index()).filter(|_| self.covers(bucket));
        counted.map_or(0, |counted| counted ^ digest)
    }

    fn flip(&mut self, bucket: Bucket, hash: u64) {
        if let Some(digest) = self.digests.get_mut(bucket.index()) {
            *digest ^= hash;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Entry, NodeId, Timestamp, Value, Version};

    fn key(number: u16) -> Key {
        Key::new(&format!("key-{number}")).unwrap()
    }

    fn print(number: u16, time: u64) -> Fingerprint {
        let version = Version::new(Timestamp::from_nanos(time), NodeId::new(1));
        Fingerprint::of(&key(number), &Entry::live(version, Value::new("v")))
    }

    #[test]
    fn every_bucket_is_in_exactly_one_part() {
        let mut left = BucketSet::all();
        for number in 0..Recount::PARTS {
            let part = Recount::part(number);
            assert_eq!(part.len(), BUCKETS / usize::from(Recount::PARTS));
            assert_eq!(part.intersection(&left), part);
            left = left.difference(&part);
        }
        assert!(left.is_empty());
    }

    /// Every sequence of four steps on one key: noted by the walk or by a write, older or newer, or
    /// gone. What was noted last counts.
    #[test]
    fn what_was_noted_last_of_a_key_is_what_counts() {
        let bucket = Bucket::of(&key(1));
        for mut choice in 0..3_u64.pow(4) {
            let mut recount = Recount::of(BucketSet::all());
            let mut digest = 0;
            for _ in 0..4 {
                let time = choice % 3;
                if time == 0 {
                    recount.note_gone(&key(1));
                    digest = 0;
                } else {
                    recount.note_held(&key(1), print(1, time));
                    digest = print(1, time).hash;
                }
                choice /= 3;
            }
            assert_eq!(recount.drift(bucket, digest), 0);
            assert_eq!(recount.drift(bucket, digest ^ 5), 5);
        }
    }

    #[test]
    fn keys_of_a_bucket_add_up_and_other_buckets_are_none_of_its_business() {
        let (counted, other) = (print(1, 1).bucket, print(2, 1).bucket);
        assert_ne!(counted, other);
        let mut recount = Recount::of(std::iter::once(counted).collect());
        recount.note_held(&key(1), print(1, 1));
        recount.note_held(&key(2), print(2, 1));
        recount.note_held(&key(3), Fingerprint { bucket: counted, hash: 9 });
        assert_eq!(recount.drift(counted, print(1, 1).hash ^ 9), 0);
        assert_eq!(recount.drift(other, 77), 0);
        recount.note_gone(&key(2));
        assert_eq!(recount.drift(counted, print(1, 1).hash ^ 9), 0);
    }
}
