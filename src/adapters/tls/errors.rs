//! What is wrong with certificates and keys.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

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
    /// The file that it is about, if it is about one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Io { path, .. } | Self::Wrong { path, .. } => Some(path),
            Self::Refused(_) => None,
        }
    }

    pub(super) fn wrong(path: &Path, wrong: impl Into<String>) -> Self {
        Self::Wrong { path: path.to_owned(), wrong: wrong.into() }
    }
}

/// All that is wrong with some files, at least one thing. Nothing was changed.
#[derive(Debug)]
pub struct TlsErrors(pub Vec<TlsError>);

impl From<TlsError> for TlsErrors {
    fn from(error: TlsError) -> Self {
        Self(vec![error])
    }
}

impl fmt::Display for TlsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join("; "))
    }
}

impl std::error::Error for TlsErrors {}

/// Both, or all that is wrong with either.
pub(super) fn both<A, B>(
    one: Result<A, impl Into<TlsErrors>>,
    other: Result<B, TlsError>,
) -> Result<(A, B), TlsErrors> {
    match (one.map_err(Into::into), other) {
        (Ok(one), Ok(other)) => Ok((one, other)),
        (Ok(_), Err(wrong)) => Err(wrong.into()),
        (Err(wrong), Ok(_)) => Err(wrong),
        (Err(mut wrong), Err(more)) => {
            wrong.0.push(more);
            Err(wrong)
        }
    }
}
