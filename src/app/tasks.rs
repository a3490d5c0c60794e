//! `Tasks`: the one place where the node starts tasks.
//!
//! Work that must not be cut off (a delivery, an apply) is [`spawn`](Tasks::spawn)ed and waited for
//! at the end. Loops are [`spawn_loop`](Tasks::spawn_loop)ed and dropped when the node stops,
//! wherever they wait. An apply that is cut off so is in the log, where the next start finds it.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The tasks of one node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    /// Runs to its end, also while the node stops.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(work);
    }

    /// Has [`finish`](Self::finish) wait for work that runs elsewhere, until it is dropped.
    pub(crate) fn token(&self) -> TaskTrackerToken {
        self.tracker.token()
    }

    /// Runs until the node stops.
    pub(crate) fn spawn_loop(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            stop.run_until_cancelled_owned(work).await;
        });
    }

    /// Resolves when the node stops, for loops that must not be dropped halfway.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        self.stop.clone().cancelled_owned()
    }

    /// Drops the loops and waits for nothing.
    pub(crate) fn abandon(&self) {
        self.stop.cancel();
    }

    /// Drops the loops and waits for the rest, at most this long. Says whether all have ended.
    pub(crate) async fn finish(&self, within: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(within, self.tracker.wait()).await.is_ok()
    }
}
