//! Requests and messages that were right once, changed in a few places, at a node that runs: no crash, no
//! hang, no growth. `make hostile` sends ten times as many.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::thread;

use crate::results;

use super::client::open;
use super::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, Heard, call, frame, hello, message};
use super::mutation::{Mutator, resident_kib};
use super::node::{Node, Setup};
use super::turn::Turn;

/// What memory may fluctuate by, whatever came.
const FLAT_KIB: u64 = 64 * 1_024;

/// Requests that a node understands.
fn requests() -> Vec<Vec<u8>> {
    let with_body = |head: &str, body: &str| {
        format!(
            "{head} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    [
        with_body("POST /add", r#"{"key":"mutated","value":"a \u00e9\n\ud83e\udd80","quorum":1,"timeout_ms":50}"#),
        with_body("POST /get", r#"{"key":"mutated","consistency":"confirmed","quorum":"all","timeout_ms":50}"#),
        with_body("DELETE /remove", r#"{"key":"mutated","quorum":"majority","timeout_ms":50}"#),
        with_body("POST /cluster/forget", r#"{"id":"00000000000000ff"}"#),
        "POST /add HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"key\r\n13\r\n\":\"k\",\"value\":\"v\"}\r\n0\r\n\r\n".to_owned(),
        "GET /nodes HTTP/1.1\r\nhost: x\r\n\r\nGET /cluster HTTP/1.1\r\n\r\n".to_owned(),
        "GET /metrics HTTP/1.1\r\nconnection: close\r\n\r\n".to_owned(),
        "POST /get HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n{\"key\":\"k\"}".to_owned(),
    ]
    .map(String::into_bytes)
    .into()
}

const IN_REQUESTS: &[&[u8]] = &[
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\0",
    b":",
    b" ",
    b"\xff",
    b"content-length: 18446744073709551615\r\n",
    b"content-length: -1\r\n",
    b"transfer-encoding: chunked\r\n",
    b"ffffffffffffffff\r\n",
    b"HTTP/0.9",
    b"{",
    b"[[[[[[[[",
    b"\"",
    b"\\ud800",
    b"1e999",
    b"\xf0\x9f\xa6",
    b"connection: upgrade\r\n",
    b"upgrade: h2c\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

/// Protobuf by hand: a field with a length, a small number, and a fixed one.
fn bytes(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

fn varint(number: u8, value: u8) -> Vec<u8> {
    assert!(value < 128);
    vec![number << 3, value]
}

fn fixed(number: u8, value: u64) -> Vec<u8> {
    [&[number << 3 | 1][..], &value.to_le_bytes()].concat()
}

/// Messages that a node understands, with the call that they belong to.
pub fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let entry = [
        bytes(1, b"mutated"),
        fixed(2, 1_700_000_000_000_000_000),
        fixed(3, 77),
        bytes(4, b"value"),
    ]
    .concat();
    let write = bytes(1, &[varint(1, 1), bytes(2, &entry)].concat());
    let read = bytes(1, &[varint(1, 2), bytes(3, b"mutated")].concat());
    let part = |total| bytes(2, &[varint(1, total), bytes(2, &write[..20])].concat());
    let member = [
        fixed(1, 77),
        varint(2, 1),
        varint(3, 2),
        bytes(4, b"127.0.0.1:1"),
        bytes(5, b"127.0.0.1:2"),
    ]
    .concat();
    let announcement = [
        bytes(1, b"lally"),
        varint(2, 1),
        varint(3, 1),
        bytes(4, &member),
        bytes(5, &member),
        fixed(6, 0),
    ]
    .concat();
    let chunk = [bytes(1, &entry), bytes(1, &entry), varint(2, 5)].concat();
    vec![
        ("Data", [write.clone(), read.clone(), write.clone()].concat()),
        ("Data", [part(20), part(60)].concat()),
        ("Announce", announcement),
        ("Gossip", bytes(1, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])),
        ("Digest", Vec::new()),
        ("LevelDigests", bytes(1, &[1, 2, 200])),
        ("Pull", bytes(1, &[255; 100])),
        ("Summaries", bytes(1, &[255; 100])),
        ("Fetch", [bytes(1, b"mutated"), bytes(1, b"other")].concat()),
        ("Fence", [fixed(1, 1), varint(2, 1), varint(3, 1)].concat()),
        ("Push", chunk),
    ]
}

const IN_MESSAGES: &[&[u8]] = &[
    b"\0",
    b"\xff",
    b"\x80",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x0a\x00",
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x12\x00",
    b"\x1a\x80\x80\x80\x80\x08",
    b"\x0b",
    b"\x0c",
    b"\x07",
    b"\xed\xa0\x80",
    b"\x11\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x19\0\0\0\0\0\0\0\0",
    b"\x08\x00",
    b"\x00\x00\x00\x00\x05",
];

/// Sends it all on a connection, and waits until the node has hung up.
fn throw(addr: SocketAddr, bytes: &[u8]) {
    let mut stream = open(addr).unwrap();
    let sent = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    if sent.is_err() {
        return;
    }
    let mut sink = [0; 16_384];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                let waits = matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
                assert!(!waits, "it hangs on {:?}", String::from_utf8_lossy(bytes));
                return;
            }
        }
    }
}

/// Makes calls with these messages on one connection, all at once, and waits until each has ended or
/// the node has hung up.
fn call_all(addr: SocketAddr, calls: &[(&str, Vec<u8>)]) {
    let mut stream = open(addr).unwrap();
    let mut sent = hello();
    for (number, (method, bytes)) in (0..).zip(calls) {
        let id = 2 * number + 1;
        sent.extend(frame(HEADERS, END_HEADERS, id, &call(method)));
        sent.extend(frame(DATA, END_STREAM, id, bytes));
    }
    if stream.write_all(&sent).is_err() {
        return;
    }
    let mut heard = Heard::default();
    while heard.ended < calls.len() {
        if let Err(error) = heard.take(&mut stream) {
            let waits = matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            );
            assert!(!waits, "{} of {} calls ended: {calls:?}", heard.ended, calls.len());
            return;
        }
    }
}

/// Calls that can have a node join somewhere else, leave members out, or refuse what is old.
const CHANGES_THE_CLUSTER: [&str; 3] = ["Announce", "Gossip", "Fence"];

/// Sends a node mutated messages of these calls; what its memory was and is.
fn of_peers(node: &mut Node, count: usize, seed: u64, takes: impl Fn(&str) -> bool) -> String {
    const AT_ONCE: usize = 20;
    let messages: Vec<_> = messages().into_iter().filter(|(method, _)| takes(method)).collect();
    let addr = node.grpc();
    let throws = |mutator: &mut Mutator| {
        let calls: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let (method, right) = &messages[mutator.below(messages.len())];
                let bytes = mutator.one_of(std::slice::from_ref(right), IN_MESSAGES);
                // Now and then the frame around the message is wrong, too.
                let framed = if mutator.below(10) == 0 {
                    mutator.one_of(&[message(&bytes)], IN_MESSAGES)
                } else {
                    message(&bytes)
                };
                (*method, framed)
            })
            .collect();
        call_all(addr, &calls);
    };
    // What is set up once is no growth.
    at_once(count / AT_ONCE / 5, seed, throws);
    let resident = resident_kib(node);
    at_once(count / AT_ONCE, seed.wrapping_add(100), throws);
    is_alive(node);
    let now = resident_kib(node);
    assert!(now < resident + FLAT_KIB, "{resident} KiB before, {now} KiB after");
    format!("{} MiB resident before, {} after", resident / 1_024, now / 1_024)
}

