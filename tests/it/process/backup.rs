//! `lally backup` of nodes that run, and nodes that start on what it made: under load, damaged,
//! interrupted, without space, and in a cluster that has gone on.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::client::{Client, open};
use super::node::{Finished, Node, Setup, contents, free_port};
use super::ring::{self, wait_equal, wait_whole};
use super::turn::Turn;
use super::wait::{PATIENCE, eventually, is};
use crate::small_disk::SmallDisk;

const SNAPSHOT: &str = "0000000000000001.snap";
const DRAFT: &str = "0000000000000001.snap.new";

fn command(dir: &Path, from: SocketAddr) -> Setup {
    let words = ["backup", &dir.display().to_string(), "--from", &from.to_string()];
    Setup::new().http_port(None).grpc_port(None).args(words)
}

fn backup(dir: &Path, from: SocketAddr) -> Finished {
    command(dir, from).run()
}

#[track_caller]
fn succeeded(finished: &Finished) {
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.contains("complete"), "{finished:?}");
}

/// A setup that starts on a backup.
fn starts_on(dir: &Path) -> Setup {
    Setup::new().args(["--replay-log", &dir.display().to_string()])
}

fn path(setup: &Setup, name: &str) -> std::path::PathBuf {
    setup.dir().join(name)
}

#[test]
fn a_backup_under_load_holds_all_that_was_acknowledged_before_and_of_the_rest_a_prefix() {
    const WRITERS: usize = 3;
    let node = Setup::new().args(["--fsync", "never"]).start_ready();
    let dir = path(node.setup(), "backup");
    let acknowledged = [const { AtomicU64::new(0) }; WRITERS];
    let stop = AtomicBool::new(false);
    let counts = || acknowledged.each_ref().map(|count| count.load(Ordering::SeqCst));
    let (mut before, mut after) = ([0; WRITERS], [0; WRITERS]);
    thread::scope(|scope| {
        for (writer, acknowledged) in acknowledged.iter().enumerate() {
            let (node, stop) = (&node, &stop);
            scope.spawn(move || {
                let mut client = node.client();
                for count in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    client.add(&format!("{writer}-{count}"), &format!("{count}")).succeeded();
                    acknowledged.store(count + 1, Ordering::SeqCst);
                    // A key that is there and not, by turns.
                    match count % 2 {
                        0 => client.remove(&format!("{writer}")).succeeded(),
                        _ => client.add(&format!("{writer}"), &format!("{count}")).succeeded(),
                    };
                }
            });
        }
        eventually("some load", PATIENCE, || {
            is(counts().iter().all(|count| *count > 50), format!("{:?}", counts()))
        });
        // Also while the files change under its hands.
        node.client().ask("POST", "/admin/compact").succeeded();
        before = counts();
        succeeded(&backup(&dir, node.http()));
        after = counts();
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(contents(&dir).len(), 1);
    let mut restored = starts_on(&dir).start_ready();
    let mut client = restored.client();
    let mut held = [0; WRITERS];
    for writer in 0..WRITERS {
        let mut found = 0;
        while client.get(&format!("{writer}-{found}")).value() == Some(found.to_string()) {
            found += 1;
        }
        assert!((before[writer]..=after[writer] + 1).contains(&found), "{before:?} {after:?}");
        // Nothing behind a gap.
        for later in found..=after[writer] + 1 {
            assert_eq!(client.get(&format!("{writer}-{later}")).value(), None, "{later}");
        }
        held[writer] = found;
        // What came after the last key that is there is what was written just before or after it.
        let there = client.get(&format!("{writer}")).value().map(|count| count.parse().unwrap());
        assert!(there.is_none_or(|count: u64| count + 1 == found || count + 2 == found));
    }
    // It goes on as any node, and does not need the backup any more.
    client.add("after", "v").succeeded();
    fs::remove_dir_all(&dir).unwrap();
    let before = restored.holdings();
    restored.kill9();
    let at = restored.setup().dir().to_owned();
    let again = Setup::new().args(["--data-dir", &at.join("lally-data").display().to_string()]);
    let again = again.start_ready();
    assert_eq!(again.holdings(), before);
    assert_eq!(before.1 + before.2, held.iter().sum::<u64>() + 3 + 1);
}

#[test]
fn a_restored_node_has_what_the_node_had_and_writes_later_versions() {
    let node = Setup::new().start_ready();
    let mut client = node.client();
    for turn in 0..3 {
        for key in 0..100 {
            client.add(&format!("k{key}"), &format!("{turn} ü\n\u{0}")).succeeded();
        }
    }
    for key in 0..10 {
        client.remove(&format!("k{key}")).succeeded();
    }
    let dir = path(node.setup(), "a/b/backup");
    let made = backup(&dir, node.http());
    succeeded(&made);
    assert!(made.stdout.contains(SNAPSHOT) && made.stdout.contains("records"), "{made:?}");
    node.wait_for_log(&["backup complete"]);
    let checked = node.setup().run_command(["log", "check", &dir.display().to_string()]);
    assert!(checked.stdout.ends_with(": intact\n") && checked.code == Some(0), "{checked:?}");
    let last = client.add("k50", "later").timestamp();
    let mut restored = starts_on(&dir).start_ready();
    let (digest, keys, tombstones) = restored.holdings();
    assert_eq!((keys, tombstones), (90, 10));
    assert_ne!(digest, node.holdings().0);
    assert_eq!(restored.client().get("k50").value().as_deref(), Some("2 ü\n\u{0}"));
    assert_eq!(restored.client().get("k5").value(), None);
    // Versions go on above all that was handed out before the backup.
    assert!(restored.client().add("k50", "anew").succeeded().timestamp() > last);
    assert_eq!(restored.terminate(), Some(0));
    // A backup can be taken of what was restored, by curl as well, and the file be given alone.
    let reply = fetch(node.http());
    let file = path(node.setup(), "one-file");
    fs::write(&file, reply).unwrap();
    let restored = starts_on(&file).start_ready();
    assert_eq!(restored.holdings(), node.holdings());
}

/// The body of `GET /admin/backup`.
fn fetch(from: SocketAddr) -> Vec<u8> {
    let mut stream = ask_for_backup(from);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
    assert!(text.starts_with("http/1.1 200") && text.contains("lally-expected-bytes: "), "{text}");
    assert!(text.contains("transfer-encoding: chunked"), "{text}");
    let (mut rest, mut body) = (&answer[head..], Vec::new());
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n").unwrap();
        let size = std::str::from_utf8(&rest[..line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest = &rest[line + 2 + size + 2..];
    }
}

fn ask_for_backup(from: SocketAddr) -> TcpStream {
    let mut stream = open(from).unwrap();
    let request = "GET /admin/backup HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// A node with so many values of 1 MB.
fn large_node(values: usize) -> Node {
    let node = Setup::new().args(["--fsync", "never"]).start_ready();
    let mut client = node.client();
    for value in 0..values {
        client.add(&format!("k{value}"), &"x".repeat(1_000_000)).succeeded();
    }
    node
}

#[test]
fn one_backup_is_made_at_a_time_and_one_that_is_not_taken_holds_up_nobody() {
    // More than two sockets hold.
    let node = large_node(24);
    let dir = path(node.setup(), "backup");
    let stalled = ask_for_backup(node.http());
    node.wait_for_log(&["backup begun"]);
    let refused = backup(&dir, node.http());
    refused.refused(1, &["refused", "already"]);
    assert!(!dir.exists());
    node.client().ask("GET", "/admin/backup").failed(503, "overloaded");
    let mut client = node.client();
    for key in 0..200 {
        client.add(&format!("small{key}"), "v").succeeded();
    }
    client.ask("POST", "/admin/compact").succeeded();
    drop(stalled);
    node.wait_for_log(&["backup given up", "went away"]);
    succeeded(&backup(&dir, node.http()));
    assert_eq!(starts_on(&dir).start_ready().holdings(), node.holdings());
}

#[test]
fn a_stop_does_not_wait_for_a_backup_and_what_was_taken_of_it_is_none() {
    let mut node = large_node(24);
    let mut stalled = ask_for_backup(node.http());
    node.wait_for_log(&["backup begun"]);
    assert_eq!(node.terminate(), Some(0));
    let mut taken = Vec::new();
    // Reset, or ended without the last chunk.
    stalled.read_to_end(&mut taken).ok();
    assert!(!taken.ends_with(b"0\r\n\r\n"), "{} bytes", taken.len());
}

#[test]
fn a_place_that_is_no_good_is_refused_and_left_as_it_was() {
    let node = Setup::new().start_ready();
    node.client().add("k", "v").succeeded();
    let dir = path(node.setup(), "backup");
    succeeded(&backup(&dir, node.http()));
    let before = contents(&dir);
    for occupied in [&dir, &node.setup().data_dir()] {
        backup(occupied, node.http()).refused(2, &["not empty", "overwrites nothing"]);
    }
    assert_eq!(contents(&dir), before);
    // A file is in the way.
    let below = dir.join(SNAPSHOT).join("backup");
    backup(&below, node.http()).refused(1, &["no backup", "0001.snap"]);
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let nowhere = path(node.setup(), "nowhere");
    backup(&nowhere, nobody).refused(1, &["no node can be reached", "--from"]);
    assert!(!nowhere.exists());
    // An empty directory is a good place, and stays if there is no backup.
    fs::create_dir(&nowhere).unwrap();
    backup(&nowhere, nobody).refused(1, &["no node can be reached"]);
    assert!(contents(&nowhere).is_empty());
    succeeded(&backup(&nowhere, node.http()));
    for args in [&["backup"][..], &["backup", "a", "b"], &["backup", "a", "--from", "nonsense"]] {
        Setup::new().http_port(None).grpc_port(None).args(args).run().refused(2, &[]);
    }
}

/// Answers one request with these bytes, and ends the connection when told to.
fn answering(answer: Vec<u8>, then: impl FnOnce() + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4_096];
        assert_ne!(stream.read(&mut request).unwrap(), 0);
        stream.write_all(&answer).unwrap();
        then();
    });
    addr
}

