//! `SimStream`: the entries of a peer, in small parts, each of which travels, or breaks the stream.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use lally::ports::{EntryChunk, EntryStream, PeerError};

use super::network::{Leg, Network};
use super::world::{Detail, Site};

/// Entries in a part: few, so that streams of few keys have parts, too.
const PART: usize = 2;

/// How long it takes until a connection that is cut is known to be broken.
const KEEP_ALIVE: std::ops::Range<u64> = 1_000..15_000;

/// Entries on their way from one site to another.
pub struct SimStream<T> {
    network: Network,
    from: Site,
    to: Site,
    /// The life of the node that sends.
    life: Option<u64>,
    entries: Box<dyn EntryStream<T>>,
    parts: VecDeque<EntryChunk<T>>,
    ended: bool,
}

impl<T: Clone + Send + 'static> SimStream<T> {
    pub fn new(network: &Network, from: Site, to: Site, entries: Box<dyn EntryStream<T>>) -> Self {
        let life = network.attached(from).map(|node| node.life);
        let (network, parts) = (network.clone(), VecDeque::new());
        Self { network, from, to, life, entries, parts, ended: false }
    }

    async fn part(&mut self) -> Option<Result<EntryChunk<T>, PeerError>> {
        if self.parts.is_empty() {
            match self.entries.next().await? {
                Ok(chunk) => self.parts = cut_up(&chunk),
                Err(error) => return Some(Err(error)),
            }
        }
        let world = &self.network.world;
        if world.chance(self.network.noise().resets) {
            world.note("broken stream", self.from, self.to, Detail::Nothing);
            // Some ends look like the proper one.
            return world.chance(500).then_some(Err(PeerError::TimedOut));
        }
        let leg = self.network.travel(self.from, self.to).await;
        if self.network.attached(self.from).map(|node| node.life) != self.life {
            return Some(Err(PeerError::TimedOut));
        }
        if leg == Leg::Cut {
            let silence = self.network.world.pick(KEEP_ALIVE);
            tokio::time::sleep(Duration::from_millis(silence)).await;
            return Some(Err(PeerError::TimedOut));
        }
        self.parts.pop_front().map(Ok)
    }
}

/// The same entries in smaller chunks.
fn cut_up<T: Clone>(chunk: &EntryChunk<T>) -> VecDeque<EntryChunk<T>> {
    let mut parts: VecDeque<EntryChunk<T>> = chunk
        .entries
        .chunks(PART)
        .map(|part| EntryChunk { entries: part.to_vec(), complete_through: None })
        .collect();
    parts.push_back(EntryChunk { entries: Vec::new(), complete_through: chunk.complete_through });
    parts
}

#[async_trait]
impl<T: Clone + Send + 'static> EntryStream<T> for SimStream<T> {
    async fn next(&mut self) -> Option<Result<EntryChunk<T>, PeerError>> {
        if self.ended {
            return None;
        }
        let next = self.part().await;
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
