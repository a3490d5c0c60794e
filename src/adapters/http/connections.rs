//! The limit of open connections, and what every accepted one is set to.

use std::future::{Ready, ready};
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
use tokio::time::timeout;
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
        give_up_after(self.options.initial().write_timeout, stream)?;
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
        let Some(tls) = &self.tls else {
            let connection = Connection { stream: Stream::Left(stream), _counted: counted };
            return Either::Left(ready(Ok((connection, service))));
        };
        let handshake = TlsAcceptor::from(tls.load_full()).accept(stream);
        let handshake = timeout(self.options.initial().header_read_timeout, handshake);
        let accepting = async move {
            let stream = handshake.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            let stream = Stream::Right(Box::new(stream));
            Ok((Connection { stream, _counted: counted }, service))
        };
        Either::Right(accepting.boxed())
    }
}

/// Has the kernel end a connection whose client has taken nothing of what it was sent for so long
/// (`TCP_USER_TIMEOUT`, RFC 5482). It alone knows: what is written lies in its buffers, or in those of TLS
/// above it, long before a client takes any of it.
#[cfg(target_os = "linux")]
fn give_up_after(timeout: Duration, stream: &TcpStream) -> io::Result<()> {
    let ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, ms)?)
}

/// Other systems have no such option that all of them share.
#[cfg(not(target_os = "linux"))]
fn give_up_after(_: Duration, _: &TcpStream) -> io::Result<()> {
    Ok(())
}

/// An accepted connection; counted for as long as it lives.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    _counted: Counted,
}

/// As it is, or in TLS: boxed, since it has its buffers in it.
type Stream = either::Either<TcpStream, Box<TlsStream<TcpStream>>>;

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
