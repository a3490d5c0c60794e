//! `Exchange`: one pass over the buckets in which two nodes differ, entries both ways.
//!
//! In buckets of which this node holds nothing, it takes over everything. In the others the peer
//! first sends summaries of what it holds (`domain/summary.rs`), and only what differs follows: what
//! the peer holds newer is fetched and merged in, what it lacks is pushed, a part at a time, so that
//! neither a message nor what is under way grows with the data.
//!
//! Towards a member that is certified further than this node (`domain/horizon.rs`), what is older than that
//! and not held there is a ghost, and is taken out here instead (`ghosts.rs`).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::domain::{Bucket, BucketSet, Entry, Key, KeyedEntry, Remedy, Summary, Timestamp};
use crate::ports::{
    ApplyError, ComparisonStats, EntryChunk, EntryStream, MAX_FETCHED, Origin, Peer, PeerError,
    PeerTransport,
};

use super::apply::Replica;
use super::ghosts::Ghosts;
use super::settings::time_for;
use super::walks::Walks;

/// Bytes of keys and values, and entries, pushed at a time.
const PUSH_BYTES: usize = 256 * 1_024;
const PUSH_ENTRIES: usize = 4_096;

/// How long a peer may take to begin a stream: it walks over all its keys before.
const FIRST_CHUNK_WITHIN: Duration = Duration::from_secs(30);

/// What an exchange works on: this node's data, and the way to the peer.
pub(crate) struct Sides {
    pub(crate) replica: Arc<Replica>,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) ghosts: Ghosts,
    pub(crate) peer_timeout: Duration,
    /// Where this node looks for its keys.
    pub(crate) walks: Walks,
    pub(crate) counts: Mutex<ComparisonStats>,
}

impl Sides {
    pub(crate) fn count(&self, change: impl FnOnce(&mut ComparisonStats)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What an exchange moved.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    pub(crate) pulled: u64,
    pub(crate) pushed: u64,
    /// Entries that this node did not take, for their clock.
    pub(crate) refused: u64,
    /// Entries that the peer held, and did not hold any more when they were fetched. What they are
    /// compared with here has not been dealt with.
    pub(crate) vanished: u64,
    /// The oldest version among what was moved.
    pub(crate) oldest: Option<Timestamp>,
}

/// A running exchange with one peer, bucket by bucket.
pub(crate) struct Exchange<'a> {
    from: &'a Sides,
    peer: &'a Peer,
    /// The buckets in which this node holds anything.
    own_buckets: BucketSet,
    /// This node's keys in the buckets, in their order, those not yet given.
    own_keys: std::iter::Peekable<std::vec::IntoIter<Key>>,
    /// What the peer was found to hold in buckets that are not complete yet.
    theirs: HashSet<Key>,
    /// The horizon up to which what the peer does not hold is a ghost.
    beyond: Option<Timestamp>,
    to_push: Vec<KeyedEntry>,
    to_push_bytes: usize,
    to_fetch: Vec<Key>,
    to_fetch_bytes: usize,
    moved: Moved,
}

impl<'a> Exchange<'a> {
    pub(crate) fn new(
        from: &'a Sides,
        peer: &'a Peer,
        own_keys: Vec<Key>,
        beyond: Option<Timestamp>,
    ) -> Self {
        Self {
            from,
            peer,
            own_buckets: own_keys.iter().map(Bucket::of).collect(),
            own_keys: own_keys.into_iter().peekable(),
            theirs: HashSet::new(),
            beyond,
            to_push: Vec::new(),
            to_push_bytes: 0,
            to_fetch: Vec::new(),
            to_fetch_bytes: 0,
            moved: Moved::default(),
        }
    }

    /// Takes over what the peer holds newer in these buckets, and gives it what it lacks. The keys
    /// of this exchange are those in them.
    pub(crate) async fn run(mut self, buckets: &BucketSet) -> Result<Moved, PeerError> {
        let held = std::mem::replace(&mut self.own_buckets, BucketSet::none());
        let bare = buckets.difference(&held);
        if !bare.is_empty() {
            self.take_over(bare).await?;
        }
        if !held.is_empty() {
            self.even_out(held).await?;
        }
        self.push().await?;
        Ok(self.moved)
    }

    /// Takes over everything in these buckets.
    async fn take_over(&mut self, buckets: BucketSet) -> Result<(), PeerError> {
        let stream = self.from.transport.pull(self.peer, buckets).await?;
        let mut chunks = Chunks::new(stream, FIRST_CHUNK_WITHIN, self.from.peer_timeout);
        while let Some(chunk) = chunks.next().await? {
            self.take_in(chunk.entries).await?;
        }
        Ok(())
    }

