//! Nodes that can be crashed, restarted, wiped and cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use lally::adapters::memory::{
    MemoryBook, MemoryLog, MemoryNetwork, MemoryQuarantine, MemoryStore, TrustingDetector,
};
use lally::app::{Identity, Node, NodeParts, NodeSettings};
use lally::domain::{
    Digest, Entry, KeptData, Key, Liveness, MemberState, NodeId, QuorumSpec, Start, Timestamp,
    Value,
};
use lally::ports::{
    Answer, ClientApi, ClientError, Clock, MemberBook, OpLog, RequestOptions, Store,
};
use tokio::time::Instant;

/// Wall time of every node at the start.
pub const EPOCH: u64 = 1_700_000_000_000_000_000;

const DAY: Duration = Duration::from_secs(86_400);

/// What survives a crash of one node: its log and its book.
pub struct Disk {
    pub addr: String,
    /// What the clock of this node says when it starts.
    pub wall: u64,
    /// When `wall` was; it goes on with the time of the test.
    since: Instant,
    /// How long tombstones are kept, and how long members may be down.
    grace: Duration,
    max_absence: Duration,
    id: u64,
    log: Arc<MemoryLog>,
    book: Arc<MemoryBook>,
}

/// A wall clock that goes with the time of the test, and that can be set wrong.
pub struct Passing {
    epoch: u64,
    since: Instant,
    ahead_ns: AtomicI64,
}

impl Passing {
    /// From now on it is this far ahead of what it should say; negative: behind.
    pub fn set_ahead(&self, nanos: i64) {
        self.ahead_ns.store(nanos, Ordering::SeqCst);
    }
}

impl Clock for Passing {
    fn now(&self) -> Timestamp {
        let passed = u64::try_from(self.since.elapsed().as_nanos()).unwrap();
        let right = self.epoch + passed;
        Timestamp::from_nanos(right.saturating_add_signed(self.ahead_ns.load(Ordering::SeqCst)))
    }
}

/// A running node.
pub struct Running {
    pub node: Node,
    pub store: Arc<MemoryStore>,
    pub detector: Arc<TrustingDetector>,
    pub quarantine: Arc<MemoryQuarantine>,
    pub clock: Arc<Passing>,
}

impl Disk {
    /// The disk of a node that never ran.
    pub fn new(id: u64) -> Self {
        let (log, book) = (Arc::new(MemoryLog::default()), Arc::new(MemoryBook::default()));
        Self {
            addr: format!("node-{id}:1"),
            wall: EPOCH,
            since: Instant::now(),
            grace: DAY,
            max_absence: DAY * 7,
            id,
            log,
            book,
        }
    }

    /// Likewise, of a node that soon forgets what was removed.
    pub fn forgetful(id: u64, grace: Duration, max_absence: Duration) -> Self {
        Self { grace, max_absence, ..Self::new(id) }
    }

    /// The disk of a node that never ran, at the address of this one.
    pub fn replaced_by(&self, id: u64) -> Self {
        Self { addr: self.addr.clone(), since: self.since, ..Self::new(id) }
    }

    /// A copy of what is on the disk now.
    pub async fn backup(&self) -> Self {
        let book = Arc::new(MemoryBook::default());
        if let Some(now) = self.book.load().await.unwrap() {
            book.save(&now).await.unwrap();
        }
        let (log, (sender, records)) =
            (MemoryLog::default(), std::sync::mpsc::sync_channel(10_000));
        let visitor = Box::new(move |record| sender.send(record).unwrap());
        self.log.reopen().replay(visitor).await.unwrap();
        log.replay(Box::new(drop)).await.unwrap();
        log.append(&records.iter().collect::<Vec<_>>()).await.unwrap();
        let log = Arc::new(log);
        Self { addr: self.addr.clone(), log, book, ..*self }
    }

    /// Starts the node on this disk.
    pub async fn start(&self, network: &MemoryNetwork, seeds: &[&Self]) -> Running {
        self.start_as(network, "lally", seeds, KeptData::All).await
    }

    /// Starts the node with an empty log.
    pub async fn start_fresh(&mut self, network: &MemoryNetwork, seeds: &[&Self]) -> Running {
        self.log = Arc::new(MemoryLog::default());
        self.start_as(network, "lally", seeds, KeptData::None).await
    }