#[track_caller]
fn is_alive(node: &mut Node) {
    assert!(!node.has_ended(), "it died: {}", node.log());
    let log = node.log();
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(node.client().ask("GET", "/healthz").status, 200);
}

#[track_caller]
fn is_well(node: &mut Node, resident: u64) -> String {
    is_alive(node);
    let mut client = node.client();
    client.add("after", "all").succeeded();
    assert_eq!(client.get_from("after", 1).value().as_deref(), Some("all"));
    let now = resident_kib(node);
    assert!(now < resident + FLAT_KIB, "{resident} KiB before, {now} KiB after");
    format!("{} MiB resident before, {} after", resident / 1_024, now / 1_024)
}

/// So many in all, four at a time.
fn at_once(count: usize, seed: u64, each: impl Fn(&mut Mutator) + Sync) {
    thread::scope(|scope| {
        for lane in 0..4 {
            let each = &each;
            scope.spawn(move || {
                let mut mutator = Mutator::new(seed.wrapping_add(lane));
                (0..count / 4).for_each(|_| each(&mut mutator));
            });
        }
    });
}

#[test]
fn mutated_requests_and_messages_neither_crash_a_node_nor_hold_it_up_nor_make_it_grow() {
    let _alone = Turn::alone();
    let seed = results::seed();
    let count = results::from_env("LALLY_TEST_MUTATED").unwrap_or(10_000);
    let mut node = Setup::new().start_ready();
    let http = node.http();

    let requests = requests();
    let throws = |mutator: &mut Mutator| throw(http, &mutator.one_of(&requests, IN_REQUESTS));
    // What is set up once is no growth.
    at_once(count / 10, seed, throws);
    let resident = resident_kib(&node);
    at_once(count, seed.wrapping_add(100), throws);
    let of_requests = is_well(&mut node, resident);

    let of_messages =
        of_peers(&mut node, count / 10, seed, |method| !CHANGES_THE_CLUSTER.contains(&method));
    // Of these one that is right does what it says: who reaches this port can be a member.
    let mut given_up = Setup::new().start_ready();
    of_peers(&mut given_up, count / 50, seed, |_| true);
    is_alive(&mut given_up);
    assert!(is_well(&mut node, resident).contains("MiB"));
    results::keep("LALLY_MUTATED_RESULT", || {
        format!(
            "# Mutated requests and messages\n\n{}, {}, {} cores, revision {}, seed {seed}. No crash, no hang.\n\n\
             - {count} HTTP requests: {of_requests}.\n- {} messages of peers: {of_messages}.\n",
            results::date(),
            results::build(),
            results::cores(),
            results::revision(),
            count / 10,
        )
    });
}
