//! How a receiver knows that a request is from a node: HMAC-SHA256 with a secret that both know.
//!
//! What is signed is the time of sending in seconds since 1970, a full stop, and the body; the header is
//! `t=<time>,v1=<64 hexadecimal digits>`, in the form that Stripe made known. With the time in it, what
//! somebody recorded can be told from what is sent now.

use std::fmt;
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ring::hmac;

/// The name of the header.
pub(super) const HEADER: &str = "lally-signature";

/// Fewer bytes can be found by trying.
const MIN_BYTES: usize = 16;

/// No secret is longer; a device or a log given by mistake is.
const MAX_BYTES: usize = 4_096;

/// A secret that signs. Clones are the same one, also when it is replaced.
#[derive(Clone)]
pub struct Secret(Arc<ArcSwap<hmac::Key>>);

impl Secret {
    /// Reads the secret: what is in the file, without white space at its ends.
    ///
    /// # Errors
    /// What is wrong with the file, in words. Nothing of its content is in them.
    pub fn read(path: &Path) -> Result<Self, String> {
        let says = |wrong: &dyn fmt::Display| format!("{}: {wrong}", path.display());
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|error| says(&error))?;
        let read = file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| says(&error))?;
        let secret = bytes.trim_ascii();
        if bytes.len() > MAX_BYTES || secret.len() < MIN_BYTES {
            let expected = format!("expected a secret of {MIN_BYTES} to {MAX_BYTES} bytes");
            return Err(says(&format!("{expected}; `openssl rand -hex 32` makes a good one")));
        }
        Ok(Self::new(secret))
    }

    /// The secret of these bytes.
    pub fn new(secret: &[u8]) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(hmac::Key::new(hmac::HMAC_SHA256, secret))))
    }

    /// Signs as this one does from now on, and so do all clones.
    pub fn become_like(&self, new: &Self) {
        self.0.store(new.0.load_full());
    }

    /// The value of the header for a body that is sent at this time.
    pub(super) fn sign(&self, unix_seconds: u64, body: &[u8]) -> String {
        let mut signing = hmac::Context::with_key(&self.0.load());
        signing.update(format!("{unix_seconds}.").as_bytes());
        signing.update(body);
        let mut header = format!("t={unix_seconds},v1=");
        for byte in signing.sign().as_ref() {
            // Into a text: this cannot fail.
            write!(header, "{byte:02x}").ok();
        }
        header
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
    fn a_signature_is_what_openssl_says() {
        // printf '1500000000.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef
        let secret = Secret::new(b"0123456789abcdef");
        assert_eq!(
            secret.sign(1_500_000_000, br#"{"a":1}"#),
            "t=1500000000,v1=720fddae9c1cfb782bef3881b394b42e14b8e145d361faadb19801b2e34f7846"
        );
    }

    #[test]
    fn a_secret_that_is_replaced_is_replaced_everywhere() {
        let (secret, new) = (Secret::new(b"0123456789abcdef"), Secret::new(b"fedcba9876543210"));
        let used = secret.clone();
        assert_ne!(used.sign(1, b"b"), new.sign(1, b"b"));
        secret.become_like(&new);
        assert_eq!(used.sign(1, b"b"), new.sign(1, b"b"));
    }

    #[test]
    fn a_secret_is_read_without_its_line_break_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "0123456789abcdef\n").unwrap();
        let secret = Secret::read(&file).unwrap();
        assert_eq!(secret.sign(1, b"b"), Secret::new(b"0123456789abcdef").sign(1, b"b"));
        assert_eq!(format!("{secret:?}"), "Secret");
        for wrong in ["", "short\n", &"x".repeat(MAX_BYTES + 1)] {
            std::fs::write(&file, wrong).unwrap();
            let said = Secret::read(&file).unwrap_err();
            assert!(said.contains("16 to 4096 bytes") && !said.contains("short"), "{said}");
        }
        assert!(Secret::read(&dir.path().join("none")).unwrap_err().contains("none"));
    }
}
