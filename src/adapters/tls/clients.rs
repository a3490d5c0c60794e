//! TLS for clients: the certificate that a node shows them, and the authorities that they trust.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio_rustls::rustls::{ClientConfig, ServerConfig};

use super::errors::{TlsError, TlsErrors, both};
use super::pem;

/// What a node shows its clients.
#[derive(Debug)]
pub struct HttpTls {
    cert: PathBuf,
    key: PathBuf,
    /// Shared with who accepts connections.
    config: Arc<ArcSwap<ServerConfig>>,
}

impl HttpTls {
    /// Reads a certificate (with what leads to its authority) and its key.
    ///
    /// # Errors
    /// [`TlsErrors`], of each file.
    pub fn open(cert: &Path, key: &Path) -> Result<Self, TlsErrors> {
        let config = Arc::new(ArcSwap::from(server_config(cert, key)?));
        Ok(Self { cert: cert.to_owned(), key: key.to_owned(), config })
    }

    /// Reads both anew. What is returned has connections begin with that from then on.
    ///
    /// # Errors
    /// [`TlsErrors`], of each file.
    pub fn reread(this: &Arc<Self>) -> Result<impl FnOnce() + Send + use<>, TlsErrors> {
        let (config, new) = (this.config(), server_config(&this.cert, &this.key)?);
        Ok(move || config.store(new))
    }

    /// What new connections begin with.
    pub fn config(&self) -> Arc<ArcSwap<ServerConfig>> {
        Arc::clone(&self.config)
    }
}

fn server_config(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsErrors> {
    let (chain, private) = both(pem::chain(cert), pem::key(key))?;
    let builder = ServerConfig::builder_with_provider(pem::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Refused(error.to_string()))?;
    let built = builder.with_no_client_auth().with_single_cert(chain, private);
    let mut config = built.map_err(|error| pem::no_pair(cert, key, &error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// For a client of HTTP/1.1 that trusts the authorities in this file alone, or those of the system.
///
/// # Errors
/// [`TlsError`], also when there are none.
pub fn trusting(authorities: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = match authorities {
        Some(path) => pem::authorities(path)?,
        None => pem::system_authorities()?,
    };
    let builder = ClientConfig::builder_with_provider(pem::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Refused(error.to_string()))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
