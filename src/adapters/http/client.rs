//! `HttpClient`: one connection to a node, for commands that ask nodes.

use std::io;
use std::sync::Arc;

use axum::http::header::InvalidHeaderValue;
use axum::http::{HeaderValue, Request, Response, header};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::either::Either;

/// A node, and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Remote {
    addr: Arc<str>,
    tls: Option<Arc<ClientConfig>>,
    /// Not shown by `Debug`.
    authorization: Option<HeaderValue>,
}

impl Remote {
    /// The node at `addr` (`HOST:PORT`), as it is and without a token.
    pub fn new(addr: &str) -> Self {
        Self { addr: addr.into(), tls: None, authorization: None }
    }

    /// In TLS, if this is there.
    #[must_use]
    pub fn in_tls(self, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { tls, ..self }
    }

    /// With a token.
    ///
    /// # Errors
    /// That it has what no header can have.
    pub fn with_token(self, token: &str) -> Result<Self, InvalidHeaderValue> {
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
        value.set_sensitive(true);
        Ok(Self { authorization: Some(value), ..self })
    }

    /// `HOST:PORT`.
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// The host alone; an IPv6 address is without its brackets.
    pub fn host(&self) -> &str {
        let host = self.addr.rsplit_once(':').map_or(&*self.addr, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// A connection, closed when dropped. It has no deadlines of its own.
#[derive(Debug)]
pub struct HttpClient {
    sender: SendRequest<Full<Bytes>>,
    authorization: Option<HeaderValue>,
    /// What drives the connection, as long as this is held.
    _driving: JoinSet<()>,
}

impl HttpClient {
    /// Connects to a node. Cancel safe.
    ///
    /// # Errors
    /// What the system says, or why the node is not believed to be who it should.
    pub async fn connect(remote: &Remote) -> io::Result<Self> {
        let stream = TcpStream::connect(remote.addr()).await?;
        stream.set_nodelay(true)?;
        let stream = match &remote.tls {
            Some(tls) => {
                let name = ServerName::try_from(remote.host().to_owned());
                let name = name.map_err(io::Error::other)?;
                let connector = TlsConnector::from(Arc::clone(tls));
                Either::Right(Box::new(connector.connect(name, stream).await?))
            }
            None => Either::Left(stream),
        };
        let handshake = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        let mut driving = JoinSet::new();
        driving.spawn(async move {
            // What goes wrong is told to whoever waits for the answer.
            connection.await.ok();
        });
        Ok(Self { sender, authorization: remote.authorization.clone(), _driving: driving })
    }

    /// Sends a request, and waits for the head of its response. The body of the one before must have
    /// been read, or dropped. Not cancel safe: drop the connection then.
    ///
    /// # Errors
    /// When the connection broke off.
    pub async fn send(
        &mut self,
        mut request: Request<Full<Bytes>>,
    ) -> io::Result<Response<Incoming>> {
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        self.sender.ready().await.map_err(io::Error::other)?;
        self.sender.send_request(request).await.map_err(io::Error::other)
    }

    /// Whether it is known to have been closed.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
