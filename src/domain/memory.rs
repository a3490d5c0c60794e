//! What data takes in memory, and how much it may take.
//!
//! Counted are keys, values, tombstones, and what holding them costs besides their text. That is an
//! estimate of the process's memory from above for the entries alone; buffers, connections, hints
//! and the program itself come on top.
//!
//! The limit is asked when a client writes, and says no only to what makes the data grow. Entries
//! from other nodes are never measured against it: replicas that drop what others keep would differ
//! for ever. (Replicas of Redis ignore `maxmemory` for the same reason.)

use super::{Content, Entry, Key};

/// The place of an entry in a hash table, which is the key, the entry and a byte of control; and an
/// empty one. A table doubles when it is 7/8 full. A store has many of them, which grow one after the
/// other, so that some 60 % of the places are taken at any time; this counts half, for those that
/// removals have left in between.
const SLOT_BYTES: usize = 2 * (size_of::<Key>() + size_of::<Entry>() + 1);

/// A counter of references and the length stand before every shared text.
const HEAD_BYTES: usize = 2 * size_of::<usize>();

/// Allocators hand out multiples of this.
const GRAIN_BYTES: usize = 16;

impl Content {
    /// Bytes of memory that an entry with this content takes under this key, what holding it costs
    /// included.
    pub fn memory_bytes(&self, key: &Key) -> usize {
        let value = self.value().map_or(0, |value| text_bytes(value.as_str()));
        SLOT_BYTES + text_bytes(key.as_str()) + value
    }
}

/// How much the data of a node may take in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryLimit(Option<u64>);

impl MemoryLimit {
    /// As much as there is.
    pub const NONE: Self = Self(None);

    /// This many bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(Some(bytes))
    }

    /// The limit in bytes, if there is one.
    pub const fn as_bytes(self) -> Option<u64> {
        self.0
    }

    /// Whether a client may write this content while the node's data takes `used` bytes and `held`
    /// is what it has under the key. Removals may always be written, and so may what takes no more
    /// memory than what it replaces.
    ///
    /// # Errors
    /// [`MemoryFull`] when the data would grow beyond the limit.
    pub fn admit(
        self,
        used: u64,
        key: &Key,
        held: Option<&Entry>,
        content: &Content,
    ) -> Result<(), MemoryFull> {
        let Some(limit_bytes) = self.0 else { return Ok(()) };
        if *content == Content::Tombstone {
            return Ok(());
        }
        let before = held.map_or(0, |held| held.content.memory_bytes(key));
        let growth = content.memory_bytes(key).saturating_sub(before) as u64;
        if growth == 0 || used.saturating_add(growth) <= limit_bytes {
            return Ok(());
        }
        Err(MemoryFull { limit_bytes })
    }
}

/// The node's data would take more memory than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the data would take more than {limit_bytes} bytes of memory")]
pub struct MemoryFull {
    /// The limit.
    pub limit_bytes: u64,
}

const fn text_bytes(text: &str) -> usize {
    (HEAD_BYTES + text.len()).next_multiple_of(GRAIN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{NodeId, Timestamp, Value, Version};

    fn key(bytes: usize) -> Key {
        Key::new(&"k".repeat(bytes)).unwrap()
    }

    fn live(bytes: usize) -> Content {
        Content::Live(Value::new(&"v".repeat(bytes)))
    }

    fn entry(content: Content) -> Entry {
        Entry { version: Version::new(Timestamp::ZERO, NodeId::new(1)), content }
    }

    /// What documentation says of an entry's cost. If this fails, types have changed size.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn an_entry_takes_66_bytes_and_its_texts_with_16_bytes_each_rounded_up() {
        assert_eq!((size_of::<Key>(), size_of::<Value>(), size_of::<Entry>()), (8, 8, 24));
        assert_eq!((SLOT_BYTES, HEAD_BYTES), (66, 16));
        // A place is that large also inside a table, where a pair might need padding.
        assert_eq!(size_of::<(Key, Entry)>(), size_of::<Key>() + size_of::<Entry>());
        for (key_bytes, value_bytes, total) in
            [(1, 0, 66 + 32 + 16), (16, 16, 66 + 32 + 32), (17, 1_000, 66 + 48 + 1_024)]
        {
            assert_eq!(live(value_bytes).memory_bytes(&key(key_bytes)), total);
        }
        assert_eq!(Content::Tombstone.memory_bytes(&key(1)), 66 + 32);
    }

    /// Every limit around every amount of memory, for every pair of what is held and written.
    #[test]
    fn only_what_makes_the_data_grow_beyond_the_limit_is_refused() {
        let key = key(8);
        let contents = || {
            let lives = [0, 1, 16, 17, 100, 1_000].map(live);
            [Content::Tombstone].into_iter().chain(lives)
        };
        for held in [None].into_iter().chain(contents().map(entry).map(Some)) {
            let before = held.as_ref().map_or(0, |h| h.content.memory_bytes(&key)) as u64;
            for others in [0, 500, 5_000] {
                let used = others + before;
                for content in contents() {
                    let after = others + content.memory_bytes(&key) as u64;
                    for limit in [0, used, used + 1, after - 1, after, after + 1, u64::MAX] {
                        let refused = MemoryLimit::bytes(limit)
                            .admit(used, &key, held.as_ref(), &content)
                            .is_err();
                        let grows = after > used && content != Content::Tombstone;
                        assert_eq!(refused, grows && after > limit, "{used} {after} {limit}");
                    }
                    let limit = MemoryLimit::NONE;
                    assert_eq!(limit.admit(used, &key, held.as_ref(), &content), Ok(()));
                }
            }
        }
    }

    #[test]
    fn a_refusal_names_the_limit() {
        let refused = MemoryLimit::bytes(100).admit(0, &key(1), None, &live(1));
        assert_eq!(refused, Err(MemoryFull { limit_bytes: 100 }));
        assert_eq!(MemoryLimit::bytes(100).as_bytes(), Some(100));
        assert_eq!(MemoryLimit::default(), MemoryLimit::NONE);
    }
}
