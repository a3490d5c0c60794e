//! `Dial`: how a connection to a peer comes about when it is not the system's TCP; and `Upgrade`: what
//! becomes of one that came in before it is spoken over.
//!
//! For simulated networks, and for programs that embed a node behind a transport of their own. What
//! is spoken over the connection is the same, its deadlines and its keep-alive too.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::server::Connected;

/// A connection: bytes both ways.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for C {}

/// Of whoever connects no more is known than that.
impl Connected for Box<dyn Connection> {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

type Dialled = BoxFuture<'static, io::Result<TokioIo<Box<dyn Connection>>>>;

/// Opens connections. Clones open the same kind.
#[derive(Clone)]
pub struct Dial(Arc<dyn Fn(String) -> Dialled + Send + Sync>);

impl Dial {
    /// Connections opened by this function, which is given `HOST:PORT`.
    pub fn with<C, F>(open: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        C: Connection,
        F: Future<Output = io::Result<C>> + Send + 'static,
    {
        Self(Arc::new(move |addr| {
            let opening = open(addr);
            Box::pin(async move {
                let connection: Box<dyn Connection> = Box::new(opening.await?);
                Ok(TokioIo::new(connection))
            })
        }))
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dial")
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Box<dyn Connection>>;
    type Error = io::Error;
    type Future = Dialled;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, addr: Uri) -> Dialled {
        (self.0)(addr.authority().map(ToString::to_string).unwrap_or_default())
    }
}

type Upgraded = BoxFuture<'static, io::Result<Box<dyn Connection>>>;

/// Turns connections that came in into others, TLS over them, say, or refuses them. Clones do the same.
#[derive(Clone)]
pub struct Upgrade(Arc<dyn Fn(Box<dyn Connection>) -> Upgraded + Send + Sync>);

impl Upgrade {
    /// By this function.
    pub fn with<C, F>(upgrade: impl Fn(Box<dyn Connection>) -> F + Send + Sync + 'static) -> Self
    where
        C: Connection,
        F: Future<Output = io::Result<C>> + Send + 'static,
    {
        Self(Arc::new(move |connection| {
            let upgrading = upgrade(connection);
            Box::pin(async move { Ok(Box::new(upgrading.await?) as Box<dyn Connection>) })
        }))
    }

    pub(super) fn of(&self, connection: impl Connection) -> Upgraded {
        (self.0)(Box::new(connection))
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upgrade")
    }
}
