//! `KeptPrints`: the fingerprints of entries with long values, so that to replace one does not mean to
//! read all of it once more, long after it was written and out of every cache.

use dashmap::DashMap;

use crate::domain::{Entry, Fingerprint, Key};

/// A value of so many bytes has its fingerprint kept, which takes less than a hundredth of them.
const LONG_VALUE_BYTES: usize = 16 * 1_024;

/// Of the entries that are held. The caller has the lock of the key.
#[derive(Default)]
pub(super) struct KeptPrints(DashMap<Key, Fingerprint>);

impl KeptPrints {
    /// The fingerprints of what a key held before a change, and of what it holds after it.
    pub(super) fn exchange(
        &self,
        key: &Key,
        before: Option<&Entry>,
        after: Option<&Entry>,
    ) -> [Option<Fingerprint>; 2] {
        if !is_long(before) && !is_long(after) {
            return Fingerprint::of_each(key, [before, after]);
        }
        let kept = if is_long(before) { self.0.remove(key) } else { None };
        let kept = kept.map(|(_, print)| print);
        let was = kept.or_else(|| before.map(|entry| Fingerprint::of(key, entry)));
        let is = after.map(|entry| Fingerprint::of(key, entry));
        if let Some(print) = is.filter(|_| is_long(after)) {
            self.0.insert(key.clone(), print);
        }
        [was, is]
    }
}

fn is_long(entry: Option<&Entry>) -> bool {
    let value = entry.and_then(Entry::value);
    value.is_some_and(|value| value.as_str().len() >= LONG_VALUE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{NodeId, Timestamp, Value, Version};

    #[test]
    fn they_are_those_of_the_entries_whatever_replaces_what_and_only_long_ones_are_kept() {
        let key = Key::new("k").unwrap();
        let version = Version::new(Timestamp::from_nanos(1), NodeId::new(1));
        let live = |bytes: usize| Entry::live(version, Value::new(&"v".repeat(bytes)));
        let states = [
            None,
            Some(Entry::tombstone(version)),
            Some(live(LONG_VALUE_BYTES - 1)),
            Some(live(LONG_VALUE_BYTES)),
            Some(live(LONG_VALUE_BYTES + 1)),
        ];
        let of = |entry: Option<&Entry>| entry.map(|entry| Fingerprint::of(&key, entry));
        for first in &states {
            for second in &states {
                let prints = KeptPrints::default();
                let mut held = None;
                for next in [first.as_ref(), second.as_ref(), first.as_ref(), None] {
                    assert_eq!(prints.exchange(&key, held, next), [of(held), of(next)]);
                    assert_eq!(prints.0.len(), usize::from(is_long(next)));
                    held = next;
                }
            }
        }
    }
}
