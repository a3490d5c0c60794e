//! `ask`: one question to a node, and its answer as a whole.

use std::io;
use std::time::Duration;

use axum::http::{Method, Request, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use tokio::time::timeout;

use super::client::{HttpClient, Remote};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How long the answer may take to begin: the node waits ten seconds for the body at most, and works on
/// it for ten more.
const ANSWER_WITHIN: Duration = Duration::from_secs(25);

/// How long the next piece of it may take.
const PIECE_WITHIN: Duration = Duration::from_secs(10);

/// The longest value, were every character of it escaped, and what stands around it.
const MAX_ANSWER_BYTES: usize = 128 * 1_024 * 1_024;

/// What a node answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there. Nothing was asked.
    #[error(
        "no node can be reached at {addr}: {error}; is it running? --addr or LALLY_ADDR says where"
    )]
    Unreachable {
        /// Where.
        addr: String,
        /// What the system said.
        error: io::Error,
    },
    /// The question was sent, perhaps, and no answer came: it may have been carried out.
    #[error(
        "{addr} did not answer ({error}); a change that it was asked for may have been made, or not"
    )]
    BrokenOff {
        /// Who.
        addr: String,
        /// What is known of it.
        error: io::Error,
    },
}

/// Asks a node on a connection of its own. Waits half a minute at most for the
/// answer to begin, and then as long as it goes on.
///
/// # Errors
/// [`AskError`]. That a node refuses is an answer.
pub async fn ask(
    remote: &Remote,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Answered, AskError> {
    let addr = remote.addr();
    let unreachable = |error| AskError::Unreachable { addr: addr.to_owned(), error };
    let late = || io::Error::new(io::ErrorKind::TimedOut, "it does not answer");
    let connecting = timeout(CONNECT_WITHIN, HttpClient::connect(remote)).await;
    let mut client = connecting.unwrap_or_else(|_| Err(late())).map_err(unreachable)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, addr)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body));
    let request = request.map_err(io::Error::other).map_err(unreachable)?;
    let broken = |error| AskError::BrokenOff { addr: addr.to_owned(), error };
    let answering = timeout(ANSWER_WITHIN, client.send(request)).await;
    let response = answering.unwrap_or_else(|_| Err(late())).map_err(broken)?;
    let status = response.status();
    let mut pieces = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let mut body = BytesMut::new();
    loop {
        let piece = timeout(PIECE_WITHIN, pieces.frame()).await.map_err(|_| broken(late()))?;
        let Some(piece) = piece else { break };
        let piece = piece.map_err(io::Error::other).map_err(broken)?;
        body.extend_from_slice(&piece.into_data().unwrap_or_default());
    }
    Ok(Answered { status, body: body.freeze() })
}
