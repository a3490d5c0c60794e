//! Floods of HTTP/2 frames on the port of the peers: the node hangs up on them or takes them, goes on
//! answering its peers and its clients, and takes no memory for them.

use std::thread;

use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Ended, HEADERS, PING, RST_STREAM, SETTINGS, call,
    field, flood, frame, message,
};
use super::mutation::{open_files, resident_kib};
use super::node::Node;
use super::ring;
use super::turn::Turn;
use super::wait::{PATIENCE, eventually, is};

/// `ENHANCE_YOUR_CALM` (RFC 9113, 7): the answer to who asks for too much.
const CALM: Option<u32> = Some(11);

/// What memory may fluctuate by, whatever came.
const FLAT_KIB: u64 = 48 * 1_024;

/// Lines of the log that a flood may add.
const FEW_LINES: usize = 100;

/// A write that the other node has to acknowledge, and a read of it there.
#[track_caller]
fn serves(nodes: &[Node], key: &str) {
    nodes[0].client().add_to(key, "v", 2).succeeded();
    let read = nodes[1].client().get_from(key, 2);
    assert_eq!(read.value().as_deref(), Some("v"));
}

/// Lets four connections at a time flood the first node, and checks that it is as before.
fn withstands(nodes: &[Node], name: &str, pour: impl Fn() -> Ended + Sync) -> Vec<Ended> {
    let (files, before, lines) =
        (open_files(&nodes[0]), resident_kib(&nodes[0]), nodes[0].log().lines().count());
    let ended: Vec<Ended> = thread::scope(|scope| {
        let pouring: Vec<_> = (0..4).map(|_| scope.spawn(&pour)).collect();
        while pouring.iter().any(|thread| !thread.is_finished()) {
            serves(nodes, name);
        }
        pouring.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    serves(nodes, name);
    eventually("every connection is given up", PATIENCE, || {
        let now = open_files(&nodes[0]);
        is(now <= files + 4, format!("{now} files, {files} before"))
    });
    let after = resident_kib(&nodes[0]);
    assert!(after < before + FLAT_KIB, "{name}: {before} KiB before, {after} KiB after");
    let log = nodes[0].log();
    assert!(!log.contains("panicked"), "{log}");
    assert!(log.lines().count() < lines + FEW_LINES, "{name}: {log}");
    ended
}

/// Numbers of streams that a client opens.
fn streams(count: u32) -> impl FnMut() -> Option<u32> {
    let mut numbers = (0..count).map(|i| 2 * i + 1);
    move || numbers.next()
}

#[test]
fn floods_of_frames_on_the_peer_port_change_nothing() {
    let _alone = Turn::alone();
    let nodes = ring::start(2, &[]);
    let addr = nodes[0].grpc();
    let open_call = |method| frame(HEADERS, END_HEADERS, 1, &call(method));

    // CVE-2023-44487: calls that are taken back at once.
    let ended = withstands(&nodes, "rapid resets", || {
        let mut next = streams(20_000);
        let head = call("Digest");
        flood(addr, &[], true, || {
            let stream = next()?;
            let reset = frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
            Some([frame(HEADERS, END_HEADERS, stream, &head), reset].concat())
        })
    });
    let calmed =
        |ended: &Ended| matches!(ended, Ended::HungUp(why) if why.is_none() || *why == CALM);
    assert!(ended.iter().all(calmed), "{ended:?}");

    // CVE-2024-27316: a head that never ends.
    let ended = withstands(&nodes, "CONTINUATION", || {
        let mut left = 20_000;
        let part = frame(CONTINUATION, 0, 1, &field("x", &"y".repeat(100)).repeat(10));
        flood(addr, &frame(HEADERS, 0, 1, &call("Digest")), true, || {
            left -= 1;
            (left > 0).then(|| part.clone())
        })
    });
    assert!(ended.iter().all(|ended| matches!(ended, Ended::HungUp(_))), "{ended:?}");

    // RUSTSEC-2024-0332: calls that the node resets itself, since they are wrong.
    let ended = withstands(&nodes, "errors", || {
        let mut next = streams(20_000);
        let head = field("no-such: name", "");
        flood(addr, &[], true, || Some(frame(HEADERS, END_HEADERS, next()?, &head)))
    });
    assert!(ended.iter().all(|ended| *ended != Ended::Stalled), "{ended:?}");

    // More calls at a time than are allowed, which never go on.
    withstands(&nodes, "open calls", || {
        let mut next = streams(20_000);
        let head = call("Data");
        flood(addr, &[], true, || Some(frame(HEADERS, END_HEADERS, next()?, &head)))
    });

    // Data that is none.
    for (name, reads) in [("empty DATA", true), ("empty DATA, unread", false)] {
        withstands(&nodes, name, || {
            let mut left = 2_000;
            flood(addr, &open_call("Data"), reads, || {
                left -= 1;
                (left > 0).then(|| frame(DATA, 0, 1, &[]).repeat(100))
            })
        });
    }
    withstands(&nodes, "empty messages", || {
        let mut left = 2_000;
        flood(addr, &open_call("Data"), true, || {
            left -= 1;
            (left > 0).then(|| frame(DATA, 0, 1, &message(&[])).repeat(20))
        })
    });

    // What has to be answered, to somebody who does not take the answers.
    for (name, kind, payload) in [("PING", PING, &[7; 8][..]), ("SETTINGS", SETTINGS, &[])] {
        withstands(&nodes, name, || {
            let mut left = 2_000;
            flood(addr, &[], false, || {
                left -= 1;
                (left > 0).then(|| frame(kind, 0, 0, payload).repeat(100))
            })
        });
    }

    // Calls as they should be, whose answers are not taken.
    withstands(&nodes, "unread answers", || {
        let mut next = streams(20_000);
        let head = call("LevelDigests");
        let body = message(&[]);
        flood(addr, &[], false, || {
            let stream = next()?;
            let body = frame(DATA, END_STREAM, stream, &body);
            Some([frame(HEADERS, END_HEADERS, stream, &head), body].concat())
        })
    });
    ring::wait_whole(&nodes);
    ring::wait_equal(&nodes);
}
