//! Summaries: what two nodes tell each other of their entries before they send any.
//!
//! In a bucket that differs most entries are the same on both sides. So the peer first sends a
//! [`Summary`] of each entry, which is small however large the value is; from that and its own copy
//! a node knows what has to travel, and in which direction ([`Remedy`]).

use super::{Entry, Fingerprint, Key, Timestamp, Version};

/// An entry without its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The register.
    pub key: Key,
    /// The version held.
    pub version: Version,
    /// Whether it is a tombstone.
    pub is_tombstone: bool,
    /// The [hash](Fingerprint::hash) of the entry's fingerprint, which tells the contents of equal
    /// versions apart.
    pub hash: u64,
}

impl Summary {
    /// The summary of an entry. Costs a hash of its value.
    pub fn of(key: Key, entry: &Entry) -> Self {
        let hash = Fingerprint::of(&key, entry).hash;
        Self { key, version: entry.version, is_tombstone: entry.is_tombstone(), hash }
    }

    /// Whether it is of exactly this entry, of the same key. Costs a hash of the value only if the
    /// versions are equal.
    fn is_of(&self, entry: &Entry) -> bool {
        self.version == entry.version && self.hash == Fingerprint::of(&self.key, entry).hash
    }
}

/// What one side has to do about a key of which the other side sent a summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Both hold the same.
    Nothing,
    /// The other side's entry has to come here: it is newer, or this one has to go, or only the
    /// contents can tell.
    Take,
    /// This side's entry has to go there.
    Give,
    /// The other side holds it no more as soon as it forgets its tombstones: as if there had been no
    /// summary.
    Unheld,
}

impl Remedy {
    /// The remedy for this key, of which this side holds `ours`. Towards a member that is certified
    /// further than this node, `beyond` is its horizon: what is older than that, and differs there, is
    /// not given.
    pub fn of(ours: Option<&Entry>, theirs: &Summary, beyond: Option<Timestamp>) -> Self {
        let is_old = |version: Version| beyond.is_some_and(|horizon| version.timestamp <= horizon);
        if theirs.is_tombstone && is_old(theirs.version) {
            return Self::Unheld;
        }
        match ours {
            Some(ours) if theirs.is_of(ours) => Self::Nothing,
            Some(ours) if ours.version > theirs.version && !is_old(ours.version) => Self::Give,
            _ => Self::Take,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{NodeId, Value};

    fn key() -> Key {
        Key::new("k").unwrap()
    }

    /// Every entry of four versions (two times, two nodes), with two values and as a tombstone.
    fn every_entry() -> Vec<Entry> {
        let mut entries = Vec::new();
        for (time, node) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let version = Version::new(Timestamp::from_nanos(time), NodeId::new(node));
            entries.push(Entry::tombstone(version));
            entries.extend(["", "v"].map(|text| Entry::live(version, Value::new(text))));
        }
        entries
    }

    /// Every pair of entries: what the remedy moves leaves both sides with the same, the newer one.
    #[test]
    fn what_a_remedy_moves_makes_both_sides_equal_and_nothing_moves_between_equals() {
        for theirs in every_entry() {
            let summary = Summary::of(key(), &theirs);
            assert_eq!(Remedy::of(None, &summary, None), Remedy::Take);
            for ours in every_entry() {
                let newest = ours.clone().merge(theirs.clone());
                let remedy = Remedy::of(Some(&ours), &summary, None);
                match remedy {
                    Remedy::Nothing => assert_eq!(ours, theirs),
                    Remedy::Give => assert!(ours == newest && ours.version > theirs.version),
                    // Of equal versions the contents decide, once they are here.
                    Remedy::Take => assert!(
                        ours != theirs && (theirs == newest || ours.version == theirs.version)
                    ),
                    Remedy::Unheld => panic!("no horizon"),
                }
            }
        }
    }

    /// Every pair of entries and every horizon.
    #[test]
    fn beyond_a_horizon_nothing_old_is_given_and_old_tombstones_count_for_nothing() {
        for beyond in (0..=3).map(Timestamp::from_nanos) {
            let is_old = |entry: &Entry| entry.version.timestamp <= beyond;
            for theirs in every_entry() {
                let summary = Summary::of(key(), &theirs);
                for ours in every_entry() {
                    let remedy = Remedy::of(Some(&ours), &summary, Some(beyond));
                    let expected = match Remedy::of(Some(&ours), &summary, None) {
                        _ if theirs.is_tombstone() && is_old(&theirs) => Remedy::Unheld,
                        // A ghost: it goes, and theirs takes its place.
                        Remedy::Give if is_old(&ours) => Remedy::Take,
                        same => same,
                    };
                    assert_eq!(remedy, expected, "{ours:?} {theirs:?} {beyond:?}");
                }
            }
        }
    }
}
