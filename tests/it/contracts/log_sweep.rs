//! A log of 64 KiB, damaged in every place and in every way: 0 wrong values.
//!
//! Each damaged log is read by what a start reads with (`verify_log`), and what comes of it is held
//! against what follows from the places of its records alone: a prefix of what was written and then
//! the refusal by file and offset, or, at the very end, a torn tail. What `lally log check` says of it
//! must be the same. In `log_damage` a small log goes through whole starts, which cut and append.
//!
//! `cargo test` takes every so many-th place; `make damage` every one, and writes down the numbers.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use lally::adapters::file_aof::{AofOptions, FileAof, FsyncPolicy, check_log, verify_log};
use lally::domain::{Entry, Key, KeyedEntry, NodeId, Timestamp, Value, Version};
use lally::ports::{LogError, LogRecord, OpLog, Replayed};
use tempfile::TempDir;

use crate::results;

const BYTES: usize = 64 << 10;
const HEAD_BYTES: usize = 20;
const SALT_AT: usize = 36;
/// The longest payload that a record may have.
const MAX_PAYLOAD: u32 = (16 << 20) + 4_096;

/// What came of the damaged logs of one kind.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    logs: u64,
    refused: u64,
    cut: u64,
    intact: u64,
    records: u64,
}

impl Tally {
    const fn add(&mut self, other: Self) {
        self.logs += other.logs;
        self.refused += other.refused;
        self.cut += other.cut;
        self.intact += other.intact;
        self.records += other.records;
    }
}

/// How much of everything is tried.
#[derive(Clone, Copy)]
struct Size {
    /// Of places.
    every: usize,
    /// Of flipped bits.
    every_bit: usize,
    /// Of pairs of records.
    every_pair: usize,
}

const SMALL: Size = Size { every: 37, every_bit: 211, every_pair: 307 };
const FULL: Size = Size { every: 1, every_bit: 1, every_pair: 1 };

/// An attack: what it is called, how many logs it makes, and the log of a number.
struct Attack {
    name: &'static str,
    count: usize,
    run: fn(&Lab, usize, &mut Tally),
    every: usize,
}

#[tokio::test]
async fn a_log_of_64_kib_damaged_in_any_way_gives_no_wrong_value() {
    let full = std::env::var_os("LALLY_TEST_DAMAGE").is_some();
    let size = if full { FULL } else { SMALL };
    let sample = Sample::new().await;
    let (n, bits) = (sample.records.len(), sample.bytes.len() * 8);
    let place = sample.bytes.len();
    let attacks = [
        Attack { name: "cut at every byte", count: place + 1, run: cut, every: size.every },
        Attack { name: "every bit flipped", count: bits, run: flip, every: size.every_bit },
        Attack { name: "512 bytes zeroed", count: place, run: zero_512, every: size.every },
        Attack { name: "4,096 bytes zeroed", count: place, run: zero_4096, every: size.every },
        Attack { name: "512 bytes of 0xff", count: place, run: ones_512, every: size.every },
        Attack { name: "record removed", count: n, run: remove, every: 1 },
        Attack { name: "record doubled", count: n, run: double, every: 1 },
        Attack {
            name: "records swapped",
            count: n * (n - 1) / 2,
            run: swap,
            every: size.every_pair,
        },
        Attack { name: "length 0, 1, max", count: n * 16, run: lengths, every: size.every.min(5) },
    ];
    let mut report = String::new();
    for attack in &attacks {
        let began = Instant::now();
        let tally = carry_out(attack, &sample);
        assert!(tally.logs > 0, "{}", attack.name);
        let Tally { logs, refused, cut, intact, records } = tally;
        let (name, seconds) = (attack.name, began.elapsed().as_secs());
        writeln!(
            report,
            "| {name} | {logs} | {refused} | {cut} | {intact} | {records} | {seconds} s |"
        )
        .unwrap();
    }
    eprintln!("{HEAD}{report}");
    results::keep("LALLY_DAMAGE_RESULT", || {
        let (bytes, records) = (sample.bytes.len(), sample.records.len());
        format!(
            "# Damage, {}\n\n\
             Revision {}, `make damage`, {}: a log of {bytes} bytes with {records} records, damaged \
             in every place. Each damaged log is read as a start reads it; *refused* by file and offset, \
             *cut* as a torn tail, or *intact* where the damage changed nothing. What was read is held \
             against what was written: a value that was not written there ends the run.\n\n{HEAD}{report}",
            results::date(),
            results::revision(),
            results::build()
        )
    });
}

