//! A disk that is full: writes are refused, reads and removals go on, and space is all it takes to
//! go on.

use std::fs;

use super::node::{Node, Setup};
use super::ring;
use crate::small_disk::SmallDisk;

#[test]
fn a_full_disk_refuses_writes_serves_reads_and_goes_on_when_there_is_space() {
    let setup = Setup::new();
    let Some(disk) = SmallDisk::mount(&setup.data_dir(), 1 << 20) else { return };
    disk.take(512 * 1024);
    let mut node = setup.start_ready();
    let mut client = node.client();
    let value = "x".repeat(20_000);
    let written = (0..1_000)
        .find(|i| {
            let reply = client.add(&format!("k{i}"), &value);
            if reply.status == 200 {
                return false;
            }
            reply.failed(507, "disk_full");
            true
        })
        .unwrap();
    assert!((5..40).contains(&written), "{written}");
    for _ in 0..3 {
        client.add("one more", &value).failed(507, "disk_full");
        assert_eq!(client.get("k0").value().as_ref(), Some(&value));
        assert_eq!(client.get("one more").value(), None);
    }
    disk.free();
    client.add("after", &value).succeeded();
    // Nothing of what was refused is in the log, and nothing else is missing.
    node.kill9();
    node.restart();
    node.wait_ready();
    let (_, keys, tombstones) = node.holdings();
    assert_eq!((keys, tombstones), (written + 1, 0));
    let mut client = node.client();
    for key in (0..written).map(|i| format!("k{i}")).chain(["after".to_owned()]) {
        assert_eq!(client.get(&key).value().as_ref(), Some(&value), "{key}");
    }
    end([node], disk);
}

#[test]
fn a_full_disk_takes_removals_which_stay_after_a_kill_and_refuses_values_all_the_while() {
    let setup = Setup::new();
    let Some(disk) = SmallDisk::mount(&setup.data_dir(), 1 << 20) else { return };
    let mut node = with_values(setup);
    let (mut client, value) = (node.client(), small());
    disk.take_all();
    let large = "x".repeat(200_000);
    client.add("large", &large).failed(507, "disk_full");
    for i in 0..100 {
        let key = format!("k{i}");
        let reply = client.remove(&key).succeeded();
        assert_eq!(reply.value().as_ref(), Some(&value));
        assert!(!reply.timestamp().is_empty());
        assert_eq!(client.get(&key).value(), None);
        client.add(&key, &large).failed(507, "disk_full");
        assert_eq!(client.get(&key).value(), None);
    }
    // Also of what was never there.
    assert_eq!(client.remove("never written").succeeded().value(), None);
    node.kill9();
    disk.free();
    node.restart();
    node.wait_ready();
    let (_, keys, tombstones) = node.holdings();
    assert_eq!((keys, tombstones), (100, 101));
    let mut client = node.client();
    for i in 0..200 {
        let expected = (i >= 100).then_some(&value);
        assert_eq!(client.get(&format!("k{i}")).value().as_ref(), expected, "k{i}");
    }
    // Space is all it takes, also without a restart.
    disk.take_all();
    client.add("large", &large).failed(507, "disk_full");
    client.remove("k100").succeeded();
    disk.free();
    client.add("large", &large).succeeded();
    node.wait_for_log(&["the disk has space again"]);
    end([node], disk);
}

/// A node with 200 small values.
fn with_values(setup: Setup) -> Node {
    let node = setup.start_ready();
    let mut client = node.client();
    for i in 0..200 {
        client.add(&format!("k{i}"), &small()).succeeded();
    }
    node
}

fn small() -> String {
    "x".repeat(1_000)
}

/// Ends nodes, of whose directories one is mounted: the file system goes before the directory that it
/// is mounted in.
fn end(nodes: impl IntoIterator<Item = Node>, disk: SmallDisk) {
    let setups: Vec<_> = nodes.into_iter().map(|node| node.setup().clone()).collect();
    drop(disk);
    drop(setups);
}

/// The number of the node's last start.
fn generation(node: &Node) -> u64 {
    let text = fs::read(node.setup().data_dir().join("node.json")).unwrap();
    let book: serde_json::Value = serde_json::from_slice(&text).unwrap();
    book["generation"].as_u64().unwrap()
}

#[test]
fn a_node_that_starts_on_a_full_disk_serves_reads_and_takes_removals() {
    let setup = Setup::new();
    let Some(disk) = SmallDisk::mount(&setup.data_dir(), 1 << 20) else { return };
    let mut node = with_values(setup);
    let (mut client, value) = (node.client(), small());
    disk.take_all();
    client.add("large", &"x".repeat(200_000)).failed(507, "disk_full");
    let mut last = generation(&node);
    for turn in 0..6 {
        // By turns a crash and a graceful stop.
        if turn % 2 == 0 {
            node.kill9();
        } else {
            assert_eq!(node.terminate(), Some(0));
        }
        node.restart();
        node.wait_ready();
        let now = generation(&node);
        assert!(now > last, "{now} after {last}");
        last = now;
        let mut client = node.client();
        for i in 0..200 {
            let expected = (i >= turn * 10).then_some(&value);
            assert_eq!(client.get(&format!("k{i}")).value().as_ref(), expected, "k{i}");
        }
        client.add("large", &"x".repeat(200_000)).failed(507, "disk_full");
        for i in turn * 10..turn * 10 + 10 {
            client.remove(&format!("k{i}")).succeeded();
        }
    }
    disk.free();
    client = node.client();
    client.add("large", &"x".repeat(200_000)).succeeded();
    assert_eq!((node.holdings().1, node.holdings().2), (141, 60));
    end([node], disk);
}

#[test]
fn a_member_that_starts_on_a_full_disk_comes_back_into_its_cluster() {
    let setup = Setup::new();
    let Some(disk) = SmallDisk::mount(&setup.data_dir(), 1 << 20) else { return };
    let mut node = setup.start_ready();
    node.client().add("k", "v").succeeded();
    let other = Setup::new().seed(node.grpc()).start_ready();
    ring::wait_whole([&node, &other]);
    disk.take_all();
    for _ in 0..3 {
        node.kill9();
        other.client().remove("k").succeeded();
        node.restart();
        node.wait_ready();
        assert_eq!(node.client().get("k").value(), None);
        ring::wait_whole([&node, &other]);
    }
    end([node, other], disk);
}
