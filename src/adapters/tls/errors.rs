//! What is wrong with certificates and keys.

use std::io;
use std::path::PathBuf;

/// What is wrong with certificates and keys. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {wrong}", path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
        /// What, and what is expected.
        wrong: String,
    },
    /// What was asked for cannot be made.
    #[error("{0}")]
    Refused(String),
}

impl TlsError {
    pub(super) fn wrong(path: &std::path::Path, wrong: impl Into<String>) -> Self {
        Self::Wrong { path: path.to_owned(), wrong: wrong.into() }
    }
}
