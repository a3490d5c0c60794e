//! A node over mocks, for the unit tests of the use cases.
//!
//! Peers are answered for by a [`MockPeerTransport`], wrapped in a decorator that can hold up the
//! calls to a peer; the store is a map that the test can look into.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::{
    BucketSet, Digest, DigestLevel, Entry, Key, KeyedEntry, Liveness, Member, NodeId, Phase, Start,
    Summary, Timestamp, Value, Version,
};
use crate::ports::{
    Announcement, Answer, Book, Certification, ClientApi, Compacted, EntryStream, Hook, LogError,
    LogRecord, LogStats, Merged, MockClock, MockFailureDetector, MockMemberBook, MockOpLog,
    MockPeerTransport, MockQuarantine, MockStore, OpLog, Peer, PeerCall, PeerError, PeerStats,
    PeerTransport, ProtocolRange, ReplayVisitor, Replayed, SnapshotSource, StoreStats, WriteReply,
};

use super::members::Members;
use super::node::Node;
use super::parts::NodeParts;
use super::settings::NodeSettings;

/// The wall time of every test.
pub(crate) const NOW: u64 = 1_000_000_000_000;

/// The id of the node under test.
pub(crate) const ME: u64 = 1;

pub(crate) type Map = Arc<Mutex<BTreeMap<Key, Entry>>>;

/// A node under test.
pub(crate) struct TestNode {
    pub(crate) node: Node,
    pub(crate) map: Map,
}

/// What a node under test is made of.
pub(crate) struct Fixture {
    pub(crate) transport: MockPeerTransport,
    pub(crate) log: MockOpLog,
    /// How long the log takes for the bounds of the clock, and for writes.
    pub(crate) log_delays: (Duration, Duration),
    pub(crate) peers: Vec<Member>,
    pub(crate) down: Vec<u64>,
    /// How long calls to a peer take.
    pub(crate) delays: BTreeMap<u64, Duration>,
    /// How much longer writes to a peer take.
    pub(crate) write_delays: BTreeMap<u64, Duration>,
    pub(crate) hooks: Vec<Arc<dyn Hook>>,
    pub(crate) settings: NodeSettings,
}

impl Fixture {
    /// A node with these whole peers, all alive, a log that takes everything, and a transport
    /// without expectations.
    pub(crate) fn with_peers(peers: impl IntoIterator<Item = u64>) -> Self {
        let mut log = MockOpLog::new();
        log.expect_append().returning(|_| Ok(()));
        log.expect_replay().returning(|_| Ok(Replayed::default()));
        log.expect_stats().return_const(LogStats::default());
        let mut settings = NodeSettings::new("lally", &addr(ME), "127.0.0.1:1");
        settings.request_timeout = Duration::from_secs(1);
        Self {
            transport: MockPeerTransport::new(),
            log,
            log_delays: (Duration::ZERO, Duration::ZERO),
            peers: peers.into_iter().map(|id| member(id, Phase::Whole)).collect(),
            down: Vec::new(),
            delays: BTreeMap::new(),
            write_delays: BTreeMap::new(),
            hooks: Vec::new(),
            settings,
        }
    }

    /// Every peer acknowledges every write.
    pub(crate) fn all_acknowledge(mut self) -> Self {
        self.transport
            .expect_write()
            .returning(|_, _, _| Ok(WriteReply::Applied { previous: None }));
        self
    }

    /// The node, serving.
    pub(crate) fn build(mut self) -> TestNode {
        let map = Map::default();
        self.transport.expect_round_trip().return_const(None);
        self.transport.expect_stats().return_const(PeerStats::default());
        let mut clock = MockClock::new();
        clock.expect_now().returning(|| Timestamp::from_nanos(NOW));
        let parts = NodeParts {
            store: Arc::new(mock_store(&map)),
            log: Arc::new(DelayedLog { inner: self.log, delays: self.log_delays }),
            transport: Arc::new(Delayed {
                inner: self.transport,
                delays: self.delays,
                write_delays: self.write_delays,
            }),
            detector: Arc::new(MockFailureDetector::new()),
            book: Arc::new(MockMemberBook::new()),
            quarantine: Arc::new(MockQuarantine::new()),
            clock: Arc::new(clock),
            hooks: self.hooks,
        };
        let book = Book {
            id: NodeId::new(ME),
            generation: 1,
            phase: Phase::Whole,
            cluster: "lally".into(),
            members: Vec::new(),
        };
        let node = Node::new(parts, self.settings, &book, Start::Resume);
        for peer in self.peers {
            meet(node.members(), peer);
        }
        for id in self.down {
            node.members().set_liveness(NodeId::new(id), 1, Liveness::Down);
        }
        node.serve_at_once();
        TestNode { node, map }
    }
}

