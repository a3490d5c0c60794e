//! More requests than a node works on at a time: what is above the cap is refused at once, with 503
//! and `Retry-After`, and costs those that are served nothing.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{Client, Reply, open, read_reply};
use super::mutation::metric;
use super::node::Node;
use super::ring;
use super::turn::Turn;
use super::wait::{PATIENCE, eventually, is};

/// Requests that a node works on at a time, and as many whose bodies it waits for.
const CAP: usize = 1_024;

/// What a refusal may take: far less than anything that waits for a peer or a body.
const AT_ONCE: Duration = Duration::from_millis(250);

/// A request whose body the node waits for.
pub(super) struct Awaited {
    connection: BufReader<TcpStream>,
    body: String,
}

impl Awaited {
    /// Sends the head, and returns when the node says that it waits for the body; or refuses.
    pub(super) fn begin(addr: SocketAddr, body: String) -> Result<Self, Reply> {
        let mut connection = BufReader::new(open(addr).unwrap());
        let head = format!(
            "POST /add HTTP/1.1\r\nhost: {addr}\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
            body.len()
        );
        connection.get_mut().write_all(head.as_bytes()).unwrap();
        let first = connection.fill_buf().unwrap();
        if !first.starts_with(b"HTTP/1.1 100 ") {
            return Err(read_reply(&mut connection, false).unwrap());
        }
        Ok(Self { connection, body })
    }

    pub(super) fn send_body(&mut self) {
        self.connection.get_mut().write_all(self.body.as_bytes()).unwrap();
    }

    pub(super) fn reply(mut self) -> Reply {
        read_reply(&mut self.connection, false).unwrap()
    }
}

/// Refused at once, with a hint when to come again.
#[track_caller]
fn refused(reply: &Reply, took: Duration) {
    reply.failed(503, "overloaded");
    assert_eq!(reply.header("retry-after"), Some("1"), "{reply:?}");
    assert!(took < AT_ONCE, "{took:?}");
}

/// What operators ask is answered all the while.
fn operators_are_served(node: &Node) {
    let mut client = node.client();
    for path in ["/healthz", "/readyz", "/cluster", "/metrics"] {
        assert_eq!(client.ask("GET", path).status, 200, "{path}");
    }
}

fn in_flight(client: &mut Client) -> usize {
    let text = client.ask("GET", "/metrics").body;
    let line = text.lines().find_map(|line| line.strip_prefix("lally_http_requests_in_flight "));
    line.unwrap().parse().unwrap()
}

/// Whether this process and those it starts may have as many connections as the test needs.
fn may_open(connections: usize) -> bool {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find(|line| line.starts_with("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().nth(3)?.parse::<usize>().ok());
    soft.is_none_or(|soft| soft >= connections)
}

#[test]
fn above_the_cap_requests_are_refused_at_once_and_those_below_it_are_answered() {
    if !may_open(2 * CAP) {
        eprintln!("SKIPPED: this process may not have {} files open (ulimit -n)", 2 * CAP);
        return;
    }
    let _alone = Turn::alone();
    let nodes = ring::start(2, &[]);
    let addr = nodes[0].http();
    // As many bodies as the node waits for.
    let mut awaited: Vec<_> = (0..CAP)
        .map(|i| {
            let key = format!("k{i}");
            let body = json!({"key": key, "value": "v", "quorum": "all", "timeout_ms": 10_000});
            Awaited::begin(addr, body.to_string()).unwrap_or_else(|reply| panic!("{i}: {reply:?}"))
        })
        .collect();
    let started = Instant::now();
    let Err(reply) = Awaited::begin(addr, r#"{"key":"k","value":"v"}"#.to_owned()) else {
        panic!("one body more is waited for")
    };
    refused(&reply, started.elapsed());
    operators_are_served(&nodes[0]);
    // A body that comes with its head is not waited for.
    nodes[0].client().add("whole", "v").succeeded();

    // As many requests as the node works on: none is answered before the peer is given up.
    nodes[1].hang();
    for request in &mut awaited {
        request.send_body();
    }
    let mut operator = nodes[0].client();
    eventually("the node works on all of them", PATIENCE, || {
        let count = in_flight(&mut operator);
        is(count == CAP, count)
    });
    for (method, path, body) in [
        ("POST", "/add", json!({"key": "refused", "value": "v"})),
        ("POST", "/get", json!({"key": "whole"})),
        ("DELETE", "/remove", json!({"key": "whole"})),
    ] {
        let mut client = nodes[0].client();
        let started = Instant::now();
        let reply = client.call(method, path, &body);
        refused(&reply, started.elapsed());
    }
    operators_are_served(&nodes[0]);

    // Everything that was taken is answered, and what was refused was not done.
    for request in awaited {
        let reply = request.reply();
        assert_eq!((reply.status, reply.verdict().as_str()), (200, "partial"), "{reply:?}");
    }
    let mut client = nodes[0].client();
    assert_eq!(in_flight(&mut client), 0);
    assert_eq!(client.get("refused").value(), None);
    assert_eq!(client.get("whole").value().as_deref(), Some("v"));
    nodes[1].signal("CONT");
    ring::wait_whole(&nodes);
    ring::wait_equal(&nodes);
}

#[test]
fn clients_that_write_and_hang_up_have_so_many_writes_under_way_and_no_more() {
    let _alone = Turn::alone();
    let nodes = ring::start(2, &[]);
    nodes[0].client().add("k", "v").succeeded();
    nodes[1].hang();
    // None of them is decided before the other node is given up.
    let body = json!({"key": "k", "value": "w", "quorum": "all", "timeout_ms": 10_000});
    let reply = eventually("a write is refused", PATIENCE, || {
        (0..100).for_each(|_| nodes[0].client().send_and_hang_up("/add", &body));
        let reply = nodes[0].client().add("other", "v");
        if reply.status == 503 { Ok(reply) } else { Err(reply.body) }
    });
    refused(&reply, Duration::ZERO);
    assert!(reply.text("message").contains("did not wait"), "{}", reply.body);
    // Those that had begun when the last place was taken come on top.
    let unawaited = usize::try_from(metric(&nodes[0], "lally_unawaited_writes")).unwrap();
    assert!((CAP..2 * CAP).contains(&unawaited), "{unawaited}");
    operators_are_served(&nodes[0]);
    nodes[0].client().get_from("k", 1).succeeded();
    nodes[1].signal("CONT");
    ring::wait_whole(&nodes);
    eventually("writes are taken again", PATIENCE, || {
        let reply = nodes[0].client().add_to("k", "x", 2);
        is(reply.status == 200 && reply.verdict() == "success", reply.body)
    });
    ring::wait_equal(&nodes);
}
