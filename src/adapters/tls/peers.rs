//! TLS between nodes: both sides show a certificate of the cluster's authority, which names the
//! cluster.
//!
//! A certificate says "a node of this cluster", by a DNS name that stands for it, and not where that node
//! is: a node is known by its id, and may move. All nodes of a cluster trust each other anyhow, since
//! each takes what another one says to be the data. TLS 1.3 only: there is nobody else to speak to.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::client::{WebPkiServerVerifier, verify_server_name};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::errors::{TlsError, TlsErrors, both};
use super::pem;

/// What stands behind the name of a cluster in the DNS name that stands for it.
const CLUSTER_DOMAIN: &str = "cluster.lally.internal";

/// Where the certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerTlsFiles {
    /// Of the authority, or of several while one takes over from another.
    pub ca: PathBuf,
    /// Of this node.
    pub cert: PathBuf,
    /// The key of that.
    pub key: PathBuf,
}

/// What a node shows other nodes, and whom it believes.
pub struct PeerTls {
    files: PeerTlsFiles,
    cluster: ServerName<'static>,
    sides: ArcSwap<Sides>,
}

struct Sides {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// The DNS name that stands for a cluster in the certificates of its nodes.
pub(super) fn cluster_domain(cluster: &str) -> Result<ServerName<'static>, TlsError> {
    let domain = format!("{cluster}.{CLUSTER_DOMAIN}");
    ServerName::try_from(domain).map_err(|_| {
        TlsError::Refused(format!(
            "the name {cluster:?} of the cluster cannot stand in a certificate; expected letters, digits, '-' and '_', with dots between them only, at most 63 in a row"
        ))
    })
}

impl PeerTls {
    /// Reads the files, and looks whether other nodes of this cluster would believe the certificate.
    ///
    /// # Errors
    /// [`TlsErrors`], of each file.
    pub fn open(files: PeerTlsFiles, cluster: &str) -> Result<Arc<Self>, TlsErrors> {
        let cluster = cluster_domain(cluster)?;
        let sides = ArcSwap::from_pointee(Sides::read(&files, &cluster)?);
        Ok(Arc::new(Self { files, cluster, sides }))
    }

    /// Reads the files anew. What is returned has connections begin with that from then on.
    ///
    /// # Errors
    /// [`TlsErrors`], of each file.
    pub fn reread(this: &Arc<Self>) -> Result<impl FnOnce() + Send + use<>, TlsErrors> {
        let sides = Arc::new(Sides::read(&this.files, &this.cluster)?);
        let this = Arc::clone(this);
        Ok(move || this.sides.store(sides))
    }

