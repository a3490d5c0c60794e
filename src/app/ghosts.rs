//! `Ghosts`: takes entries out that must not come back.
//!
//! A node that returns from beyond the horizon may hold keys that were removed, and forgotten, while
//! it was away. In the comparison with a member that was there they are found out, and come here:
//! first into the quarantine, where a person can look at them, then into the log as expunged, then
//! out of the store. Tombstones hold nothing that could be missed, and are only taken out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::KeyedEntry;
use crate::ports::{Clock, PeerError, Quarantine};

use super::apply::Replica;

const REASON: &str = "removed and forgotten while this node was away";

/// Takes entries out of this node.
pub(crate) struct Ghosts {
    replica: Arc<Replica>,
    quarantine: Arc<dyn Quarantine>,
    clock: Arc<dyn Clock>,
    quarantined: AtomicU64,
}

impl Ghosts {
    pub(crate) fn new(
        replica: Arc<Replica>,
        quarantine: Arc<dyn Quarantine>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { replica, quarantine, clock, quarantined: AtomicU64::new(0) }
    }

    /// Takes these out, exactly the versions named.
    pub(crate) async fn take_out(&self, ghosts: Vec<KeyedEntry>) -> Result<(), PeerError> {
        if ghosts.is_empty() {
            return Ok(());
        }
        let rejected = |error: &dyn ToString| PeerError::Rejected(error.to_string());
        let live = ghosts.iter().filter(|ghost| !ghost.entry.is_tombstone());
        let live: Vec<KeyedEntry> = live.cloned().collect();
        if !live.is_empty() {
            let kept = self.quarantine.keep(&live, self.clock.now(), REASON).await;
            let place = kept.map_err(|error| rejected(&error))?;
            self.quarantined.fetch_add(live.len() as u64, Ordering::Relaxed);
            tracing::warn!(
                entries = live.len(),
                place,
                "keys removed while this node was away: put into quarantine"
            );
        }
        let versions: Vec<_> = ghosts.into_iter().map(|g| (g.key, g.entry.version)).collect();
        self.replica.expunge(&versions).await.map_err(|error| rejected(&error))
    }

    /// Entries put into the quarantine.
    pub(crate) fn count(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }
}
