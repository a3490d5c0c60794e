//! Crowds of connections that want nothing, or want it slowly: they are held or refused, and who is
//! being served notices little of them. And a node without file descriptors, which goes on once it has
//! some again. `make hostile` does the first with ten times as many.

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::results;

use super::client::{Client, open};
use super::mutation::{metric, open_files, resident_kib};
use super::node::{Node, Setup};
use super::ring;
use super::turn::Turn;
use super::wait::{PATIENCE, eventually, is};

/// What a busy machine may add to any request.
const NOISE: Duration = Duration::from_millis(25);

/// The 99th percentile of the times of reads and writes on one connection.
fn p99(client: &mut Client, rounds: usize) -> Duration {
    let value = "v".repeat(100);
    let mut times: Vec<_> = (0..rounds)
        .map(|i| {
            let key = format!("k{}", i % 100);
            let began = Instant::now();
            if i % 4 == 0 {
                client.add(&key, &value).succeeded();
            } else {
                client.get(&key).succeeded();
            }
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[rounds * 99 / 100]
}

/// Whether the node has hung up on this connection.
fn is_refused(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let read = stream.peek(&mut [0; 1]);
    stream.set_nonblocking(false).unwrap();
    match read {
        Ok(count) => count == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

/// So many connections that send this and then nothing.
fn crowd(addr: SocketAddr, count: usize, begin: &[u8]) -> Vec<TcpStream> {
    let connect = |_| {
        let mut stream = open(addr).unwrap();
        // One that is refused may be gone already.
        stream.write_all(begin).ok();
        stream
    };
    (0..count).map(connect).collect()
}

struct Sizes {
    idle: usize,
    slow: usize,
    connections: usize,
    rounds: usize,
}

fn sizes() -> Sizes {
    let idle = results::from_env("LALLY_TEST_CROWD").unwrap_or(1_000);
    // Some of the idle ones are above the limit.
    Sizes { idle, slow: idle / 10, connections: idle * 2 / 5, rounds: 2_000 }
}

#[test]
fn idle_and_slow_connections_are_held_or_refused_and_cost_who_is_served_little() {
    let _alone = Turn::alone();
    let sizes = sizes();
    let limit = sizes.connections.to_string();
    let node = Setup::new().args(["--max-connections", &limit]);
    // So that who is held is still there when it is counted.
    let node =
        node.args(["--header-read-timeout", "60s", "--body-read-timeout", "60s"]).start_ready();
    let addr = node.http();
    let mut client = node.client();
    client.add("large", &"x".repeat(500_000)).succeeded();
    p99(&mut client, 200);
    let before = p99(&mut client, sizes.rounds);
    let resident = resident_kib(&node);
    let mut report = format!(
        "| crowd | held | refused | p99 | times | resident, MiB |\n|---|---|---|---|---|---|\n| nobody | | | {before:?} | 1 | {} |\n",
        resident / 1_024
    );

    let get = json!({"key": "large"}).to_string();
    let slow_read = format!("POST /get HTTP/1.1\r\ncontent-length: {}\r\n\r\n{get}", get.len());
    let crowds: [(&str, usize, &[u8]); 4] = [
        ("idle", sizes.idle, b""),
        ("slow heads", sizes.slow, b"POST /add HTTP/1.1\r\nhost: x\r\nx-slow: "),
        ("slow bodies", sizes.slow, b"POST /add HTTP/1.1\r\ncontent-length: 1000\r\n\r\n{\"key\""),
        ("slow reads", sizes.slow, slow_read.as_bytes()),
    ];
    for (name, count, begin) in crowds {
        let mut crowd = crowd(addr, count, begin);
        let served = p99(&mut client, sizes.rounds);
        let refused = crowd.iter_mut().filter_map(|s| is_refused(s).then_some(())).count();
        let held = count - refused;
        let times = served.as_secs_f64() / before.as_secs_f64();
        let mib = resident_kib(&node) / 1_024;
        writeln!(report, "| {name} | {held} | {refused} | {served:?} | {times:.1} | {mib} |")
            .unwrap();
        if results::from_env::<usize>("LALLY_TEST_CROWD").is_some() {
            results::say(report.lines().last().unwrap());
        }
        assert!(served < before * 5 + NOISE, "{name}: {served:?}, without them {before:?}");
        assert!(open_files(&node) <= sizes.connections + 64, "{} files", open_files(&node));
        drop(crowd);
        eventually("they are gone", PATIENCE, || {
            let open = metric(&node, "lally_http_connections");
            is(open <= 2, open)
        });
    }
    assert!(metric(&node, "lally_http_connections_refused_total") >= sizes.idle as u64 / 2);
    assert!(
        resident_kib(&node) < resident + 64 * 1_024 + 20 * sizes.connections as u64,
        "{report}"
    );
    p99(&mut client, 100);
    results::keep("LALLY_CROWDS_RESULT", || {
        format!(
            "# Crowds of connections\n\n{}, {}, {} cores, revision {}. `max_connections` {limit}; one client with {} \
             requests one after the other.\n\n{report}",
            results::date(),
            results::build(),
            results::cores(),
            results::revision(),
            sizes.rounds,
        )
    });
}

/// A few more than a node needs to run; as in the command below.
const DESCRIPTORS: usize = 64;

#[test]
fn a_node_without_file_descriptors_goes_on_once_it_has_some() {
    let limited = ["sh", "-c", "ulimit -n 64; exec \"$0\" \"$@\""];
    let first = Setup::new().start_ready();
    let mut node = Setup::new().under(limited).seed(first.grpc()).start_ready();
    let all = [&first, &node];
    ring::wait_whole(all);
    node.wait_for_log(&["fewer file descriptors than connections are allowed"]);
    for (addr, complaint) in [
        (node.http(), "clients' connections cannot be accepted"),
        (node.grpc(), "peers' connections cannot be accepted"),
    ] {
        let mut client = node.client();
        // Connections of peers are opened when they are first used.
        client.add_to("k", "before", 2).succeeded();
        first.client().add_to("k", "before", 2).succeeded();
        let crowd = crowd(addr, 2 * DESCRIPTORS, b"");
        node.wait_for_log(&[complaint]);
        // Who is connected is served, and peers are, on the connections that they have.
        client.add("k", "during").succeeded();
        first.client().add_to("k", "both", 2).succeeded();
        // Twenty attempts in a second, and not as many as a core can make.
        let busy = cpu_time(&node);
        let began = Instant::now();
        eventually("a second has passed", PATIENCE, || {
            is(began.elapsed() > Duration::from_secs(1), "")
        });
        let busy = cpu_time(&node).saturating_sub(busy);
        assert!(busy < began.elapsed() / 2, "{busy:?} of {:?} for nothing", began.elapsed());
        drop(crowd);
        eventually("new clients are served", PATIENCE, || {
            let mut client = Client::with_patience(node.http(), Duration::from_secs(1));
            client.try_send("GET", "/healthz", &[], b"").map(drop)
        });
        let log = node.log();
        assert!(log.lines().filter(|line| line.contains(complaint)).count() < 20, "{log}");
    }
    // A peer that comes anew is let in, too.
    let newcomer = Setup::new().seed(node.grpc()).start_ready();
    ring::wait_whole([&first, &node, &newcomer]);
    assert!(!node.has_ended());
}

/// Processor time of a node so far.
fn cpu_time(node: &Node) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid())).unwrap();
    let behind_the_name = stat.rsplit(')').next().unwrap();
    let ticks =
        |at: usize| behind_the_name.split_whitespace().nth(at).unwrap().parse::<u64>().unwrap();
    // In user mode and in the kernel's, in hundredths of a second.
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

#[test]
fn connections_of_peers_above_the_limit_are_closed_at_once_and_the_others_are_served() {
    let first = Setup::new().args(["--max-peer-connections", "8"]).start_ready();
    let second = Setup::new().seed(first.grpc()).start_ready();
    ring::wait_whole([&first, &second]);
    // Connections of peers are opened when they are first used.
    second.client().add_to("k", "v", 2).succeeded();
    first.client().add_to("k", "v", 2).succeeded();
    let mut crowd = crowd(first.grpc(), 50, b"");
    let held = crowd.iter_mut().filter_map(|stream| (!hung_up(stream)).then_some(())).count();
    assert!((1..8).contains(&held), "{held} are held, beside those of the peer");
    first.wait_for_log(&["too many connections of peers"]);
    second.client().add_to("k", "v", 2).succeeded();
    first.client().add_to("k", "v", 2).succeeded();
}

/// Whether the node has hung up, after it had the time to; it may have said its settings before.
fn hung_up(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    loop {
        match stream.read(&mut [0; 256]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                let waits = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                return !waits;
            }
        }
    }
}
