//! What a peer streams to this node, entries or summaries, put together from its messages.
//!
//! A part of a chunk is handed on as a chunk of nothing, so that whoever waits sees that the peer is
//! alive: over a slow link a large value takes longer than anybody is silent that lives.

use async_trait::async_trait;
use futures_util::StreamExt;
use tonic::Streaming;

use crate::domain::{KeyedEntry, Summary};
use crate::ports::{EntryChunk, EntryStream, PeerError};

use super::convert::{Malformed, chunk_from_wire, summaries_from_wire};
use super::fragments::{Fragmented, Reassembly};
use super::handshake::error;
use super::wire::{Chunk, SummaryChunk};

/// The chunks of a peer, as they come.
pub(super) struct Pulled<M, T> {
    messages: Streaming<M>,
    reassembly: Reassembly,
    from_wire: fn(&M) -> Result<EntryChunk<T>, Malformed>,
    ended: bool,
}

impl Pulled<Chunk, KeyedEntry> {
    pub(super) fn entries(messages: Streaming<Chunk>) -> Self {
        Self::new(messages, chunk_from_wire)
    }
}

impl Pulled<SummaryChunk, Summary> {
    pub(super) fn summaries(messages: Streaming<SummaryChunk>) -> Self {
        Self::new(messages, summaries_from_wire)
    }
}

impl<M: Fragmented, T> Pulled<M, T> {
    fn new(messages: Streaming<M>, from_wire: fn(&M) -> Result<EntryChunk<T>, Malformed>) -> Self {
        Self { messages, reassembly: Reassembly::default(), from_wire, ended: false }
    }

    async fn read(&mut self) -> Option<Result<EntryChunk<T>, PeerError>> {
        let part = match self.messages.next().await? {
            Ok(part) => part,
            Err(status) => return Some(Err(error(&status))),
        };
        Some(match self.reassembly.accept(part) {
            Ok(Some(chunk)) => (self.from_wire)(&chunk).map_err(Into::into),
            Ok(None) => Ok(EntryChunk { entries: Vec::new(), complete_through: None }),
            Err(why) => Err(PeerError::Protocol(why)),
        })
    }
}

#[async_trait]
impl<M: Fragmented, T: Send + 'static> EntryStream<T> for Pulled<M, T> {
    async fn next(&mut self) -> Option<Result<EntryChunk<T>, PeerError>> {
        if self.ended {
            return None;
        }
        let next = self.read().await;
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
