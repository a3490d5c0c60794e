//! `Trust`: which receivers a node believes to be who they say.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// What receivers of `https` are checked against.
#[derive(Clone)]
pub struct Trust(pub(super) TlsConnector);

/// There is nothing to check them against.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TrustError(String);

impl Trust {
    /// Trusts the authorities in this file alone (PEM), or those of the system.
    ///
    /// # Errors
    /// [`TrustError`] when there are none.
    pub fn load(ca_file: Option<&Path>) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        let place = ca_file.map_or("the system".to_owned(), |path| path.display().to_string());
        if let Some(path) = ca_file {
            let wrong = |error: &dyn std::fmt::Display| TrustError(format!("{place}: {error}"));
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))? {
                let certificate = certificate.map_err(|error| wrong(&error))?;
                roots.add(certificate).map_err(|error| wrong(&error))?;
            }
        } else {
            // Some systems have certificates that nobody can read; the others count.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        if roots.is_empty() {
            let expected = "expected PEM certificates of authorities to trust (ca_file)";
            return Err(TrustError(format!("{place} has no certificate; {expected}")));
        }
        let config = ClientConfig::builder_with_provider(crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| TrustError(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config).into()))
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused_with_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let said = Trust::load(Some(file.path())).unwrap_err().to_string();
        assert!(said.contains(&file.path().display().to_string()), "{said}");
        assert!(said.contains("ca_file"), "{said}");
        assert!(Trust::load(Some(Path::new("/nowhere/ca.pem"))).is_err());
    }

    #[test]
    fn the_certificates_of_a_file_are_trusted() {
        let authority = rcgen::generate_simple_self_signed(["receiver".to_owned()]).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), authority.cert.pem()).unwrap();
        Trust::load(Some(file.path())).unwrap();
    }
}
