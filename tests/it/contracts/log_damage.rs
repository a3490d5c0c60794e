//! What `FileAof` makes of a log that is not as it was written: cut, flipped, zeroed, rearranged.
//!
//! A log of about 4 KiB is damaged in every place, and each time the reader is compared with what
//! follows from the places of its records alone: damage with an intact record behind it is refused,
//! by file and offset, and nothing is changed; damage at the very end is the rest of a write that a
//! crash interrupted, and is cut. In no case is anything replayed but a prefix of what was written.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use lally::adapters::file_aof::{AofOptions, FileAof, FsyncPolicy};
use lally::domain::{Entry, Key, KeyedEntry, NodeId, Timestamp, Value, Version};
use lally::ports::{LogError, LogRecord, OpLog, Replayed};
use tempfile::TempDir;

/// Bytes that a disk loses at a time.
const SECTOR_BYTES: usize = 512;

#[tokio::test]
async fn a_log_cut_at_any_byte_gives_the_records_before_the_cut() {
    let sample = Sample::new().await;
    for length in 0..=sample.bytes.len() {
        sample.check(&sample.bytes[..length]).await;
    }
}

#[tokio::test]
async fn a_flipped_bit_in_any_byte_is_noticed() {
    let sample = Sample::new().await;
    for at in 0..sample.bytes.len() {
        let mut damaged = sample.bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        sample.check(&damaged).await;
    }
}

/// The header, the first records and the last ones; beyond them every 32nd byte.
#[tokio::test]
async fn every_flipped_bit_is_noticed() {
    let sample = Sample::new().await;
    let (few, last) = (sample.bounds[3], sample.bounds[sample.records.len() - 2]);
    for at in (0..sample.bytes.len()).filter(|at| *at < few || *at >= last || at % 32 == 0) {
        for bit in 0..8 {
            let mut damaged = sample.bytes.clone();
            damaged[at] ^= 1 << bit;
            sample.check(&damaged).await;
        }
    }
}

#[tokio::test]
async fn zeroed_sectors_are_noticed() {
    let sample = Sample::new().await;
    let sectors = sample.bytes.len().div_ceil(SECTOR_BYTES);
    for first in 0..sectors {
        for last in first..sectors {
            let mut damaged = sample.bytes.clone();
            let end = ((last + 1) * SECTOR_BYTES).min(damaged.len());
            damaged[first * SECTOR_BYTES..end].fill(0);
            sample.check(&damaged).await;
        }
    }
}

/// A header is on disk before its file has a name, so zeros are no torn tail of one.
#[tokio::test]
async fn a_file_of_zeros_is_damaged_however_short() {
    let sample = Sample::new().await;
    for length in (0..=sample.bounds[0] + 1).chain([511, 512, 513, 4_096, 1 << 20]) {
        sample.check_refused_at(&vec![0; length], 0, 0).await;
    }
}

#[tokio::test]
async fn a_tail_that_was_never_written_is_cut() {
    let sample = Sample::new().await;
    for bytes in [1, 19, 20, 24, 511, 4_096, (1 << 20) - 1, 1 << 20, (1 << 20) + 20, 3 << 20] {
        for filler in [0, 0xff, 1] {
            let mut damaged = sample.bytes.clone();
            damaged.resize(damaged.len() + bytes, filler);
            sample.check(&damaged).await;
        }
    }
}

#[tokio::test]
async fn a_record_that_is_missing_is_noticed() {
    let sample = Sample::new().await;
    for at in 0..sample.records.len() {
        let rest = &sample.bytes[sample.bounds[at + 1]..];
        let damaged = [&sample.bytes[..sample.bounds[at]], rest].concat();
        if rest.is_empty() {
            sample.check(&damaged).await;
        } else {
            sample.check_refused(&damaged, at).await;
        }
    }
}