const HEAD: &str = "| damage | logs | refused | cut | intact | records read | time |\n\
                    |---|---|---|---|---|---|---|\n";

/// On all cores, each with a log of its own.
fn carry_out(attack: &Attack, sample: &Sample) -> Tally {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let mut tally = Tally::default();
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|part| {
                scope.spawn(move || {
                    let lab = Lab::new(sample);
                    let mut tally = Tally::default();
                    let mine = (0..attack.count).step_by(attack.every).skip(part);
                    for number in mine.step_by(threads) {
                        (attack.run)(&lab, number, &mut tally);
                    }
                    tally
                })
            })
            .collect();
        for part in parts {
            tally.add(part.join().unwrap());
        }
    });
    tally
}

fn cut(lab: &Lab, length: usize, tally: &mut Tally) {
    lab.file.set_len(length as u64).unwrap();
    lab.judge(&lab.sample.bytes[..length], tally, true);
    lab.file.set_len(lab.sample.bytes.len() as u64).unwrap();
    lab.file.write_all_at(&lab.sample.bytes[length..], length as u64).unwrap();
}

fn flip(lab: &Lab, bit: usize, tally: &mut Tally) {
    let at = bit / 8;
    let flipped = [lab.sample.bytes[at] ^ (1 << (bit % 8))];
    // Every byte is checked once by the other reader, too.
    lab.overwrite(at, &flipped, tally, bit % 8 == at % 8);
}

fn zero_512(lab: &Lab, at: usize, tally: &mut Tally) {
    lab.fill(at, 512, 0, tally);
}

fn zero_4096(lab: &Lab, at: usize, tally: &mut Tally) {
    lab.fill(at, 4_096, 0, tally);
}

fn ones_512(lab: &Lab, at: usize, tally: &mut Tally) {
    lab.fill(at, 512, 0xff, tally);
}

fn remove(lab: &Lab, record: usize, tally: &mut Tally) {
    let Range { start, end } = lab.sample.place(record);
    let rest = &lab.sample.bytes[end..];
    let damaged = [&lab.sample.bytes[..start], rest].concat();
    // The last one is as if it had never been written.
    let expected = if rest.is_empty() {
        Verdict::Torn { good: record }
    } else {
        Verdict::Refused { good: record }
    };
    lab.rewrite(&damaged, expected, tally);
}

fn double(lab: &Lab, record: usize, tally: &mut Tally) {
    let place = lab.sample.place(record);
    let (before, rest) = lab.sample.bytes.split_at(place.end);
    let damaged = [before, &lab.sample.bytes[place], rest].concat();
    lab.rewrite(&damaged, Verdict::Refused { good: record + 1 }, tally);
}

fn swap(lab: &Lab, pair: usize, tally: &mut Tally) {
    let Sample { bytes, records, .. } = lab.sample;
    // The pairs (1, 0), (2, 0), (2, 1), (3, 0), ...
    let other = (1..records.len()).find(|n| n * (n + 1) / 2 > pair).unwrap();
    let one = pair - other * (other - 1) / 2;
    let (first, second) = (lab.sample.place(one), lab.sample.place(other));
    let damaged = [
        &bytes[..first.start],
        &bytes[second.clone()],
        &bytes[first.end..second.start],
        &bytes[first],
        &bytes[second.end..],
    ]
    .concat();
    lab.rewrite(&damaged, Verdict::Refused { good: one }, tally);
}

