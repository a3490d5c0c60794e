//! `FakeReplica`: the node at the other end of a transport, which notes down what it is asked.
//!
//! It answers from a store of its own. What waits in a real node (applying, an announcement, the
//! beginning of a pull) waits here for a gate that the test shuts and opens.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use lally::adapters::memory::MemoryStore;
use lally::domain::{
    Bucket, BucketSet, Digest, DigestLevel, Entry, Key, KeyedEntry, Member, NodeId, Phase, Summary,
    Timestamp, TraceContext,
};
use lally::ports::{
    Announcement, ApplyError, Asked, Caller, Certification, EntryChunk, EntryStream, Merged,
    NotCertified, NotWhole, Origin, PeerError, ProtocolRange, Refusal, ReplicaApi, Store,
    WriteReply,
};
use tokio::sync::watch;

/// What a test waits for comes long before this, or never.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What its clock says.
pub const WALL_TIME: Timestamp = Timestamp::from_nanos(1_700_000_000_123_456_789);

pub type Packets = Box<dyn Fn(&[u8]) + Send + Sync>;

/// A node that does nothing by itself.
pub struct FakeReplica {
    pub me: Member,
    pub cluster: String,
    pub store: MemoryStore,
    pub seen: Mutex<Seen>,
    /// Whether it gets on with what it was asked.
    open: watch::Sender<bool>,
    /// Calls that have come as far as the gate.
    begun: watch::Sender<usize>,
    /// If set, writes are not carried out, and why.
    pub rejects: Mutex<Option<ApplyError>>,
    /// Whether its copies count for nothing.
    pub not_whole: AtomicBool,
    /// If set, announcements are refused, and why.
    pub refuses: Mutex<Option<Refusal>>,
    /// If not empty, what a pull streams in the place of the store.
    pub stream: Mutex<Vec<Result<EntryChunk, PeerError>>>,
    /// Who hears packets beside the notes.
    pub hears: OnceLock<Packets>,
}

/// What a replica was asked.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Writes that were carried out.
    pub applied: Vec<(KeyedEntry, Origin)>,
    pub reads: Vec<Key>,
    pub digests: usize,
    pub announced: Vec<Announcement>,
    pub pulled: Vec<BucketSet>,
    pub summed_up: Vec<BucketSet>,
    pub fetched: Vec<Vec<Key>>,
    pub fenced: Vec<Certification>,
    pub packets: Vec<Vec<u8>>,
    /// Of reads and writes.
    pub traces: Vec<TraceContext>,
}

impl FakeReplica {
    pub fn new(id: u64, cluster: &str) -> Arc<Self> {
        Arc::new(Self {
            me: member(id, Phase::Whole),
            cluster: cluster.to_owned(),
            store: MemoryStore::new(),
            seen: Mutex::default(),
            open: watch::Sender::new(true),
            begun: watch::Sender::new(0),
            rejects: Mutex::default(),
            not_whole: AtomicBool::new(false),
            refuses: Mutex::default(),
            stream: Mutex::default(),
            hears: OnceLock::new(),
        })
    }

    /// From now on nothing that waits gets on.
    pub fn hang(&self) {
        self.open.send_replace(false);
    }

    /// What waits gets on.
    pub fn go_on(&self) {
        self.open.send_replace(true);
    }

    /// Waits until this many calls have come as far as the gate, all in all.
    pub async fn begun(&self, count: usize) {
        let waiting =
            async { self.begun.subscribe().wait_for(|begun| *begun >= count).await.map(drop) };
        tokio::time::timeout(DEADLINE, waiting).await.expect("it never began").unwrap();
    }

    /// How many have, so far.
    pub fn waited_for(&self) -> usize {
        *self.begun.borrow()
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// What it was asked to apply, and how.
    pub fn applied(&self) -> Vec<(KeyedEntry, Origin)> {
        self.seen.lock().unwrap().applied.clone()
    }

    async fn gate(&self) {
        self.begun.send_modify(|begun| *begun += 1);
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
    }

    pub fn apply_one(&self, write: KeyedEntry, origin: Origin) -> Result<WriteReply, ApplyError> {
        if let Some(why) = self.rejects.lock().unwrap().clone() {
            return Err(why);
        }
        self.seen.lock().unwrap().applied.push((write.clone(), origin));
        Ok(match self.store.merge(write) {
            Merged::Applied { previous } => WriteReply::Applied { previous },
            Merged::Unchanged => WriteReply::Applied { previous: None },
            Merged::Superseded { by } => WriteReply::Superseded { by },
        })
    }
}

#[async_trait]
impl ReplicaApi for FakeReplica {
    async fn apply(
        &self,
        writes: Vec<KeyedEntry>,
        asked: Asked,
    ) -> Vec<Result<WriteReply, ApplyError>> {
        self.gate().await;
        self.seen.lock().unwrap().traces.extend(asked.traces.iter().map(|(_, trace)| *trace));
        writes.into_iter().map(|write| self.apply_one(write, asked.origin)).collect()
    }

    fn read(
        &self,
        key: &Key,
        _: Caller,
        trace: Option<TraceContext>,
    ) -> Result<Option<Entry>, NotWhole> {
        if self.not_whole.load(Ordering::Relaxed) {
            return Err(NotWhole);
        }
        let mut seen = self.seen.lock().unwrap();
        seen.reads.push(key.clone());
        seen.traces.extend(trace);
        Ok(self.store.get(key))
    }

