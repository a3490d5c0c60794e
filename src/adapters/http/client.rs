//! `HttpClient`: one connection to a node, for commands that ask nodes.

use std::io;

use axum::http::{Request, Response};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A connection, closed when dropped. It has no deadlines of its own.
#[derive(Debug)]
pub struct HttpClient {
    sender: SendRequest<Full<Bytes>>,
    /// What drives the connection, as long as this is held.
    _driving: JoinSet<()>,
}

impl HttpClient {
    /// Connects to `addr` (`HOST:PORT`). Cancel safe.
    ///
    /// # Errors
    /// What the system says.
    pub async fn connect(addr: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        let mut driving = JoinSet::new();
        driving.spawn(async move {
            // What goes wrong is told to whoever waits for the answer.
            connection.await.ok();
        });
        Ok(Self { sender, _driving: driving })
    }

    /// Sends a request, and waits for the head of its response. The body of the one before must have
    /// been read, or dropped. Not cancel safe: drop the connection then.
    ///
    /// # Errors
    /// When the connection broke off.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> io::Result<Response<Incoming>> {
        self.sender.ready().await.map_err(io::Error::other)?;
        self.sender.send_request(request).await.map_err(io::Error::other)
    }

    /// Whether it is known to have been closed.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
