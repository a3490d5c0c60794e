//! What keeps strangers out of a node: its tokens and certificates, read before anything is touched.

use std::sync::Arc;

use crate::adapters::config::Config;
use crate::adapters::grpc::{Dial, Upgrade};
use crate::adapters::http::{Entrance, Guard};
use crate::adapters::tls::{HttpTls, PeerTls, PeerTlsFiles};
use crate::adapters::tokens::TokenFile;

use super::errors::RunError;
use super::reload::{Prepared, Reloadable};

/// What a node lets in by. Each part may be missing.
#[derive(Debug, Clone, Default)]
pub(super) struct Locks {
    tokens: Option<Arc<TokenFile>>,
    metrics_need_token: bool,
    http: Option<Arc<HttpTls>>,
    pub(super) peers: Option<Arc<PeerTls>>,
}

impl Locks {
    /// Reads all the files that are configured.
    pub(super) fn open(config: &Config) -> Result<Self, RunError> {
        let security = &config.security;
        let tokens = security.tokens.as_ref().map(|path| TokenFile::open(path)).transpose();
        let http = security.http_tls.as_ref().map(|files| HttpTls::open(&files.cert, &files.key));
        let peers = security.peer_tls.clone().map(|files| {
            let (cert, key) = (files.cert.cert, files.cert.key);
            PeerTls::open(PeerTlsFiles { ca: files.ca, cert, key }, &config.cluster_name)
        });
        let locks = Self {
            tokens: tokens.map_err(|error| unusable("tokens", &error))?.map(Arc::new),
            metrics_need_token: security.metrics_need_token,
            http: http.transpose().map_err(|error| unusable("http_tls", &error))?.map(Arc::new),
            peers: peers.transpose().map_err(|error| unusable("peer_tls", &error))?,
        };
        locks.report(config);
        Ok(locks)
    }

    fn report(&self, config: &Config) {
        let is_reached = !config.bind.to_canonical().is_loopback();
        let (tokens, http, peers) =
            (self.tokens.as_ref().map(|t| t.count()), self.http.is_some(), self.peers.is_some());
        tracing::info!(?tokens, http_tls = http, peer_tls = peers, "who is let in");
        if is_reached && (tokens.is_none() || !peers) {
            tracing::warn!("insecure: whoever reaches this node may read and change everything");
        } else if is_reached && !http {
            tracing::warn!(
                "clients send their tokens in the clear: set http_tls_cert and http_tls_key, or put a proxy in front that speaks TLS"
            );
        }
    }

    /// How clients come in.
    pub(super) fn entrance(&self) -> Entrance {
        let guard = self.tokens.as_ref().map(|tokens| {
            let tokens = Arc::clone(tokens);
            Guard::of(tokens, self.metrics_need_token)
        });
        let tls = self.http.as_ref().map(|http| http.config());
        Entrance { guard: guard.unwrap_or_default(), tls }
    }
}

impl Reloadable for Locks {
    /// The files are those of the start: where they are needs a restart to change.
    fn prepare(&self, _: &Config) -> Result<Prepared, String> {
        let tokens = self.tokens.as_ref().map(TokenFile::reread).transpose();
        let tokens = tokens.map_err(|error| error.to_string())?;
        let http = self.http.as_ref().map(HttpTls::reread).transpose();
        let peers = self.peers.as_ref().map(PeerTls::reread).transpose();
        let (http, peers) = (http.map_err(|e| e.to_string())?, peers.map_err(|e| e.to_string())?);
        let read = [
            tokens.is_some().then_some("tokens"),
            (http.is_some() || peers.is_some()).then_some("certificates"),
        ];
        let read: Vec<&str> = read.into_iter().flatten().collect();
        Ok(Prepared {
            news: (!read.is_empty()).then(|| format!("{} read anew", read.join(" and "))),
            commit: Box::new(move || {
                if let Some(change_over) = tokens {
                    change_over();
                }
                if let Some(change_over) = http {
                    change_over();
                }
                if let Some(change_over) = peers {
                    change_over();
                }
            }),
        })
    }
}

/// Connections in TLS to other nodes.
pub(super) fn dial(peers: &Arc<PeerTls>) -> Dial {
    let peers = Arc::clone(peers);
    Dial::with(move |addr| {
        let peers = Arc::clone(&peers);
        async move { peers.connect(&addr).await }
    })
}

/// TLS over the connections of other nodes.
pub(super) fn upgrade(peers: &Arc<PeerTls>) -> Upgrade {
    let peers = Arc::clone(peers);
    Upgrade::with(move |connection| {
        let peers = Arc::clone(&peers);
        async move { peers.accept(connection).await }
    })
}

fn unusable(setting: &str, error: &dyn std::error::Error) -> RunError {
    RunError::Usage(format!("{setting}: {error}"))
}