    fn digest(&self) -> Digest {
        self.seen.lock().unwrap().digests += 1;
        self.store.digest()
    }

    fn wall_time(&self) -> Timestamp {
        WALL_TIME
    }

    fn level_digests(&self, level: &DigestLevel) -> Vec<u64> {
        self.seen.lock().unwrap().digests += 1;
        level.of(&self.store.bucket_digests())
    }

    async fn pull(&self, buckets: BucketSet) -> Box<dyn EntryStream> {
        self.gate().await;
        self.seen.lock().unwrap().pulled.push(buckets.clone());
        let mut chunks = std::mem::take(&mut *self.stream.lock().unwrap());
        if chunks.is_empty() {
            chunks = chunks_of(&self.store, self.store.keys_in(&buckets));
        }
        Box::new(Chunks(chunks.into_iter()))
    }

    async fn summaries(&self, buckets: BucketSet) -> Box<dyn EntryStream<Summary>> {
        self.gate().await;
        self.seen.lock().unwrap().summed_up.push(buckets.clone());
        let chunks = chunks_of(&self.store, self.store.keys_in(&buckets));
        let summed_up = |chunk: EntryChunk| EntryChunk {
            entries: chunk.entries.into_iter().map(|e| Summary::of(e.key, &e.entry)).collect(),
            complete_through: chunk.complete_through,
        };
        let chunks: Vec<_> = chunks.into_iter().map(|chunk| chunk.map(summed_up)).collect();
        Box::new(Chunks(chunks.into_iter()))
    }

    fn fetch(&self, keys: Vec<Key>) -> Box<dyn EntryStream> {
        self.seen.lock().unwrap().fetched.push(keys.clone());
        let held = keys.into_iter().filter(|key| self.store.get(key).is_some()).collect();
        Box::new(Chunks(chunks_of(&self.store, held).into_iter()))
    }

    async fn announce(&self, announcement: Announcement) -> Result<Announcement, Refusal> {
        self.gate().await;
        if let Some(refusal) = self.refuses.lock().unwrap().clone() {
            return Err(refusal);
        }
        if announcement.cluster != self.cluster {
            let (ours, theirs) = (self.cluster.clone(), announcement.cluster);
            return Err(Refusal::WrongCluster { ours, theirs });
        }
        self.seen.lock().unwrap().announced.push(announcement);
        Ok(statement(&self.cluster, self.me.clone()))
    }

    async fn fence(&self, certification: Certification) -> Result<(), NotCertified> {
        self.gate().await;
        if certification.generation == 0 {
            return Err(NotCertified::Disturbed);
        }
        self.seen.lock().unwrap().fenced.push(certification);
        Ok(())
    }

    fn gossip(&self, packet: &[u8]) {
        self.seen.lock().unwrap().packets.push(packet.to_vec());
        if let Some(hears) = self.hears.get() {
            hears(packet);
        }
    }
}

/// What a member states who knows one of each phase.
pub fn statement(cluster: &str, sender: Member) -> Announcement {
    Announcement {
        cluster: cluster.to_owned(),
        protocol: ProtocolRange::OURS,
        sender,
        members: [Phase::Joining, Phase::Whole, Phase::Left]
            .into_iter()
            .zip([70, 71, u64::MAX])
            .map(|(phase, id)| member(id, phase))
            .collect(),
        horizon: Timestamp::from_nanos(1_234_567_890_123_456_789),
        version: "0.1.0-test".to_owned(),
    }
}

pub fn member(id: u64, phase: Phase) -> Member {
    Member {
        id: NodeId::new(id),
        generation: id % 1_000,
        phase,
        grpc_addr: format!("node-{id}:1"),
        http_addr: format!("[::1]:{}", id % 65_536),
    }
}

/// The entries of some keys, by bucket, 256 KiB or a hundred at a time.
fn chunks_of(store: &MemoryStore, keys: Vec<Key>) -> Vec<Result<EntryChunk, PeerError>> {
    let mut chunks = Vec::new();
    let (mut chunk, mut bytes) = (EntryChunk { entries: Vec::new(), complete_through: None }, 0);
    let mut keys = keys.into_iter().peekable();
    while let Some(key) = keys.next() {
        let bucket = Bucket::of(&key);
        if keys.peek().map(Bucket::of) != Some(bucket) {
            chunk.complete_through = Some(bucket);
        }
        let keyed = KeyedEntry::new(key.clone(), store.get(&key).unwrap());
        bytes += keyed.payload_bytes();
        chunk.entries.push(keyed);
        if bytes >= 256 * 1_024 || chunk.entries.len() == 100 {
            let next = EntryChunk { entries: Vec::new(), complete_through: None };
            chunks.push(Ok(std::mem::replace(&mut chunk, next)));
            bytes = 0;
        }
    }
    chunk.complete_through = Some(Bucket::LAST);
    chunks.push(Ok(chunk));
    chunks
}

struct Chunks<T>(std::vec::IntoIter<Result<EntryChunk<T>, PeerError>>);

#[async_trait]
impl<T: Send + 'static> EntryStream<T> for Chunks<T> {
    async fn next(&mut self) -> Option<Result<EntryChunk<T>, PeerError>> {
        self.0.next()
    }
}
