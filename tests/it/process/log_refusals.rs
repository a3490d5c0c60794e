//! Logs that no node starts on: each ends it with 65, the file and the offset, and is left as it is.
//!
//! What is changed here has right checksums, as if another program had written it: what is found by
//! its checksums alone is in `contracts::log_damage` and `contracts::log_sweep`.

use std::fs;
use std::path::{Path, PathBuf};

use super::log_commands::{numbers_behind, stopped_with};
use super::node::{Finished, Node, Setup, contents, file_with};

const NODE_AT: usize = 20;
const SALT_AT: usize = 36;
const CLUSTER: &[u8] = b"lally";
const HEADER_BYTES: usize = 48 + CLUSTER.len();
const HEAD_BYTES: usize = 20;

/// The only segment of a stopped node.
fn segment(node: &Node) -> PathBuf {
    file_with(&node.setup().data_dir().join("log"), "value-0000-end").0
}

/// Gives the header of a file its checksum.
fn seal(bytes: &mut [u8], header_bytes: usize) {
    let crc = crc32c::crc32c(&bytes[..header_bytes - 4]);
    bytes[header_bytes - 4..header_bytes].copy_from_slice(&crc.to_le_bytes());
}

/// Gives the head of the record at this place its checksum.
fn seal_head(bytes: &mut [u8], at: usize) {
    let salted = crc32c::crc32c(&bytes[SALT_AT..SALT_AT + 8]);
    let crc = crc32c::crc32c_append(salted, &bytes[at..at + HEAD_BYTES - 4]);
    bytes[at + HEAD_BYTES - 4..at + HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// Where the records begin.
fn records(bytes: &[u8]) -> Vec<usize> {
    let (mut at, mut found) = (HEADER_BYTES, Vec::new());
    while at < bytes.len() {
        found.push(at);
        let length = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        at += HEAD_BYTES + length as usize + 4;
    }
    found
}

/// Starts the node on a changed log, and checks it: both must refuse it at the same place.
fn refused_at(node: &Node, file: &Path, offset: usize, says: &[&str]) -> Finished {
    let log = node.setup().data_dir().join("log");
    let before = contents(&log);
    let refused = node.setup().run();
    refused.refused(65, &["error", file.file_name().unwrap().to_str().unwrap()]);
    refused.refused(65, says);
    assert_eq!(numbers_behind(&refused.stderr, "at byte offset ")[0], offset, "{refused:?}");
    assert!(contents(&log) == before, "a refused log was changed");
    let checked = node.setup().run_command(["log", "check", "lally-data"]);
    checked.refused(65, &["damaged"]);
    assert_eq!(numbers_behind(&checked.stdout, "at byte offset ")[0], offset, "{checked:?}");
    refused
}

fn change(node: &Node, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let file = segment(node);
    let mut bytes = fs::read(&file).unwrap();
    change(&mut bytes);
    fs::write(&file, bytes).unwrap();
    file
}

#[test]
fn a_log_of_a_later_version_is_refused_and_not_repaired() {
    let node = stopped_with(5);
    let file = change(&node, |bytes| {
        bytes[8..10].copy_from_slice(&2_u16.to_le_bytes());
        seal(bytes, HEADER_BYTES);
    });
    refused_at(&node, &file, 0, &["format version 2; this release reads 1"]);
    let repaired = node.setup().run_command(["log", "repair", "lally-data"]);
    repaired.refused(65, &["format version 2"]);
}

#[test]
fn a_log_of_another_cluster_is_refused_and_not_repaired() {
    let node = stopped_with(5);
    let file = change(&node, |bytes| {
        bytes[44..44 + CLUSTER.len()].copy_from_slice(b"other");
        seal(bytes, HEADER_BYTES);
    });
    refused_at(&node, &file, 0, &["\"other\"", "\"lally\""]);
    let repaired = node.setup().run_command(["log", "repair", "lally-data"]);
    repaired.refused(65, &["\"other\""]);
}

#[test]
fn a_log_of_another_node_is_refused_by_both_ids_and_not_repaired() {
    let (node, other) = (stopped_with(5), stopped_with(5));
    let id = |node: &Node| {
        let bytes = fs::read(segment(node)).unwrap();
        let id = u64::from_le_bytes(bytes[NODE_AT..NODE_AT + 8].try_into().unwrap());
        format!("{id:016x}")
    };
    let ids = [id(&node), id(&other)];
    fs::copy(segment(&other), segment(&node)).unwrap();
    let file = segment(&node);
    refused_at(&node, &file, 0, &[&ids[0], &ids[1]]);
    let repaired = node.setup().run_command(["log", "repair", "lally-data"]);
    repaired.refused(65, &[&ids[1]]);
    // Taking it over is what `--replay-log` is for.
    let taken = node.setup().clone().args(["--replay-log", "lally-data/log"]).start_ready();
    assert_eq!(taken.client().get("key-3").value().as_deref(), Some("value-0003-end"));
}

#[test]
fn a_log_whose_node_was_forgotten_is_refused() {
    let node = stopped_with(5);
    fs::remove_file(node.setup().data_dir().join("node.json")).unwrap();
    let before = contents(&node.setup().data_dir());
    node.setup().run().refused(65, &["written by node", "--replay-log"]);
    assert!(contents(&node.setup().data_dir()) == before);
}

#[test]
fn a_bad_header_checksum_is_refused() {
    let node = stopped_with(5);
    let file = change(&node, |bytes| bytes[HEADER_BYTES - 1] ^= 1);
    refused_at(&node, &file, 0, &["does not match its checksum"]);
}

#[test]
fn a_header_that_is_cut_off_is_refused() {
    let node = stopped_with(5);
    for length in [0, 7, 8, 11, HEADER_BYTES - 1] {
        let file = segment_by_name(&node);
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..length.min(bytes.len())]).unwrap();
        refused_at(&node, &file, 0, &[]);
        fs::write(&file, bytes).unwrap();
    }
}

