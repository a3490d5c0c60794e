//! `Statements`: what the other members stated last, beside their records.
//!
//! Where a member is certified says something of the members that were compared with it. So it counts
//! only from a whole member, or from one that was known before; and whether two members know of each other tells whether they may be of
//! clusters that were founded apart (`domain/members.rs`) and have not met yet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{NodeId, Phase, Timestamp};
use crate::ports::Announcement;

use super::fence::Horizon;

/// Addresses kept to look for the members that are said to be there.
const MAX_HEARSAY: usize = 64;

/// What the others stated.
#[derive(Debug, Default)]
pub(crate) struct Statements {
    stated: Mutex<BTreeMap<NodeId, Stated>>,
    /// The furthest horizon there ever was.
    furthest: Horizon,
    /// Addresses of members of which this node has heard from one that joins.
    hearsay: Mutex<BTreeSet<String>>,
    /// When each member was heard last, in whatever way.
    heard: Mutex<BTreeMap<NodeId, Instant>>,
}

#[derive(Debug)]
struct Stated {
    /// Where the member is certified, if that counts.
    horizon: Timestamp,
    /// The members that it knows.
    knows: BTreeSet<NodeId>,
    /// The release that it runs, if it says so.
    version: String,
}

impl Statements {
    /// Takes in what the sender states, known before or not: where it is certified, if that counts.
    pub(crate) fn note(&self, announcement: &Announcement, is_known: bool) -> Timestamp {
        let counts = is_known || announcement.sender.phase == Phase::Whole;
        let horizon = if counts { announcement.horizon } else { Timestamp::ZERO };
        let members = announcement.members.iter().filter(|m| m.phase != Phase::Left);
        let knows = members.map(|member| member.id).collect();
        let (sender, version) = (announcement.sender.id, announcement.version.clone());
        lock(&self.stated).insert(sender, Stated { horizon, knows, version });
        self.note_heard(sender);
        self.furthest.raise(horizon);
        horizon
    }

    /// Where a member is certified, as far as this node knows.
    pub(crate) fn horizon_of(&self, member: NodeId) -> Timestamp {
        lock(&self.stated).get(&member).map(|stated| stated.horizon).unwrap_or_default()
    }

    /// The release that a member runs, as it stated last.
    pub(crate) fn version_of(&self, member: NodeId) -> Option<String> {
        let version = lock(&self.stated).get(&member).map(|stated| stated.version.clone());
        version.filter(|version| !version.is_empty())
    }

    /// A member has just been heard.
    pub(crate) fn note_heard(&self, member: NodeId) {
        lock(&self.heard).insert(member, Instant::now());
    }

    /// How long ago that was last.
    pub(crate) fn last_heard(&self, member: NodeId) -> Option<Duration> {
        lock(&self.heard).get(&member).map(Instant::elapsed)
    }

    /// No member was ever certified further.
    pub(crate) fn furthest(&self) -> Timestamp {
        self.furthest.get()
    }

    /// Whether two of these members do not know of each other.
    pub(crate) fn are_apart(&self, members: &[NodeId]) -> bool {
        let stated = lock(&self.stated);
        let knows = |one, other| {
            one == other || stated.get(one).is_none_or(|stated| stated.knows.contains(other))
        };
        members.iter().any(|one| members.iter().any(|other| !knows(one, other)))
    }

    /// Somebody said that a member is there.
    pub(crate) fn note_hearsay(&self, addr: String) {
        let mut hearsay = lock(&self.hearsay);
        if hearsay.len() < MAX_HEARSAY {
            hearsay.insert(addr);
        }
    }

    /// Takes out the addresses at which members are said to be.
    pub(crate) fn take_hearsay(&self) -> BTreeSet<String> {
        std::mem::take(&mut *lock(&self.hearsay))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::fixture::{announced, member};

    #[test]
    fn members_are_apart_until_both_know_of_each_other() {
        let statements = Statements::default();
        let ids = [1, 2].map(NodeId::new);
        // Of whom nothing was heard, nothing can be said.
        assert!(!statements.are_apart(&ids));
        statements.note(&announced(member(1, Phase::Whole), vec![]), false);
        assert!(statements.are_apart(&ids));
        statements.note(&announced(member(1, Phase::Whole), vec![member(2, Phase::Whole)]), false);
        statements.note(&announced(member(2, Phase::Whole), vec![member(1, Phase::Left)]), false);
        assert!(statements.are_apart(&ids));
        statements
            .note(&announced(member(2, Phase::Whole), vec![member(1, Phase::Joining)]), false);
        assert!(!statements.are_apart(&ids));
    }

    #[test]
    fn the_horizon_of_who_is_neither_whole_nor_known_counts_for_nothing() {
        let statements = Statements::default();
        let at = Timestamp::from_nanos(7);
        for (phase, is_known, counts) in [
            (Phase::Joining, false, Timestamp::ZERO),
            (Phase::Joining, true, at),
            (Phase::Whole, false, at),
            (Phase::Left, false, Timestamp::ZERO),
        ] {
            let announcement = Announcement { horizon: at, ..announced(member(1, phase), vec![]) };
            assert_eq!(statements.note(&announcement, is_known), counts);
            assert_eq!(statements.horizon_of(NodeId::new(1)), counts);
        }
        assert_eq!(statements.furthest(), at);
    }

    #[test]
    fn hearsay_is_bounded_and_taken_out_once() {
        let statements = Statements::default();
        for n in 0..2 * MAX_HEARSAY {
            statements.note_hearsay(n.to_string());
        }
        assert_eq!(statements.take_hearsay().len(), MAX_HEARSAY);
        assert!(statements.take_hearsay().is_empty());
    }
}