    /// Starts the node in a cluster of this name.
    pub async fn start_as(
        &self,
        network: &MemoryNetwork,
        cluster: &str,
        seeds: &[&Self],
        data: KeptData,
    ) -> Running {
        let identity = Identity::load(self.book.as_ref(), cluster, NodeId::new(self.id)).await;
        let claimed = identity.unwrap().claim(self.book.as_ref(), data).await;
        let (book, last_phase) = claimed.unwrap();
        let mut settings = NodeSettings::new(cluster, &self.addr, "none:1");
        settings.seeds = seeds.iter().map(|disk| disk.addr.clone()).collect();
        settings.request_timeout = Duration::from_secs(1);
        (settings.tombstone_grace, settings.max_absence) = (self.grace, self.max_absence);
        let knows_others = !settings.seeds.is_empty() || !book.members.is_empty();
        let start = Start::decide(last_phase, data, knows_others);
        let store = Arc::new(MemoryStore::new());
        let detector = Arc::new(TrustingDetector::new());
        let quarantine = Arc::new(MemoryQuarantine::default());
        let clock =
            Arc::new(Passing { epoch: self.wall, since: self.since, ahead_ns: AtomicI64::new(0) });
        let parts = NodeParts {
            store: Arc::clone(&store) as _,
            log: Arc::new(self.log.reopen()),
            transport: network.transport(&self.addr, cluster),
            detector: Arc::clone(&detector) as _,
            book: Arc::clone(&self.book) as _,
            quarantine: Arc::clone(&quarantine) as _,
            clock: Arc::clone(&clock) as _,
            hooks: Vec::new(),
        };
        let node = Node::new(parts, settings, &book, start);
        node.replay().await.unwrap();
        network.attach(&self.addr, book.id, cluster, node.replica_api());
        node.start();
        Running { node, store, detector, quarantine, clock }
    }
}

impl Running {
    pub fn client(&self) -> Arc<dyn ClientApi> {
        self.node.client_api()
    }

    pub async fn add(&self, key: &str, value: &str, quorum: &str) -> Result<Answer, ClientError> {
        self.client().add(named(key), Value::new(value), with_quorum(quorum)).await
    }

    pub async fn remove(&self, key: &str, quorum: &str) -> Result<Answer, ClientError> {
        self.client().remove(named(key), with_quorum(quorum)).await
    }

    /// The value of this node's own copy.
    pub fn own(&self, key: &str) -> Option<String> {
        self.store.get(&named(key)).as_ref().and_then(Entry::value).map(|v| v.as_str().to_owned())
    }

    pub fn digest(&self) -> Digest {
        self.store.digest()
    }

    /// The states in which this node sees the others.
    pub fn states(&self) -> Vec<MemberState> {
        self.client().cluster().members.iter().map(|member| member.state).collect()
    }

    /// Waits until clients may come.
    pub async fn ready(&self) {
        eventually("the node is ready", || self.client().readiness().is_ok()).await;
    }

    /// Has this node believe that another is down, or back.
    pub fn believe(&self, other: &Self, liveness: Liveness) {
        self.detector.report(&other.client().cluster().node.member, liveness);
    }

    /// Stops gracefully.
    pub async fn leave(self, network: &MemoryNetwork) {
        let addr = self.client().cluster().node.member.grpc_addr;
        self.node.leave().await;
        network.detach(&addr);
        self.node.close().await.unwrap();
    }

    /// Ends without a word. What was appended to the log survives.
    pub fn crash(self, network: &MemoryNetwork) {
        network.detach(&self.client().cluster().node.member.grpc_addr);
        self.node.abandon();
    }
}

/// Three whole members with quorums of one.
pub async fn three(network: &MemoryNetwork) -> ([Disk; 3], [Running; 3]) {
    three_on(network, [Disk::new(1), Disk::new(2), Disk::new(3)]).await
}

/// Likewise, on these disks.
pub async fn three_on(network: &MemoryNetwork, disks: [Disk; 3]) -> ([Disk; 3], [Running; 3]) {
    let one = disks[0].start(network, &[]).await;
    one.ready().await;
    let two = disks[1].start(network, &[&disks[0]]).await;
    let three = disks[2].start(network, &[&disks[0]]).await;
    two.ready().await;
    three.ready().await;
    let all = [one, two, three];
    for node in &all {
        let alive = [MemberState::Alive, MemberState::Alive];
        eventually("everybody sees everybody", || node.states() == alive).await;
    }
    (disks, all)
}

/// Waits until all hold the same.
pub async fn equal(nodes: &[&Running]) {
    let same = || nodes.windows(2).all(|pair| pair[0].digest() == pair[1].digest());
    eventually("all hold the same", same).await;
}

/// Waits for a fact; time is paused, so this costs none.
pub async fn eventually(what: &str, fact: impl Fn() -> bool) {
    for _ in 0..60_000 {
        if fact() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("not within a minute: {what}");
}

pub fn named(key: &str) -> Key {
    Key::new(key).unwrap()
}

pub fn with_quorum(quorum: &str) -> RequestOptions {
    RequestOptions {
        quorum: Some(quorum.parse::<QuorumSpec>().unwrap()),
        ..RequestOptions::default()
    }
}
