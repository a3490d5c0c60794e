//! The paths that a request takes, one by one.
//!
//! `cargo bench` times them. With `LALLY_COUNT=NAME` and `LALLY_TIMES=N` the program does nothing but
//! prepare that path and take it so often, for `bench/compare.py` to count instructions with callgrind:
//! those are steady where times are not.

#![allow(missing_docs, clippy::unwrap_used, reason = "a measurement")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request};
use criterion::Criterion;
use http_body_util::BodyExt;
use lally::adapters::clock::SystemClock;
use lally::adapters::dash_store::DashStore;
use lally::adapters::file_aof::{AofOptions, FileAof, FsyncPolicy};
use lally::adapters::grpc::{Dial, GrpcOptions, GrpcPeers, ServerOptions, serve_connections};
use lally::adapters::http::{self, HttpOptions};
use lally::adapters::memory::{
    MemoryBook, MemoryLog, MemoryNetwork, MemoryQuarantine, TrustingDetector,
};
use lally::app::{Node, NodeParts, NodeSettings, claim_identity};
use lally::domain::{
    BucketSet, Entry, Fingerprint, KeptData, Key, KeyedEntry, NodeId, QuorumSpec, Start, Timestamp,
    Value, Version,
};
use lally::ports::{
    ClientApi, LogRecord, OpLog, Peer, PeerTransport, ReplayVisitor, RequestOptions, Store,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

const CLUSTER: &str = "bench";
const KEYS: u64 = 10_000;
const SOON: Duration = Duration::from_secs(10);

/// One taking of a path.
type Step = Box<dyn FnMut()>;

/// A path by name, and what prepares it.
type Path = (&'static str, fn() -> Step);

const PATHS: [Path; 18] = [
    ("store/merge", store_merge),
    ("store/get", store_get),
    ("store/scan", || store_scan(false)),
    ("store/scan-under-writes", || store_scan(true)),
    ("digest/fingerprint", fingerprint),
    ("log/append-1", || log_append(1, FsyncPolicy::EverySec)),
    ("log/append-16", || log_append(16, FsyncPolicy::EverySec)),
    ("log/append-256", || log_append(256, FsyncPolicy::EverySec)),
    ("log/append-16-never", || log_append(16, FsyncPolicy::Never)),
    ("log/append-16-always", || log_append(16, FsyncPolicy::Always)),
    ("log/replay-10000", log_replay),
    ("coordinator/add-1-of-1", || coordinator_add(1, "1")),
    ("coordinator/add-2-of-3", || coordinator_add(3, "2")),
    ("coordinator/get-2-of-3", coordinator_get),
    ("http/add", || http_call("/add", r#"{"key":"key-1","value":"VALUE"}"#)),
    ("http/get", || http_call("/get", r#"{"key":"key-1"}"#)),
    ("peers/write-1", || peers_write(1)),
    ("peers/write-16", || peers_write(16)),
];

/// Paths whose instructions depend on what other threads do meanwhile.
const NOT_STEADY: [&str; 1] = ["store/scan-under-writes"];

fn main() {
    let count = |name: &str| std::env::var(name).ok();
    if let Some(name) = count("LALLY_COUNT") {
        let times: u64 = count("LALLY_TIMES").and_then(|times| times.parse().ok()).unwrap_or(1);
        let (_, prepare) = PATHS.iter().find(|(path, _)| *path == name).unwrap();
        let mut step = prepare();
        (0..times).for_each(|_| step());
        return;
    }
    if std::env::args().any(|argument| argument == "--paths") {
        let steady = PATHS.iter().filter(|(name, _)| !NOT_STEADY.contains(name));
        let names: Vec<_> = steady.map(|(name, _)| *name).collect();
        std::io::Write::write_all(&mut std::io::stdout(), names.join("\n").as_bytes()).unwrap();
        return;
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args();
    for (name, prepare) in PATHS {
        let mut step = prepare();
        criterion.bench_function(name, |bencher| bencher.iter(&mut step));
    }
    criterion.final_summary();
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn key(number: u64) -> Key {
    Key::new(&format!("key-{number:012}")).unwrap()
}

fn write(number: u64, time: u64) -> KeyedEntry {
    let version = Version::new(Timestamp::from_nanos(time), NodeId::new(1));
    KeyedEntry::new(key(number), Entry::live(version, Value::new(&"x".repeat(100))))
}

/// A store of [`KEYS`] keys, whose hashes are the same in every run.
fn store() -> DashStore {
    let store = DashStore::with_seed(1);
    for number in 0..KEYS {
        store.merge(write(number, 1));
    }
    store
}

fn store_merge() -> Step {
    let (store, mut time) = (store(), 1);
    Box::new(move || {
        time += 1;
        black_box(store.merge(write(time % KEYS, time)));
    })
}

fn store_get() -> Step {
    let (store, keys) = (store(), (0..KEYS).map(key).collect::<Vec<_>>());
    let mut next = 0;
    Box::new(move || {
        next = (next + 1) % keys.len();
        black_box(keys.get(next).map(|key| store.get(key)));
    })
}

/// A walk over all keys. What writes meanwhile ends with the step.
fn store_scan(under_writes: bool) -> Step {
    struct Writes(Arc<AtomicBool>);
    impl Drop for Writes {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let (store, stop) = (Arc::new(store()), Arc::new(AtomicBool::new(false)));
    if under_writes {
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        std::thread::spawn(move || {
            for time in 2.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                store.merge(write(time % KEYS, time));
            }
        });
    }
    let writes = Writes(stop);
    Box::new(move || {
        let _until_dropped = &writes;
        black_box(store.keys_in(&BucketSet::all()));
    })
}

fn fingerprint() -> Step {
    let write = write(1, 1);
    Box::new(move || {
        black_box(Fingerprint::of(black_box(&write.key), black_box(&write.entry)));
    })
}

/// Counts what it is shown.
struct Visitor(Arc<AtomicU64>);

impl ReplayVisitor for Visitor {
    fn visit(&mut self, record: LogRecord) {
        black_box(record);
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn open_log(dir: &TempDir, fsync: FsyncPolicy) -> FileAof {
    let options = AofOptions::new(dir.path(), CLUSTER, NodeId::new(1));
    FileAof::open(AofOptions { fsync, ..options }).unwrap()
}

/// An append of so many writes.
fn log_append(records: u64, fsync: FsyncPolicy) -> Step {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let log = open_log(&dir, fsync);
    runtime.block_on(log.replay(Box::new(Visitor(Arc::default())))).unwrap();
    let records: Vec<_> = (0..records).map(|n| LogRecord::Write(write(n, n))).collect();
    Box::new(move || {
        let _until_dropped = &dir;
        runtime.block_on(log.append(&records)).unwrap();
    })
}

fn log_replay() -> Step {
    let (dir, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let log = open_log(&dir, FsyncPolicy::Never);
    runtime.block_on(async {
        log.replay(Box::new(Visitor(Arc::default()))).await.unwrap();
        let records: Vec<_> = (0..KEYS).map(|n| LogRecord::Write(write(n, n))).collect();
        log.append(&records).await.unwrap();
        log.close().await.unwrap();
    });
    drop(log);
    Box::new(move || {
        let seen = Arc::new(AtomicU64::new(0));
        let log = open_log(&dir, FsyncPolicy::Never);
        runtime.block_on(log.replay(Box::new(Visitor(Arc::clone(&seen))))).unwrap();
        assert_eq!(seen.load(Ordering::Relaxed), KEYS);
    })
}

/// Nodes of one process, each with a real store, and a log and a network in memory.
async fn nodes(count: u64) -> Vec<Node> {
    let network = MemoryNetwork::new();
    let mut nodes = Vec::new();
    for id in 1..=count {
        let addr = format!("{id}:1");
        let book_file = MemoryBook::default();
        let (book, last_phase) =
            claim_identity(&book_file, CLUSTER, NodeId::new(id)).await.unwrap();
        let start = Start::decide(last_phase, KeptData::All, id > 1);
        let parts = NodeParts {
            store: Arc::new(DashStore::with_seed(id)),
            log: Arc::new(MemoryLog::default()),
            transport: network.transport(&addr, CLUSTER),
            detector: Arc::new(TrustingDetector::new()),
            book: Arc::new(book_file),
            quarantine: Arc::new(MemoryQuarantine::default()),
            clock: Arc::new(SystemClock),
            hooks: Vec::new(),
        };
        let mut settings = NodeSettings::new(CLUSTER, &addr, "none");
        settings.seeds = if id > 1 { vec!["1:1".to_owned()] } else { Vec::new() };
        let node = Node::new(parts, settings, &book, start);
        node.replay().await.unwrap();
        network.attach(&addr, book.id, CLUSTER, node.replica_api());
        node.start();
        while node.client_api().readiness().is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        nodes.push(node);
    }
    nodes
}

/// The runtime, the nodes, and the way into the first of them.
fn cluster(count: u64) -> (Runtime, Vec<Node>, Arc<dyn ClientApi>) {
    let runtime = runtime();
    let nodes = runtime.block_on(nodes(count));
    let api = nodes.first().unwrap().client_api();
    (runtime, nodes, api)
}

fn options(quorum: &str) -> RequestOptions {
    let quorum: QuorumSpec = quorum.parse().unwrap();
    RequestOptions { quorum: Some(quorum), ..RequestOptions::default() }
}

fn coordinator_add(count: u64, quorum: &str) -> Step {
    let (runtime, nodes, api) = cluster(count);
    let (options, mut next) = (options(quorum), 0);
    Box::new(move || {
        let _until_dropped = &nodes;
        next += 1;
        let value = Value::new(&"x".repeat(100));
        runtime.block_on(api.add(key(next % KEYS), value, options)).unwrap();
    })
}

fn coordinator_get() -> Step {
    let (runtime, nodes, api) = cluster(3);
    runtime.block_on(api.add(key(1), Value::new("v"), options("all"))).unwrap();
    let options = options("2");
    Box::new(move || {
        let _until_dropped = &nodes;
        runtime.block_on(api.get(key(1), options)).unwrap();
    })
}

/// JSON in, a node of one, JSON out.
fn http_call(path: &'static str, body: &'static str) -> Step {
    let (runtime, nodes, api) = cluster(1);
    let service = http::service(api, HttpOptions::default());
    let body = body.replace("VALUE", &"x".repeat(100));
    let request = move || {
        let request = Request::builder().method(Method::POST).uri(path);
        request.body(Body::from(body.clone())).unwrap()
    };
    Box::new(move || {
        let _until_dropped = &nodes;
        let response = runtime.block_on(service.clone().oneshot(request())).unwrap();
        assert!(response.status().is_success());
        black_box(runtime.block_on(response.into_body().collect()).unwrap());
    })
}

/// So many writes at a time to a peer: encoded, over a connection in memory, decoded, applied,
/// answered.
fn peers_write(at_a_time: u64) -> Step {
    let (runtime, nodes, _) = cluster(1);
    let replica = nodes.first().unwrap().replica_api();
    let (dialled, mut accepted) = tokio::sync::mpsc::channel(8);
    let options = GrpcOptions::new(CLUSTER, NodeId::new(9), 1).dialling(Dial::with(move |_| {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        dialled.try_send(theirs).unwrap();
        async move { Ok(ours) }
    }));
    let incoming = connections(move |context| accepted.poll_recv(context));
    let serving = serve_connections(
        incoming,
        replica,
        ServerOptions::new(CLUSTER, NodeId::new(1)),
        CancellationToken::new(),
    );
    let peers = {
        let _inside = runtime.enter();
        TaskTracker::new().spawn(serving);
        GrpcPeers::new(options)
    };
    let (peer, mut time) = (Peer { id: NodeId::new(1), addr: "1:1".to_owned() }, 0);
    Box::new(move || {
        let _until_dropped = &nodes;
        time += at_a_time;
        let calls =
            (0..at_a_time).map(|n| peers.write(&peer, write(n % KEYS, time + n), SOON.into()));
        for reply in runtime.block_on(futures_util::future::join_all(calls)) {
            reply.unwrap();
        }
    })
}

/// The connections that were opened, as a server takes them.
fn connections(
    mut next: impl FnMut(
        &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<tokio::io::DuplexStream>>,
) -> impl futures_util::Stream<Item = Result<tokio::io::DuplexStream, std::io::Error>> {
    futures_util::stream::poll_fn(move |context| next(context).map(|next| next.map(Ok)))
}