impl TestNode {
    pub(crate) fn client(&self) -> Arc<dyn ClientApi> {
        self.node.client_api()
    }

    /// What the node holds.
    pub(crate) fn held(&self, name: &str) -> Option<Entry> {
        self.map.lock().unwrap().get(&key(name)).cloned()
    }

    pub(crate) fn hold(&self, name: &str, entry: Entry) {
        self.map.lock().unwrap().insert(key(name), entry);
    }

    /// Hints kept for a peer.
    pub(crate) fn hints(&self, peer: u64) -> u64 {
        let cluster = self.client().cluster();
        cluster.members.iter().find(|m| m.id() == NodeId::new(peer)).map_or(0, |m| m.hints)
    }
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(name).unwrap()
}

pub(crate) fn live(at: u64, text: &str) -> Entry {
    Entry::live(version(at), Value::new(text))
}

/// A version by another node.
pub(crate) fn version(at: u64) -> Version {
    Version::new(Timestamp::from_nanos(at), NodeId::new(99))
}

pub(crate) fn member(id: u64, phase: Phase) -> Member {
    let http_addr = format!("127.0.0.1:{id}");
    Member { id: NodeId::new(id), generation: 1, phase, grpc_addr: addr(id), http_addr }
}

pub(crate) fn text(answer: &Answer) -> Option<&str> {
    answer.value.as_ref().map(Value::as_str)
}

fn addr(id: u64) -> String {
    format!("10.0.0.{id}:50071")
}

fn meet(members: &Members, peer: Member) {
    members.take_in(announced(peer, vec![members.view().me().clone()]), None);
}

/// What a member states that knows these others.
pub(crate) fn announced(sender: Member, members: Vec<Member>) -> Announcement {
    Announcement {
        cluster: "lally".into(),
        protocol: ProtocolRange::OURS,
        sender,
        members,
        horizon: Timestamp::ZERO,
        version: "1.2.3".into(),
    }
}

fn mock_store(map: &Map) -> MockStore {
    let mut store = MockStore::new();
    let held = Arc::clone(map);
    store.expect_get().returning(move |key| held.lock().unwrap().get(key).cloned());
    let held = Arc::clone(map);
    store.expect_merge().returning(move |write| {
        let mut held = held.lock().unwrap();
        match held.get(&write.key).cloned() {
            Some(ours) if ours.supersedes(&write.entry) => Merged::Superseded { by: ours.version },
            Some(ours) if ours == write.entry => Merged::Unchanged,
            previous => {
                held.insert(write.key, write.entry);
                Merged::Applied { previous }
            }
        }
    });
    let held = Arc::clone(map);
    store.expect_expunge().returning(move |key, version| {
        let mut held = held.lock().unwrap();
        let is_it = held.get(key).is_some_and(|entry| entry.version == version);
        is_it && held.remove(key).is_some()
    });
    let held = Arc::clone(map);
    store.expect_stats().returning(move || {
        let held = held.lock().unwrap();
        let memory = held.iter().map(|(key, entry)| entry.content.memory_bytes(key) as u64);
        StoreStats { memory_bytes: memory.sum(), ..StoreStats::default() }
    });
    store.expect_digest().return_const(Digest::default());
    store
}

/// A transport whose calls to some peers take their time.
struct Delayed {
    inner: MockPeerTransport,
    delays: BTreeMap<u64, Duration>,
    write_delays: BTreeMap<u64, Duration>,
}

impl Delayed {
    /// Waits; whether the call is still within its timeout.
    async fn delay(&self, peer: &Peer, timeout: Duration) -> Result<(), PeerError> {
        let delay = self.delays.get(&peer.id.as_u64()).copied().unwrap_or_default();
        Self::wait(delay, timeout).await
    }

