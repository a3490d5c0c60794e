//! The `Quarantine` port: where entries go that must not come back, and must not be lost either.

use async_trait::async_trait;

use crate::domain::{KeyedEntry, Timestamp};

/// Keeps entries that are taken out of the store for people to look at.
///
/// Contract (suite: `tests/it/contracts/quarantine.rs`):
/// * After `keep` returned `Ok`, every entry is kept whole, a power cut notwithstanding, until a
///   person deletes it.
/// * What was kept before MUST stay, of earlier lives of the node too, also if `keep` fails.
/// * `keep` may be called from several tasks at once; entries of one call MUST NOT tear another's.
#[cfg_attr(test, mockall::automock)]
#[async_trait]
pub trait Quarantine: Send + Sync + 'static {
    /// Keeps these entries, taken out at this time for this reason. Returns where they are, in words
    /// for a log line. After an error some of them may be kept.
    async fn keep(
        &self,
        entries: &[KeyedEntry],
        now: Timestamp,
        reason: &str,
    ) -> Result<String, QuarantineError>;
}

/// The entries could not be kept. They must not be taken out of the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct QuarantineError {
    /// The file.
    pub place: String,
    /// What went wrong.
    pub reason: String,
}
