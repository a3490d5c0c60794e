//! `RunError`: why the process ended, and with which exit code.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use crate::adapters::data_dir::DataDirError;
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
    #[error("{error}{}", ways_on(.0), error = .0)]
    Log(#[from] LogError),
    /// A command found something damaged, and has said what.
    #[error("{0}")]
    Damaged(String),
    /// A command could not do what it was asked. What it has done, it has said.
    #[error("{0}")]
    Command(String),
    /// There is no such key.
    #[error("{0}")]
    NoSuchKey(String),
    /// Fewer nodes than required took part in what a command asked for.
    #[error("{0}")]
    QuorumMissed(String),
    /// There is no node where a command looks for one.
    #[error("{0}")]
    Unreachable(String),
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
    /// The exit code of the process: 2 for what the user configured, 3 to 5 for what a node says or
    /// why it says nothing, 65 (`EX_DATAERR`) for a corrupt log, 1 for the rest.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::NoSuchKey(_) => 3,
            Self::QuorumMissed(_) => 4,
            Self::Unreachable(_) => 5,
            Self::Log(LogError::Corrupt { .. }) | Self::Damaged(_) => 65,
            _ => 1,
        }
    }
}

impl From<DataDirError> for RunError {
    fn from(error: DataDirError) -> Self {
        match error {
            DataDirError::NotOne { .. } => Self::Usage(error.to_string()),
            other => Self::DataDir(other.to_string()),
        }
    }
}

/// A log that does not exist is a typing error; `setting` says where it was typed. A disk that fails
/// is none.
pub(super) fn refuse_missing(log: &Path, setting: &str) -> Result<(), RunError> {
    use io::ErrorKind as Kind;
    let Err(error) = log.metadata() else { return Ok(()) };
    let path = log.display();
    let is_mistaken =
        matches!(error.kind(), Kind::NotFound | Kind::NotADirectory | Kind::PermissionDenied);
    Err(if is_mistaken {
        let expected = "expected a log file, or a directory of them";
        RunError::Usage(format!("{setting}{path}: {error}; {expected}"))
    } else {
        RunError::Log(LogError::Failed(format!("{path}: {error}")))
    })
}

/// What can be done about a log that is refused.
fn ways_on(error: &LogError) -> String {
    let LogError::Corrupt { file, .. } = error else { return String::new() };
    let dir = Path::new(file).parent().unwrap_or(Path::new("."));
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir }.display();
    format!(
        "\n\nThe log is left as it is. What can be done:\n  \
         lally log check {dir}\n      says what is damaged, and how much\n  \
         --recover-from-peers\n      starts, and gets the data from the other members; the log is moved aside\n  \
         lally log repair {dir}\n      keeps what is intact, and says what is lost; the log is moved aside\n  \
         --replay-log PATH\n      starts with an intact copy; --fresh starts empty"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_log_that_is_not_there_is_a_mistake_and_one_that_cannot_be_looked_at_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let (file, ring) = (dir.path().join("1.log"), dir.path().join("ring"));
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink("ring", &ring).unwrap();
        for (log, code) in [(dir.path().join("2.log"), 2), (file.join("3.log"), 2), (ring, 1)] {
            let refused = refuse_missing(&log, "replay_log: ").unwrap_err();
            assert_eq!(refused.exit_code(), code, "{refused}");
            assert!(refused.to_string().contains(&log.display().to_string()), "{refused}");
        }
        refuse_missing(&file, "replay_log: ").unwrap();
    }
}
