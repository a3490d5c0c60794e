//! A log that is compacted: by command, by itself, under load and kills (see also [`kills`]),
//! on a disk without room, and in a cluster.
//!
//! [`kills`]: super::super::fire

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;

use super::client::{Client, Reply};
use super::node::{Node, Setup};
use super::ring::{self, wait_equal, wait_value};
use super::wait::{PATIENCE, eventually, is};
use crate::small_disk::SmallDisk;

fn compact(client: &mut Client) -> Reply {
    client.ask("POST", "/admin/compact")
}

/// The files of the log, and their bytes together.
fn log_files(node: &Node) -> (Vec<String>, u64) {
    let files = fs::read_dir(node.setup().data_dir().join("log")).unwrap();
    let files = files.map(|file| file.unwrap());
    let mut found: Vec<_> = files
        .map(|f| (f.file_name().into_string().unwrap(), f.metadata().unwrap().len()))
        .collect();
    found.sort();
    let bytes = found.iter().map(|(_, bytes)| bytes).sum();
    (found.into_iter().map(|(name, _)| name).collect(), bytes)
}

#[test]
fn a_compacted_log_is_short_and_says_the_same() {
    let mut node = Setup::new().start_ready();
    let mut client = node.client();
    for turn in 0..50 {
        for key in 0..20 {
            client.add(&format!("k{key}"), &format!("{turn} {}", "x".repeat(500))).succeeded();
        }
    }
    client.remove("k0").succeeded();
    let (_, before) = log_files(&node);
    let reply = compact(&mut client).succeeded();
    assert_eq!(reply.shape(), "{status,records,bytes_before,bytes_after,message}");
    let json = reply.json();
    let (files, after) = log_files(&node);
    assert_eq!(files, ["0000000000000002.log", "0000000000000002.snap"]);
    assert_eq!(
        (json["bytes_before"].as_u64(), json["bytes_after"].as_u64()),
        (Some(before), Some(after))
    );
    assert!(after * 20 < before, "{before} {after}");
    // What the log is about must be written down once more after that, and a second time.
    client.add("after", "v").succeeded();
    let held = node.holdings();
    for _ in 0..2 {
        node.kill9();
        node.restart();
        node.wait_ready();
        let mut client = node.client();
        assert_eq!(node.holdings(), held);
        assert_eq!(client.get("k0").value(), None);
        assert_eq!(
            client.get("k7").value().map(|value| value[..3].to_owned()).as_deref(),
            Some("49 ")
        );
        assert_eq!(client.get("after").value().as_deref(), Some("v"));
        compact(&mut client).succeeded();
    }
    node.client().ask("GET", "/admin/compact").failed(405, "method_not_allowed");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_stop_during_a_compaction_is_a_stop_like_any_other() {
    const KEYS: u64 = 100;
    let mut node = Setup::new().start_ready();
    let mut client = node.client();
    let value = "x".repeat(500_000);
    for i in 0..KEYS {
        client.add(&format!("k{i}"), &value).succeeded();
    }
    let log_dir = node.setup().data_dir().join("log");
    thread::scope(|scope| {
        // Whatever it is answered.
        scope.spawn(move || drop(client.try_send("POST", "/admin/compact", &[], b"")));
        eventually("a snapshot is written", PATIENCE, || {
            is(log_dir.join("0000000000000002.snap.new").exists(), "no draft")
        });
        assert_eq!(node.terminate(), Some(0));
    });
    node.restart();
    node.wait_ready();
    assert_eq!(node.holdings().1, KEYS);
}

#[test]
fn a_log_that_grows_beyond_twice_its_data_is_compacted_by_itself() {
    let node = Setup::new().args(["--fsync", "never"]).start_ready();
    let mut client = node.client();
    let value = "x".repeat(1 << 20);
    for turn in 0..70 {
        client.add(&format!("k{}", turn % 3), &value).succeeded();
    }
    eventually("the log is short", PATIENCE, || {
        let (files, bytes) = log_files(&node);
        is(bytes < 32 << 20, format!("{files:?} of {bytes} bytes"))
    });
    node.wait_for_log(&["log compacted"]);
}

#[test]
fn without_room_for_the_copy_the_log_stays_as_it_is() {
    let setup = Setup::new();
    let Some(disk) = SmallDisk::mount(&setup.data_dir(), 1 << 20) else { return };
    let mut node = setup.start_ready();
    let mut client = node.client();
    let value = "x".repeat(8_000);
    for key in 0..20 {
        client.add(&format!("k{key}"), &value).succeeded();
    }
    disk.take_all();
    for _ in 0..3 {
        compact(&mut client).failed(507, "disk_full");
        assert_eq!(client.get("k1").value().as_ref(), Some(&value));
        client.remove("k0").succeeded();
    }
    let (files, _) = log_files(&node);
    assert!(files.iter().all(|name| !name.contains("snap")), "{files:?}");
    disk.free();
    compact(&mut client).succeeded();
    client.add("after", &value).succeeded();
    node.kill9();
    node.restart();
    node.wait_ready();
    assert_eq!((node.holdings().1, node.holdings().2), (20, 1));
    let setup = node.setup().clone();
    drop(node);
    drop(disk);
    drop(setup);
}

#[test]
fn a_cluster_whose_logs_are_compacted_under_load_loses_nothing() {
    let mut nodes = ring::start(3, &["--write-quorum", "majority"]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(|| {
                let mut client = node.client();
                while !stop.load(Ordering::Relaxed) {
                    compact(&mut client).succeeded();
                }
            });
        }
        let mut client = nodes[0].client();
        for turn in 0..300 {
            client.add(&format!("k{}", turn % 50), &turn.to_string()).succeeded();
            if turn % 7 == 0 {
                client.call("DELETE", "/remove", &json!({"key": "k0"})).succeeded();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    for node in &mut nodes {
        node.kill9();
    }
    for node in &mut nodes {
        node.restart();
    }
    for node in &nodes {
        node.wait_ready();
    }
    wait_equal(&nodes);
    for node in &nodes {
        for key in 1..50 {
            wait_value(node, &format!("k{key}"), Some(&(250 + key).to_string()));
        }
    }
}
