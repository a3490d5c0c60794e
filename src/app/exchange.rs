//! `Exchange`: one pass over the buckets in which two nodes differ, entries both ways.
//!
//! What the peer holds newer is merged in, what it lacks is pushed, a part at a time. Towards a
//! member that is certified further than this node (`domain/horizon.rs`), what is older than that
//! and not held there is a ghost, and is taken out here instead (`ghosts.rs`).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::domain::{Bucket, Entry, Key, KeyedEntry, Timestamp};
use crate::ports::{ApplyError, ComparisonStats, Origin, Peer, PeerError, PeerTransport};

use super::apply::Replica;
use super::ghosts::Ghosts;
use super::walks::Walks;

/// Bytes of keys and values, and entries, pushed at a time.
const PUSH_BYTES: usize = 256 * 1_024;
const PUSH_ENTRIES: usize = 4_096;

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
    /// The oldest version among what was moved.
    pub(crate) oldest: Option<Timestamp>,
}

/// A running exchange with one peer, bucket by bucket.
pub(crate) struct Exchange<'a> {
    from: &'a Sides,
    peer: &'a Peer,
    /// This node's keys in the buckets, in their order, those not yet given.
    own_keys: std::iter::Peekable<std::vec::IntoIter<Key>>,
    /// What the peer was found to hold in buckets that are not complete yet.
    theirs: HashSet<Key>,
    /// The horizon up to which what the peer does not hold is a ghost.
    beyond: Option<Timestamp>,
    to_push: Vec<KeyedEntry>,
    to_push_bytes: usize,
    pub(crate) moved: Moved,
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
            own_keys: own_keys.into_iter().peekable(),
            theirs: HashSet::new(),
            beyond,
            to_push: Vec::new(),
            to_push_bytes: 0,
            moved: Moved::default(),
        }
    }

    /// Merges in what is newer than this node's copies.
    pub(crate) async fn take_in(&mut self, entries: Vec<KeyedEntry>) -> Result<(), PeerError> {
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
    pub(crate) async fn give_through(&mut self, through: Bucket) -> Result<(), PeerError> {
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

    pub(crate) async fn push(&mut self) -> Result<(), PeerError> {
        if self.to_push.is_empty() {
            return Ok(());
        }
        let writes = std::mem::take(&mut self.to_push);
        let (count, bytes) = (writes.len() as u64, std::mem::take(&mut self.to_push_bytes) as u64);
        self.moved.pushed += count;
        self.from.count(|counts| {
            counts.entries_pushed += count;
            counts.bytes_pushed += bytes;
        });
        let (transport, timeout) = (&self.from.transport, self.from.peer_timeout);
        transport.push(self.peer, writes, timeout).await
    }
}

impl Moved {
    fn note(&mut self, at: Timestamp) {
        self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at)));
    }
}