    /// Makes both sides equal in these buckets, summaries first.
    async fn even_out(&mut self, buckets: BucketSet) -> Result<(), PeerError> {
        let stream = self.from.transport.summaries(self.peer, buckets).await?;
        let mut chunks = Chunks::new(stream, FIRST_CHUNK_WITHIN, self.from.peer_timeout);
        while let Some(chunk) = chunks.next().await? {
            self.sort_out(chunk.entries).await?;
            if let Some(through) = chunk.complete_through {
                self.give_through(through).await?;
            }
        }
        self.fetch().await
    }

    /// Sees to what has to travel for these to be equal here.
    async fn sort_out(&mut self, summaries: Vec<Summary>) -> Result<(), PeerError> {
        self.from.count(|counts| counts.summaries += summaries.len() as u64);
        for theirs in summaries {
            let ours = self.from.replica.get(&theirs.key);
            let remedy = Remedy::of(ours.as_ref(), &theirs, self.beyond);
            if remedy == Remedy::Unheld {
                continue;
            }
            self.theirs.insert(theirs.key.clone());
            match (remedy, ours) {
                (Remedy::Take, _) => self.ask_for(theirs.key).await?,
                (Remedy::Give, Some(ours)) => self.give(KeyedEntry::new(theirs.key, ours)).await?,
                _ => {}
            }
        }
        Ok(())
    }

    async fn ask_for(&mut self, key: Key) -> Result<(), PeerError> {
        let (count, bytes) = MAX_FETCHED;
        if self.to_fetch.len() >= count || self.to_fetch_bytes + key.as_str().len() > bytes {
            self.fetch().await?;
        }
        self.to_fetch_bytes += key.as_str().len();
        self.to_fetch.push(key);
        Ok(())
    }

    /// Fetches what was asked for, and merges it in.
    async fn fetch(&mut self) -> Result<(), PeerError> {
        if self.to_fetch.is_empty() {
            return Ok(());
        }
        let keys = std::mem::take(&mut self.to_fetch);
        self.to_fetch_bytes = 0;
        let mut missing: HashSet<Key> = keys.iter().cloned().collect();
        let stream = self.from.transport.fetch(self.peer, keys).await?;
        let timeout = self.from.peer_timeout;
        let mut chunks = Chunks::new(stream, timeout, timeout);
        while let Some(mut chunk) = chunks.next().await? {
            // What nobody asked for has no place here.
            let forgotten = |entry: &Entry| self.is_old(entry) && entry.is_tombstone();
            chunk.entries.retain(|got| !forgotten(&got.entry) && missing.remove(&got.key));
            self.take_in(chunk.entries).await?;
        }
        self.moved.vanished += missing.len() as u64;
        Ok(())
    }

    /// Merges in what is newer than this node's copies.
    async fn take_in(&mut self, entries: Vec<KeyedEntry>) -> Result<(), PeerError> {
        let replica = &self.from.replica;
        let (mut news, mut ghosts) = (Vec::new(), Vec::new());
        for theirs in entries {
            if self.is_old(&theirs.entry) && theirs.entry.is_tombstone() {
                // About to be forgotten there.
                continue;
            }
            let ours = replica.get(&theirs.key);
            self.theirs.insert(theirs.key.clone());
            if ours.as_ref().is_none_or(|ours| theirs.entry.supersedes(ours)) {
                news.push(theirs);
            } else if let Some(ours) = ours.filter(|ours| ours.supersedes(&theirs.entry)) {
                if self.is_old(&ours) {
                    ghosts.push(KeyedEntry::new(theirs.key.clone(), ours));
                    news.push(theirs);
                } else {
                    self.give(KeyedEntry::new(theirs.key, ours)).await?;
                }
            }
        }
        self.take_out(ghosts).await?;
        let stamps: Vec<_> = news.iter().map(|write| write.entry.version.timestamp).collect();
        let replies = match self.beyond {
            Some(_) => replica.adopt(news).await,
            None => replica.apply(news, Origin::Sync).await,
        };
        for (stamp, reply) in stamps.into_iter().zip(replies) {
            match reply {
                Ok(_) => {
                    self.moved.pulled += 1;
                    self.from.count(|counts| counts.entries_pulled += 1);
                    self.moved.note(stamp);
                }
                // Logged by the replica; the rest of the data need not wait for it.
                Err(ApplyError::ClockDrift(_)) => self.moved.refused += 1,
                Err(error) => return Err(PeerError::Rejected(error.to_string())),
            }
        }
        Ok(())
    }

