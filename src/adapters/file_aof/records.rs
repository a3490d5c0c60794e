//! `Records`: records on their way into a file, large values where they are.
//!
//! A value that is large is not copied: it belongs to the entry that the store will hold anyway, and
//! the system takes it from there. What is small is copied into one buffer, which costs less than a
//! piece more for the system to gather.

use std::io::{self, IoSlice};
use std::ops::Range;

use crate::domain::Value;
use crate::ports::LogRecord;

use super::disk::Disk;
use super::format::{encode_around, encode_unnumbered, number};

/// Values from this length on are not copied.
const SHARED_FROM_BYTES: usize = 16 * 1_024;

/// Records, one after the other.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// All but the shared values.
    own: Vec<u8>,
    /// Where in `own` each record begins.
    starts: Vec<usize>,
    /// The shared values, and where in `own` each belongs.
    shared: Vec<(usize, Value)>,
    shared_bytes: usize,
}

impl Records {
    /// Adds a record, without its number.
    pub(super) fn push(&mut self, record: &LogRecord) {
        self.starts.push(self.own.len());
        if let LogRecord::Write(write) = record
            && let Some(value) = write.entry.value()
            && value.as_str().len() >= SHARED_FROM_BYTES
        {
            let place = encode_around(write, value, &mut self.own);
            self.shared.push((place, value.clone()));
            self.shared_bytes += value.as_str().len();
        } else {
            encode_unnumbered(record, &mut self.own);
        }
    }

    /// Numbers the records from `first` on; before or again.
    pub(super) fn number(&mut self, first: u64, salt: u64) {
        let mut sequence = first;
        for start in &self.starts {
            number(self.own.get_mut(*start..).unwrap_or_default(), sequence, salt);
            sequence = sequence.wrapping_add(1);
        }
    }

    /// How many there are.
    pub(super) const fn count(&self) -> usize {
        self.starts.len()
    }

    /// Their bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.own.len() + self.shared_bytes
    }

    /// The memory of their own that is kept for more.
    pub(super) const fn capacity(&self) -> usize {
        self.own.capacity()
    }

    /// Keeps the records in these ranges of their order, none of which may hold a value.
    pub(super) fn keep(&mut self, ranges: impl Iterator<Item = Range<usize>>) {
        let mut kept = Self::default();
        for range in ranges {
            let at = |record: usize| self.starts.get(record).copied().unwrap_or(self.own.len());
            let (from, to) = (at(range.start), at(range.end));
            let end = kept.own.len();
            kept.starts.extend(range.map(|record| end + at(record) - from));
            kept.own.extend_from_slice(self.own.get(from..to).unwrap_or_default());
        }
        *self = kept;
    }

    /// Appends them to a file, and lets go of the shared values: here, where nobody waits for one that
    /// was replaced meanwhile to be freed. After an error, any number of the bytes may be there.
    pub(super) fn append_to(&mut self, disk: &dyn Disk) -> io::Result<()> {
        if self.shared.is_empty() {
            return disk.append(&self.own);
        }
        let mut parts = Vec::with_capacity(2 * self.shared.len() + 1);
        let mut from = 0;
        for (place, value) in &self.shared {
            parts.push(IoSlice::new(self.own.get(from..*place).unwrap_or_default()));
            parts.push(IoSlice::new(value.as_str().as_bytes()));
            from = *place;
        }
        parts.push(IoSlice::new(self.own.get(from..).unwrap_or_default()));
        disk.append_all(&mut parts)?;
        self.shared.clear();
        Ok(())
    }

    /// Removes all, and keeps the buffers.
    pub(super) fn clear(&mut self) {
        self.own.clear();
        self.starts.clear();
        self.shared.clear();
        self.shared_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek};

    use super::*;
    use crate::adapters::file_aof::format::encode;
    use crate::domain::{Entry, Key, KeyedEntry, NodeId, Timestamp, Version};

    const SALT: u64 = 5;

    fn write(value_bytes: usize) -> LogRecord {
        let version = Version::new(Timestamp::from_nanos(1), NodeId::new(2));
        let entry = Entry::live(version, Value::new(&"v".repeat(value_bytes)));
        LogRecord::Write(KeyedEntry::new(Key::new("k").unwrap(), entry))
    }

    fn of(all: &[LogRecord]) -> Records {
        let mut records = Records::default();
        for record in all {
            records.push(record);
        }
        records
    }

    fn bound(nanos: u64) -> LogRecord {
        LogRecord::ClockBound(Timestamp::from_nanos(nanos))
    }

    /// What comes into a file.
    fn written(records: &mut Records) -> Vec<u8> {
        let mut file: File = tempfile::tempfile().unwrap();
        records.append_to(&file).unwrap();
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn expected(records: &[LogRecord], first: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (sequence, record) in (first..).zip(records) {
            encode(record, sequence, SALT, &mut bytes);
        }
        bytes
    }

    #[test]
    fn shared_values_make_no_difference_in_the_file() {
        let sizes = [0, 1, SHARED_FROM_BYTES - 1, SHARED_FROM_BYTES, 1 << 20];
        for (first, second) in sizes.iter().flat_map(|a| sizes.iter().map(move |b| (*a, *b))) {
            let all = [write(first), bound(9), write(second), write(first)];
            let mut records = of(&all);
            for first in [u64::MAX, 3, 7] {
                records.number(first, SALT);
            }
            let bytes = written(&mut records);
            assert!(bytes == expected(&all, 7), "{first} {second}");
            assert_eq!((records.bytes(), records.count()), (bytes.len(), 4));
        }
    }

    /// More parts than the system takes at once.
    #[test]
    fn many_shared_values_are_written_whole() {
        let all: Vec<_> = (0..1_500).map(|_| write(SHARED_FROM_BYTES)).collect();
        let mut records = of(&all);
        records.number(1, SALT);
        assert!(written(&mut records) == expected(&all, 1));
    }

    #[test]
    fn what_is_kept_is_as_if_it_had_been_alone() {
        let all = [bound(1), write(1 << 20), bound(2), bound(3), write(5), bound(4)];
        let mut records = of(&all);
        records.keep([0..1, 2..4, 5..6].into_iter());
        records.number(1, SALT);
        assert_eq!(written(&mut records), expected(&[bound(1), bound(2), bound(3), bound(4)], 1));
        assert_eq!(records.count(), 4);
        records.clear();
        assert_eq!((records.count(), records.bytes(), written(&mut records)), (0, 0, Vec::new()));
    }
}
