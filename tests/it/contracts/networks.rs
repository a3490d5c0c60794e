//! Networks for the transport suites: real ones on loopback, and the twin within the process.

use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lally::adapters::grpc::{GrpcOptions, GrpcPeers, ServerOptions, serve};
use lally::adapters::memory::MemoryNetwork;
use lally::domain::{Entry, Key, KeyedEntry, NodeId, Timestamp, Value, Version};
use lally::ports::{EntryChunk, EntryStream, PeerError, PeerTransport};
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::replica::{DEADLINE, FakeReplica};

/// The cluster where nothing else is said: any text may be a name.
pub const BLUE: &str = "bläu";

/// A timeout that passes within a test.
pub const SHORT: Duration = Duration::from_millis(300);

/// A timeout that does not.
pub const LONG: Duration = Duration::from_secs(25);

/// "At once", on a machine that is busy.
pub const AT_ONCE: Duration = Duration::from_secs(5);

/// Nodes, and the way from one node to them.
#[async_trait]
pub trait Network: Send + Sync {
    /// Lets this node be reached; where.
    fn serve(&self, replica: &Arc<FakeReplica>) -> String;

    /// Lets this node be reached where one was before.
    fn serve_at(&self, addr: &str, replica: &Arc<FakeReplica>);

    /// Stops a node; nothing listens at its address then.
    async fn stop(&self, addr: &str);

    /// An address where nothing listens.
    fn closed(&self) -> String;

    /// An address where somebody is, and never says a word.
    fn silent(&self) -> String;

    /// The way to the others of a node of this cluster.
    fn transport(&self, cluster: &str) -> Arc<dyn PeerTransport>;
}

/// gRPC on ports of this machine that the system picks.
#[derive(Default)]
pub struct Loopback {
    /// Sockets that have a port and do not listen: it stays free for this test, and closed.
    ports: Mutex<Vec<TcpSocket>>,
    servers: Mutex<HashMap<String, Server>>,
    silent: Mutex<Vec<TcpListener>>,
    tasks: TaskTracker,
}

struct Server {
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
}

#[async_trait]
impl Network for Loopback {
    fn serve(&self, replica: &Arc<FakeReplica>) -> String {
        let addr = self.closed();
        self.serve_at(&addr, replica);
        addr
    }

    fn serve_at(&self, addr: &str, replica: &Arc<FakeReplica>) {
        let listener = TcpListener::bind(addr).unwrap();
        listener.set_nonblocking(true).unwrap();
        let options = ServerOptions::new(&replica.cluster, replica.me.id);
        let stop = CancellationToken::new();
        let serving = serve(listener, Arc::clone(replica) as _, options, stop.clone());
        let server = Server { stop, serving: self.tasks.spawn(serving) };
        self.servers.lock().unwrap().insert(addr.to_owned(), server);
    }

    async fn stop(&self, addr: &str) {
        let server = self.servers.lock().unwrap().remove(addr).unwrap();
        server.stop.cancel();
        server.serving.await.unwrap().unwrap();
    }

    fn closed(&self) -> String {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let addr = socket.local_addr().unwrap().to_string();
        self.ports.lock().unwrap().push(socket);
        addr
    }

    /// The system takes connections in for a listener that never looks at them.
    fn silent(&self) -> String {
        let addr = self.closed();
        self.silent.lock().unwrap().push(TcpListener::bind(&addr).unwrap());
        addr
    }

    fn transport(&self, cluster: &str) -> Arc<dyn PeerTransport> {
        GrpcPeers::new(GrpcOptions::new(cluster, NodeId::new(1), 1))
    }
}

/// The twin: nodes of this process.
#[derive(Default)]
pub struct Switch {
    network: MemoryNetwork,
    nodes: Mutex<usize>,
}

impl Switch {
    fn new_addr(&self) -> String {
        let mut nodes = self.nodes.lock().unwrap();
        *nodes += 1;
        format!("node-{nodes}:1")
    }
}

#[async_trait]
impl Network for Switch {
    fn serve(&self, replica: &Arc<FakeReplica>) -> String {
        let addr = self.new_addr();
        self.serve_at(&addr, replica);
        addr
    }

    fn serve_at(&self, addr: &str, replica: &Arc<FakeReplica>) {
        self.network.attach(addr, replica.me.id, &replica.cluster, Arc::clone(replica) as _);
    }

    async fn stop(&self, addr: &str) {
        self.network.detach(addr);
    }

    fn closed(&self) -> String {
        self.new_addr()
    }

    fn silent(&self) -> String {
        let addr = self.serve(&FakeReplica::new(2, BLUE));
        self.network.cut_off(&addr);
        addr
    }

    fn transport(&self, cluster: &str) -> Arc<dyn PeerTransport> {
        self.network.transport("node-0:1", cluster)
    }
}

/// Waits for a fact that takes the work of other tasks.
pub async fn eventually(what: &str, mut fact: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !fact().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn next<T: Send + 'static>(
    stream: &mut dyn EntryStream<T>,
) -> Option<Result<EntryChunk<T>, PeerError>> {
    tokio::time::timeout(DEADLINE, stream.next()).await.expect("the stream stands still")
}

pub fn keyed(name: &str, time: u64, text: Option<&str>) -> KeyedEntry {
    let version = Version::new(Timestamp::from_nanos(time), NodeId::new(9));
    let value = text.map(Value::new);
    let entry = value.map_or_else(|| Entry::tombstone(version), |v| Entry::live(version, v));
    KeyedEntry::new(key(name), entry)
}

pub fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}
