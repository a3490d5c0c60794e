//! Certificates and keys from files in PEM (RFC 7468).

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{Error, RootCertStore};

use super::errors::TlsError;

/// A bundle of every public authority has a quarter of it.
const MAX_FILE_BYTES: u64 = 1_024 * 1_024;

/// The cryptography that is used everywhere; the choice of a process-wide default is not ours.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |error| TlsError::Io { path: path.to_owned(), error };
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(TlsError::wrong(path, format!("it is longer than {MAX_FILE_BYTES} bytes")));
    }
    Ok(text)
}

/// A certificate and what leads from it to its authority, at least one.
pub(super) fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let certs = certs.map_err(|error| TlsError::wrong(path, format!("no PEM: {error}")))?;
    if certs.is_empty() {
        return Err(TlsError::wrong(
            path,
            "there is no certificate in it; expected PEM, -----BEGIN CERTIFICATE-----",
        ));
    }
    Ok(certs)
}

/// The private key in a file.
pub(super) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| {
        TlsError::wrong(
            path,
            format!("no private key ({error}); expected PEM, -----BEGIN PRIVATE KEY-----"),
        )
    })
}

/// Why a certificate and a key are none together.
pub(super) fn no_pair(cert: &Path, key: &Path, error: &Error) -> TlsError {
    match error {
        Error::InconsistentKeys(_) => {
            let wrong = format!("it is not the key of the certificate in {}", cert.display());
            TlsError::wrong(key, wrong)
        }
        error => TlsError::wrong(cert, error.to_string()),
    }
}

/// The authorities in a file.
pub(super) fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in chain(path)? {
        roots.add(cert).map_err(|error| TlsError::wrong(path, format!("no authority: {error}")))?;
    }
    Ok(roots)
}

/// The authorities that the system trusts.
pub(super) fn system_authorities() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // Some systems have certificates that nobody can read; the others count.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        let none = "the system has no certificates of authorities; name a file of them";
        return Err(TlsError::Refused(none.into()));
    }
    Ok(roots)
}
