//! `lally log check` and `lally log dump`, also beside a running node.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::Value;

use super::node::{Node, Setup, contents, file_with};

/// A stopped node with these many keys, `key-0` and so on, whose log is one segment.
pub(super) fn stopped_with(keys: usize) -> Node {
    let mut node = Setup::new().start_ready();
    let mut client = node.client();
    for i in 0..keys {
        client.add(&format!("key-{i}"), &format!("value-{i:04}-end")).succeeded();
    }
    assert_eq!(node.terminate(), Some(0));
    node
}

/// Flips a bit of a value in the log: the file, and a byte of the damaged record.
pub(super) fn damage(data_dir: &Path, value: &str) -> (PathBuf, usize) {
    let (log, at) = file_with(&data_dir.join("log"), value);
    let mut bytes = fs::read(&log).unwrap();
    bytes[at] ^= 0x20;
    fs::write(&log, bytes).unwrap();
    (log, at)
}

/// The numbers that a text says behind these words.
pub(super) fn numbers_behind(text: &str, words: &str) -> Vec<usize> {
    let behind = text.split(words).skip(1);
    let digits = behind.map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next().unwrap());
    digits.filter_map(|digits| digits.parse().ok()).collect()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_intact_log_is_checked_by_its_data_directory_its_directory_and_its_files() {
    let node = stopped_with(30);
    let before = contents(&node.setup().data_dir());
    let (file, _) = file_with(&node.setup().data_dir(), "value-0003-end");
    let length = fs::metadata(&file).unwrap().len();
    for path in ["lally-data", "lally-data/log", file.to_str().unwrap()] {
        let checked = node.setup().run_command(["log", "check", path]);
        assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""), "{checked:?}");
        let says = format!("segment, {} records, {length} bytes: intact\n", records(&node));
        assert!(checked.stdout.ends_with(&says), "{says:?}: {checked:?}");
    }
    assert!(contents(&node.setup().data_dir()) == before);
}

fn records(node: &Node) -> usize {
    node.setup().run_command(["log", "dump", "lally-data"]).stdout.lines().count()
}

