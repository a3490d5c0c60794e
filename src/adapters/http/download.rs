//! `Download`: a backup of a node that runs, as it comes over the wire.
//!
//! A node answers in chunks, and says which is the last. Whatever ends otherwise (the node stops, a
//! connection breaks, nothing comes for a minute) is an error, never an end.

use std::io;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderName, Request, StatusCode, header};
use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::Full;
use tokio::time::timeout;

use super::client::{HttpClient, Remote};

/// Where a node gives out a backup.
pub(super) const BACKUP_PATH: &str = "/admin/backup";

/// How long that is, about.
pub(super) const EXPECTED_BYTES: HeaderName = HeaderName::from_static("lally-expected-bytes");

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How long the next piece may take. The node may read a slow disk.
const PIECE_WITHIN: Duration = Duration::from_secs(60);

/// Longest refusal that is read.
const MAX_REFUSAL_BYTES: usize = 64 * 1_024;

/// A backup on its way from a node.
#[derive(Debug)]
pub struct Download {
    pieces: BodyDataStream,
    expected_bytes: Option<u64>,
    /// The connection, as long as this is held.
    _client: HttpClient,
}

/// Why there is no backup, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// Nobody listens there.
    #[error("no node can be reached at {addr}: {error}; is it running? `--from` says where")]
    Unreachable {
        /// Where.
        addr: String,
        /// What the system said.
        error: io::Error,
    },
    /// The node refused.
    #[error("the node at {addr} refused: {reason}")]
    Refused {
        /// Where.
        addr: String,
        /// What it said.
        reason: String,
    },
    /// The backup broke off.
    #[error(
        "the backup broke off ({reason}): the node stopped, its log does not read back (then its own messages say where), or the connection ended"
    )]
    BrokenOff {
        /// What is known of it.
        reason: String,
    },
}

impl Download {
    /// Asks a node for a backup.
    ///
    /// # Errors
    /// [`DownloadError`].
    pub async fn begin(remote: &Remote) -> Result<Self, DownloadError> {
        let addr = remote.addr();
        let unreachable = |error| DownloadError::Unreachable { addr: addr.to_owned(), error };
        let connecting = timeout(CONNECT_WITHIN, HttpClient::connect(remote)).await;
        let mut client = connecting.unwrap_or_else(|_| Err(no_answer())).map_err(unreachable)?;
        let request = Request::get(BACKUP_PATH).header(header::HOST, addr).body(Full::default());
        let request = request.map_err(io::Error::other).map_err(unreachable)?;
        let answering = timeout(ANSWER_WITHIN, client.send(request)).await;
        let response = answering.unwrap_or_else(|_| Err(no_answer())).map_err(unreachable)?;
        let status = response.status();
        let expected = response.headers().get(EXPECTED_BYTES);
        let expected_bytes = expected.and_then(|bytes| bytes.to_str().ok()?.parse().ok());
        let body = Body::new(response.into_body());
        if status != StatusCode::OK {
            let text = axum::body::to_bytes(body, MAX_REFUSAL_BYTES).await.unwrap_or_default();
            let reason = reason(status, &text);
            return Err(DownloadError::Refused { addr: addr.to_owned(), reason });
        }
        let pieces = body.into_data_stream();
        Ok(Self { pieces, expected_bytes, _client: client })
    }

    /// Its length in bytes, about, if the node says so.
    pub const fn expected_bytes(&self) -> Option<u64> {
        self.expected_bytes
    }

    /// The next piece; `None` when that was all. Cancel safe.
    ///
    /// # Errors
    /// [`DownloadError::BrokenOff`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, DownloadError> {
        let broken = |reason: String| DownloadError::BrokenOff { reason };
        match timeout(PIECE_WITHIN, self.pieces.next()).await {
            Ok(Some(Ok(piece))) => Ok(Some(piece)),
            Ok(Some(Err(error))) => Err(broken(error.to_string())),
            Ok(None) => Ok(None),
            Err(_) => Err(broken("nothing came for a minute".into())),
        }
    }
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it does not answer")
}

/// The message of a refusal, or what came instead.
fn reason(status: StatusCode, text: &[u8]) -> String {
    let message = serde_json::from_slice::<serde_json::Value>(text)
        .ok()
        .and_then(|json| json.get("message")?.as_str().map(str::to_owned));
    message.unwrap_or_else(|| format!("HTTP {status}, which is not what a node of Lally says"))
}
