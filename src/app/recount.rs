//! `Recounter`: verifies the digests against the entries, slowly and for as long as the node runs.
//!
//! A digest that has drifted (a bug, a flipped bit) makes nodes that hold the same compare and look
//! through a bucket again and again. Part by part ([`Recount::PARTS`]) the digests are counted anew
//! and repaired, a part every two minutes, all of them in about an hour. A part costs a walk over all
//! keys, on a thread of its own, during which requests go on; where a walk takes long, the pauses are
//! longer, so that it never has more than a hundredth of one core.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::Recount;
use crate::ports::Store;

use super::walks::Walks;

/// Between two parts, at least.
const PAUSE_MIN: Duration = Duration::from_secs(120);

/// How much longer than a walk the pause after it is.
const PAUSE_FACTOR: u32 = 100;

/// Verifies the digests.
pub(crate) struct Recounter {
    store: Arc<dyn Store>,
    walks: Walks,
    drifted: AtomicU64,
}

impl Recounter {
    pub(crate) const fn new(store: Arc<dyn Store>, walks: Walks) -> Self {
        Self { store, walks, drifted: AtomicU64::new(0) }
    }

    /// Buckets whose digest had drifted, and was repaired, since the start.
    pub(crate) fn drifted(&self) -> u64 {
        self.drifted.load(Ordering::Relaxed)
    }

    /// Verifies part after part.
    pub(crate) async fn run(&self) {
        let mut pause = PAUSE_MIN;
        for part in (0..Recount::PARTS).cycle() {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            self.verify(part).await;
            pause = PAUSE_MIN.max(began.elapsed().saturating_mul(PAUSE_FACTOR));
        }
    }

    async fn verify(&self, part: u16) {
        let buckets = self.walks.recount(&self.store, Recount::part(part)).await;
        if buckets > 0 {
            self.drifted.fetch_add(buckets, Ordering::Relaxed);
            tracing::warn!(
                buckets,
                part,
                "digests had drifted from the entries, and were repaired"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::domain::BucketSet;
    use crate::ports::MockStore;

    #[tokio::test(start_paused = true)]
    async fn every_part_has_its_turn_within_the_hour_and_what_had_drifted_is_counted() {
        let walks: Arc<Mutex<Vec<(Duration, BucketSet)>>> = Arc::default();
        let (mut store, seen, started) = (MockStore::new(), Arc::clone(&walks), Instant::now());
        store.expect_recount().returning(move |buckets| {
            let mut seen = seen.lock().unwrap();
            seen.push((started.elapsed(), buckets.clone()));
            u64::from(seen.len() == 3) * 2
        });
        let recounter = Recounter::new(Arc::new(store), Walks::InPlace);
        let hours = Duration::from_secs(2 * 32 * 120 + 1);
        assert!(tokio::time::timeout(hours, recounter.run()).await.is_err());
        let walks = walks.lock().unwrap();
        assert_eq!(walks.len(), 64);
        for (turn, (at, buckets)) in (0..).zip(walks.iter()) {
            assert_eq!(*at, PAUSE_MIN * (turn + 1));
            assert_eq!(*buckets, Recount::part(u16::try_from(turn % 32).unwrap()));
        }
        assert_eq!(recounter.drifted(), 2);
    }
}
