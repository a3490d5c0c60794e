//! The read quorum as a value: whom to ask next, which entry wins, who must be repaired.
//!
//! After the get core of `riak_kv`. "Not found" and tombstones are answers like any other. The
//! node that reads is one of the replicas: its own copy is the first answer.

use std::collections::VecDeque;

use super::{Entry, NodeId, Progress, Required};

/// One read and the answers to it.
#[derive(Debug, Clone)]
pub struct ReadQuorum {
    required: Required,
    /// Not asked yet, nearest first.
    candidates: VecDeque<NodeId>,
    /// Asked, no answer yet.
    asked: Vec<NodeId>,
    /// Asked and failed; a late answer is still welcome.
    failed: Vec<NodeId>,
    /// Answered, with what each of them holds.
    answered: Vec<(NodeId, Option<Entry>)>,
    newest: Option<Entry>,
}

impl ReadQuorum {
    /// A read that begins with this node's own copy and may ask these peers, nearest first.
    pub fn new(
        required: Required,
        this_node: NodeId,
        own_copy: Option<Entry>,
        peers: impl IntoIterator<Item = NodeId>,
    ) -> Self {
        let candidates = peers.into_iter().filter(|peer| *peer != this_node).collect();
        let answered = vec![(this_node, own_copy.clone())];
        Self {
            required,
            candidates,
            asked: Vec::new(),
            failed: Vec::new(),
            answered,
            newest: own_copy,
        }
    }

    /// The next peer to ask, as long as those asked could not make up the quorum if all answered.
    pub fn next_to_ask(&mut self) -> Option<NodeId> {
        if self.required.is_met_by(self.answered.len() + self.asked.len()) {
            return None;
        }
        self.ask_one_more()
    }

    /// One peer beyond those that suffice, because the ones asked are slow (a hedged request:
    /// Dean and Barroso, "The tail at scale", 2013).
    pub fn ask_one_more(&mut self) -> Option<NodeId> {
        let peer = self.candidates.pop_front()?;
        self.asked.push(peer);
        Some(peer)
    }

    /// `node` holds this, or nothing.
    pub fn record_reply(&mut self, node: NodeId, copy: Option<Entry>) {
        let was_asked = take(&mut self.asked, node) || take(&mut self.failed, node);
        if !was_asked {
            return;
        }
        self.answered.push((node, copy.clone()));
        self.newest = self.newest.take().max(copy);
    }

    /// `node` did not answer.
    pub fn record_failure(&mut self, node: NodeId) {
        if take(&mut self.asked, node) {
            self.failed.push(node);
        }
    }

    /// Whether enough replicas have answered, may still, or cannot any more.
    pub fn progress(&self) -> Progress {
        let possible = self.answered.len() + self.asked.len() + self.candidates.len();
        if self.required.is_met_by(self.answered.len()) {
            Progress::Met
        } else if self.required.is_met_by(possible) {
            Progress::Pending
        } else {
            Progress::Unreachable
        }
    }

    /// The number of replicas that answered, this node included.
    pub fn achieved(&self) -> usize {
        self.answered.len()
    }

    /// The number of peers asked whose answer is missing.
    pub fn outstanding(&self) -> usize {
        self.asked.len()
    }

    /// The newest entry among the answers: a value, a tombstone, or nothing at all.
    pub const fn newest(&self) -> Option<&Entry> {
        self.newest.as_ref()
    }

    /// The number needed.
    pub const fn required(&self) -> Required {
        self.required
    }

    /// The replicas that answered with exactly the newest entry, or with nothing if there is none.
    pub fn holders(&self) -> Vec<NodeId> {
        let holds = |held: &Option<Entry>| *held == self.newest;
        self.answered.iter().filter(|(_, held)| holds(held)).map(|(node, _)| *node).collect()
    }

    /// The replicas that have not answered: those not asked, then those asked, then those that
    /// failed.
    pub fn unanswered(&self) -> impl Iterator<Item = NodeId> {
        self.candidates.iter().chain(&self.asked).chain(&self.failed).copied()
    }

    /// `node` holds the newest entry by now, or is seen to by somebody else.
    pub fn record_repaired(&mut self, node: NodeId) {
        if let Some((_, held)) = self.answered.iter_mut().find(|(known, _)| *known == node) {
            held.clone_from(&self.newest);
        }
    }

    /// The replicas that answered with something older than the newest entry, or lack the key:
    /// those to send it to (read repair).
    pub fn behind(&self) -> Vec<NodeId> {
        let is_behind = |held: &Option<Entry>| *held < self.newest;
        self.answered.iter().filter(|(_, held)| is_behind(held)).map(|(node, _)| *node).collect()
    }
}

