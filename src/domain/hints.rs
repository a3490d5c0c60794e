//! Hints for one absent member: the keys it missed, not the values.
//!
//! The newest entry is read at delivery, so a thousand overwrites of a key are one delivery. The
//! queue is bounded in bytes; what does not fit is not lost but turned into one bit, "needs a full
//! comparison", which anti-entropy serves.

use std::collections::{HashSet, VecDeque};

use super::Key;

/// What a key costs beyond its text: the two places that hold it.
const OVERHEAD_BYTES: usize = 64;

/// The keys a member missed, oldest first.
#[derive(Debug, Clone)]
pub struct HintQueue {
    order: VecDeque<Key>,
    queued: HashSet<Key>,
    bytes: usize,
    max_bytes: usize,
    overflowed: bool,
}

impl HintQueue {
    /// An empty queue that holds at most this many bytes.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            order: VecDeque::new(),
            queued: HashSet::new(),
            bytes: 0,
            max_bytes,
            overflowed: false,
        }
    }

    /// Notes that the member missed a write of this key.
    pub fn push(&mut self, key: Key) {
        if self.queued.contains(&key) {
            return;
        }
        let cost = cost(&key);
        if self.bytes + cost > self.max_bytes {
            self.overflowed = true;
            return;
        }
        self.bytes += cost;
        self.queued.insert(key.clone());
        self.order.push_back(key);
    }

    /// Takes up to `limit` keys for delivery, oldest first. What is not delivered is pushed again.
    pub fn take(&mut self, limit: usize) -> Vec<Key> {
        let taken: Vec<Key> = self.order.drain(..limit.min(self.order.len())).collect();
        for key in &taken {
            self.queued.remove(key);
            self.bytes -= cost(key);
        }
        taken
    }

    /// The number of keys waiting.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether no key waits.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether keys were turned away since the last [`clear_overflow`](Self::clear_overflow): the
    /// member needs a full comparison.
    pub const fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// A full comparison with the member has been asked for.
    pub fn clear_overflow(&mut self) {
        self.overflowed = false;
    }
}

fn cost(key: &Key) -> usize {
    key.as_str().len() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn overwrites_of_a_key_are_one_hint_and_hints_leave_in_order() {
        let mut hints = HintQueue::new(10_000);
        for text in ["a", "b", "a", "c", "b"] {
            hints.push(key(text));
        }
        assert_eq!(hints.take(2), vec![key("a"), key("b")]);
        hints.push(key("a"));
        assert_eq!(hints.take(9), vec![key("c"), key("a")]);
        assert!(hints.is_empty());
    }

    #[test]
    fn beyond_its_bytes_a_queue_asks_for_a_full_comparison_instead_of_growing() {
        let mut hints = HintQueue::new(2 * (OVERHEAD_BYTES + 1));
        hints.push(key("a"));
        hints.push(key("b"));
        assert!(!hints.overflowed());
        hints.push(key("c"));
        assert!(hints.overflowed());
        assert_eq!(hints.len(), 2);
        hints.clear_overflow();
        hints.take(1);
        hints.push(key("c"));
        assert_eq!(hints.len(), 2);
        assert!(!hints.overflowed());
    }
}