    async fn wait(delay: Duration, timeout: Duration) -> Result<(), PeerError> {
        tokio::time::sleep(delay.min(timeout)).await;
        if delay > timeout { Err(PeerError::TimedOut) } else { Ok(()) }
    }
}

#[async_trait]
impl PeerTransport for Delayed {
    async fn write(
        &self,
        peer: &Peer,
        write: KeyedEntry,
        call: PeerCall,
    ) -> Result<WriteReply, PeerError> {
        self.delay(peer, call.timeout).await?;
        let longer = self.write_delays.get(&peer.id.as_u64()).copied().unwrap_or_default();
        Self::wait(longer, call.timeout).await?;
        self.inner.write(peer, write, call).await
    }

    async fn read(
        &self,
        peer: &Peer,
        key: Key,
        call: PeerCall,
    ) -> Result<Option<Entry>, PeerError> {
        self.delay(peer, call.timeout).await?;
        self.inner.read(peer, key, call).await
    }

    async fn announce(
        &self,
        addr: &str,
        announcement: Announcement,
        timeout: Duration,
    ) -> Result<Announcement, PeerError> {
        self.inner.announce(addr, announcement, timeout).await
    }

    fn gossip(&self, addr: &str, packet: Vec<u8>) {
        self.inner.gossip(addr, packet);
    }

    async fn digest(&self, peer: &Peer, timeout: Duration) -> Result<Digest, PeerError> {
        self.inner.digest(peer, timeout).await
    }

    async fn wall_time(
        &self,
        peer: &Peer,
        timeout: Duration,
    ) -> Result<Option<Timestamp>, PeerError> {
        self.inner.wall_time(peer, timeout).await
    }

    async fn level_digests(
        &self,
        peer: &Peer,
        level: DigestLevel,
        timeout: Duration,
    ) -> Result<Vec<u64>, PeerError> {
        self.inner.level_digests(peer, level, timeout).await
    }

    async fn pull(
        &self,
        peer: &Peer,
        buckets: BucketSet,
    ) -> Result<Box<dyn EntryStream>, PeerError> {
        self.inner.pull(peer, buckets).await
    }

    async fn summaries(
        &self,
        peer: &Peer,
        buckets: BucketSet,
    ) -> Result<Box<dyn EntryStream<Summary>>, PeerError> {
        self.inner.summaries(peer, buckets).await
    }

    async fn fetch(&self, peer: &Peer, keys: Vec<Key>) -> Result<Box<dyn EntryStream>, PeerError> {
        self.inner.fetch(peer, keys).await
    }

    async fn fence(
        &self,
        peer: &Peer,
        certification: Certification,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        self.inner.fence(peer, certification, timeout).await
    }

    async fn push(
        &self,
        peer: &Peer,
        writes: Vec<KeyedEntry>,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        self.inner.push(peer, writes, timeout).await
    }

    fn round_trip(&self, peer: NodeId) -> Option<Duration> {
        self.inner.round_trip(peer)
    }

    fn stats(&self, peer: NodeId) -> PeerStats {
        self.inner.stats(peer)
    }

    fn release(&self, peer: &Peer) {
        self.inner.release(peer);
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// A log that takes its time.
struct DelayedLog {
    inner: MockOpLog,
    delays: (Duration, Duration),
}

#[async_trait]
impl OpLog for DelayedLog {
    async fn replay(&self, visitor: Box<dyn ReplayVisitor>) -> Result<Replayed, LogError> {
        self.inner.replay(visitor).await
    }

    async fn append(&self, records: &[LogRecord]) -> Result<(), LogError> {
        let (bounds, writes) = self.delays;
        let is_bound = matches!(records, [LogRecord::ClockBound(_)]);
        let delay = if is_bound { bounds } else { writes };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.inner.append(records).await
    }

    async fn compact(&self, source: Box<dyn SnapshotSource>) -> Result<Compacted, LogError> {
        self.inner.compact(source).await
    }

    fn stats(&self) -> LogStats {
        self.inner.stats()
    }

    async fn close(&self) -> Result<(), LogError> {
        self.inner.close().await
    }
}
