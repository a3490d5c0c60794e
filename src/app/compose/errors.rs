//! `RunError`: why the process ended, and with which exit code.

use std::io;
use std::net::SocketAddr;

use crate::app::IdentityError;
use crate::ports::LogError;

/// Why a node did not start, or did not end on request.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration does not fit this machine. Nothing was changed.
    #[error("{0}")]
    Usage(String),
    /// A port cannot be listened on. The data directory is untouched.
    #[error("cannot listen on {addr}: {error}; choose another {flag}, or 0 for any free port")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The flag that sets the port.
        flag: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The data directory cannot be used.
    #[error("{0}")]
    DataDir(String),
    /// The node cannot say who it is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log cannot be used, or failed while the node ran.
    #[error("{0}")]
    Log(#[from] LogError),
    /// A server ended that should not have.
    #[error("the {server} server failed: {error}")]
    Server {
        /// Which one.
        server: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// A second signal came while the node was stopping.
    #[error("stopped at once by a second signal; the log is replayed at the next start")]
    Interrupted,
}

impl RunError {
    /// The exit code of the process: 2 for what the user configured, 65 (`EX_DATAERR`) for a
    /// corrupt log, 1 for the rest.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Log(LogError::Corrupt { .. }) => 65,
            _ => 1,
        }
    }
}
