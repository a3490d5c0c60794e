//! `Refusals`: entries refused as from the future, counted by the node that stamped them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::NodeId;

/// Nodes whose refused stamps are counted apart: more than any cluster has, and a bound on what
/// made-up ids cost.
const MAX_STAMPERS: usize = 256;

/// Refused entries.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    all: u64,
    by_node: BTreeMap<NodeId, u64>,
}

impl Refusals {
    /// One more, stamped by this node.
    pub(crate) fn count(&self, stamped_by: NodeId) {
        let mut counts = self.counts();
        counts.all += 1;
        if counts.by_node.len() < MAX_STAMPERS || counts.by_node.contains_key(&stamped_by) {
            *counts.by_node.entry(stamped_by).or_default() += 1;
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> u64 {
        self.counts().all
    }

    /// Those that this node stamped.
    pub(crate) fn of(&self, stamped_by: NodeId) -> u64 {
        self.counts().by_node.get(&stamped_by).copied().unwrap_or(0)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_ids_are_counted_together() {
        let refusals = Refusals::default();
        for id in 0..2 * MAX_STAMPERS as u64 {
            refusals.count(NodeId::new(id));
        }
        refusals.count(NodeId::new(1));
        assert_eq!(refusals.all(), 2 * MAX_STAMPERS as u64 + 1);
        assert_eq!((refusals.of(NodeId::new(1)), refusals.of(NodeId::new(500))), (2, 0));
    }
}