#[tokio::test]
async fn two_records_that_have_changed_places_are_noticed() {
    let sample = Sample::new().await;
    for one in 0..sample.records.len() {
        for other in one + 1..sample.records.len() {
            let record = |at: usize| &sample.bytes[sample.bounds[at]..sample.bounds[at + 1]];
            let between = &sample.bytes[sample.bounds[one + 1]..sample.bounds[other]];
            let (before, after) =
                (&sample.bytes[..sample.bounds[one]], &sample.bytes[sample.bounds[other + 1]..]);
            let damaged = [before, record(other), between, record(one), after].concat();
            sample.check_refused(&damaged, one).await;
        }
    }
}

#[tokio::test]
async fn a_record_that_stands_there_twice_is_noticed() {
    let sample = Sample::new().await;
    for at in 0..sample.records.len() {
        let (before, rest) = sample.bytes.split_at(sample.bounds[at + 1]);
        let damaged = [before, &sample.bytes[sample.place(at)], rest].concat();
        sample.check_refused(&damaged, at + 1).await;
    }
}

#[tokio::test]
async fn a_record_of_another_log_is_not_one_of_this() {
    let (sample, other) = (Sample::new().await, Sample::new().await);
    assert_eq!(sample.bounds, other.bounds);
    for at in 0..sample.records.len() {
        let mut damaged = sample.bytes.clone();
        damaged[sample.place(at)].copy_from_slice(&other.bytes[other.place(at)]);
        sample.check(&damaged).await;
        // Even where it would be the next one.
        let next = sample.bounds[at];
        let appended = [&sample.bytes[..next], &other.bytes[other.place(at)]].concat();
        sample.check(&appended).await;
    }
}

/// The search for intact records reads the file in parts; a header may lie across two of them.
#[tokio::test]
async fn an_intact_record_far_behind_the_damage_is_found() {
    const SEARCHED_AT_A_TIME: usize = 1 << 20;
    for shift in 0..32 {
        let large = "v".repeat(SEARCHED_AT_A_TIME - 78 + shift);
        let sample = Sample::of(vec![
            write(1, "before", Some("v")),
            write(2, "large", Some(&large)),
            write(3, "behind", Some("v")),
        ])
        .await;
        let mut damaged = sample.bytes.clone();
        damaged[sample.bounds[1]] ^= 1;
        sample.check(&damaged).await;
    }
}

#[tokio::test]
async fn a_log_whose_torn_tail_was_cut_is_appended_to_as_any_other() {
    let sample = Sample::new().await;
    let step = if cfg!(debug_assertions) { 13 } else { 1 };
    for length in (sample.bounds[0]..sample.bytes.len()).step_by(step) {
        sample.put(&sample.bytes[..length]);
        let opened = sample.open().await;
        let mut expected = opened.visited;
        assert!(sample.records.starts_with(&expected));
        for time in 1..4 {
            let record = write(time, "after the cut", Some("v"));
            opened.log.append(std::slice::from_ref(&record)).await.unwrap();
            expected.push(record);
        }
        drop(opened.log);
        let again = sample.open().await;
        assert_eq!(again.visited, expected, "cut at {length}");
        assert_eq!(again.outcome.unwrap().cut_bytes, 0);
    }
}

#[tokio::test]
async fn a_log_that_was_refused_is_refused_again() {
    let sample = Sample::new().await;
    let mut damaged = sample.bytes.clone();
    damaged[sample.bounds[2] + 3] ^= 4;
    for _ in 0..3 {
        sample.check_refused(&damaged, 2).await;
    }
    let opened = sample.open().await;
    assert!(opened.outcome.is_err());
    assert!(opened.log.append(&[write(1, "k", None)]).await.is_err());
    drop(opened.log);
    assert!(fs::read(sample.file()).unwrap() == damaged);
}

#[tokio::test]
async fn a_log_of_another_cluster_is_refused_by_both_names() {
    let sample = Sample::new().await;
    sample.put(&sample.bytes);
    let options = AofOptions::new(sample.dir.path(), "green", NodeId::new(1));
    let log = FileAof::open(options).unwrap();
    let refused = log.replay(Box::new(|record| panic!("{record:?}"))).await.unwrap_err();
    let LogError::Corrupt { file, offset: 0, reason } = refused else { panic!("{refused}") };
    assert_eq!(file, sample.file().display().to_string());
    assert!(reason.contains("lally") && reason.contains("green"), "{reason}");
}

