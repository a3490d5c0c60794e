//! `Lags`: whether each member has everything that this node has, and since when that is not known.
//!
//! Whether it does is asked at this moment: it is up, has missed nothing that is kept for it, and was
//! equal when the two compared themselves last. Since when it does not, nobody says: so this looks
//! every second, and remembers when it did last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{MemberState, NodeId};

use super::handoff::Handoff;
use super::members::Members;
use super::reconcile::Reconciler;

/// How often it is looked: a lag is known to within this time.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How far behind the members are.
pub(crate) struct Lags {
    members: Arc<Members>,
    handoff: Arc<Handoff>,
    reconciler: Arc<Reconciler>,
    /// When each was in sync last.
    in_sync_at: Mutex<BTreeMap<NodeId, Instant>>,
}

/// How far behind a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lag {
    /// Keys that it missed and that are kept for it.
    pub(crate) hints: u64,
    /// Whether it is known to have everything.
    pub(crate) in_sync: bool,
    /// For how long that is not known any more, if it ever was.
    pub(crate) behind_for: Option<Duration>,
}

impl Lags {
    pub(crate) fn new(
        members: &Arc<Members>,
        handoff: &Arc<Handoff>,
        reconciler: &Arc<Reconciler>,
    ) -> Self {
        Self {
            members: Arc::clone(members),
            handoff: Arc::clone(handoff),
            reconciler: Arc::clone(reconciler),
            in_sync_at: Mutex::default(),
        }
    }

    /// Looks for as long as the node runs.
    pub(crate) async fn run(&self) {
        loop {
            for (member, state) in self.members.view().others() {
                self.of(member.id, state);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// How far behind a member in this state is.
    pub(crate) fn of(&self, member: NodeId, state: MemberState) -> Lag {
        let hints = self.handoff.count(member);
        let in_sync =
            state == MemberState::Alive && hints == 0 && self.reconciler.is_in_sync(member);
        let mut in_sync_at = self.in_sync_at.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if in_sync {
            in_sync_at.insert(member, now);
        }
        let behind_for = in_sync_at.get(&member).map(|at| now.saturating_duration_since(*at));
        Lag { hints, in_sync, behind_for }
    }
}

#[cfg(test)]
mod tests {
    use crate::app::fixture::{Fixture, key};
    use crate::domain::NodeId;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_lag_begins_when_the_member_was_in_sync_last_and_ends_when_it_is_again() {
        let node = Fixture::with_peers([2]).build();
        let seen = || {
            let member = node.client().cluster().members.remove(0);
            (member.hints, member.in_sync, member.lag)
        };
        // It was not compared yet.
        assert_eq!(seen(), (0, false, None));
        node.node.reconciler().believe_in_sync(NodeId::new(2));
        assert_eq!(seen(), (0, true, Some(Duration::ZERO)));
        tokio::time::advance(Duration::from_secs(3)).await;
        node.node.handoff().note(NodeId::new(2), key("k"));
        assert_eq!(seen(), (1, false, Some(Duration::from_secs(3))));
        node.node.handoff().drop_hints(NodeId::new(2));
        assert_eq!(seen(), (0, true, Some(Duration::ZERO)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_was_heard_when_it_stated_itself_and_says_what_it_runs() {
        let node = Fixture::with_peers([2]).build();
        tokio::time::advance(Duration::from_secs(7)).await;
        let member = node.client().cluster().members.remove(0);
        assert_eq!(member.last_heard, Some(Duration::from_secs(7)));
        assert_eq!(member.version.as_deref(), Some("1.2.3"));
    }
}
