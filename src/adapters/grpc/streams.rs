//! The server's side of what brings much: entries, or summaries of them, for whoever asks for many.

use tokio::sync::mpsc;
use tonic::Status;

use crate::ports::{EntryChunk, EntryStream};

use super::fragments::{Fragmented, split};

/// Sends what a stream brings, chunk by chunk, as fast as it is taken.
pub(super) async fn send_chunks<T: Send + 'static, M: Fragmented>(
    mut entries: Box<dyn EntryStream<T>>,
    chunks: mpsc::Sender<Result<M, Status>>,
    to_wire: fn(&EntryChunk<T>) -> M,
) {
    while let Some(next) = entries.next().await {
        match next {
            Ok(chunk) => {
                for part in split(to_wire(&chunk)) {
                    if chunks.send(Ok(part)).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => {
                // Nobody to tell if the stream is gone already.
                chunks.send(Err(Status::aborted(error.to_string()))).await.ok();
                return;
            }
        }
    }
}