#[test]
fn a_torn_tail_is_reported_and_is_no_damage() {
    let node = stopped_with(5);
    let (file, _) = file_with(&node.setup().data_dir(), "value-0003-end");
    let end = fs::metadata(&file).unwrap().len();
    let records = records(&node);
    OpenOptions::new().append(true).open(&file).unwrap().write_all(&[7; 11]).unwrap();
    let before = contents(&node.setup().data_dir());
    let checked = node.setup().run_command(["log", "check", "lally-data"]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let says = format!("torn tail of 11 bytes at byte offset {end}");
    assert!(checked.stdout.contains(&says), "{checked:?}");
    let dumped = node.setup().run_command(["log", "dump", "lally-data"]);
    assert_eq!((dumped.code, dumped.stdout.lines().count()), (Some(0), records));
    assert!(contents(&node.setup().data_dir()) == before);
}

#[test]
fn damage_is_reported_with_its_place_and_what_is_behind_it_and_the_start_says_the_same() {
    let node = stopped_with(100);
    let records = records(&node);
    let (file, at) = damage(&node.setup().data_dir(), "value-0040-end");
    let before = contents(&node.setup().data_dir());
    let checked = node.setup().run_command(["log", "check", "lally-data/log", "lally-data"]);
    checked.refused(65, &["error: damaged: 2 of 2 files", "lally log repair"]);
    let offsets = numbers_behind(&checked.stdout, "at byte offset ");
    assert_eq!(offsets.len(), 2, "{checked:?}");
    assert!(offsets[0] < at && at < offsets[0] + 100 && offsets[0] == offsets[1], "{checked:?}");
    assert!(
        checked.stdout.contains(file.to_str().unwrap())
            || checked.stdout.contains("lally-data/log/")
    );
    assert!(checked.stdout.contains(&format!("segment, {} records", records - 1)), "{checked:?}");
    assert!(checked.stdout.contains(" of the records stand behind the first of these"));
    let refused = node.setup().run();
    refused.refused(
        65,
        &["lally log check", "lally log repair", "--recover-from-peers", "--replay-log"],
    );
    assert_eq!(numbers_behind(&refused.stderr, "at byte offset ")[0], offsets[0], "{refused:?}");
    let dumped = node.setup().run_command(["log", "dump", "lally-data"]);
    dumped.refused(65, &[&format!("at byte offset {}", offsets[0])]);
    let printed = lines(&dumped.stdout);
    let keys: Vec<_> = printed.iter().filter_map(|line| line["key"].as_str()).collect();
    assert_eq!(keys, (0..40).map(|i| format!("key-{i}")).collect::<Vec<_>>());
    let now = contents(&node.setup().data_dir());
    // The start counted itself in node.json.
    let logs = |all: Vec<(PathBuf, Option<Vec<u8>>)>| {
        all.into_iter().filter(|(name, _)| name.starts_with("log")).collect::<Vec<_>>()
    };
    assert!(logs(now) == logs(before));
}

#[test]
fn what_is_not_there_is_a_usage_error_and_what_is_no_log_is_not_taken_for_one() {
    let setup = Setup::new();
    fs::create_dir(setup.dir().join("empty")).unwrap();
    fs::write(setup.dir().join("text"), "hello\n").unwrap();
    for command in ["check", "dump", "repair"] {
        setup.run_command(["log", command, "missing"]).refused(2, &["error", "missing"]);
        setup.run_command(["log", command, "empty"]).refused(1, &["there is no log", "empty"]);
        setup.run_command(["log", command, "text"]).refused(65, &["error"]);
    }
    assert!(!setup.dir().join("text.draft").exists());
    assert_eq!(fs::read_to_string(setup.dir().join("text")).unwrap(), "hello\n");
}

/// Writes go on, and compactions that replace the files, while the log is read.
#[test]
fn the_log_of_a_running_node_is_intact_at_every_moment() {
    let node = Setup::new().start_ready();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = node.client();
            for i in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                client.add(&format!("k{}", i % 50), &"x".repeat(1 + i % 5_000)).succeeded();
                if i % 40 == 0 {
                    client.ask("POST", "/admin/compact").succeeded();
                }
            }
        });
        for _ in 0..15 {
            for command in ["check", "dump"] {
                let read = node.setup().run_command(["log", command, "lally-data"]);
                if read.code != Some(0) {
                    done.store(true, Ordering::Relaxed);
                }
                assert_eq!((read.code, read.stderr.as_str()), (Some(0), ""), "{}", read.stdout);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_dump_says_everything_in_lines_of_json() {
    let mut node = Setup::new().start_ready();
    let mut client = node.client();
    let stamped = client.add("a \"b\"\n", "1\u{0}\t🦀").succeeded().timestamp();
    client.remove("gone").succeeded();
    assert_eq!(node.terminate(), Some(0));
    let dumped = node.setup().run_command(["log", "dump", "lally-data"]);
    assert_eq!((dumped.code, dumped.stderr.as_str()), (Some(0), ""));
    let printed = lines(&dumped.stdout);
    let id = node.setup().run_command(["log", "dump", "lally-data"]).stdout;
    assert_eq!(id, dumped.stdout, "twice the same");
    let written = printed.iter().find(|line| line["kind"] == "write").unwrap();
    assert_eq!(written["key"], "a \"b\"\n");
    assert_eq!(written["value"], "1\u{0}\t🦀");
    assert_eq!(written["timestamp"], stamped.as_str());
    assert_eq!(written["node"].as_str().unwrap().len(), 16);
    assert_eq!(written.as_object().unwrap().len(), 5);
    let removal = printed.iter().find(|line| line["kind"] == "tombstone").unwrap();
    assert_eq!((removal["key"].as_str(), removal.get("value")), (Some("gone"), None));
    let bound = printed.iter().find(|line| line["kind"] == "clock_bound").unwrap();
    assert_eq!(bound.as_object().unwrap().len(), 2);
}

#[test]
fn a_reader_who_has_seen_enough_ends_a_dump_quietly() {
    let node = stopped_with(2_000);
    // The code of the command itself, not that of the pipe.
    let script = "{ \"$0\" \"$@\"; echo \"code $?\" >&2; } | head -n 1";
    let piped = node.setup().clone().under(["sh", "-c", script]);
    let dumped = piped.run_command(["log", "dump", "lally-data"]);
    assert_eq!((dumped.stdout.lines().count(), dumped.stderr.trim()), (1, "code 0"), "{dumped:?}");
}

#[test]
fn a_snapshot_is_checked_and_dumped_like_the_rest() {
    let mut node = Setup::new().start_ready();
    let mut client = node.client();
    for i in 0..20 {
        client.add("same", &format!("{i}")).succeeded();
    }
    client.ask("POST", "/admin/compact").succeeded();
    client.add("after", "v").succeeded();
    assert_eq!(node.terminate(), Some(0));
    let checked = node.setup().run_command(["log", "check", "lally-data"]);
    assert_eq!(checked.code, Some(0));
    let kinds: Vec<_> = checked.stdout.lines().map(|line| line.contains(": snapshot, ")).collect();
    assert_eq!(kinds, [true, false], "{}", checked.stdout);
    let printed = lines(&node.setup().run_command(["log", "dump", "lally-data"]).stdout);
    let written = printed.iter().filter(|line| line["kind"] == "write");
    let keys: Vec<_> = written.map(|line| line["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["same", "after"]);
    // A snapshot without the segment behind it is none that a node would start on.
    let log = node.setup().data_dir().join("log");
    fs::remove_file(log.join("0000000000000002.log")).unwrap();
    let checked = node.setup().run_command(["log", "check", "lally-data"]);
    checked.refused(65, &["damaged"]);
    assert!(checked.stdout.contains("the segment that follows this snapshot is missing"));
    let alone = log.join("0000000000000002.snap");
    let checked = node.setup().run_command(["log", "check", alone.to_str().unwrap()]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}
