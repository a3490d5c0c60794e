//! Digests: whether two nodes hold the same data, and if not, where they differ.
//!
//! Every entry has a [`Fingerprint`], a hash of its key, version and value, and falls into one of
//! [`BUCKETS`] buckets by the hash of its key. A bucket's digest is the XOR of the fingerprints in
//! it, so a write changes it in O(1), in any order; the XOR of 256 buckets in a row is the digest of
//! their [`Group`], that of all buckets the node's [`Digest`]. Two nodes compare digests, then those
//! of the groups, then those of the buckets in groups that differ, and look only at what lies in
//! buckets that differ ([`Summary`](super::Summary)): what they tell each other follows the difference, not the data (the Merkle
//! trees of Dynamo, 2007; the inner levels are folded from the buckets when they are asked for).
//!
//! The hash is XXH3, stable across nodes and versions of Lally. It guards against accidents, not
//! against somebody who picks keys to collide.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

use super::{Entry, Key};

/// The number of buckets: 2^16, by the top bits of the key's hash.
pub const BUCKETS: usize = 1 << 16;

/// The number of groups of buckets.
pub const GROUPS: usize = 256;

/// The number of buckets in a group.
pub const GROUP_BUCKETS: usize = BUCKETS / GROUPS;

const WORDS: usize = BUCKETS / 64;

/// Where a key falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u16);

impl Bucket {
    /// The one of the highest number.
    pub const LAST: Self = Self(u16::MAX);

    /// The bucket of this key, the same on every node.
    pub fn of(key: &Key) -> Self {
        Self::from_key_hash(xxh3_64(key.as_str().as_bytes()))
    }

    /// The bucket of this number.
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// 0 to [`BUCKETS`] - 1.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    const fn from_key_hash(hash: u64) -> Self {
        Self((hash >> 48) as u16)
    }
}

/// Buckets in a row, [`GROUP_BUCKETS`] of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group(u8);

impl Group {
    /// The group of this number.
    pub const fn new(number: u8) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> u8 {
        self.0
    }

    fn buckets(self) -> std::ops::Range<usize> {
        let first = usize::from(self.0) * GROUP_BUCKETS;
        first..first + GROUP_BUCKETS
    }
}

/// A level of the digests below the root, or the part of it that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DigestLevel {
    /// The digests of all groups.
    Groups,
    /// The digests of the buckets of these groups, one group after the other.
    BucketsOf(Vec<Group>),
}

/// The digest of all these buckets together. By eights: builds without optimisation, those of the
/// tests, spend much of their time here.
fn combined(buckets: &[u64]) -> u64 {
    let (eights, rest) = buckets.as_chunks();
    let eights =
        eights.iter().fold(0, |all, &[a, b, c, d, e, f, g, h]| all ^ a ^ b ^ c ^ d ^ e ^ f ^ g ^ h);
    rest.iter().fold(eights, |all, bucket| all ^ bucket)
}

impl DigestLevel {
    /// How many digests it has.
    pub fn len(&self) -> usize {
        match self {
            Self::Groups => GROUPS,
            Self::BucketsOf(groups) => groups.len() * GROUP_BUCKETS,
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The digests of this level, of a node whose buckets have these.
    pub fn of(&self, buckets: &[u64]) -> Vec<u64> {
        let below = |group: Group| buckets.get(group.buckets()).unwrap_or_default();
        match self {
            Self::Groups => (0..=u8::MAX).map(|number| combined(below(Group(number)))).collect(),
            Self::BucketsOf(groups) => groups.iter().flat_map(|g| below(*g)).copied().collect(),
        }
    }

    /// The groups whose digests differ between two nodes.
    pub fn differing_groups(ours: &[u64], theirs: &[u64]) -> Vec<Group> {
        let differs =
            |number: &u8| ours.get(usize::from(*number)) != theirs.get(usize::from(*number));
        (0..=u8::MAX).filter(differs).map(Group).collect()
    }
}

/// What one entry adds to its bucket, and takes away again when it is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// The bucket of the key.
    pub bucket: Bucket,
    /// Combined by XOR into the bucket's digest.
    pub hash: u64,
}

impl Fingerprint {
    /// The fingerprint of this entry of this key. The value is part of it: two values of one version
    /// (by a copied data directory) must be found, or they would differ for ever.
    pub fn of(key: &Key, entry: &Entry) -> Self {
        Self::of_hashed(xxh3_64(key.as_str().as_bytes()), entry)
    }