fn chunked(bytes: &[u8]) -> Vec<u8> {
    let mut answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    answer.extend(format!("{:x}\r\n", bytes.len()).into_bytes());
    answer.extend_from_slice(bytes);
    answer.extend_from_slice(b"\r\n");
    answer
}

#[test]
fn a_backup_that_breaks_off_or_is_cut_leaves_nothing_and_can_be_repeated() {
    let node = Setup::new().start_ready();
    for key in 0..50 {
        node.client().add(&format!("k{key}"), &"x".repeat(1_000)).succeeded();
    }
    let whole = fetch(node.http());
    let dir = path(node.setup(), "backup");
    let end = b"0\r\n\r\n".as_slice();
    let half = &whole[..whole.len() / 2];
    for (answer, says) in [
        // The connection ends: between two chunks, in one, before the last one.
        (chunked(half), "broke off"),
        (chunked(half)[..half.len()].to_vec(), "broke off"),
        (chunked(&whole), "broke off"),
        // All of it came, and it is not all of it.
        ([chunked(half).as_slice(), end].concat(), "no complete backup"),
        ([chunked(&whole[..whole.len() - 1]).as_slice(), end].concat(), "no complete backup"),
        ([chunked(b"").as_slice()].concat(), "no complete backup"),
        // Somebody else is there.
        (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>".to_vec(), "no complete backup"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(), "404"),
        (b"SSH-2.0\r\n".to_vec(), "no node"),
    ] {
        backup(&dir, answering(answer, || {})).refused(1, &["no backup", says]);
        assert!(!dir.exists(), "{says}");
    }
    // Killed in the middle: a draft is left, which is no backup and in nobody's way.
    let (go_on, goes_on) = std::sync::mpsc::sync_channel::<()>(1);
    let stalled = answering(chunked(half), move || {
        goes_on.recv().ok();
    });
    let mut killed = command(&dir, stalled).start_halfway();
    eventually("a draft", PATIENCE, || {
        let written = fs::metadata(dir.join(DRAFT)).map(|metadata| metadata.len());
        is(written.as_ref().is_ok_and(|bytes| *bytes == half.len() as u64), format!("{written:?}"))
    });
    // Another one is told to go elsewhere meanwhile.
    backup(&dir, node.http()).refused(1, &["another backup"]);
    killed.kill9();
    drop(go_on);
    assert_eq!(contents(&dir).len(), 1);
    starts_on(&dir).run().refused(1, &["there is no log"]);
    succeeded(&backup(&dir, node.http()));
    assert_eq!(starts_on(&dir).start_ready().holdings(), node.holdings());
}

#[test]
fn a_full_disk_takes_no_backup_and_keeps_nothing_of_it() {
    let node = large_node(3);
    let mounted = path(node.setup(), "small");
    let Some(disk) = SmallDisk::mount(&mounted, 1 << 20) else { return };
    let dir = mounted.join("backup");
    for _ in 0..2 {
        backup(&dir, node.http()).refused(1, &["full", "nothing was kept"]);
        assert!(contents(&mounted).is_empty());
    }
    drop(disk);
}

#[test]
fn a_damaged_backup_is_refused_with_the_byte_and_nothing_is_changed() {
    let node = Setup::new().start_ready();
    for key in 0..20 {
        node.client().add(&format!("k{key}"), &"x".repeat(100)).succeeded();
    }
    let dir = path(node.setup(), "backup");
    succeeded(&backup(&dir, node.http()));
    let file = dir.join(SNAPSHOT);
    let intact = fs::read(&file).unwrap();
    let mut flipped = intact.clone();
    flipped[intact.len() / 2] ^= 4;
    let mut other = Setup::new().start_ready();
    other.client().add("mine", "v").succeeded();
    assert_eq!(other.terminate(), Some(0));
    let before = contents(&other.setup().data_dir());
    let replay = other.setup().clone().args(["--replay-log", &dir.display().to_string()]);
    // Whole records cut off are noticed, too: there is no end.
    for damaged in
        [&flipped, &intact[..intact.len() - 1].to_vec(), &intact[..intact.len() / 2].to_vec()]
    {
        fs::write(&file, damaged).unwrap();
        replay.run().refused(65, &[SNAPSHOT, "byte offset"]);
        assert_eq!(contents(&other.setup().data_dir()), before);
        assert_eq!(&fs::read(&file).unwrap(), damaged);
    }
    fs::write(&file, &intact).unwrap();
    assert_eq!(replay.start_ready().holdings(), node.holdings());
}

#[test]
fn a_backup_is_not_taken_for_a_data_directory() {
    let node = Setup::new().start_ready();
    node.client().add("k", "v").succeeded();
    let dir = path(node.setup(), "backup");
    succeeded(&backup(&dir, node.http()));
    let before = contents(&dir);
    let words = ["--data-dir", &dir.display().to_string()];
    Setup::new().args(words).run().refused(2, &["backup", "--replay-log"]);
    assert_eq!(contents(&dir), before);
}

#[test]
fn without_room_for_a_copy_of_the_backup_the_node_does_not_start_and_says_how_much_it_needs() {
    let node = large_node(3);
    let dir = path(node.setup(), "backup");
    succeeded(&backup(&dir, node.http()));
    let setup = starts_on(&dir);
    let Some(disk) = SmallDisk::mount(&setup.data_dir(), 2 << 20) else { return };
    setup.run().refused(1, &["replay_log", "bytes free", "nothing was changed"]);
    let left = contents(&setup.data_dir());
    assert!(left.iter().all(|(name, _)| name == Path::new("LOCK")), "{left:?}");
    drop(disk);
}

#[test]
fn a_backup_of_one_member_starts_a_cluster_and_joins_one_that_has_gone_on() {
    let mut nodes = ring::start(2, &[]);
    for (key, value) in [("old", "v"), ("changed", "before"), ("removed", "v")] {
        nodes[0].client().add_to(key, value, "all").succeeded();
    }
    let dir = path(nodes[0].setup(), "backup");
    succeeded(&backup(&dir, nodes[0].http()));
    let then = nodes[0].holdings();
    nodes[0].client().add_to("changed", "after", "all").succeeded();
    nodes[0].client().add_to("new", "v", "all").succeeded();
    nodes[1].client().remove("removed").succeeded();
    wait_equal(&nodes);
    let now =
        [("old", Some("v")), ("changed", Some("after")), ("removed", None), ("new", Some("v"))];
    // A new member.
    nodes.push(starts_on(&dir).seed(nodes[0].grpc()).start_ready());
    wait_whole(&nodes);
    wait_equal(&nodes);
    check(&nodes, &now);
    // One of the two, in its place.
    assert_eq!(nodes[1].terminate(), Some(0));
    nodes[1].restart_as(|setup| setup.args(["--replay-log", &dir.display().to_string()]));
    nodes[1].wait_ready();
    wait_whole(&nodes);
    wait_equal(&nodes);
    check(&nodes, &now);
    // All are lost, and begin anew on the same backup.
    let kept = nodes[0].setup().clone();
    drop(nodes);
    let first = starts_on(&dir).start_ready();
    assert_eq!(first.holdings(), then);
    let second = starts_on(&dir).seed(first.grpc()).start_ready();
    let nodes = vec![first, second];
    wait_whole(&nodes);
    wait_equal(&nodes);
    check(&nodes, &[("changed", Some("before")), ("removed", Some("v")), ("new", None)]);
    nodes[1].client().add_to("changed", "anew", "all").succeeded();
    check(&nodes, &[("changed", Some("anew"))]);
    drop(kept);
}

fn check(nodes: &[Node], expected: &[(&str, Option<&str>)]) {
    for node in nodes {
        let mut client: Client = node.client();
        for (key, value) in expected {
            assert_eq!(client.get_from(key, 1).value().as_deref(), *value, "{key}");
        }
    }
}

#[test]
fn a_backup_from_before_a_removal_that_was_forgotten_does_not_bring_the_key_back() {
    if std::env::var_os("LALLY_TEST_FORGETTING").is_none() {
        eprintln!("SKIPPED: takes two minutes; see `make forgetting`");
        return;
    }
    let _alone = Turn::alone();
    let mut nodes = ring::start(3, &["--tombstone-grace", "1m", "--max-absence", "1m"]);
    for (key, value) in [("removed", "v"), ("changed", "before"), ("kept", "v")] {
        nodes[0].client().add_to(key, value, "all").succeeded();
    }
    let dir = path(nodes[0].setup(), "backup");
    succeeded(&backup(&dir, nodes[0].http()));
    nodes[1].client().remove("removed").succeeded();
    nodes[1].client().add_to("changed", "after", "all").succeeded();
    super::forgetting::forgotten(&nodes);
    let now = [("removed", None), ("changed", Some("after")), ("kept", Some("v"))];
    // A member in its place, and a new one.
    nodes[2].kill9();
    nodes[2].restart_as(|setup| setup.args(["--replay-log", &dir.display().to_string()]));
    nodes[2].wait_ready();
    nodes.push(starts_on(&dir).seed(nodes[0].grpc()).start_ready());
    wait_whole(&nodes);
    wait_equal(&nodes);
    check(&nodes, &now);
    for node in &nodes[2..] {
        super::forgetting::quarantined(node);
    }
}
