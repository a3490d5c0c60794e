//! The limit of open connections, and what every accepted one is set to.

use std::future::{Future, Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum_server::accept::Accept;
use futures_util::future::{BoxFuture, Either, FutureExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_util::either;

use super::LiveOptions;
use super::metrics::Metrics;

/// Accepts connections up to a limit; one more is closed at once, so that a flood of them costs
/// those that are open little.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    options: LiveOptions,
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
    metrics: Arc<Metrics>,
}

impl Limit {
    /// What each connection begins with, if TLS is spoken, has as long as the head of a request.
    pub(super) const fn new(
        options: LiveOptions,
        tls: Option<Arc<ArcSwap<ServerConfig>>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { options, tls, metrics }
    }

    /// Counts a connection in, if there is room for it.
    fn admit(&self, stream: &TcpStream) -> io::Result<Counted> {
        let open = self.metrics.connections.fetch_add(1, Ordering::Relaxed);
        // From here on the connection is counted, and dropping it counts it out again.
        let counted = Counted(Arc::clone(&self.metrics));
        if open >= self.options.max_connections() {
            self.metrics.connections_refused.fetch_add(1, Ordering::Relaxed);
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        // A response is one write; there is nothing to wait for.
        stream.set_nodelay(true)?;
        Ok(counted)
    }
}

impl<S: Send + 'static> Accept<TcpStream, S> for Limit {
    type Stream = Connection;
    type Service = S;
    type Future =
        Either<Ready<io::Result<(Connection, S)>>, BoxFuture<'static, io::Result<(Connection, S)>>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let counted = match self.admit(&stream) {
            Ok(counted) => counted,
            Err(refused) => return Either::Left(ready(Err(refused))),
        };
        let write_timeout = self.options.initial().write_timeout;
        let Some(tls) = &self.tls else {
            let connection = Connection::new(Stream::Left(stream), write_timeout, counted);
            return Either::Left(ready(Ok((connection, service))));
        };
        let handshake = TlsAcceptor::from(tls.load_full()).accept(stream);
        let handshake = timeout(self.options.initial().header_read_timeout, handshake);
        let accepting = async move {
            let stream = handshake.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            let stream = Stream::Right(Box::new(stream));
            Ok((Connection::new(stream, write_timeout, counted), service))
        };
        Either::Right(accepting.boxed())
    }
}

/// An accepted connection; counted for as long as it lives.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    write_timeout: Duration,
    /// Set for as long as the client takes nothing of what it is sent.
    stuck: Option<Pin<Box<Sleep>>>,
    _counted: Counted,
}

/// As it is, or in TLS: boxed, since it has its buffers in it.
type Stream = either::Either<TcpStream, Box<TlsStream<TcpStream>>>;

impl Connection {
    fn new(stream: Stream, write_timeout: Duration, counted: Counted) -> Self {
        Self { stream, write_timeout, stuck: None, _counted: counted }
    }

    /// What a write came to; an error once it has been pending for too long.
    fn in_time(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let timeout = self.write_timeout;
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(timeout)));
        stuck.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// One of the connections that are open.
#[derive(Debug)]
struct Counted(Arc<Metrics>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
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
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.in_time(cx, written)
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
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