    /// The fingerprints of several entries of one key.
    pub fn of_each<const N: usize>(key: &Key, entries: [Option<&Entry>; N]) -> [Option<Self>; N] {
        let key_hash = xxh3_64(key.as_str().as_bytes());
        entries.map(|entry| entry.map(|entry| Self::of_hashed(key_hash, entry)))
    }

    fn of_hashed(key_hash: u64, entry: &Entry) -> Self {
        let value_hash = entry.value().map_or(0, |value| xxh3_64(value.as_str().as_bytes()));
        let version = entry.version;
        let mut input = [0u8; 33];
        let fields = [key_hash, version.timestamp.as_nanos(), version.node.as_u64(), value_hash];
        for (slot, field) in input.chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        if let Some(kind) = input.last_mut() {
            *kind = u8::from(entry.is_tombstone());
        }
        Self { bucket: Bucket::from_key_hash(key_hash), hash: xxh3_64(&input) }
    }
}

/// The XOR of all fingerprints: equal on nodes that hold the same entries. Shown as 16
/// hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Digest(u64);

impl Digest {
    /// The digest of this number.
    pub const fn from_u64(digest: u64) -> Self {
        Self(digest)
    }

    /// The number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A set of buckets, as a bitmap of 8 KiB.
#[derive(Clone, PartialEq, Eq)]
pub struct BucketSet(Box<[u64]>);

impl BucketSet {
    /// Size of the byte form.
    pub const BYTES: usize = WORDS * 8;

    /// No bucket.
    pub fn none() -> Self {
        Self(vec![0; WORDS].into())
    }

    /// Every bucket.
    pub fn all() -> Self {
        Self(vec![u64::MAX; WORDS].into())
    }

    /// The buckets of these groups whose digests differ: ours of all buckets, theirs of those of the
    /// groups, one group after the other. One that is missing counts as 0.
    pub fn differing(groups: &[Group], ours: &[u64], theirs: &[u64]) -> Self {
        let mut set = Self::none();
        for (group, theirs) in groups.iter().zip(theirs.chunks(GROUP_BUCKETS)) {
            for (place, bucket) in group.buckets().enumerate() {
                let at = |table: &[u64], place| table.get(place).copied().unwrap_or(0);
                if at(ours, bucket) != at(theirs, place)
                    && let Ok(number) = u16::try_from(bucket)
                {
                    set.insert(Bucket(number));
                }
            }
        }
        set
    }

    /// Adds a bucket.
    pub fn insert(&mut self, bucket: Bucket) {
        if let Some(word) = self.0.get_mut(bucket.index() / 64) {
            *word |= 1 << (bucket.index() % 64);
        }
    }

    /// The buckets that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(other.0.iter()).map(|(a, b)| a & b).collect())
    }

    /// The buckets that are in this set and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(other.0.iter()).map(|(a, b)| a & !b).collect())
    }

    /// Whether the bucket is in the set.
    pub fn contains(&self, bucket: Bucket) -> bool {
        self.0.get(bucket.index() / 64).is_some_and(|w| w & (1 << (bucket.index() % 64)) != 0)
    }

    /// The number of buckets in the set.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether the set has no bucket.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The bitmap, [`BYTES`](Self::BYTES) long: bit `i % 8` of byte `i / 8` is bucket `i`.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The set with this bitmap; `None` if its length is not [`BYTES`](Self::BYTES).
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != Self::BYTES {
            return None;
        }
        let (words, _) = bytes.as_chunks::<8>();
        Some(Self(words.iter().map(|w| u64::from_le_bytes(*w)).collect()))
    }
}

impl FromIterator<Bucket> for BucketSet {
    fn from_iter<I: IntoIterator<Item = Bucket>>(buckets: I) -> Self {
        let mut set = Self::none();
        for bucket in buckets {
            set.insert(bucket);
        }
        set
    }
}

