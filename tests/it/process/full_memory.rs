//! `max_memory`: what makes the data grow is refused, everything else works, and what is freed can be
//! used again.

use std::io::{BufReader, Write};
use std::thread;

use crate::results;

use super::client::{Client, open, read_reply};
use super::mutation::resident_kib;
use super::node::{Node, Setup};
use super::turn::Turn;

/// Some bytes of a line of `/metrics`.
fn metric(client: &mut Client, name: &str) -> Option<u64> {
    let text = client.ask("GET", "/metrics").body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

#[test]
fn a_full_memory_refuses_growth_and_serves_everything_else() {
    const LIMIT: u64 = 1 << 20;
    let mut node = Setup::new().args(["--max-memory", "1MiB"]).start_ready();
    let mut client = node.client();
    let value = "x".repeat(20_000);
    let written = (0..1_000)
        .find(|i| {
            let reply = client.add(&format!("k{i}"), &value);
            if reply.status == 200 {
                return false;
            }
            reply.failed(507, "memory_full");
            assert!(reply.text("message").contains("1048576 bytes (max_memory)"), "{reply:?}");
            true
        })
        .unwrap();
    assert_eq!(written, LIMIT / (20_000 + 160));
    assert_eq!(metric(&mut client, "lally_memory_limit_bytes"), Some(LIMIT));
    let used = metric(&mut client, "lally_memory_bytes").unwrap();
    assert!(used <= LIMIT && used + 20_160 > LIMIT, "{used}");
    for refused in ["one more", "k0"] {
        client.add(refused, &"x".repeat(50_000)).failed(507, "memory_full");
    }
    // Nothing was done, and what makes nothing grow is.
    assert_eq!(client.get("one more").value(), None);
    assert_eq!(client.get("k0").value().as_ref(), Some(&value));
    client.add("k0", &"y".repeat(20_000)).succeeded();
    client.add("k0", "short").succeeded();
    client.add("in its place", &value[..19_000]).succeeded();
    client.add("one more", &value).failed(507, "memory_full");
    assert_eq!(client.remove("k1").succeeded().value().as_ref(), Some(&value));
    client.add("one more", &value[..19_000]).succeeded();
    // The log brings it all back, and the limit holds on.
    node.kill9();
    node.restart();
    node.wait_ready();
    let mut client = node.client();
    assert_eq!(client.get("k2").value().as_ref(), Some(&value));
    client.add("two more", &value).failed(507, "memory_full");
}

#[test]
fn without_max_memory_there_is_no_limit() {
    let node = Setup::new().start_ready();
    let mut client = node.client();
    client.add("k", &"x".repeat(1 << 20)).succeeded();
    client.add("l", &"x".repeat(1 << 20)).succeeded();
    assert!(metric(&mut client, "lally_memory_bytes").unwrap() > 2 << 20);
    assert_eq!(metric(&mut client, "lally_memory_limit_bytes"), None);
}

/// What the process may have beside its data, and a quarter of that.
const BESIDES_MIB: u64 = 128;

const CONNECTIONS: usize = 4;

/// Requests that are sent before the first of their answers is read.
const AT_ONCE: usize = 200;

/// Offers keys of their own to a node, as fast as it answers; how many it took, and how many it refused.
fn offer(node: &Node, keys: std::ops::Range<usize>) -> (usize, usize) {
    let mut connection = BufReader::new(open(node.http()).unwrap());
    let (mut taken, mut refused) = (0, 0);
    let numbers: Vec<usize> = keys.collect();
    for some in numbers.chunks(AT_ONCE) {
        let mut requests = String::new();
        for number in some {
            let body = format!(r#"{{"key":"key-{number:013}","value":"{number:064}"}}"#);
            requests.push_str("POST /add HTTP/1.1\r\ncontent-length: ");
            requests.push_str(&body.len().to_string());
            requests.push_str("\r\n\r\n");
            requests.push_str(&body);
        }
        connection.get_mut().write_all(requests.as_bytes()).unwrap();
        for _ in some {
            let reply = read_reply(&mut connection, false).unwrap();
            match reply.status {
                200 => taken += 1,
                507 => refused += 1,
                _ => panic!("{reply:?}"),
            }
        }
    }
    (taken, refused)
}

/// 10,000,000 keys for 256 MiB by `make hostile`.
#[test]
fn more_keys_than_memory_has_room_for_are_refused_and_the_process_stays_small() {
    let _alone = Turn::alone();
    let offered: usize = results::from_env("LALLY_TEST_OFFERED").unwrap_or(40_000);
    // As many again are offered as there is room for, or more.
    let limit_mib = (offered as u64 * 256 / 10_000_000).max(2);
    let node = Setup::new().args(["--max-memory", &format!("{limit_mib}MiB")]).start_ready();
    let share = offered / CONNECTIONS;
    let node_ref = &node;
    let counts: Vec<_> = thread::scope(|scope| {
        let offering: Vec<_> = (0..CONNECTIONS)
            .map(|i| scope.spawn(move || offer(node_ref, i * share..(i + 1) * share)))
            .collect();
        // Reads go on all the while.
        let mut client = node.client();
        while offering.iter().any(|thread| !thread.is_finished()) {
            assert_eq!(client.get("key-0000000000000").status, 200);
        }
        offering.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (taken, refused) = counts.iter().fold((0, 0), |(t, r), (took, no)| (t + took, r + no));
    let mut client = node.client();
    let used = metric(&mut client, "lally_memory_bytes").unwrap();
    let resident_mib = resident_kib(&node) / 1_024;
    assert!(refused > 0, "all {taken} were taken");
    // 66 bytes, a key of 17 and a value of 64, as docs/configuration.md counts.
    let each = 66 + 48 + 80;
    // Writes that are worked on at the same time do not see each other's growth.
    let limit = limit_mib << 20;
    assert!(used.abs_diff(limit) < each * CONNECTIONS as u64, "{used} of {limit}");
    let may_have = limit_mib * 5 / 4 + BESIDES_MIB;
    assert!(resident_mib < may_have, "{resident_mib} MiB of {may_have}");
    assert!(client.get("key-0000000000000").value().is_some());
    results::keep("LALLY_MEMORY_RESULT", || {
        format!(
            "# More keys than memory has room for\n\n{}, {}, {} cores, revision {}.\n\n`max_memory` {limit_mib} MiB, \
             {} keys of 17 bytes with values of 64 offered: {taken} taken, {refused} refused, {used} bytes counted, \
             {resident_mib} MiB resident, {may_have} allowed. Reads went on all the while.\n",
            results::date(),
            results::build(),
            results::cores(),
            results::revision(),
            share * CONNECTIONS,
        )
    });
}
