//! The `MemberBook` port: who this node is and whom it knew, across restarts.

use async_trait::async_trait;

use crate::domain::{Member, NodeId, Phase};

/// Keeps a [`Book`].
///
/// Contract (suite: `tests/it/contracts/book.rs`): after `save` returned `Ok`, `load` in any later
/// life returns that book or one saved after it, a power cut notwithstanding. A crash inside `save`
/// leaves the old book or the new one.
#[cfg_attr(test, mockall::automock)]
#[async_trait]
pub trait MemberBook: Send + Sync + 'static {
    /// The book as last saved; `None` if there never was one.
    async fn load(&self) -> Result<Option<Book>, BookError>;

    /// Replaces the book.
    async fn save(&self, book: &Book) -> Result<(), BookError>;
}

/// What a node remembers of itself and its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Book {
    /// Its name for as long as the data directory lives.
    pub id: NodeId,
    /// The number of its last start.
    pub generation: u64,
    /// How far it had come: a node that was never whole has to join before it serves.
    pub phase: Phase,
    /// The cluster it belongs to.
    pub cluster: String,
    /// The other members it knew, those that left too.
    pub members: Vec<Member>,
}

/// The book could not be read or written. What was saved before is untouched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct BookError {
    /// The file.
    pub file: String,
    /// What went wrong, and what to do.
    pub reason: String,
}
