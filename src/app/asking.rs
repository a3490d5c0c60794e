//! Asking replicas until a quorum is decided: as many at once as it needs, one more when those are
//! slow, none beyond the deadline.
//!
//! Here is only the waiting, which reads and the write-backs of confirmed reads share. Whom to ask,
//! and when it is enough, the quorums in `domain` decide.

use tokio::time::Instant;

use crate::domain::{NodeId, Progress};

use super::settings::UNREACHABLE_GRACE;

/// A quorum that is collected by asking replicas one by one.
pub(super) trait Asking {
    /// Whether enough have answered, may still, or cannot any more.
    fn progress(&self) -> Progress;

    /// The number of replicas asked whose answer is missing.
    fn outstanding(&self) -> usize;

    /// The next replica to ask, as long as those asked would not be enough.
    fn next_to_ask(&mut self) -> Option<NodeId>;

    /// One replica beyond those that are enough.
    fn ask_one_more(&mut self) -> Option<NodeId>;

    /// Asks it; when it is worth asking another one besides, if it could be asked at all.
    fn ask(&mut self, node: NodeId) -> Option<Instant>;

    /// Waits for an answer and takes it in; `false` if none is awaited. Cancel safe.
    fn take_reply(&mut self) -> impl Future<Output = bool> + Send;
}

/// Asks and collects until the quorum is decided, at most until `deadline`. Cancel safe.
pub(super) async fn decide(asking: &mut impl Asking, deadline: Instant) {
    let mut hedge_at = ask_as_needed(asking).unwrap_or(deadline);
    let mut hopeless_since = None;
    loop {
        let mut until = deadline;
        match asking.progress() {
            Progress::Met => return,
            Progress::Unreachable if asking.outstanding() == 0 => return,
            Progress::Unreachable => {
                let since = *hopeless_since.get_or_insert_with(Instant::now);
                until = deadline.min(since + UNREACHABLE_GRACE);
            }
            Progress::Pending => {}
        }
        tokio::select! {
            biased; // What has arrived by the deadline counts.
            true = asking.take_reply() => {
                if let Some(later) = ask_as_needed(asking) {
                    hedge_at = later;
                }
            }
            () = tokio::time::sleep_until(hedge_at.min(until)) => {
                if Instant::now() >= until {
                    return;
                }
                let hedge = asking.ask_one_more().and_then(|node| asking.ask(node));
                hedge_at = hedge.unwrap_or(deadline);
            }
        }
    }
}

/// Asks as many replicas as the quorum wants; when the slowest of them is worth hedging.
fn ask_as_needed(asking: &mut impl Asking) -> Option<Instant> {
    let mut hedge_at = None;
    while let Some(node) = asking.next_to_ask() {
        hedge_at = hedge_at.max(asking.ask(node));
    }
    hedge_at
}
