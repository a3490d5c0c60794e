//! Who is let in, and how it is spoken: the settings for that, and the rules between them.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::errors::Mistake;
use super::settings::{Reader, path};

/// Who is let in, and how it is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// The file of tokens; without it, whoever reaches the node may do everything.
    pub tokens: Option<PathBuf>,
    /// Whether the metrics need a token, too. Never without tokens.
    pub metrics_need_token: bool,
    /// What clients are shown; without it, TLS is not spoken to them.
    pub http_tls: Option<CertFiles>,
    /// What nodes show each other; without it, TLS is not spoken between them.
    pub peer_tls: Option<PeerCertFiles>,
}

/// A certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertFiles {
    /// The certificate, and what leads from it to its authority.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A certificate, and the authority of those that are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertFiles {
    /// The authority.
    pub ca: PathBuf,
    /// The node's own certificate.
    pub cert: CertFiles,
}

const HTTP_TLS: [&str; 2] = ["http_tls_cert", "http_tls_key"];
const PEER_TLS: [&str; 3] = ["peer_tls_ca", "peer_tls_cert", "peer_tls_key"];

impl Security {
    /// Reads every setting. What belongs together, and is not, is refused when the rules are checked.
    pub(super) fn read(from: &Reader<'_>, metrics_need_token: bool) -> Result<Self, Mistake> {
        let file = |key| from.optional(key, path);
        let (http_cert, http_key) = (file("http_tls_cert")?, file("http_tls_key")?);
        let http_tls = http_cert.zip(http_key).map(|(cert, key)| CertFiles { cert, key });
        let (ca, cert) = (file("peer_tls_ca")?, file("peer_tls_cert")?);
        let peer_tls = ca.zip(cert).zip(file("peer_tls_key")?);
        let peer_tls =
            peer_tls.map(|((ca, cert), key)| PeerCertFiles { ca, cert: CertFiles { cert, key } });
        Ok(Self { tokens: file("tokens")?, metrics_need_token, http_tls, peer_tls })
    }

    /// What breaks the rules between settings.
    pub(super) fn check(&self, from: &Reader<'_>) -> Vec<Mistake> {
        let mut mistakes: Vec<_> =
            [apart(from, &HTTP_TLS), apart(from, &PEER_TLS)].into_iter().flatten().collect();
        if self.metrics_need_token && self.tokens.is_none() {
            let place = from.place("metrics_need_token");
            let text = format!("{place} is set, but there are no tokens; expected tokens, too");
            mistakes.push(Mistake::new(text).about(&["metrics_need_token", "tokens"]));
        }
        mistakes
    }

    /// What is wrong with a node that listens here, on a network that nobody has called trusted.
    pub(super) fn open_to_all(&self, from: &Reader<'_>, bind: IpAddr) -> Option<Mistake> {
        let missing = match (&self.tokens, &self.peer_tls) {
            _ if bind.to_canonical().is_loopback() => return None,
            (Some(_), Some(_)) => return None,
            (None, None) => "there are no tokens and no certificates for nodes",
            (None, Some(_)) => "there are no tokens",
            (Some(_), None) => "there are no certificates for nodes",
        };
        let place = from.place("bind");
        let text = format!(
            "{place} is {bind}, where others reach this node, and {missing}: whoever does could read \
             and change everything. Either close it: --tokens (`lally token new` makes them) and \
             --peer-tls-ca, --peer-tls-cert, --peer-tls-key (`lally tls` makes them); or say with \
             --insecure (insecure: true) that everybody on that network is trusted"
        );
        Some(Mistake::new(text).about(&["bind"]))
    }
}

/// What a configuration is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To run a node.
    Run,
    /// To know something of it.
    Ask,
}

/// Keys that belong together, of which some are set and some are not.
fn apart(from: &Reader<'_>, keys: &'static [&'static str]) -> Option<Mistake> {
    let (given, missing): (Vec<&str>, Vec<&str>) = keys.iter().partition(|key| from.has(key));
    let (given, missing) = (given.first()?, missing.first()?);
    let text = format!(
        "{} is set and {missing} is not; expected {} together",
        from.place(given),
        keys.join(", ")
    );
    Some(Mistake::new(text).about(keys))
}

/// How a command shows who it is, and whom it believes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Login {
    /// The token itself.
    pub token: Option<Secret>,
    /// The file that it is in, instead.
    pub token_file: Option<PathBuf>,
    /// The authorities of nodes that are believed; with it, TLS is spoken.
    pub ca: Option<PathBuf>,
    /// Whether a token may go to another host in the clear.
    pub insecure: bool,
}

/// A text that is shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// This text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for whom it is meant.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        let login = Login { token: Some(Secret::new("abc".into())), ..Login::default() };
        assert!(!format!("{login:?}").contains("abc"));
    }
}
