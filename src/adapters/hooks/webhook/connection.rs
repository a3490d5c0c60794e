//! A connection to a receiver: HTTP/1.1 over TCP, or over TLS.

use std::io;
use std::sync::Arc;

use axum::http::{Request, Response, Uri};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// Where a receiver is, and how its certificate is checked.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// The `Host` header.
    pub(super) authority: String,
    /// What follows it.
    pub(super) path: String,
    trust: Option<Arc<ClientConfig>>,
}

impl Target {
    /// The place that a URL names; `trust` if that is `https`.
    pub(super) fn new(url: &Uri, trust: Option<Arc<ClientConfig>>) -> Self {
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let default = if trust.is_some() { 443 } else { 80 };
        Self {
            host,
            port: url.port_u16().unwrap_or(default),
            authority: url.authority().map_or_else(String::new, ToString::to_string),
            path: url.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            trust,
        }
    }
}

/// A connection, closed when dropped. It has no deadlines of its own.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// What drives the connection, as long as this is held.
    _driving: JoinSet<()>,
}

impl Connection {
    /// Connects. Cancel safe.
    pub(super) async fn to(target: &Target) -> io::Result<Self> {
        let stream = TcpStream::connect((target.host.as_str(), target.port)).await?;
        stream.set_nodelay(true)?;
        match &target.trust {
            None => Self::over(stream).await,
            Some(trust) => {
                let connector = TlsConnector::from(Arc::clone(trust));
                let name = ServerName::try_from(target.host.clone()).map_err(io::Error::other)?;
                Self::over(connector.connect(name, stream).await?).await
            }
        }
    }

    async fn over<S>(stream: S) -> io::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
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
    /// been read. Not cancel safe: drop the connection then.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> io::Result<Response<Incoming>> {
        self.sender.ready().await.map_err(io::Error::other)?;
        self.sender.send_request(request).await.map_err(io::Error::other)
    }

    /// Whether it is known to have been closed.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_to_connect_and_what_to_ask_for() {
        let target = Target::new(&"http://[::1]:8080/hook?a=b".parse().unwrap(), None);
        assert_eq!((target.host.as_str(), target.port), ("::1", 8_080));
        assert_eq!((target.authority.as_str(), target.path.as_str()), ("[::1]:8080", "/hook?a=b"));
        let target = Target::new(&"http://receiver".parse().unwrap(), None);
        assert_eq!((target.port, target.path.as_str()), (80, "/"));
    }
}
