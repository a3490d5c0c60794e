//! What no client or peer should send: the node answers it or hangs up, and lives on.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::client::{open, read_reply};
use super::node::{Node, Setup};

/// A cheap sequence without order, from a fixed start: the same garbage in every run.
fn garbage(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Sends bytes, says that no more will come, and waits until the other side hangs up.
fn throw(addr: SocketAddr, bytes: &[u8]) {
    let mut stream = open(addr).unwrap();
    // Errors are fine: hanging up in the middle is an answer.
    let sent = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
    if sent.is_ok() {
        wait_for_hang_up(&mut stream);
    }
}

fn wait_for_hang_up(stream: &mut TcpStream) {
    let mut sink = [0; 4096];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                panic!("it keeps the connection")
            }
            Err(_) => return,
        }
    }
}

#[track_caller]
fn is_well(node: &mut Node) {
    assert!(!node.has_ended(), "it died");
    node.client().add("after", "abuse").succeeded();
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

#[test]
fn garbage_on_either_port_kills_nothing() {
    let mut node = Setup::new().start_ready();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for seed in 0..20 {
        for addr in [node.http(), node.grpc()] {
            throw(addr, &garbage(seed, 3000));
            throw(addr, &[preface.clone(), garbage(seed, 300)].concat());
        }
        let request = b"POST /add HTTP/1.1\r\nhost: x\r\ncontent-length: 300\r\n\r\n".to_vec();
        throw(node.http(), &[request, garbage(seed, 300)].concat());
    }
    for line in ["GET / HTTP/1.1\r\n\r\n", "\r\n\r\n", "GET", "\0\0\0\0", "SSH-2.0-x\r\n"] {
        throw(node.http(), line.as_bytes());
        throw(node.grpc(), line.as_bytes());
    }
    is_well(&mut node);
}

#[test]
fn contradicting_lengths_do_not_smuggle_a_second_request() {
    let mut node = Setup::new().start_ready();
    let hidden = "DELETE /remove HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\n\r\n{\"key\":\"k\"}";
    node.client().add("k", "v").succeeded();
    let both = format!(
        "POST /get HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\ncontent-length: 3\r\n\r\n{hidden}",
        hidden.len()
    );
    throw(node.http(), both.as_bytes());
    assert_eq!(node.client().get("k").value().as_deref(), Some("v"));
    is_well(&mut node);
}

#[test]
fn too_many_and_too_long_headers_are_refused() {
    let mut node = Setup::new().start_ready();
    let many: String = "x-many: y\r\n".repeat(200);
    let long = format!("x: {}\r\n", "y".repeat(64 * 1024));
    for headers in [many, long] {
        let mut stream = open(node.http()).unwrap();
        let request = format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        // The server may hang up before it has read it all.
        if stream.write_all(request.as_bytes()).is_ok()
            && let Ok(reply) = read_reply(&mut BufReader::new(stream), false)
        {
            assert!((400..500).contains(&reply.status), "{reply:?}");
        }
    }
    is_well(&mut node);
}

#[test]
fn a_client_that_sends_its_headers_slowly_is_cut() {
    let mut node = Setup::new().start_ready();
    let started = Instant::now();
    let mut stream = open(node.http()).unwrap();
    stream.write_all(b"POST /add HTTP/1.1\r\nhost: x\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sink = [0; 1024];
    // The limit is 5 s for all headers, however steadily they drip.
    loop {
        assert!(started.elapsed() < Duration::from_secs(12), "it waits for ever");
        let dripped = stream.write_all(b"x: y\r\n");
        match stream.read(&mut sink) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if dripped.is_err() {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    assert!(started.elapsed() >= Duration::from_secs(2), "cut after {:?}", started.elapsed());
    is_well(&mut node);
}

#[test]
fn idle_connections_by_the_hundred_cost_the_others_nothing() {
    let mut node = Setup::new().start_ready();
    let idle: Vec<_> = (0..500).map(|_| open(node.http()).unwrap()).collect();
    let started = Instant::now();
    is_well(&mut node);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    drop(idle);
}

#[test]
fn clients_that_hang_up_in_the_middle_do_no_harm() {
    let mut node = Setup::new().start_ready();
    let addr = node.http();
    let request = "POST /add HTTP/1.1\r\nhost: x\r\ncontent-length: 23\r\n\r\n{\"key\":\"k\",\"value\":\"v\"}";
    thread::scope(|scope| {
        for part in 0..4 {
            scope.spawn(move || {
                for end in (part..request.len()).step_by(4) {
                    open(addr).unwrap().write_all(&request.as_bytes()[..end]).unwrap();
                }
            });
        }
    });
    is_well(&mut node);
}