#[tokio::test]
async fn a_second_segment_is_read_after_the_first_and_appended_to() {
    let sample = Sample::new().await;
    let second = sample.segment(2);
    let mut expected = sample.records.clone();
    sample.put(&sample.bytes);
    fs::write(&second, segment_header(2, 1 + sample.records.len() as u64)).unwrap();
    // Left over from a crash.
    fs::write(sample.segment(3).with_extension("new"), b"LALLY").unwrap();
    for time in 0..3 {
        let opened = sample.open().await;
        assert_eq!(opened.visited, expected);
        let record = write(time, "in the second", Some("v"));
        opened.log.append(std::slice::from_ref(&record)).await.unwrap();
        expected.push(record);
    }
    assert_eq!(sample.open().await.visited, expected);
    assert!(fs::read(sample.segment(1)).unwrap() == sample.bytes);
    // The first one is not the last any more: what is torn there is damage.
    let (last, before) = (sample.records.len() - 1, fs::read(&second).unwrap());
    sample.check_refused(&sample.bytes[..sample.bytes.len() - 1], last).await;
    assert!(fs::read(&second).unwrap() == before);
}

#[tokio::test]
async fn a_segment_that_is_missing_empty_or_there_twice_is_noticed() {
    let sample = Sample::new().await;
    let (second, next) = (sample.segment(2), 1 + sample.records.len() as u64);
    let refused_at = async |segment: &Path| {
        let opened = sample.open().await;
        let Err(LogError::Corrupt { file, offset: 0, .. }) = opened.outcome else {
            panic!("{:?}", opened.outcome);
        };
        assert_eq!(file, segment.display().to_string());
        opened.visited.len()
    };
    sample.put(&sample.bytes);
    let seconds =
        [sample.bytes.clone(), segment_header(2, next - 1), segment_header(2, next + 1), vec![]];
    for bytes in seconds {
        fs::write(&second, bytes).unwrap();
        assert_eq!(refused_at(&second).await, sample.records.len());
    }
    fs::write(&second, segment_header(2, next)).unwrap();
    fs::remove_file(sample.file()).unwrap();
    assert_eq!(refused_at(&second).await, 0);
}

/// A log and where its records stand.
struct Sample {
    dir: TempDir,
    bytes: Vec<u8>,
    /// Where each record begins, the first one after the file's header; at last, where they end.
    bounds: Vec<usize>,
    records: Vec<LogRecord>,
}

/// What came of opening a log.
struct Opened {
    log: FileAof,
    visited: Vec<LogRecord>,
    outcome: Result<Replayed, LogError>,
}

impl Sample {
    /// A log of 4 KiB and a bit, with records of every kind and many sizes.
    async fn new() -> Self {
        let mut records = vec![write(1, "first", Some("v"))];
        let texts = [Some("v"), None, Some(""), Some("🦀\0\n"), None, Some("a longer one")];
        for (time, text) in (2..).zip(texts.iter().cycle()).take(54) {
            records.push(write(time, &format!("key-{}", time % 7), *text));
            if time % 5 == 0 {
                records.push(LogRecord::ClockBound(Timestamp::from_nanos(time)));
            }
        }
        records.insert(5, write(1, "large", Some(&"v".repeat(700))));
        records.insert(30, write(100, "large", Some(&"w".repeat(600))));
        let sample = Self::of(records).await;
        assert!((4_000..6_000).contains(&sample.bytes.len()), "{}", sample.bytes.len());
        sample
    }

    async fn of(records: Vec<LogRecord>) -> Self {
        // In memory where there is such a place: there are thousands of damages to write down.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let dir = tempfile::tempdir_in(place).unwrap();
        let (bytes, bounds) = (Vec::new(), Vec::new());
        let mut sample = Self { dir, bytes, bounds, records };
        let log = sample.open().await.log;
        sample.bounds.push(fs::read(sample.file()).unwrap().len());
        for record in &sample.records {
            log.append(std::slice::from_ref(record)).await.unwrap();
            let length = fs::metadata(sample.file()).unwrap().len();
            sample.bounds.push(usize::try_from(length).unwrap());
        }
        log.close().await.unwrap();
        sample.bytes = fs::read(sample.file()).unwrap();
        sample
    }

