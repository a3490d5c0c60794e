//! Logs of every released format, kept as files in `tests/golden`: this release reads them.
//!
//! What a log says is written down from the records that went into it, when it is made, so the reader
//! is not asked to confirm itself.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use lally::adapters::file_aof::{AofOptions, FileAof, FsyncPolicy, check_log};
use lally::adapters::record_lines;
use lally::domain::{Entry, Key, KeyedEntry, NodeId, Timestamp, Value, Version};
use lally::ports::{LogError, LogRecord, OpLog, SnapshotEntries, SnapshotSource};

use crate::process::node::Setup;

const NODE: NodeId = NodeId::new(0x1f0c_8e3a_5b7d_9241);
const TORN_BYTES: u64 = 13;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn formats() -> Vec<PathBuf> {
    let dirs = fs::read_dir(golden()).unwrap().map(|dir| dir.unwrap().path());
    dirs.filter(|dir| dir.is_dir()).collect()
}

#[test]
fn every_released_format_is_read() {
    let formats = formats();
    assert!(!formats.is_empty());
    for format in formats {
        let setup = Setup::new();
        let path = format.to_str().unwrap();
        let dumped = setup.run_command(["log", "dump", path]);
        assert_eq!((dumped.code, dumped.stderr.as_str()), (Some(0), ""), "{path}");
        let expected = fs::read_to_string(format.join("dump.jsonl")).unwrap();
        assert!(dumped.stdout == expected, "{path}: {}", dumped.stdout);
        let reports = check_log(&format, None).unwrap();
        let kinds: Vec<_> = reports.iter().map(|report| report.kind).collect();
        assert_eq!(kinds, ["snapshot", "segment", "segment"], "{path}");
        assert!(reports.iter().all(|report| !report.is_damaged()), "{reports:?}");
        let torn = reports.last().unwrap().torn.as_ref().unwrap();
        assert_eq!(torn.bytes.end - torn.bytes.start, TORN_BYTES);
    }
}

#[test]
fn a_node_starts_on_every_released_format() {
    for format in formats() {
        let setup = Setup::new();
        let data_dir = setup.data_dir();
        fs::create_dir_all(data_dir.join("log")).unwrap();
        for file in fs::read_dir(format.join("log")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), data_dir.join("log").join(file.file_name())).unwrap();
        }
        let book = format!(
            r#"{{"id":"{NODE}","generation":1,"phase":"whole","cluster":"lally","members":[]}}"#
        );
        fs::write(data_dir.join("node.json"), book).unwrap();
        let node = setup.start_ready();
        let mut client = node.client();
        for (key, value) in [
            ("kept", Some("in the snapshot")),
            ("twice", Some("the later one")),
            ("removed", None),
            ("forgotten", None),
            ("expunged", None),
            ("awkward \"\n\u{0}🦀", Some("\u{0}\r\n\t\"\\ é 🦀")),
            ("empty", Some("")),
        ] {
            assert_eq!(client.get(key).value().as_deref(), value, "{key:?}: {}", format.display());
        }
        node.wait_for_log(&["torn tail of the log cut", &format!("bytes={TORN_BYTES}")]);
    }
}

/// By `make golden` into `tests/golden`, else to see that it can be.
#[tokio::test]
async fn a_golden_log_is_written_and_says_what_was_written() {
    let temp = tempfile::tempdir().unwrap();
    let draft = temp.path().join("draft");
    write(&draft).await;
    let segment = fs::read(draft.join("log/0000000000000003.log")).unwrap();
    let version = u16::from_le_bytes([segment[8], segment[9]]);
    let target = std::env::var_os("LALLY_TEST_GOLDEN").map_or(temp.path().into(), PathBuf::from);
    let format = target.join(format!("format-{version}"));
    assert!(!format.exists(), "{} is there already, and is never changed", format.display());
    fs::create_dir_all(format.join("log")).unwrap();
    for file in fs::read_dir(draft.join("log")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), format.join("log").join(file.file_name())).unwrap();
    }
    fs::copy(draft.join("dump.jsonl"), format.join("dump.jsonl")).unwrap();
    let dumped = Setup::new().run_command(["log", "dump", format.to_str().unwrap()]);
    assert_eq!(dumped.stdout, fs::read_to_string(format.join("dump.jsonl")).unwrap());
}

