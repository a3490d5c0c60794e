//! The limit of open connections, and what every accepted one is set to.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::metrics::Metrics;

/// Accepts connections up to a limit; one more is closed at once, so that a flood of them costs
/// those that are open little.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    max: usize,
    metrics: Arc<Metrics>,
}

impl Limit {
    pub(super) const fn new(max: usize, metrics: Arc<Metrics>) -> Self {
        Self { max, metrics }
    }

    fn admit(&self, stream: TcpStream) -> io::Result<Connection> {
        let open = self.metrics.connections.fetch_add(1, Ordering::Relaxed);
        // From here on the connection is counted, and dropping it counts it out again.
        let connection = Connection { stream, metrics: Arc::clone(&self.metrics) };
        if open >= self.max {
            self.metrics.connections_refused.fetch_add(1, Ordering::Relaxed);
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        // A response is one write; there is nothing to wait for.
        connection.stream.set_nodelay(true)?;
        Ok(connection)
    }
}

impl<S> Accept<TcpStream, S> for Limit {
    type Stream = Connection;
    type Service = S;
    type Future = Ready<io::Result<(Connection, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        ready(self.admit(stream).map(|connection| (connection, service)))
    }
}

/// An accepted connection; counted for as long as it lives.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    metrics: Arc<Metrics>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.metrics.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
