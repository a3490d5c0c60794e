//! What nodes tell each other in order to stay equal: little when they are, and as much as differs
//! when they are not.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lally::adapters::memory::{
    ManualClock, MemoryBook, MemoryLog, MemoryNetwork, MemoryQuarantine, MemoryStore,
    TrustingDetector,
};
use lally::app::{Identity, Node, NodeParts, NodeSettings};
use lally::domain::{
    Bucket, BucketSet, Digest, DigestLevel, Entry, KeptData, Key, KeyedEntry, NodeId, Start,
    Summary, Timestamp, Value, Version,
};
use lally::ports::{
    Announcement, Certification, EntryChunk, EntryStream, LogRecord, OpLog, Peer, PeerCall,
    PeerError, PeerStats, PeerTransport, Store, WriteReply,
};

use super::nodes::{EPOCH, eventually};

/// Calls and bytes by kind of call. Bytes are those of keys, values, versions, digests and bitmaps,
/// without what frames them on a wire.
type Counts = BTreeMap<&'static str, (u64, u64)>;

#[derive(Default)]
struct Traffic(Mutex<Counts>);

impl Traffic {
    fn count(&self, call: &'static str, bytes: usize) {
        let mut counts = self.0.lock().unwrap();
        let count = counts.entry(call).or_default();
        *count = (count.0 + 1, count.1 + bytes as u64);
    }