fn segment_by_name(node: &Node) -> PathBuf {
    node.setup().data_dir().join("log/0000000000000001.log")
}

#[test]
fn a_bad_length_is_refused_whatever_its_checksum() {
    for (length, sealed) in [
        (0_u32, true),
        (1, true),
        (16_781_312, true),
        (16_781_313, true),
        (u32::MAX, true),
        (1, false),
    ] {
        let node = stopped_with(5);
        let mut at = 0;
        let file = change(&node, |bytes| {
            at = records(bytes)[2];
            bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
            if sealed {
                seal_head(bytes, at);
            }
        });
        refused_at(&node, &file, at, &["intact records follow"]);
    }
}

#[test]
fn a_wrong_sequence_is_refused() {
    for sequence in [0_u64, 1, 4, u64::MAX] {
        let node = stopped_with(5);
        let mut at = 0;
        let file = change(&node, |bytes| {
            at = records(bytes)[2];
            bytes[at + 8..at + 16].copy_from_slice(&sequence.to_le_bytes());
            seal_head(bytes, at);
        });
        let says = format!("record {sequence} stands where record 3 belongs");
        refused_at(&node, &file, at, &[&says]);
    }
}

#[test]
fn an_unknown_kind_is_refused() {
    let node = stopped_with(5);
    let mut at = 0;
    let file = change(&node, |bytes| {
        at = records(bytes)[2];
        bytes[at + 4] = 6;
        seal_head(bytes, at);
    });
    refused_at(&node, &file, at, &["intact records follow"]);
}

#[test]
fn a_segment_that_is_missing_is_refused() {
    let mut node = Setup::new().start_ready();
    let mut client = node.client();
    client.add("k", "value-0000-end").succeeded();
    client.ask("POST", "/admin/compact").succeeded();
    client.add("k", "v2").succeeded();
    assert_eq!(node.terminate(), Some(0));
    let log = node.setup().data_dir().join("log");
    let segment = log.join("0000000000000002.log");
    fs::remove_file(log.join("0000000000000002.snap")).unwrap();
    refused_at(&node, &segment, 0, &["missing or incomplete"]);
}
