//! What keeps strangers out of a node: its tokens and certificates, read before anything is touched.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::adapters::config::Config;
use crate::adapters::grpc::{Dial, Upgrade};
use crate::adapters::http::{Entrance, Guard};
use crate::adapters::tls::{HttpTls, PeerTls, PeerTlsFiles, TlsError, TlsErrors};
use crate::adapters::tokens::{TokenError, TokenFile};

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
    /// Reads all the files that are configured. Touches nothing.
    ///
    /// # Errors
    /// What is wrong with each of them, and what to do about it.
    pub(super) fn read(config: &Config) -> Result<Self, Vec<String>> {
        let security = &config.security;
        let mut mistakes = Vec::new();
        let tokens = security.tokens.as_ref().and_then(|path| {
            TokenFile::open(path).map_err(|error| mistakes.push(of_tokens(&error))).ok()
        });
        let http = security.http_tls.as_ref().and_then(|files| {
            let named = [("http_tls_cert", &files.cert), ("http_tls_key", &files.key)];
            let read = HttpTls::open(&files.cert, &files.key);
            read.map_err(|errors| mistakes.extend(of_files("http_tls", &named, &errors))).ok()
        });
        let peers = security.peer_tls.as_ref().and_then(|files| {
            let (ca, cert, key) = (&files.ca, &files.cert.cert, &files.cert.key);
            let named = [("peer_tls_ca", ca), ("peer_tls_cert", cert), ("peer_tls_key", key)];
            let files = PeerTlsFiles { ca: ca.clone(), cert: cert.clone(), key: key.clone() };
            let read = PeerTls::open(files, &config.cluster_name);
            read.map_err(|errors| mistakes.extend(of_files("peer_tls", &named, &errors))).ok()
        });
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let (tokens, http) = (tokens.map(Arc::new), http.map(Arc::new));
        Ok(Self { tokens, metrics_need_token: security.metrics_need_token, http, peers })
    }

    /// Says who is let in, and of what the operator should know that he has left open.
    pub(super) fn report(&self, config: &Config) {
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
    fn prepare(&self, _: &Config) -> Result<Prepared, Vec<String>> {
        let mut mistakes = Vec::new();
        let tokens = self.tokens.as_ref().map(TokenFile::reread).transpose();
        let tokens = tokens.unwrap_or_else(|error| {
            mistakes.push(of_tokens(&error));
            None
        });
        let http = self.http.as_ref().map(HttpTls::reread).transpose();
        let http = http.unwrap_or_else(|errors| {
            mistakes.extend(of_files("http_tls", &[], &errors));
            None
        });
        let peers = self.peers.as_ref().map(PeerTls::reread).transpose();
        let peers = peers.unwrap_or_else(|errors| {
            mistakes.extend(of_files("peer_tls", &[], &errors));
            None
        });
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
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

/// What is wrong with the file of tokens, and what to do.
fn of_tokens(error: &TokenError) -> String {
    let way_out = match error {
        TokenError::Io { error, .. } if error.kind() == io::ErrorKind::NotFound => {
            "`lally token new NAME --role ROLE --file PATH` makes it"
        }
        TokenError::Io { error, .. } => unreadable(error),
        TokenError::Wrong { .. } => "docs/security.md has the form",
    };
    told("tokens", error, way_out)
}

/// What is wrong with each of these files, by the key that names it, and what to do.
fn of_files(group: &str, named: &[(&str, &PathBuf)], errors: &TlsErrors) -> Vec<String> {
    let tell = |error: &TlsError| {
        let is_about = |path: &Path| named.iter().find(|(_, named)| named.as_path() == path);
        let key = error.path().and_then(is_about).map_or(group, |(key, _)| key);
        let made = if key == "peer_tls_ca" {
            "`lally tls init` makes one"
        } else {
            "`lally tls node NAME` makes a certificate and its key"
        };
        let way_out = match error {
            TlsError::Io { error, .. } if error.kind() != io::ErrorKind::NotFound => {
                unreadable(error)
            }
            _ => made,
        };
        told(key, error, way_out)
    };
    errors.0.iter().map(tell).collect()
}

fn unreadable(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "the user that runs the node has to be able to read it",
        _ => "expected a file that can be read",
    }
}

fn told(key: &str, error: &impl Display, way_out: &str) -> String {
    format!("{key}: {error}; {way_out}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::config::{Invocation, parse};
    use std::fs;

    #[test]
    fn each_file_that_cannot_be_used_is_named_with_its_key_the_reason_and_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::write(path("bad.yml"), "- {name: a}\n").unwrap();
        fs::write(path("bad.pem"), "nothing\n").unwrap();
        let args = [
            ("--tokens", path("bad.yml")),
            ("--http-tls-cert", path("bad.pem")),
            ("--http-tls-key", path("none.key")),
            ("--peer-tls-ca", path("none.pem")),
            ("--peer-tls-cert", path("bad.pem")),
            ("--peer-tls-key", path("")),
        ];
        let args = args.into_iter().flat_map(|(flag, path)| [flag.to_owned(), path]);
        let args = ["lally".to_owned()].into_iter().chain(args).map(Into::into).collect();
        let Ok(Invocation::Run { config, .. }) = parse(args, Vec::new()) else { panic!("refused") };
        let mistakes = Locks::read(&config).unwrap_err();
        let expected = [
            ("tokens: ", "bad.yml", "docs/security.md"),
            ("http_tls_cert: ", "bad.pem", "lally tls node"),
            ("http_tls_key: ", "none.key", "lally tls node"),
            ("peer_tls_ca: ", "none.pem", "lally tls init"),
            ("peer_tls_cert: ", "bad.pem", "lally tls node"),
            ("peer_tls_key: ", "directory", "expected a file"),
        ];
        assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
        for (mistake, (key, file, way_out)) in mistakes.iter().zip(expected) {
            assert!(mistake.starts_with(key), "{mistake}");
            assert!(mistake.contains(file) && mistake.contains(way_out), "{mistake}");
        }
    }
}