impl fmt::Debug for BucketSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketSet({} of {BUCKETS})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{NodeId, Timestamp, Value, Version};
    use proptest::prelude::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn at(t: u64, n: u64) -> Version {
        Version::new(Timestamp::from_nanos(t), NodeId::new(n))
    }

    #[test]
    fn the_fingerprint_changes_with_key_time_node_value_and_removal() {
        let base = Fingerprint::of(&key("a"), &Entry::live(at(1, 1), Value::new("v")));
        let others = [
            Fingerprint::of(&key("b"), &Entry::live(at(1, 1), Value::new("v"))),
            Fingerprint::of(&key("a"), &Entry::live(at(2, 1), Value::new("v"))),
            Fingerprint::of(&key("a"), &Entry::live(at(1, 2), Value::new("v"))),
            Fingerprint::of(&key("a"), &Entry::live(at(1, 1), Value::new("w"))),
            Fingerprint::of(&key("a"), &Entry::live(at(1, 1), Value::new(""))),
            Fingerprint::of(&key("a"), &Entry::tombstone(at(1, 1))),
        ];
        assert!(others.iter().all(|other| other.hash != base.hash));
    }

    #[test]
    fn fingerprints_are_the_same_on_every_node_and_in_every_release() {
        let print = Fingerprint::of(&key("key-1"), &Entry::live(at(1, 2), Value::new("v")));
        assert_eq!(print.bucket, Bucket::of(&key("key-1")));
        assert_eq!((print.bucket.index(), print.hash), GOLDEN);
    }

    /// Changing this breaks every cluster of mixed versions: it would synchronise for ever.
    const GOLDEN: (usize, u64) = (11_561, 7_268_906_332_609_421_653);

    #[test]
    fn keys_spread_evenly_over_the_buckets() {
        let mut counts = vec![0u32; 16];
        for i in 0..16_000 {
            counts[Bucket::of(&key(&format!("key-{i}"))).index() * 16 / BUCKETS] += 1;
        }
        assert!(counts.iter().all(|c| (800..1_200).contains(c)), "{counts:?}");
    }

    #[test]
    fn from_the_groups_down_exactly_the_buckets_that_differ_are_found() {
        let mut ours = vec![0; BUCKETS];
        let mut theirs = ours.clone();
        ours[7] = 1;
        ours[65_535] = 2;
        theirs[40_000] = 3;
        let level = DigestLevel::Groups;
        let groups = DigestLevel::differing_groups(&level.of(&ours), &level.of(&theirs));
        assert_eq!(groups, [Group::new(0), Group::new(156), Group::new(255)]);
        let level = DigestLevel::BucketsOf(groups.clone());
        assert_eq!(level.of(&theirs).len(), level.len());
        let set = BucketSet::differing(&groups, &ours, &level.of(&theirs));
        assert_eq!(set.len(), 3);
        assert!([7, 40_000, 65_535].iter().all(|number| set.contains(Bucket::new(*number))));
    }

    #[test]
    fn equal_digests_have_no_group_that_differs_and_missing_ones_all() {
        let level = DigestLevel::Groups.of(&vec![9; BUCKETS]);
        assert!(DigestLevel::differing_groups(&level, &level).is_empty());
        assert_eq!(DigestLevel::differing_groups(&level, &[]).len(), GROUPS);
        assert!(DigestLevel::BucketsOf(Vec::new()).is_empty());
    }

    #[test]
    fn the_digests_of_the_groups_fold_up_to_that_of_the_node() {
        let buckets: Vec<u64> = (0..BUCKETS as u64).map(|n| n * n + 1).collect();
        let fold = |level: &[u64]| level.iter().fold(0, |all, digest| all ^ digest);
        assert_eq!(fold(&DigestLevel::Groups.of(&buckets)), fold(&buckets));
    }

    #[test]
    fn all_and_none_are_what_they_say() {
        assert_eq!(BucketSet::all().len(), BUCKETS);
        assert!(BucketSet::none().is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_set_survives_its_byte_form(buckets in proptest::collection::vec(any::<u16>(), 0..50)) {
            let mut set = BucketSet::none();
            for b in &buckets {
                set.insert(Bucket::new(*b));
            }
            prop_assert_eq!(BucketSet::from_bytes(&set.to_bytes()), Some(set.clone()));
            prop_assert!(buckets.iter().all(|b| set.contains(Bucket::new(*b))));
            let rest = BucketSet::all().difference(&set);
            prop_assert_eq!(rest.len() + set.len(), BUCKETS);
            prop_assert!(rest.intersection(&set).is_empty());
        }
    }
}