    /// Gives the peer what it lacks in the buckets up to this one.
    async fn give_through(&mut self, through: Bucket) -> Result<(), PeerError> {
        let mut ghosts = Vec::new();
        while let Some(key) = self.own_keys.next_if(|key| Bucket::of(key) <= through) {
            if self.theirs.contains(&key) {
                continue;
            }
            match self.from.replica.get(&key) {
                Some(ours) if self.is_old(&ours) => ghosts.push(KeyedEntry::new(key, ours)),
                Some(ours) => self.give(KeyedEntry::new(key, ours)).await?,
                None => {}
            }
        }
        self.take_out(ghosts).await?;
        self.theirs.retain(|key| Bucket::of(key) > through);
        Ok(())
    }

    /// Whether the peer would hold an entry if it were none of a key that was removed and forgotten.
    fn is_old(&self, entry: &Entry) -> bool {
        self.beyond.is_some_and(|horizon| entry.version.timestamp <= horizon)
    }

    async fn take_out(&mut self, ghosts: Vec<KeyedEntry>) -> Result<(), PeerError> {
        for ghost in &ghosts {
            self.moved.note(ghost.entry.version.timestamp);
        }
        self.from.ghosts.take_out(ghosts).await
    }

    async fn give(&mut self, write: KeyedEntry) -> Result<(), PeerError> {
        self.moved.note(write.entry.version.timestamp);
        self.to_push_bytes += write.payload_bytes();
        self.to_push.push(write);
        if self.to_push_bytes >= PUSH_BYTES || self.to_push.len() >= PUSH_ENTRIES {
            self.push().await?;
        }
        Ok(())
    }

    async fn push(&mut self) -> Result<(), PeerError> {
        if self.to_push.is_empty() {
            return Ok(());
        }
        let writes = std::mem::take(&mut self.to_push);
        let (count, payload) = (writes.len() as u64, std::mem::take(&mut self.to_push_bytes));
        self.moved.pushed += count;
        self.from.count(|counts| {
            counts.entries_pushed += count;
            counts.bytes_pushed += payload as u64;
        });
        let timeout = time_for(payload, self.from.peer_timeout);
        self.from.transport.push(self.peer, writes, timeout).await
    }
}

/// A stream that must go on, and be complete at its end.
struct Chunks<T> {
    stream: Box<dyn EntryStream<T>>,
    /// For the next chunk, and for those after it.
    patience: Duration,
    patience_then: Duration,
    through: Option<Bucket>,
}

impl<T: Send + 'static> Chunks<T> {
    fn new(stream: Box<dyn EntryStream<T>>, first: Duration, then: Duration) -> Self {
        Self { stream, patience: first, patience_then: then, through: None }
    }

    async fn next(&mut self) -> Result<Option<EntryChunk<T>>, PeerError> {
        let next = tokio::time::timeout(self.patience, self.stream.next()).await;
        self.patience = self.patience_then;
        let Some(chunk) = next.map_err(|_| PeerError::TimedOut)?.transpose()? else {
            // If the peer stopped in the middle, what did not come is not what it does not hold.
            let complete = self.through == Some(Bucket::LAST);
            return if complete { Ok(None) } else { Err(PeerError::TimedOut) };
        };
        self.through = chunk.complete_through.or(self.through);
        Ok(Some(chunk))
    }
}

impl Moved {
    fn note(&mut self, at: Timestamp) {
        self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use mockall::Sequence;

    use super::*;
    use crate::app::fixture::{Fixture, NOW, TestNode, key, live, version};
    use crate::domain::NodeId;
    use crate::ports::{MockClock, MockPeerTransport, MockQuarantine};

    /// A stream of these chunks.
    struct Says<T>(std::vec::IntoIter<EntryChunk<T>>);

    #[async_trait]
    impl<T: Send + 'static> EntryStream<T> for Says<T> {
        async fn next(&mut self) -> Option<Result<EntryChunk<T>, PeerError>> {
            self.0.next().map(Ok)
        }
    }

