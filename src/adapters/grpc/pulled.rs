//! The entries that a peer streams to this node, put together from its messages.

use async_trait::async_trait;
use futures_util::StreamExt;
use tonic::Streaming;

use crate::ports::{EntryChunk, EntryStream, PeerError};

use super::convert::chunk_from_wire;
use super::fragments::Reassembly;
use super::handshake::error;
use super::wire::Chunk;

/// The entries of a peer, as they come.
pub(super) struct Pulled {
    messages: Streaming<Chunk>,
    reassembly: Reassembly,
    ended: bool,
}

impl Pulled {
    pub(super) fn new(messages: Streaming<Chunk>) -> Self {
        Self { messages, reassembly: Reassembly::default(), ended: false }
    }

    async fn read(&mut self) -> Option<Result<EntryChunk, PeerError>> {
        loop {
            let part = match self.messages.next().await? {
                Ok(part) => part,
                Err(status) => return Some(Err(error(&status))),
            };
            match self.reassembly.accept(part) {
                Ok(Some(chunk)) => return Some(chunk_from_wire(&chunk).map_err(Into::into)),
                Ok(None) => {}
                Err(why) => return Some(Err(PeerError::Protocol(why))),
            }
        }
    }
}

#[async_trait]
impl EntryStream for Pulled {
    async fn next(&mut self) -> Option<Result<EntryChunk, PeerError>> {
        if self.ended {
            return None;
        }
        let next = self.read().await;
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