/// Lengths with right and wrong checksums of the head and of the payload, as far as there is one.
fn lengths(lab: &Lab, number: usize, tally: &mut Tally) {
    let (record, how) = (number / 16, number % 16);
    let lengths = [0, 1, MAX_PAYLOAD, u32::MAX];
    let (length, sealed, right_payload) = (lengths[how / 4], how % 2 == 1, how / 2 % 2 == 1);
    let Range { start, end } = lab.sample.place(record);
    let mut framed = lab.sample.bytes[start..end].to_vec();
    framed[..4].copy_from_slice(&length.to_le_bytes());
    if sealed {
        let salted = crc32c::crc32c(&lab.sample.bytes[SALT_AT..SALT_AT + 8]);
        let crc = crc32c::crc32c_append(salted, &framed[..HEAD_BYTES - 4]);
        framed[HEAD_BYTES - 4..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    }
    // A record of this length in full, which says nothing that any version of Lally has written:
    // only a write is, of a key without a name or of a field that is cut off.
    let is_write = framed[4] == 1;
    let payload_bytes = length as usize;
    if right_payload && is_write && payload_bytes <= 1 {
        let payload = HEAD_BYTES..HEAD_BYTES + payload_bytes;
        let crc = crc32c::crc32c(&framed[payload.clone()]);
        framed[payload.end..payload.end + 4].copy_from_slice(&crc.to_le_bytes());
    }
    let damaged = [&lab.sample.bytes[..start], &framed[..], &lab.sample.bytes[end..]].concat();
    let is_last = record + 1 == lab.sample.records.len();
    let verifies = sealed && right_payload && is_write && payload_bytes <= 1;
    let expected = if is_last && !verifies {
        Verdict::Torn { good: record }
    } else {
        Verdict::Refused { good: record }
    };
    lab.rewrite(&damaged, expected, tally);
}

/// What must come of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// So many records, and the rest is cut.
    Torn { good: usize },
    /// So many records, and then damage.
    Refused { good: usize },
    /// The header is damaged.
    HeaderRefused,
}

/// A log that is as it was written.
struct Sample {
    _dir: TempDir,
    bytes: Vec<u8>,
    /// Where each record begins, the first one after the file's header; at last, where they end.
    bounds: Vec<usize>,
    records: Vec<LogRecord>,
}

impl Sample {
    async fn new() -> Self {
        let dir = in_memory();
        let options = AofOptions::new(dir.path(), "lally", NodeId::new(1));
        let log = FileAof::open(AofOptions { fsync: FsyncPolicy::Never, ..options }).unwrap();
        log.replay(Box::new(drop)).await.unwrap();
        let file = dir.path().join("0000000000000001.log");
        let length = || usize::try_from(fs::metadata(&file).unwrap().len()).unwrap();
        let (mut records, mut bounds) = (Vec::new(), vec![length()]);
        while length() < BYTES {
            let record = some_record(records.len() as u64 + 1, BYTES - length());
            log.append(std::slice::from_ref(&record)).await.unwrap();
            records.push(record);
            bounds.push(length());
        }
        log.close().await.unwrap();
        let bytes = fs::read(&file).unwrap();
        assert!((BYTES..BYTES + 100).contains(&bytes.len()), "{}", bytes.len());
        Self { _dir: dir, bytes, bounds, records }
    }

    fn place(&self, record: usize) -> Range<usize> {
        self.bounds[record]..self.bounds[record + 1]
    }

    /// What follows for a log that has every byte in its place, or another one there.
    fn verdict(&self, damaged: &[u8]) -> Verdict {
        let intact = |record: &usize| {
            damaged.get(self.place(*record)) == Some(&self.bytes[self.place(*record)])
        };
        if damaged.get(..self.bounds[0]) != Some(&self.bytes[..self.bounds[0]]) {
            return Verdict::HeaderRefused;
        }
        let good = (0..self.records.len()).take_while(intact).count();
        if (good..self.records.len()).rev().any(|record| intact(&record)) {
            Verdict::Refused { good }
        } else {
            Verdict::Torn { good }
        }
    }
}

/// Of every kind, and of many sizes; with zeros in the middle of some values.
fn some_record(n: u64, room: usize) -> LogRecord {
    let key = Key::new(&format!("key-{}", n % 23)).unwrap();
    let version =
        Version::new(Timestamp::from_nanos(1_700_000_000_000_000_000 + n), NodeId::new(1));
    match n % 12 {
        3 => LogRecord::ClockBound(version.timestamp),
        5 => LogRecord::Write(KeyedEntry::new(key, Entry::tombstone(version))),
        7 => LogRecord::Horizon(version.timestamp),
        9 => LogRecord::Expunged { key, version },
        kind => {
            let length = [0, 20, 100, 400, 900, 2_500][usize::try_from(kind % 6).unwrap()];
            let value = if room > 4_096 {
                "v\0🦀".repeat(length / 6) + &"\0".repeat(length / 10)
            } else {
                "v".repeat(room.min(40))
            };
            LogRecord::Write(KeyedEntry::new(key, Entry::live(version, Value::new(&value))))
        }
    }
}

