//! `PeerService`: what this node answers to its peers.

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::{
    Bucket, BucketSet, Digest, DigestLevel, Entry, Key, KeyedEntry, LATE_NS, Phase, Summary,
    Timestamp, TraceContext,
};
use crate::ports::{
    Announcement, ApplyError, Asked, Caller, Certification, Clock, EntryChunk, EntryStream,
    FailureDetector, NotCertified, NotWhole, PeerError, Refusal, ReplicaApi, Store, WriteReply,
};

use super::announcer::Announcer;
use super::apply::Replica;
use super::slow_calls::SlowCalls;
use super::walks::Walks;

/// Bytes of keys and values in a chunk, unless a single entry is larger.
const CHUNK_BYTES: usize = 256 * 1_024;

/// Entries in a chunk, so that many small ones do not hold up the rest either.
const CHUNK_ENTRIES: usize = 4_096;

/// What frames the key in a summary, about.
const SUMMARY_OVERHEAD: usize = 40;

/// Bytes of values that are hashed for a chunk of summaries count for this much less than those that
/// are sent: a chunk of large values is 4 MiB of hashing, a moment, and then whoever is ready goes on.
const HASHED_PER_BYTE: usize = 16;

/// Answers peers.
pub(crate) struct PeerService {
    pub(crate) replica: Arc<Replica>,
    pub(crate) announcer: Arc<Announcer>,
    pub(crate) detector: Arc<dyn FailureDetector>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) walks: Walks,
    pub(crate) slow_calls: SlowCalls,
}

#[async_trait]
impl ReplicaApi for PeerService {
    async fn apply(
        &self,
        writes: Vec<KeyedEntry>,
        asked: Asked,
    ) -> Vec<Result<WriteReply, ApplyError>> {
        let (replies, took) = self.replica.apply_timed(writes, asked.origin).await;
        self.slow_calls.note_writes(asked.caller, &asked.traces, took, &replies);
        replies
    }

    fn read(
        &self,
        key: &Key,
        caller: Caller,
        trace: Option<TraceContext>,
    ) -> Result<Option<Entry>, NotWhole> {
        self.slow_calls.note_read(caller, trace);
        match self.announcer.members.view().me().phase {
            Phase::Whole => Ok(self.replica.get(key)),
            Phase::Joining | Phase::Left => Err(NotWhole),
        }
    }

    fn digest(&self) -> Digest {
        self.replica.store().digest()
    }

    fn wall_time(&self) -> Timestamp {
        self.clock.now()
    }

    fn level_digests(&self, level: &DigestLevel) -> Vec<u64> {
        level.of(&self.replica.store().bucket_digests())
    }

    async fn pull(&self, buckets: BucketSet) -> Box<dyn EntryStream> {
        let store = Arc::clone(self.replica.store());
        let keys = self.walks.keys_in(&store, buckets).await.into_iter().peekable();
        Box::new(StoreStream { store, keys, ended: false, weighed: whole })
    }

    async fn summaries(&self, buckets: BucketSet) -> Box<dyn EntryStream<Summary>> {
        let store = Arc::clone(self.replica.store());
        let keys = self.walks.keys_in(&store, buckets).await.into_iter().peekable();
        Box::new(StoreStream { store, keys, ended: false, weighed: summary })
    }

    fn fetch(&self, mut keys: Vec<Key>) -> Box<dyn EntryStream> {
        keys.sort_by_cached_key(Bucket::of);
        let (store, keys) = (Arc::clone(self.replica.store()), keys.into_iter().peekable());
        Box::new(StoreStream { store, keys, ended: false, weighed: whole })
    }

    async fn announce(&self, announcement: Announcement) -> Result<Announcement, Refusal> {
        self.announcer.receive(announcement).inspect_err(|refusal| match refusal {
            Refusal::Myself => {}
            other => tracing::warn!(reason = %other, "announcement refused"),
        })?;
        Ok(self.announcer.members.announcement())
    }

    async fn fence(&self, certification: Certification) -> Result<(), NotCertified> {
        let members = &self.announcer.members;
        if members.view().me().phase != Phase::Whole {
            return Err(NotCertified::Changed("it is no whole member"));
        }
        if members.view().me().generation != certification.generation {
            return Err(NotCertified::Changed("it has started anew"));
        }
        let (now, horizon) = (self.clock.now(), certification.horizon);
        if horizon.plus_nanos(LATE_NS) > now {
            return Err(NotCertified::Clock);
        }
        // What arrived late since the comparison may be held by this node alone.
        let age = u64::try_from(certification.age.as_nanos()).unwrap_or(u64::MAX);
        let window = age.saturating_add(LATE_NS);
        let since = now.as_nanos().saturating_sub(window);
        self.replica.certify(horizon, Timestamp::from_nanos(since)).await?;
        members.restate();
        Ok(())
    }

    fn gossip(&self, packet: &[u8]) {
        self.detector.receive(packet);
    }
}

/// The entries of some keys, or what is told of them, read when their turn comes.
struct StoreStream<T> {
    store: Arc<dyn Store>,
    /// Ordered by bucket.
    keys: std::iter::Peekable<std::vec::IntoIter<Key>>,
    /// Whether the last chunk is out; there is one even if there are no keys.
    ended: bool,
    /// What is told of an entry, and how much of a chunk that takes, in bytes.
    weighed: fn(Key, Entry) -> (T, usize),
}

fn whole(key: Key, entry: Entry) -> (KeyedEntry, usize) {
    let keyed = KeyedEntry::new(key, entry);
    let bytes = keyed.payload_bytes();
    (keyed, bytes)
}

#[expect(clippy::needless_pass_by_value, reason = "in the place of one that keeps the entry")]
fn summary(key: Key, entry: Entry) -> (Summary, usize) {
    let hashed = entry.payload_bytes(&key) / HASHED_PER_BYTE;
    let summary = Summary::of(key, &entry);
    let bytes = summary.key.as_str().len() + SUMMARY_OVERHEAD + hashed;
    (summary, bytes)
}

#[async_trait]
impl<T: Send + 'static> EntryStream<T> for StoreStream<T> {
    async fn next(&mut self) -> Option<Result<EntryChunk<T>, PeerError>> {
        if self.ended {
            return None;
        }
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut complete_through = None;
        while let Some(key) = self.keys.next() {
            let bucket = Bucket::of(&key);
            if self.keys.peek().is_some_and(|next| Bucket::of(next) > bucket) {
                complete_through = Some(bucket);
            }
            if let Some(entry) = self.store.get(&key) {
                let (told, weight) = (self.weighed)(key, entry);
                bytes += weight;
                entries.push(told);
            }
            if bytes >= CHUNK_BYTES || entries.len() >= CHUNK_ENTRIES {
                break;
            }
        }
        if self.keys.peek().is_none() {
            self.ended = true;
            complete_through = Some(Bucket::LAST);
        }
        Some(Ok(EntryChunk { entries, complete_through }))
    }
}