    fn take(&self) -> Counts {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Bytes of an entry on a wire, about.
fn bytes(write: &KeyedEntry) -> usize {
    write.payload_bytes() + 16
}

/// A transport that counts.
struct Counted {
    inner: Arc<dyn PeerTransport>,
    traffic: Arc<Traffic>,
}

#[async_trait]
impl PeerTransport for Counted {
    async fn write(
        &self,
        peer: &Peer,
        write: KeyedEntry,
        call: PeerCall,
    ) -> Result<WriteReply, PeerError> {
        self.traffic.count("write", bytes(&write));
        self.inner.write(peer, write, call).await
    }

    async fn read(
        &self,
        peer: &Peer,
        key: Key,
        call: PeerCall,
    ) -> Result<Option<Entry>, PeerError> {
        self.traffic.count("read", key.as_str().len());
        self.inner.read(peer, key, call).await
    }

    async fn announce(
        &self,
        addr: &str,
        announcement: Announcement,
        timeout: Duration,
    ) -> Result<Announcement, PeerError> {
        self.traffic.count("announce", 0);
        self.inner.announce(addr, announcement, timeout).await
    }

    fn gossip(&self, addr: &str, packet: Vec<u8>) {
        self.inner.gossip(addr, packet);
    }

    async fn digest(&self, peer: &Peer, timeout: Duration) -> Result<Digest, PeerError> {
        self.traffic.count("digest", 8);
        self.inner.digest(peer, timeout).await
    }

    async fn wall_time(
        &self,
        peer: &Peer,
        timeout: Duration,
    ) -> Result<Option<Timestamp>, PeerError> {
        // Not about data.
        self.inner.wall_time(peer, timeout).await
    }

    async fn level_digests(
        &self,
        peer: &Peer,
        level: DigestLevel,
        timeout: Duration,
    ) -> Result<Vec<u64>, PeerError> {
        self.traffic.count("level_digests", 8 * level.len());
        self.inner.level_digests(peer, level, timeout).await
    }

    async fn fence(
        &self,
        peer: &Peer,
        certification: Certification,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        self.traffic.count("fence", 24);
        self.inner.fence(peer, certification, timeout).await
    }

    async fn pull(
        &self,
        peer: &Peer,
        buckets: BucketSet,
    ) -> Result<Box<dyn EntryStream>, PeerError> {
        self.traffic.count("pull", BucketSet::BYTES);
        let (inner, traffic) = (self.inner.pull(peer, buckets).await?, Arc::clone(&self.traffic));
        Ok(Box::new(CountedStream { inner, traffic, call: "pulled", bytes }))
    }

    async fn summaries(
        &self,
        peer: &Peer,
        buckets: BucketSet,
    ) -> Result<Box<dyn EntryStream<Summary>>, PeerError> {
        self.traffic.count("summaries", BucketSet::BYTES);
        let inner = self.inner.summaries(peer, buckets).await?;
        let traffic = Arc::clone(&self.traffic);
        let bytes = |summary: &Summary| summary.key.as_str().len() + 24;
        Ok(Box::new(CountedStream { inner, traffic, call: "summed up", bytes }))
    }

    async fn fetch(&self, peer: &Peer, keys: Vec<Key>) -> Result<Box<dyn EntryStream>, PeerError> {
        self.traffic.count("fetch", keys.iter().map(|key| key.as_str().len()).sum());
        let (inner, traffic) = (self.inner.fetch(peer, keys).await?, Arc::clone(&self.traffic));
        Ok(Box::new(CountedStream { inner, traffic, call: "fetched", bytes }))
    }

    async fn push(
        &self,
        peer: &Peer,
        writes: Vec<KeyedEntry>,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        self.traffic.count("push", writes.iter().map(bytes).sum());
        self.inner.push(peer, writes, timeout).await
    }

    fn release(&self, peer: &Peer) {
        self.inner.release(peer);
    }

    fn round_trip(&self, peer: NodeId) -> Option<Duration> {
        self.inner.round_trip(peer)
    }

    fn stats(&self, peer: NodeId) -> PeerStats {
        self.inner.stats(peer)
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

struct CountedStream<T> {
    inner: Box<dyn EntryStream<T>>,
    traffic: Arc<Traffic>,
    /// What its chunks are counted as, and the bytes of what is in them.
    call: &'static str,
    bytes: fn(&T) -> usize,
}

#[async_trait]
impl<T: Send + 'static> EntryStream<T> for CountedStream<T> {
    async fn next(&mut self) -> Option<Result<EntryChunk<T>, PeerError>> {
        let chunk = self.inner.next().await;
        if let Some(Ok(chunk)) = &chunk {
            self.traffic.count(self.call, chunk.entries.iter().map(self.bytes).sum());
        }
        chunk
    }
}

/// Starts a node whose log holds these entries.
async fn start(
    network: &MemoryNetwork,
    traffic: &Arc<Traffic>,
    id: u64,
    entries: impl Iterator<Item = KeyedEntry>,
) -> (Node, Arc<MemoryStore>) {
    let addr = format!("node-{id}:1");
    let log = MemoryLog::default();
    log.replay(Box::new(drop)).await.unwrap();
    log.append(&entries.map(LogRecord::Write).collect::<Vec<_>>()).await.unwrap();
    let book = Arc::new(MemoryBook::default());
    let identity = Identity::load(book.as_ref(), "lally", NodeId::new(id)).await.unwrap();
    let (kept, last_phase) = identity.claim(book.as_ref(), KeptData::All).await.unwrap();
    let mut settings = NodeSettings::new("lally", &addr, "none:1");
    if id > 1 {
        settings.seeds = vec!["node-1:1".into()];
    }
    let start = Start::decide(last_phase, KeptData::All, id > 1);
    let store = Arc::new(MemoryStore::new());
    let inner = network.transport(&addr, "lally");
    let parts = NodeParts {
        store: Arc::clone(&store) as _,
        log: Arc::new(log.reopen()),
        transport: Arc::new(Counted { inner, traffic: Arc::clone(traffic) }),
        detector: Arc::new(TrustingDetector::new()),
        book,
        quarantine: Arc::new(MemoryQuarantine::default()),
        clock: Arc::new(ManualClock::new(Timestamp::from_nanos(EPOCH))),
        hooks: Vec::new(),
    };
    let node = Node::new(parts, settings, &kept, start);
    node.replay().await.unwrap();
    network.attach(&addr, kept.id, "lally", node.replica_api());
    node.start();
    (node, store)
}

fn entry(number: u64, age: u64) -> KeyedEntry {
    let version = Version::new(Timestamp::from_nanos(EPOCH - age), NodeId::new(9));
    let value = Value::new(&format!("{number:0100}"));
    KeyedEntry::new(Key::new(&format!("key-{number:012}")).unwrap(), Entry::live(version, value))
}

const HOUR: u64 = 3_600_000_000_000;

#[tokio::test(start_paused = true)]
async fn two_nodes_that_hold_the_same_exchange_one_digest_per_round_and_nothing_else() {
    let (network, traffic) = (MemoryNetwork::new(), Arc::new(Traffic::default()));
    let (one, first) = start(&network, &traffic, 1, (0..1_000).map(|i| entry(i, HOUR))).await;
    let (two, second) = start(&network, &traffic, 2, std::iter::empty()).await;
    eventually("both hold the same", || first.digest() == second.digest()).await;
    for node in [&one, &two] {
        let in_sync = || node.client_api().cluster().members.iter().all(|member| member.in_sync);
        eventually("both know it", || node.client_api().readiness().is_ok() && in_sync()).await;
    }
    tokio::time::sleep(Duration::from_mins(5)).await;
    traffic.take();
    let hour = Duration::from_hours(1);
    tokio::time::sleep(hour).await;
    let counts = traffic.take();
    let (rounds, _) = counts["digest"];
    // Each node begins one every 30 s on average.
    assert!((200..280).contains(&rounds), "{counts:?}");
    assert!(counts.keys().all(|call| ["digest", "announce"].contains(call)), "{counts:?}");
}

/// Nothing is missing anywhere, and yet each round of comparison looks through the bucket, until the
/// recount has come by: within the hour or so that it takes to visit all.
#[tokio::test(start_paused = true)]
async fn a_digest_that_is_wrong_is_repaired_and_then_equals_exchange_nothing() {
    let (network, traffic) = (MemoryNetwork::new(), Arc::new(Traffic::default()));
    let (one, first) = start(&network, &traffic, 1, (0..1_000).map(|i| entry(i, HOUR))).await;
    let (two, second) = start(&network, &traffic, 2, std::iter::empty()).await;
    let ready = || one.client_api().readiness().is_ok() && two.client_api().readiness().is_ok();
    eventually("both hold the same", || ready() && first.digest() == second.digest()).await;
    let right = first.digest();
    first.damage(Bucket::of(&entry(1, 0).key), 1);
    assert_ne!(first.digest(), right);
    tokio::time::sleep(Duration::from_mins(1)).await;
    traffic.take();
    tokio::time::sleep(Duration::from_mins(70)).await;
    assert!(traffic.take().contains_key("summaries"), "the damage cost nothing");
    assert_eq!((first.digest(), second.digest()), (right, right));
    let drift = |node: &Node| node.client_api().stats().digest_drift;
    assert_eq!((drift(&one), drift(&two)), (1, 0));
    tokio::time::sleep(Duration::from_mins(70)).await;
    let counts = traffic.take();
    assert!(counts.keys().all(|call| ["digest", "announce"].contains(call)), "{counts:?}");
    assert_eq!((drift(&one), drift(&two)), (1, 0));
}

/// What two nodes exchange until they are equal: `keys` entries that are the same on both, but for
/// the first `differing`, of which a third is newer on the second, a third older, a third missing.
async fn exchanged(keys: u64, differing: u64, entry: fn(u64, u64) -> KeyedEntry) -> Counts {
    let (network, traffic) = (MemoryNetwork::new(), Arc::new(Traffic::default()));
    let began = std::time::Instant::now();
    let (_one, first) = start(&network, &traffic, 1, (0..keys).map(|i| entry(i, HOUR))).await;
    let theirs = (0..keys).filter_map(|i| match (i < differing, i % 3) {
        (false, _) => Some(entry(i, HOUR)),
        (true, 0) => Some(entry(i, HOUR - 1)),
        (true, 1) => Some(entry(i, HOUR + 1)),
        (true, _) => None,
    });
    let (two, second) = start(&network, &traffic, 2, theirs).await;
    let loaded = began.elapsed();
    let ready = || two.client_api().readiness().is_ok();
    eventually("both hold the same", || ready() && first.digest() == second.digest()).await;
    let counts = traffic.take();
    eprintln!(
        "{keys} keys, {differing} of them differ: {} bytes in {} calls, {:.1} s after \
         {:.1} s of loading: {counts:?}",
        sent(&counts),
        calls(&counts),
        began.elapsed().saturating_sub(loaded).as_secs_f64(),
        loaded.as_secs_f64(),
    );
    counts
}

fn sent(counts: &Counts) -> u64 {
    counts.values().map(|(_, bytes)| bytes).sum()
}

fn calls(counts: &Counts) -> u64 {
    let answers = ["pulled", "summed up", "fetched"];
    let called = counts.iter().filter(|(call, _)| !answers.contains(call));
    called.map(|(_, (calls, _))| calls).sum()
}

/// With `LALLY_TEST_KEYS=1000000` (`make traffic`) the figures of `docs/protocol.md`.
#[tokio::test(start_paused = true)]
async fn what_two_nodes_exchange_follows_what_differs_and_not_what_they_hold() {
    const DIFFERING: u64 = 100;
    let keys = std::env::var("LALLY_TEST_KEYS").map_or(20_000, |keys| keys.parse().unwrap());
    let counts = exchanged(keys, DIFFERING, entry).await;
    // The digests of the groups and of the buckets in those that differ, bitmaps, summaries of the
    // entries of buckets in which something differs, and that.
    let a_bucket = (keys / 65_536 + 2) * 40;
    let rounds = 3;
    let digests = rounds * 8 * 256 * (1 + DIFFERING);
    let bound = digests + rounds * 2 * 8_192 + DIFFERING * (a_bucket + 16 + 140);
    assert!(sent(&counts) <= bound, "{} > {bound}: {counts:?}", sent(&counts));
    assert!(calls(&counts) <= 20, "{counts:?}");
}

/// Of the values in a bucket, about fifteen here, only the one that differs travels.
#[tokio::test(start_paused = true)]
async fn large_values_that_are_the_same_stay_where_they_are() {
    const KEYS: u64 = 10_000;
    const DIFFERING: u64 = 20;
    const VALUE: u64 = 16 * 1_024;
    /// One value for all: the fingerprints differ by their keys.
    static LARGE: LazyLock<Value> =
        LazyLock::new(|| Value::new(&"v".repeat(usize::try_from(VALUE).unwrap())));
    /// Numbers of keys that fall into one in a hundred buckets.
    static CROWDED: LazyLock<Vec<u64>> = LazyLock::new(|| {
        let crowded = |number: &u64| Bucket::of(&entry(*number, 0).key).index().is_multiple_of(100);
        (0..).filter(crowded).take(usize::try_from(KEYS).unwrap()).collect()
    });
    let large = |number: u64, age: u64| {
        let small = entry(CROWDED[usize::try_from(number).unwrap()], age);
        KeyedEntry::new(small.key, Entry::live(small.entry.version, LARGE.clone()))
    };
    let counts = exchanged(KEYS, DIFFERING, large).await;
    let moved = ["pulled", "fetched", "push"].iter().filter_map(|call| counts.get(call));
    let values: u64 = moved.map(|(_, bytes)| bytes).sum();
    assert!((DIFFERING * VALUE..=DIFFERING * (VALUE + 40)).contains(&values), "{counts:?}");
    let rest = sent(&counts) - values;
    let digests = 3 * 8 * 256 * (1 + DIFFERING);
    let summaries = DIFFERING * 40 * 2 * KEYS / 655;
    assert!(rest <= digests + 3 * 2 * 8_192 + summaries + DIFFERING * 16, "{counts:?}");
}