async fn write(format: &Path) {
    let options = AofOptions::new(&format.join("log"), "lally", NODE);
    let options = AofOptions { fsync: FsyncPolicy::Never, ..options };
    fs::create_dir_all(&options.dir).unwrap();
    let log = FileAof::open(options.clone()).unwrap();
    log.replay(Box::new(drop)).await.unwrap();
    let compact = async |held: &[KeyedEntry]| {
        log.compact(Box::new(Source(held.to_vec()))).await.unwrap();
    };
    let (bound, horizon) = (LogRecord::ClockBound(at(20)), LogRecord::Horizon(at(5)));
    let held = [
        entry("kept", 3, Some("in the snapshot")),
        entry("twice", 4, Some("the earlier one")),
        entry("forgotten", 5, None),
        entry("removed", 6, Some("v")),
    ];
    log.append(
        &[entry("kept", 1, Some("overwritten")), entry("kept", 2, None)].map(LogRecord::Write),
    )
    .await
    .unwrap();
    log.append(&[bound.clone(), horizon.clone()]).await.unwrap();
    log.append(&held.clone().map(LogRecord::Write)).await.unwrap();
    compact(&held).await;
    let second = [
        LogRecord::Write(entry("twice", 7, Some("the later one"))),
        LogRecord::Write(entry("removed", 8, None)),
        LogRecord::Write(entry("expunged", 9, Some("v"))),
        LogRecord::Expunged { key: key("expunged"), version: version(9) },
        LogRecord::ClockBound(at(30)),
    ];
    log.append(&second).await.unwrap();
    log.close().await.unwrap();
    drop(log);
    // A segment goes on in the next one when it is long, or when a compaction begins that fails.
    let log = FileAof::open(options.clone()).unwrap();
    log.replay(Box::new(drop)).await.unwrap();
    log.compact(Box::new(NoSource)).await.unwrap_err();
    let third = [
        LogRecord::Write(entry("awkward \"\n\u{0}🦀", 10, Some("\u{0}\r\n\t\"\\ é 🦀"))),
        LogRecord::Write(entry("empty", 11, Some(""))),
        LogRecord::Horizon(at(0)),
        LogRecord::Horizon(at(6)),
    ];
    log.append(&third).await.unwrap();
    log.close().await.unwrap();
    drop(log);
    let last = options.dir.join("0000000000000003.log");
    let bytes = fs::read(&last).unwrap();
    // As much of a record as a crash may leave: it begins like the first one.
    let begun = &bytes[53..53 + usize::try_from(TORN_BYTES).unwrap()];
    OpenOptions::new().append(true).open(&last).unwrap().write_all(begun).unwrap();
    let mut lines = Vec::new();
    let snapshot = [bound, horizon].into_iter().chain(held.map(LogRecord::Write));
    for record in snapshot.chain(second).chain(third) {
        record_lines::encode(&record, &mut lines);
    }
    fs::write(format.join("dump.jsonl"), lines).unwrap();
}

fn at(second: u64) -> Timestamp {
    if second == 0 {
        return Timestamp::ZERO;
    }
    Timestamp::from_nanos(1_769_860_800_123_456_789 + second * 1_000_000_000)
}

fn version(second: u64) -> Version {
    Version::new(at(second), NODE)
}

fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

fn entry(name: &str, second: u64, value: Option<&str>) -> KeyedEntry {
    let version = version(second);
    let entry = value.map_or(Entry::tombstone(version), |v| Entry::live(version, Value::new(v)));
    KeyedEntry::new(key(name), entry)
}

struct Source(Vec<KeyedEntry>);

#[async_trait]
impl SnapshotSource for Source {
    async fn settle(&mut self) -> Result<Box<dyn SnapshotEntries>, LogError> {
        Ok(Box::new(Once(Some(std::mem::take(&mut self.0)))))
    }
}

struct Once(Option<Vec<KeyedEntry>>);

impl SnapshotEntries for Once {
    fn next(&mut self) -> Option<Vec<KeyedEntry>> {
        self.0.take()
    }
}

struct NoSource;

#[async_trait]
impl SnapshotSource for NoSource {
    async fn settle(&mut self) -> Result<Box<dyn SnapshotEntries>, LogError> {
        Err(LogError::Overloaded)
    }
}