    fn says<T: Send + 'static>(chunks: Vec<EntryChunk<T>>) -> Box<dyn EntryStream<T>> {
        Box::new(Says(chunks.into_iter()))
    }

    /// A whole stream of these.
    fn whole<T: Send + 'static>(entries: Vec<T>) -> Box<dyn EntryStream<T>> {
        says(vec![EntryChunk { entries, complete_through: Some(Bucket::LAST) }])
    }

    fn summary(name: &str, entry: &Entry) -> Summary {
        Summary::of(key(name), entry)
    }

    fn keyed(name: &str, at: u64) -> KeyedEntry {
        KeyedEntry::new(key(name), live(at, "v"))
    }

    /// What comes of an exchange of all buckets with a peer that answers so.
    async fn exchange(
        node: &TestNode,
        own_keys: &[&str],
        transport: MockPeerTransport,
        quarantine: MockQuarantine,
        beyond: Option<u64>,
    ) -> Result<(Moved, ComparisonStats), PeerError> {
        let replica = Arc::clone(node.node.replica());
        let mut clock = MockClock::new();
        clock.expect_now().returning(|| Timestamp::from_nanos(NOW));
        let ghosts = Ghosts::new(Arc::clone(&replica), Arc::new(quarantine), Arc::new(clock));
        let sides = Sides {
            replica,
            transport: Arc::new(transport),
            ghosts,
            peer_timeout: Duration::from_secs(2),
            walks: Walks::InPlace,
            counts: Mutex::default(),
        };
        let peer = Peer { id: NodeId::new(2), addr: "10.0.0.2:1".into() };
        let mut own_keys: Vec<_> = own_keys.iter().map(|name| key(name)).collect();
        own_keys.sort_by_key(Bucket::of);
        let buckets: BucketSet = own_keys.iter().map(Bucket::of).collect();
        let beyond = beyond.map(Timestamp::from_nanos);
        let moved = Exchange::new(&sides, &peer, own_keys, beyond).run(&buckets).await?;
        let counts = *sides.counts.lock().unwrap();
        Ok((moved, counts))
    }

    #[tokio::test]
    async fn what_is_newer_there_is_fetched_what_is_newer_here_is_pushed_and_equals_stay() {
        let node = Fixture::with_peers([2]).build();
        node.hold("same", live(5, "v"));
        node.hold("newer", live(5, "v"));
        node.hold("older", live(5, "v"));
        node.hold("missing", live(5, "v"));
        let mut transport = MockPeerTransport::new();
        transport.expect_summaries().times(1).returning(|_, _| {
            let said = [("same", live(5, "v")), ("newer", live(4, "v")), ("older", live(6, "v"))];
            Ok(whole(said.iter().map(|(name, entry)| summary(name, entry)).collect()))
        });
        transport.expect_fetch().times(1).returning(|_, keys| {
            assert_eq!(keys, [key("older")]);
            // And one that nobody asked for.
            Ok(whole(vec![keyed("older", 6), keyed("more", 1)]))
        });
        transport.expect_push().times(1).returning(|_, mut writes, _| {
            writes.sort_by(|a, b| a.key.cmp(&b.key));
            assert_eq!(writes, [keyed("missing", 5), keyed("newer", 5)]);
            Ok(())
        });
        let keys = ["same", "newer", "older", "missing"];
        let outcome = exchange(&node, &keys, transport, MockQuarantine::new(), None).await;
        let (moved, counts) = outcome.unwrap();
        assert_eq!((moved.pulled, moved.pushed, moved.vanished), (1, 2, 0));
        assert_eq!((counts.summaries, counts.entries_pulled, counts.entries_pushed), (3, 1, 2));
        assert_eq!((node.held("older"), node.held("more")), (Some(live(6, "v")), None));
    }

    /// The peer need not come and fetch it.
    #[tokio::test]
    async fn a_removal_that_the_peer_lacks_or_holds_a_value_instead_of_is_pushed() {
        let node = Fixture::with_peers([2]).build();
        for name in ["lacking", "older"] {
            node.hold(name, Entry::tombstone(version(5)));
        }
        let mut transport = MockPeerTransport::new();
        transport
            .expect_summaries()
            .times(1)
            .returning(|_, _| Ok(whole(vec![summary("older", &live(4, "v"))])));
        transport.expect_push().times(1).returning(|_, mut writes, _| {
            writes.sort_by(|a, b| a.key.cmp(&b.key));
            let removal = |name| KeyedEntry::new(key(name), Entry::tombstone(version(5)));
            assert_eq!(writes, ["lacking", "older"].map(removal));
            Ok(())
        });
        let keys = ["lacking", "older"];
        let outcome = exchange(&node, &keys, transport, MockQuarantine::new(), None).await;
        assert_eq!(outcome.unwrap().0.pushed, 2);
    }

    /// What it does not hold any more it may have held as a tombstone: the copy here has to be looked
    /// at again, and must not pass for equal, nor for one that the peer lacks.
    #[tokio::test]
    async fn what_vanished_before_it_was_fetched_is_told_and_moves_nothing() {
        let node = Fixture::with_peers([2]).build();
        node.hold("k", live(5, "v"));
        let mut transport = MockPeerTransport::new();
        let theirs = summary("k", &Entry::tombstone(version(6)));
        transport.expect_summaries().returning(move |_, _| Ok(whole(vec![theirs.clone()])));
        transport.expect_fetch().returning(|_, _| Ok(whole(Vec::new())));
        let outcome = exchange(&node, &["k"], transport, MockQuarantine::new(), None).await;
        let (moved, _) = outcome.unwrap();
        assert_eq!((moved.pulled, moved.pushed, moved.vanished), (0, 0, 1));
        assert_eq!(node.held("k"), Some(live(5, "v")));
    }

    #[tokio::test]
    async fn a_stream_that_ends_in_the_middle_proves_nothing_about_what_did_not_come() {
        for beyond in [None, Some(9)] {
            let node = Fixture::with_peers([2]).build();
            node.hold("k", live(5, "v"));
            let mut transport = MockPeerTransport::new();
            transport.expect_summaries().returning(|_, _| Ok(says(Vec::new())));
            let quarantine = MockQuarantine::new();
            let outcome = exchange(&node, &["k"], transport, quarantine, beyond).await;
            assert_eq!(outcome.unwrap_err(), PeerError::TimedOut);
            assert_eq!(node.held("k"), Some(live(5, "v")));
        }
    }

    /// One that the peer holds older, one that it does not hold, and one whose tombstone it is about
    /// to forget: all three are ghosts. What is newer than the horizon is not.
    #[tokio::test]
    async fn beyond_a_horizon_ghosts_are_put_aside_and_only_the_rest_is_given() {
        const HORIZON: u64 = 10;
        let node = Fixture::with_peers([2]).build();
        for name in ["older there", "unknown there", "removed there"] {
            node.hold(name, live(5, "v"));
        }
        node.hold("new", live(11, "v"));
        let mut transport = MockPeerTransport::new();
        transport.expect_summaries().times(1).returning(|_, _| {
            let removed = summary("removed there", &Entry::tombstone(version(6)));
            Ok(whole(vec![summary("older there", &live(4, "v")), removed]))
        });
        transport.expect_fetch().times(1).returning(|_, keys| {
            assert_eq!(keys, [key("older there")]);
            Ok(whole(vec![keyed("older there", 4)]))
        });
        transport.expect_push().times(1).returning(|_, writes, _| {
            assert_eq!(writes, [keyed("new", 11)]);
            Ok(())
        });
        let aside: Arc<Mutex<Vec<Key>>> = Arc::default();
        let (mut quarantine, kept) = (MockQuarantine::new(), Arc::clone(&aside));
        quarantine.expect_keep().returning(move |ghosts, _, _| {
            kept.lock().unwrap().extend(ghosts.iter().map(|ghost| ghost.key.clone()));
            Ok("a file".into())
        });
        let keys = ["older there", "unknown there", "removed there", "new"];
        exchange(&node, &keys, transport, quarantine, Some(HORIZON)).await.unwrap();
        let mut aside = aside.lock().unwrap().clone();
        aside.sort();
        assert_eq!(aside, ["older there", "removed there", "unknown there"].map(key));
        let held = ["older there", "unknown there", "removed there", "new"].map(|k| node.held(k));
        assert_eq!(held, [Some(live(4, "v")), None, None, Some(live(11, "v"))]);
    }

    #[tokio::test]
    async fn much_that_differs_is_fetched_in_parts_of_bounded_size() {
        const KEYS: usize = 9_000;
        let names: Vec<_> = (0..KEYS).map(|n| format!("{n:040}")).collect();
        let mut own = Vec::new();
        let node = Fixture::with_peers([2]).build();
        for name in &names {
            node.hold(name, live(1, "v"));
            own.push(name.as_str());
        }
        let mut transport = MockPeerTransport::new();
        let said: Vec<_> = names.iter().map(|name| summary(name, &live(2, "v"))).collect();
        transport.expect_summaries().returning(move |_, _| Ok(whole(said.clone())));
        let mut order = Sequence::new();
        for part in [4_096, 4_096, KEYS - 2 * 4_096] {
            transport.expect_fetch().times(1).in_sequence(&mut order).returning(move |_, keys| {
                assert_eq!(keys.len(), part);
                let entry = |key: Key| KeyedEntry::new(key, live(2, "v"));
                Ok(whole(keys.into_iter().map(entry).collect()))
            });
        }
        let outcome = exchange(&node, &own, transport, MockQuarantine::new(), None).await;
        let (moved, _) = outcome.unwrap();
        assert_eq!((moved.pulled, moved.vanished), (KEYS as u64, 0));
    }
}