/// Removes `node` from `nodes`; whether it was there.
fn take(nodes: &mut Vec<NodeId>, node: NodeId) -> bool {
    let position = nodes.iter().position(|n| *n == node);
    position.map(|i| nodes.swap_remove(i)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{QuorumSpec, Timestamp, Value, Version};

    const ME: NodeId = NodeId::new(0);

    fn node(i: usize) -> NodeId {
        NodeId::new(i as u64)
    }

    fn copy(t: u64) -> Option<Entry> {
        let version = Version::new(Timestamp::from_nanos(t), node(1));
        (t > 0).then(|| {
            if t.is_multiple_of(2) {
                Entry::tombstone(version)
            } else {
                Entry::live(version, Value::new("v"))
            }
        })
    }

    fn read(required: u32, n: usize, own: u64) -> ReadQuorum {
        let spec: QuorumSpec = required.to_string().parse().unwrap();
        ReadQuorum::new(spec.among(n), ME, copy(own), (1..n).map(node))
    }

    /// Every order in which the asked peers answer (with one of several versions) or fail, with
    /// the driver asking a replacement whenever the machine wants one.
    fn explore(
        machine: &ReadQuorum,
        n: usize,
        required: u32,
        held: &[(usize, u64)],
        failed: usize,
    ) {
        let answered = held.len();
        let expected = if answered as u32 >= required {
            Progress::Met
        } else if ((n - failed) as u32) < required {
            Progress::Unreachable
        } else {
            Progress::Pending
        };
        assert_eq!(machine.progress(), expected);
        assert_eq!(machine.achieved(), answered);
        let newest = held.iter().map(|(_, t)| *t).max().unwrap_or(0);
        assert_eq!(machine.newest().cloned(), copy(newest));
        let mut behind = machine.behind();
        behind.sort();
        let mut want: Vec<_> =
            held.iter().filter(|(_, t)| *t < newest).map(|(i, _)| node(*i)).collect();
        want.sort();
        assert_eq!(behind, want);

        let mut machine = machine.clone();
        while machine.next_to_ask().is_some() {}
        // Never more asked than the quorum needs, never fewer while anyone is left.
        if expected == Progress::Pending {
            assert_eq!(answered + machine.outstanding(), required as usize);
        }
        for peer in machine.asked.clone() {
            let i = peer.as_u64() as usize;
            for t in [0, 1, 2] {
                let mut next = machine.clone();
                next.record_reply(peer, copy(t));
                next.record_reply(peer, copy(t));
                next.record_failure(peer);
                let mut held = held.to_vec();
                held.push((i, t));
                explore(&next, n, required, &held, failed);
            }
            let mut next = machine.clone();
            next.record_failure(peer);
            next.record_failure(peer);
            explore(&next, n, required, held, failed + 1);
        }
    }

    #[test]
    fn every_order_of_answers_and_failures_finds_the_newest_and_whom_to_repair() {
        for n in 1..=5 {
            for required in 1..=n as u32 + 1 {
                for own in [0, 1] {
                    explore(&read(required, n, own), n, required, &[(0, own)], 0);
                }
            }
        }
    }

    #[test]
    fn a_quorum_of_one_asks_nobody() {
        let mut one = read(1, 3, 1);
        assert_eq!(one.next_to_ask(), None);
        assert_eq!(one.progress(), Progress::Met);
    }

    #[test]
    fn a_failed_peer_is_replaced_by_the_next_nearest() {
        let mut two = read(2, 4, 0);
        assert_eq!(two.next_to_ask(), Some(node(1)));
        assert_eq!(two.next_to_ask(), None);
        two.record_failure(node(1));
        assert_eq!(two.next_to_ask(), Some(node(2)));
    }

    #[test]
    fn a_slow_peer_can_be_hedged_and_its_late_answer_still_counts() {
        let mut two = read(2, 4, 0);
        two.next_to_ask();
        assert_eq!(two.ask_one_more(), Some(node(2)));
        two.record_reply(node(2), copy(1));
        assert_eq!(two.progress(), Progress::Met);
        two.record_reply(node(1), copy(3));
        assert_eq!(two.newest().cloned(), copy(3));
        assert_eq!(two.behind().len(), 2);
    }

    #[test]
    fn a_tombstone_wins_over_the_older_value_and_is_what_repairs_it() {
        let mut two = read(2, 2, 1);
        two.next_to_ask();
        two.record_reply(node(1), copy(2));
        assert!(two.newest().is_some_and(Entry::is_tombstone));
        assert_eq!(two.behind(), vec![ME]);
    }

    #[test]
    fn holders_are_those_with_the_newest_and_a_repaired_one_is_one_of_them() {
        let mut three = read(3, 4, 1);
        while three.next_to_ask().is_some() {}
        three.record_reply(node(1), copy(3));
        three.record_reply(node(2), None);
        assert_eq!(three.holders(), vec![node(1)]);
        assert_eq!(three.unanswered().collect::<Vec<_>>(), vec![node(3)]);
        three.record_repaired(ME);
        three.record_repaired(node(3));
        assert_eq!((three.holders(), three.behind()), (vec![ME, node(1)], vec![node(2)]));
        let nothing = read(1, 2, 0);
        assert_eq!(nothing.holders(), vec![ME]);
    }

    #[test]
    fn a_replica_that_lacks_the_key_is_repaired() {
        let mut two = read(2, 2, 1);
        two.next_to_ask();
        two.record_reply(node(1), None);
        assert_eq!(two.behind(), vec![node(1)]);
    }

    #[test]
    fn an_answer_nobody_asked_for_is_ignored() {
        let mut two = read(2, 3, 0);
        two.record_reply(node(2), copy(1));
        assert_eq!(two.achieved(), 1);
    }
}
