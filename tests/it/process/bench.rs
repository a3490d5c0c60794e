//! `lally bench` against nodes, and against what is none.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use serde_json::Value;

use super::node::{Finished, Setup, free_port, signal};

fn bench(addr: SocketAddr, args: &[&str]) -> Finished {
    let addr = addr.to_string();
    let words = [&["bench", "--addr", &addr, "--warmup", "0s"], args].concat();
    Setup::new().http_port(None).grpc_port(None).args(words).run()
}

/// What it says as JSON, alone on its standard output.
fn measured(addr: SocketAddr, args: &[&str]) -> Value {
    let finished = bench(addr, &[args, &["--json", "-"]].concat());
    assert_eq!(finished.code, Some(0), "{finished:?}");
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

#[test]
fn as_many_requests_as_were_asked_for_are_made_and_counted() {
    let node = Setup::new().start_ready();
    let plot = node.setup().dir().join("plot.svg");
    let plot_name = plot.display().to_string();
    let args = ["--connections", "4", "--keys", "50", "--fill", "--requests", "600"];
    let mix = ["--mix", "get=2,add=1", "--plot", &plot_name];
    let said = measured(node.http(), &[&args[..], &mix].concat());
    let calls = &said["calls"];
    let count = |call: &str| calls[call]["requests"].as_u64().unwrap();
    assert_eq!((count("all"), count("get") + count("add")), (600, 600));
    assert!(count("get").abs_diff(400) < 100, "{said}");
    assert_eq!((&said["partial"], &said["unanswered"]), (&0.into(), &0.into()));
    assert!(said["errors"].as_object().unwrap().is_empty(), "{said}");
    assert_eq!(node.holdings().1, 50, "every key was written once");
    assert!(node.client().get("bench-49").value().is_some_and(|value| value.len() == 100));
    assert!(fs::read_to_string(plot).unwrap().contains("</svg>"));
}

#[test]
fn connections_are_spread_over_all_nodes() {
    let nodes = [(); 2].map(|()| Setup::new().start_ready());
    let second = nodes[1].http().to_string();
    let args = ["--addr", &second, "--connections", "2", "--keys", "20", "--fill"];
    let said = measured(nodes[0].http(), &[&args[..], &["--requests", "10"]].concat());
    assert_eq!(said["addrs"].as_array().map(Vec::len), Some(2));
    // They know nothing of each other, so each has what it was sent.
    let keys = nodes.each_ref().map(|node| node.holdings().1);
    assert!(keys[0] > 0 && keys[1] > 0 && keys[0] + keys[1] >= 20, "{keys:?}");
}

/// One that runs, and has told its first second of load.
fn running_for_a_second(addr: SocketAddr, args: &[&str]) -> Child {
    let addr = addr.to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lally"));
    command.args(["bench", "--addr", &addr, "--warmup", "0s", "--json", "-"]).args(args);
    let mut running = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut progress = String::new();
    BufReader::new(running.stderr.as_mut().unwrap()).read_line(&mut progress).unwrap();
    assert!(progress.starts_with("load: 1 s"), "{progress}");
    running
}

/// What it says in the end.
fn ended(running: Child) -> Value {
    let output = running.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_interrupt_ends_it_and_what_was_measured_is_told() {
    let node = Setup::new().start_ready();
    let running = running_for_a_second(node.http(), &["--duration", "1h", "--rate", "100"]);
    signal(&running, "INT");
    let said = ended(running);
    assert_eq!(said["interrupted"], true);
    let requests = said["calls"]["all"]["requests"].as_u64().unwrap();
    assert!(requests > 20 && said["unanswered"].as_u64().unwrap() < 50, "{said}");
}

#[test]
fn people_get_a_table() {
    let node = Setup::new().start_ready();
    let finished = bench(node.http(), &["--requests", "50", "--mix", "remove=1"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for part in ["p99.9", "remove", "64 connections", "0 partial, 0 errors"] {
        assert!(finished.stdout.contains(part), "{part}: {finished:?}");
    }
    assert!(finished.stderr.contains("load: "), "{finished:?}");
}

#[test]
fn what_nodes_refuse_is_told() {
    let node = Setup::new().args(["--max-value-bytes", "10"]).start_ready();
    let said = measured(node.http(), &["--requests", "100", "--value-bytes", "11"]);
    let refused = said["errors"]["413 too_large"].as_u64().unwrap();
    let answered = said["calls"]["all"]["requests"].as_u64().unwrap();
    assert!(refused > 10 && refused + answered == 100, "{said}");
    let unfilled = bench(node.http(), &["--fill", "--value-bytes", "11"]);
    assert_eq!(unfilled.code, Some(1), "{unfilled:?}");
    assert!(
        unfilled.stderr.contains("not every key could be written: 413 too_large"),
        "{unfilled:?}"
    );
}

#[test]
fn where_no_node_is_nothing_is_measured() {
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let finished = bench(nobody, &["--duration", "100ms"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("refused") && finished.stdout.is_empty(), "{finished:?}");
}

/// Accepts a connection, and answers nothing on it before it is told to; then each request at once.
fn stalling() -> (SocketAddr, SyncSender<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let (go_on, stalled) = sync_channel(1);
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stalled.recv().unwrap();
        answer_all(stream);
    });
    (addr, go_on)
}

fn answer_all(mut stream: TcpStream) {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"status\":\"success\"}";
    let mut buffer = [0; 4_096];
    // One request at a time; this side reads it in one piece or in two.
    let mut request = Vec::new();
    while let Ok(1..) = stream.read(&mut buffer).inspect(|n| request.extend(&buffer[..*n])) {
        if request.ends_with(b"}") {
            request.clear();
            stream.write_all(ANSWER).unwrap();
        }
    }
}

/// One connection, a request every 10 ms for two seconds, and a node that stalls for the first: a
/// hundred requests are due meanwhile, and a user would have waited for each.
#[test]
fn a_node_that_stalls_cannot_hide_it() {
    let (addr, go_on) = stalling();
    let args = ["--connections", "1", "--duration", "2s", "--rate", "100"];
    let running = running_for_a_second(addr, &args);
    go_on.send(()).unwrap();
    let said = ended(running);
    let all = &said["calls"]["all"];
    let requests = all["requests"].as_u64().unwrap();
    assert_eq!(requests + said["unanswered"].as_u64().unwrap(), 200, "{said}");
    assert!(all["max_us"].as_u64().unwrap() >= 900_000, "{said}");
    // A tenth of all requests waited for most of it; only one was under way in that time.
    assert!(all["p90_us"].as_u64().unwrap() >= 500_000, "{said}");
}