    /// Connects to `HOST:PORT`.
    ///
    /// # Errors
    /// What the system says, or why the other side is not believed. That it does not believe this one
    /// shows in what is read first.
    pub async fn connect(&self, addr: &str) -> io::Result<client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&self.sides.load().client));
        connector.connect(self.cluster.clone(), stream).await
    }

    /// Speaks TLS over a connection that came in, if it is from another node of the cluster.
    ///
    /// # Errors
    /// What went wrong, or why the other side is not believed.
    pub async fn accept<S>(&self, stream: S) -> io::Result<server::TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        TlsAcceptor::from(Arc::clone(&self.sides.load().server)).accept(stream).await
    }
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerTls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Sides {
    fn read(files: &PeerTlsFiles, cluster: &ServerName<'static>) -> Result<Self, TlsErrors> {
        let provider = pem::provider();
        let read = both(pem::authorities(&files.ca), pem::chain(&files.cert));
        let ((roots, chain), key) = both(read, pem::key(&files.key))?;
        let roots = Arc::new(roots);
        let no_authority = |error: String| TlsError::wrong(&files.ca, error);
        let servers =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let servers = servers.build().map_err(|error| no_authority(error.to_string()))?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let clients = clients.build().map_err(|error| no_authority(error.to_string()))?;
        let clients = ClusterMember { clients, cluster: cluster.clone() };
        believed(&servers, &clients, &chain, cluster).map_err(|error| {
            let wrong = format!(
                "no other node would believe this certificate: {error}; expected one of the authority in {}, for the cluster of this node, as `lally tls node` makes it",
                files.ca.display()
            );
            TlsError::wrong(&files.cert, wrong)
        })?;

        let wrong = |error: Error| pem::no_pair(&files.cert, &files.key, &error);
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(wrong)?
            .with_client_cert_verifier(Arc::new(clients))
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(wrong)?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(wrong)?
            .with_webpki_verifier(servers)
            .with_client_auth_cert(chain, key)
            .map_err(wrong)?;
        server.alpn_protocols = vec![b"h2".to_vec()];
        client.alpn_protocols = vec![b"h2".to_vec()];
        // A certificate that was replaced must not be believed by what was agreed on before.
        server.session_storage = Arc::new(tokio_rustls::rustls::server::NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        client.resumption = tokio_rustls::rustls::client::Resumption::disabled();
        Ok(Self { server: Arc::new(server), client: Arc::new(client) })
    }
}

/// Whether others would believe this certificate, as the one that is connected to, and as the one that
/// connects.
fn believed(
    servers: &WebPkiServerVerifier,
    clients: &ClusterMember,
    chain: &[CertificateDer<'_>],
    cluster: &ServerName<'_>,
) -> Result<(), Error> {
    let (own, rest) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
    servers.verify_server_cert(own, rest, cluster, &[], UnixTime::now())?;
    clients.verify_client_cert(own, rest, UnixTime::now()).map(|_| ())
}

/// Believes those who connect with a certificate of the authority that names the cluster.
#[derive(Debug)]
struct ClusterMember {
    clients: Arc<dyn ClientCertVerifier>,
    cluster: ServerName<'static>,
}

impl ClientCertVerifier for ClusterMember {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.clients.verify_client_cert(own, rest, now)?;
        verify_server_name(&ParsedCertificate::try_from(own)?, &self.cluster)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<tokio_rustls::rustls::client::danger::HandshakeSignatureValid, Error> {
        self.clients.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<tokio_rustls::rustls::client::danger::HandshakeSignatureValid, Error> {
        self.clients.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::tls::{CA_CERT, Issued, Subject, create_authority, issue};
    use crate::domain::Timestamp;
    use std::path::Path;

    /// 2026-11-24; certificates are checked by today's clock, so the days are many.
    const NOW: Timestamp = Timestamp::from_nanos(1_795_500_000_000_000_000);
    const DAYS: u32 = 36_500;

    /// Whether this node takes a connection of somebody who believes it, and shows that certificate.
    async fn takes(node: &PeerTls, ca: &Path, shown: Option<&Issued>) -> bool {
        let client = ClientConfig::builder_with_provider(pem::provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(pem::authorities(ca).unwrap());
        let mut client = match shown {
            Some(issued) => {
                let (chain, key) = (pem::chain(&issued.cert), pem::key(&issued.key));
                client.with_client_auth_cert(chain.unwrap(), key.unwrap()).unwrap()
            }
            None => client.with_no_client_auth(),
        };
        client.alpn_protocols = vec![b"h2".to_vec()];
        let (near, far) = tokio::io::duplex(1 << 16);
        let connector = TlsConnector::from(Arc::new(client));
        let (connected, accepted) =
            tokio::join!(connector.connect(node.cluster.clone(), near), node.accept(far));
        // Its side of the handshake is done before the node has looked at what it shows.
        connected.unwrap();
        accepted.is_ok()
    }

    #[tokio::test]
    async fn only_who_shows_a_certificate_of_this_cluster_is_taken_whatever_it_believes() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        create_authority(dir, DAYS, NOW).unwrap();
        let of = |name, cluster| {
            issue(dir, &Subject { name, hosts: &[], cluster, days: DAYS }, NOW).unwrap()
        };
        let (ours, other) = (of("a", "lally"), of("b", "other"));
        let ca = dir.join(CA_CERT);
        let files = PeerTlsFiles { ca: ca.clone(), cert: ours.cert.clone(), key: ours.key.clone() };
        let node = PeerTls::open(files, "lally").unwrap();
        assert!(takes(&node, &ca, Some(&ours)).await);
        assert!(!takes(&node, &ca, Some(&other)).await, "of another cluster");
        assert!(!takes(&node, &ca, None).await, "none");
    }
}
