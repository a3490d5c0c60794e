//! Entries and their merge: the one rule by which data enters a node.
//!
//! A register is last-writer-wins (Shapiro et al., "A comprehensive study of convergent and
//! commutative replicated data types", 2011, LWW-Register): the entry with the larger [`Version`]
//! stays. A removal is an entry too, a tombstone, so that it wins against the writes before it
//! wherever and whenever they arrive.
//!
//! Versions are unique by construction; should two entries share one all the same (a cloned data
//! directory, say), a fixed order of their contents decides, so that replicas still end up equal.

use super::{Key, Value, Version};

/// What a version of a key says. Ordered only to settle ties: live values by their bytes, and a
/// tombstone above them all, since a removed key must stay removed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    /// The key has this value.
    Live(Value),
    /// The key was removed.
    Tombstone,
}

/// One version of a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Decides which entry stays; compared first.
    pub version: Version,
    /// Decides only between equal versions.
    pub content: Content,
}

impl Content {
    /// The value, unless this is a tombstone.
    pub const fn value(&self) -> Option<&Value> {
        match self {
            Self::Live(value) => Some(value),
            Self::Tombstone => None,
        }
    }
}

impl Entry {
    /// A live value.
    pub const fn live(version: Version, value: Value) -> Self {
        Self { version, content: Content::Live(value) }
    }

    /// A removal.
    pub const fn tombstone(version: Version) -> Self {
        Self { version, content: Content::Tombstone }
    }

    /// The value, unless this is a tombstone.
    pub const fn value(&self) -> Option<&Value> {
        self.content.value()
    }

    /// Whether this records a removal.
    pub const fn is_tombstone(&self) -> bool {
        matches!(self.content, Content::Tombstone)
    }

    /// Bytes of its key and its value.
    pub fn payload_bytes(&self, key: &Key) -> usize {
        key.as_str().len() + self.value().map_or(0, |value| value.as_str().len())
    }

    /// Whether a merge with `other` keeps this entry and drops `other`.
    pub fn supersedes(&self, other: &Self) -> bool {
        self > other
    }

    /// The entry that stays: commutative, associative, idempotent.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        self.max(other)
    }
}

/// An entry with the key it belongs to: what travels between nodes and into the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyedEntry {
    /// The register.
    pub key: Key,
    /// Its version and content.
    pub entry: Entry,
}

impl KeyedEntry {
    /// `entry` of `key`.
    pub const fn new(key: Key, entry: Entry) -> Self {
        Self { key, entry }
    }

    /// Bytes of the key and the value: what limits and batches count.
    pub fn payload_bytes(&self) -> usize {
        self.entry.payload_bytes(&self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{NodeId, Timestamp};
    use proptest::prelude::{
        Just, ProptestConfig, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest,
    };

    fn entries() -> impl Strategy<Value = Entry> {
        // Few timestamps, nodes and values, so that ties of every kind are common.
        (0u64..4, 0u64..3, prop_oneof![Just(None), "[ab]{0,2}".prop_map(Some)]).prop_map(
            |(time, node, value)| {
                let version = Version::new(Timestamp::from_nanos(time), NodeId::new(node));
                value.map_or_else(
                    || Entry::tombstone(version),
                    |v| Entry::live(version, Value::new(&v)),
                )
            },
        )
    }

    fn fold(entries: &[Entry]) -> Option<Entry> {
        entries.iter().cloned().reduce(Entry::merge)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn merge_is_commutative(a in entries(), b in entries()) {
            prop_assert_eq!(a.clone().merge(b.clone()), b.merge(a));
        }

        #[test]
        fn merge_is_associative(a in entries(), b in entries(), c in entries()) {
            prop_assert_eq!(
                a.clone().merge(b.clone()).merge(c.clone()),
                a.merge(b.merge(c))
            );
        }

        #[test]
        fn merge_is_idempotent(a in entries()) {
            prop_assert_eq!(a.clone().merge(a.clone()), a);
        }

        #[test]
        fn any_order_with_any_duplicates_settles_on_the_same_entry(
            delivered in proptest::collection::vec(entries(), 1..12),
            order in proptest::collection::vec(0usize..12, 0..24),
        ) {
            let mut shuffled = delivered.clone();
            shuffled.reverse();
            shuffled.extend(order.iter().filter_map(|i| delivered.get(*i).cloned()));
            prop_assert_eq!(fold(&delivered), fold(&shuffled));
        }

        #[test]
        fn merge_never_invents_an_entry(a in entries(), b in entries()) {
            let merged = a.clone().merge(b.clone());
            prop_assert!(merged == a || merged == b);
        }

        #[test]
        fn an_entry_supersedes_exactly_what_it_replaces(a in entries(), b in entries()) {
            prop_assert_eq!(a.supersedes(&b), a != b && a.clone().merge(b) == a);
        }
    }

    #[test]
    fn a_late_old_write_does_not_bring_a_removed_key_back() {
        let at = |t| Version::new(Timestamp::from_nanos(t), NodeId::new(1));
        let removed = Entry::tombstone(at(2));
        let late = Entry::live(at(1), Value::new("old"));
        assert!(removed.clone().merge(late).is_tombstone());
    }

    #[test]
    fn of_equal_versions_the_removal_stays() {
        let v = Version::new(Timestamp::from_nanos(1), NodeId::new(1));
        let merged = Entry::live(v, Value::new("zzz")).merge(Entry::tombstone(v));
        assert!(merged.is_tombstone());
    }
}
