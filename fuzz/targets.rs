//! What is fuzzed: one function for each kind of bytes that come from outside, through the doors by which
//! they come. Each takes any bytes, and may answer what it likes but must neither panic nor hang.
//!
//! `fuzz_targets` hands them to libFuzzer; `tests/it/corpus.rs` runs them over the corpus on every change.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use lally::adapters::clock::SystemClock;
use lally::adapters::config;
use lally::adapters::file_aof::{check_log, dump_log};
use lally::adapters::grpc::{ServerOptions, serve_connections};
use lally::adapters::http::{self, HttpOptions};
use lally::adapters::memory::{
    MemoryBook, MemoryLog, MemoryNetwork, MemoryQuarantine, MemoryStore,
};
use lally::adapters::swim::{Swim, SwimOptions};
use lally::app::{Node, NodeParts, NodeSettings, claim_identity};
use lally::domain::{KeptData, NodeId, Start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const ID: NodeId = NodeId::new(1);

/// Far longer than anything here takes: what is not done by then hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// What takes any bytes.
pub type Target = fn(&[u8]);

/// The name and the function of each target. The name is that of its corpus, too.
pub const TARGETS: [(&str, Target); 4] =
    [("log", log), ("config", config_file), ("bodies", bodies), ("messages", messages)];

/// A file of a log: checked, and printed.
pub fn log(bytes: &[u8]) {
    with_file("0000000000000001.log", bytes, |path| {
        check_log(path, None).ok();
        dump_log(path, &mut |_| ControlFlow::Continue(())).ok();
    });
}

/// A configuration file.
pub fn config_file(bytes: &[u8]) {
    with_file("lally.yml", bytes, |path| {
        let args = ["lally".into(), "--config".into(), path.into()];
        config::parse(args.into(), Vec::<(String, String)>::new()).ok();
    });
}

fn with_file(name: &str, bytes: &[u8], read: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join(name);
    fs::write(&path, bytes).expect("a file in it");
    read(&path);
}

/// A body, at every call that takes one.
pub fn bodies(bytes: &[u8]) {
    in_a_runtime(async {
        let node = node().await;
        let service = http::service(node.client_api(), HttpOptions::default());
        for (method, path) in
            [("POST", "/add"), ("POST", "/get"), ("DELETE", "/remove"), ("POST", "/cluster/forget")]
        {
            let body = Body::from(bytes.to_vec());
            let request = Request::builder().method(method).uri(path).body(body);
            let response = service.clone().oneshot(request.expect("a request")).await;
            let status = response.expect("an answer").status().as_u16();
            assert!(status != 500, "{status}");
        }
    });
}

/// The calls that a node takes from its peers.
const CALLS: [&str; 10] = [
    "Announce",
    "Gossip",
    "Data",
    "Digest",
    "LevelDigests",
    "Pull",
    "Summaries",
    "Fetch",
    "Fence",
    "Push",
];

/// A message of a peer: the first byte says of which call, the rest is the message. It goes as far as the
/// log, the store and the failure detector of a node.
pub fn messages(bytes: &[u8]) {
    let Some((call, message)) = bytes.split_first() else { return };
    let call = CALLS[usize::from(*call) % CALLS.len()];
    in_a_runtime(async move {
        let node = node().await;
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let stop = CancellationToken::new();
        let connections = futures_util::stream::iter([Ok::<_, std::io::Error>(far)]);
        let options = ServerOptions::new("fuzz", ID);
        let serving = serve_connections(connections, node.replica_api(), options, stop.clone());
        let calling = async {
            near.write_all(&conversation(call, message)).await.ok();
            let mut said = Vec::new();
            while !is_answered(&said) && near.read_buf(&mut said).await.is_ok_and(|count| count > 0)
            {
            }
            drop(near);
            stop.cancel();
        };
        let (served, ()) = tokio::join!(serving, calling);
        served.expect("a server that ends when it is told to");
    });
}

/// A connection with one call, in frames of HTTP/2 (RFC 9113) without compression.
fn conversation(call: &str, message: &[u8]) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let path = format!("/lally.v1.Peer/{call}");
    let head: Vec<u8> = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", &path),
        (":authority", "fuzz"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        // "fuzz"
        ("lally-cluster-bin", "ZnV6eg"),
        ("lally-protocol", "1-1"),
    ]
    .into_iter()
    .flat_map(|(name, value)| {
        let length = |text: &str| u8::try_from(text.len()).unwrap_or(u8::MAX);
        [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
    })
    .collect();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let framed = [&[0], &length[..], message].concat();
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend([frame(4, 0, 0, &[]), frame(1, 4, 1, &head)].concat());
    let parts = framed.chunks(16_384).map(|part| frame(0, 0, 1, part));
    sent.extend(parts.collect::<Vec<_>>().concat());
    sent.extend(frame(0, 1, 1, &[]));
    sent
}

/// Whether the call has ended: by a head or data that end the stream, or by a reset.
fn is_answered(said: &[u8]) -> bool {
    let mut rest = said;
    while let Some((head, behind)) = rest.split_first_chunk::<9>() {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some(next) = behind.get(length..) else { return false };
        let ends = matches!(head[3], 0 | 1) && head[4] & 1 != 0 || head[3] == 3 || head[3] == 7;
        if ends {
            return true;
        }
        rest = next;
    }
    false
}

/// A node that is alone and keeps all in memory, with the failure detector of production.
async fn node() -> Node {
    let book_file = MemoryBook::default();
    let identity = claim_identity(&book_file, "fuzz", ID).await;
    let (book, last_phase) = identity.expect("an identity");
    let start = Start::decide(last_phase, KeptData::All, false);
    let settings = NodeSettings::new("fuzz", "alone:1", "none");
    let transport = MemoryNetwork::new().transport("alone:1", "fuzz");
    let me = Node::first_record(&book, start, &settings);
    let detector = Swim::start(&SwimOptions::new(me, "fuzz", 1), Arc::clone(&transport) as _);
    let parts = NodeParts {
        store: Arc::new(MemoryStore::new()),
        log: Arc::new(MemoryLog::default()),
        transport,
        detector,
        book: Arc::new(book_file),
        quarantine: Arc::new(MemoryQuarantine::default()),
        clock: Arc::new(SystemClock),
        hooks: Vec::new(),
    };
    let node = Node::new(parts, settings, &book, start);
    node.replay().await.expect("an empty log");
    node.start();
    while node.client_api().readiness().is_err() {
        tokio::task::yield_now().await;
    }
    node
}

fn in_a_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done =
        runtime.expect("a runtime").block_on(async { tokio::time::timeout(PATIENCE, work).await });
    assert!(done.is_ok(), "it hangs");
}