/// Where a log is damaged, over and over.
struct Lab<'a> {
    sample: &'a Sample,
    dir: TempDir,
    path: PathBuf,
    file: File,
    options: AofOptions,
}

impl<'a> Lab<'a> {
    fn new(sample: &'a Sample) -> Self {
        let dir = in_memory();
        let path = dir.path().join("0000000000000001.log");
        fs::write(&path, &sample.bytes).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let options = AofOptions::new(dir.path(), "lally", NodeId::new(1));
        Self { sample, dir, path, file, options }
    }

    fn fill(&self, at: usize, length: usize, with: u8, tally: &mut Tally) {
        let length = length.min(self.sample.bytes.len() - at);
        self.overwrite(at, &vec![with; length], tally, at.is_multiple_of(8));
    }

    /// Other bytes in the place of those that are there.
    fn overwrite(&self, at: usize, with: &[u8], tally: &mut Tally, checked: bool) {
        let mut damaged = self.sample.bytes.clone();
        damaged[at..at + with.len()].copy_from_slice(with);
        self.file.write_all_at(with, at as u64).unwrap();
        self.judge(&damaged, tally, checked);
        self.file.write_all_at(&self.sample.bytes[at..at + with.len()], at as u64).unwrap();
    }

    fn judge(&self, damaged: &[u8], tally: &mut Tally, checked: bool) {
        self.hold(self.sample.verdict(damaged), damaged.len(), tally, checked);
    }

    fn rewrite(&self, damaged: &[u8], expected: Verdict, tally: &mut Tally) {
        self.file.write_all_at(damaged, 0).unwrap();
        self.file.set_len(damaged.len() as u64).unwrap();
        self.hold(expected, damaged.len(), tally, true);
        self.file.write_all_at(&self.sample.bytes, 0).unwrap();
        self.file.set_len(self.sample.bytes.len() as u64).unwrap();
    }

    /// Reads the file as it is now, and holds what comes of it against what must.
    fn hold(&self, expected: Verdict, length: usize, tally: &mut Tally, checked: bool) {
        let mut read = 0;
        let outcome = verify_log(&self.options, |record| {
            assert_eq!(self.sample.records.get(read), Some(&record), "a wrong value: {expected:?}");
            read += 1;
        });
        let Self { sample, path, .. } = self;
        let bound = |good: usize| sample.bounds[good] as u64;
        tally.logs += 1;
        tally.records += read as u64;
        match (expected, &outcome) {
            (Verdict::Torn { good }, Ok(Replayed { cut_bytes, .. })) => {
                assert_eq!((read, *cut_bytes), (good, length as u64 - bound(good)));
                if *cut_bytes > 0 { tally.cut += 1 } else { tally.intact += 1 }
            }
            (Verdict::Refused { good }, Err(LogError::Corrupt { file, offset, .. })) => {
                assert_eq!((read, *offset), (good, bound(good)));
                assert_eq!(*file, path.display().to_string());
                tally.refused += 1;
            }
            (Verdict::HeaderRefused, Err(LogError::Corrupt { offset: 0, .. })) if read == 0 => {
                tally.refused += 1;
            }
            _ => panic!("{expected:?}, and it gave {outcome:?} after {read} records"),
        }
        if checked {
            self.hold_check(expected, length);
        }
    }

    fn hold_check(&self, expected: Verdict, length: usize) {
        let reports = check_log(self.dir.path(), None).unwrap();
        let [report] = &reports[..] else { panic!("{reports:?}") };
        let bound = |good: usize| self.sample.bounds[good] as u64;
        let first = report.damages.listed.first().map(|flaw| flaw.bytes.start);
        let torn = report.torn.as_ref().map(|flaw| flaw.bytes.clone());
        match expected {
            Verdict::Torn { good } => {
                let tail = bound(good)..length as u64;
                assert_eq!((first, torn), (None, Some(tail).filter(|tail| !tail.is_empty())));
                assert_eq!(report.records, good as u64);
            }
            Verdict::Refused { good } => {
                assert_eq!((first, torn), (Some(bound(good)), None), "{report:?}");
                assert_eq!(report.records - report.records_behind, good as u64);
            }
            Verdict::HeaderRefused => assert_eq!((first, torn), (Some(0), None), "{report:?}"),
        }
    }
}

fn in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).unwrap()
}