    fn file(&self) -> PathBuf {
        self.segment(1)
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.dir.path().join(format!("{number:016}.log"))
    }

    fn place(&self, record: usize) -> Range<usize> {
        self.bounds[record]..self.bounds[record + 1]
    }

    fn put(&self, bytes: &[u8]) {
        fs::write(self.file(), bytes).unwrap();
    }

    async fn open(&self) -> Opened {
        let options = AofOptions::new(self.dir.path(), "lally", NodeId::new(1));
        let log = FileAof::open(AofOptions { fsync: FsyncPolicy::Never, ..options }).unwrap();
        let visited = Arc::new(Mutex::new(Vec::new()));
        let visits = Arc::clone(&visited);
        let visitor = move |record| visits.lock().unwrap().push(record);
        let outcome = log.replay(Box::new(visitor)).await;
        let visited = std::mem::take(&mut *visited.lock().unwrap());
        Opened { log, visited, outcome }
    }

    /// Opens the log as it is in these bytes, and holds what comes of it against what must.
    async fn check(&self, damaged: &[u8]) {
        let intact = |record: &usize| {
            damaged.get(self.place(*record)) == Some(&self.bytes[self.place(*record)])
        };
        let header = ..self.bounds[0];
        if damaged.get(header) != Some(&self.bytes[header]) {
            return self.check_refused_at(damaged, 0, 0).await;
        }
        let good = (0..self.records.len()).take_while(intact).count();
        if (good..self.records.len()).any(|record| intact(&record)) {
            self.check_refused(damaged, good).await;
        } else {
            self.check_cut(damaged, good).await;
        }
    }

    async fn check_cut(&self, damaged: &[u8], good: usize) {
        self.put(damaged);
        let opened = self.open().await;
        assert_eq!(opened.visited, self.records[..good], "{:?}", opened.outcome);
        let replayed = opened.outcome.unwrap();
        assert_eq!(replayed.records, good as u64);
        assert_eq!(replayed.cut_bytes, (damaged.len() - self.bounds[good]) as u64);
        let left = fs::read(self.file()).unwrap();
        assert!(left == self.bytes[..self.bounds[good]], "not cut after record {good}");
    }

    /// The record of this number does not stand where it should, and intact ones follow.
    async fn check_refused(&self, damaged: &[u8], record: usize) {
        self.check_refused_at(damaged, self.bounds[record] as u64, record).await;
    }

    async fn check_refused_at(&self, damaged: &[u8], at: u64, good: usize) {
        self.put(damaged);
        let opened = self.open().await;
        assert_eq!(opened.visited, self.records[..good], "{:?}", opened.outcome);
        let Err(LogError::Corrupt { file, offset, reason }) = opened.outcome else {
            panic!("damage at {at} gave {:?}", opened.outcome);
        };
        assert_eq!((file, offset), (self.file().display().to_string(), at), "{reason}");
        drop(opened.log);
        assert!(fs::read(self.file()).unwrap() == damaged, "refused at {at}, yet changed");
    }
}

fn write(time: u64, name: &str, text: Option<&str>) -> LogRecord {
    let version = Version::new(Timestamp::from_nanos(time), NodeId::new(1));
    let value = text.map(Value::new);
    let entry = value.map_or_else(|| Entry::tombstone(version), |v| Entry::live(version, v));
    LogRecord::Write(KeyedEntry::new(Key::new(name).unwrap(), entry))
}

/// The header of a segment, as `docs/log-format.md` has it.
fn segment_header(number: u64, first_sequence: u64) -> Vec<u8> {
    let cluster = b"lally";
    let mut header = b"LALLYLOG\x01\x00".to_vec();
    header.extend(u16::try_from(48 + cluster.len()).unwrap().to_le_bytes());
    let (node, salt) = (1_u64, 0x5a17_u64);
    header.extend([number, node, first_sequence, salt].iter().flat_map(|n| n.to_le_bytes()));
    header.extend(cluster);
    let crc = crc32c::crc32c(&header);
    header.extend(crc.to_le_bytes());
    header
}
