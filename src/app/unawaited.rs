//! `Unawaited`: the writes that wait for their quorum although their clients are gone.
//!
//! They cannot be stopped, since they may have happened, and no place among the requests is theirs any
//! more: so they have their own number of places. Otherwise clients that write and hang up, again and
//! again, could have any number of them under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ports::ClientError;

/// As many as there may be requests, by default.
pub(crate) const MAX_UNAWAITED: usize = 1_024;

/// Counts them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unawaited(Arc<AtomicUsize>);

/// One of them, until dropped.
#[derive(Debug)]
pub(crate) struct GoesOn(Arc<AtomicUsize>);

impl Unawaited {
    /// A client is gone, and its write goes on.
    pub(crate) fn begin(&self) -> GoesOn {
        self.0.fetch_add(1, Ordering::Relaxed);
        GoesOn(Arc::clone(&self.0))
    }

    /// Refuses a write while there are too many.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        if self.count() < MAX_UNAWAITED {
            return Ok(());
        }
        let message =
            "too many writes are under way whose clients did not wait for them; try again later";
        Err(ClientError::Overloaded(message))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for GoesOn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
