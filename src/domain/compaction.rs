//! When a log is worth compacting.
//!
//! As with Redis (`auto-aof-rewrite-percentage 100`, `auto-aof-rewrite-min-size 64mb`): when it is
//! twice as long as it would be, and not so short that nobody cares.

/// Shorter logs are left alone: 64 MiB, which replay in a fraction of a second.
const LEAST_BYTES: u64 = 64 << 20;

/// What frames one entry in a log, about: lengths, checksums, the version.
const FRAME_BYTES: u64 = 48;

/// What a log holds, and what it could be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogWeight {
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Entries held, tombstones among them.
    pub entries: u64,
    /// Bytes of their keys and values.
    pub payload_bytes: u64,
}

impl LogWeight {
    /// The length of the log after a compaction, about.
    pub const fn live_bytes(self) -> u64 {
        self.payload_bytes.saturating_add(self.entries.saturating_mul(FRAME_BYTES))
    }

    /// Whether a disk with so much free space cannot take the copy that a compaction writes.
    pub const fn is_too_much_for(self, free_bytes: u64) -> bool {
        self.live_bytes() > free_bytes
    }

    /// Whether a compaction pays.
    pub const fn is_compaction_due(self) -> bool {
        self.log_bytes > LEAST_BYTES && self.log_bytes > self.live_bytes().saturating_mul(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_takes_as_much_as_what_is_held_whatever_the_length_of_the_log() {
        let weight = LogWeight { log_bytes: 1 << 40, entries: 10, payload_bytes: 1_000 };
        assert_eq!(weight.live_bytes(), 1_480);
        assert!(weight.is_too_much_for(1_479) && !weight.is_too_much_for(1_480));
    }

    fn is_due(log_bytes: u64, entries: u64, payload_bytes: u64) -> bool {
        LogWeight { log_bytes, entries, payload_bytes }.is_compaction_due()
    }

    #[test]
    fn it_is_due_when_the_log_is_long_and_more_than_twice_what_it_says() {
        const MIB: u64 = 1 << 20;
        assert!(!is_due(0, 0, 0));
        assert!(!is_due(64 * MIB, 0, 0));
        assert!(is_due(64 * MIB + 1, 0, 0));
        assert!(!is_due(200 * MIB, 0, 100 * MIB));
        assert!(is_due(200 * MIB + 1, 0, 100 * MIB));
        // Many small entries weigh more than their bytes.
        let entries = 100 * MIB / FRAME_BYTES;
        assert!(!is_due(200 * MIB, entries + 1, 0));
        assert!(is_due(200 * MIB, entries, 0));
        assert!(!is_due(u64::MAX, u64::MAX, u64::MAX));
    }
}
