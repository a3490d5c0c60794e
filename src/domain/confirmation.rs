//! The second half of a confirmed read as a value: who must be sent what was read, before it may be
//! answered, and when enough replicas hold it.
//!
//! A read that answers the newest of a majority's copies may be followed by one that meets another
//! majority and finds an older copy: the newest one may be a write that has reached one replica so
//! far. So a confirmed read first brings what it answers to as many replicas as it asked ("the
//! reader writes back": Attiya, Bar-Noy and Dolev, "Sharing memory robustly in message-passing
//! systems", JACM 1995; Lynch and Shvartsman 1997 for many writers). Replicas that answered with
//! exactly that entry hold it already. One that says that it holds something newer counts as well:
//! whoever asks it later reads that or something later still, and the newer write was not complete
//! when this read began, or its majority would have been met.
//!
//! If nobody holds an entry there is nothing to bring anywhere.

use std::collections::VecDeque;

use super::{NodeId, Progress, ReadQuorum, WriteQuorum};

/// The write-back of one read.
#[derive(Debug, Clone)]
pub struct Confirmation {
    quorum: WriteQuorum,
    /// Not sent to yet: first those known to be behind, last those that have not answered.
    candidates: VecDeque<NodeId>,
    /// Sent to, no answer yet.
    asked: Vec<NodeId>,
}

impl Confirmation {
    /// The write-back of what this read has found, to as many replicas as the read needed.
    pub fn of(read: &ReadQuorum) -> Self {
        let candidates: VecDeque<_> = read.behind().into_iter().chain(read.unanswered()).collect();
        let holders = read.holders();
        let replicas = holders.iter().copied().chain(candidates.iter().copied());
        let mut quorum = WriteQuorum::new(read.required(), replicas);
        for node in holders {
            quorum.record_ack(node);
        }
        Self { quorum, candidates, asked: Vec::new() }
    }

    /// The next replica to send to, as long as those sent to could not make up the quorum if all
    /// acknowledged.
    pub fn next_to_ask(&mut self) -> Option<NodeId> {
        if self.quorum.required().is_met_by(self.quorum.achieved() + self.asked.len()) {
            return None;
        }
        self.ask_one_more()
    }

    /// One replica beyond those that suffice, because the ones sent to are slow.
    pub fn ask_one_more(&mut self) -> Option<NodeId> {
        let node = self.candidates.pop_front()?;
        self.asked.push(node);
        Some(node)
    }

    /// `node` holds the entry, or a newer one.
    pub fn record_held(&mut self, node: NodeId) {
        self.asked.retain(|asked| *asked != node);
        self.quorum.record_ack(node);
    }

    /// `node` did not, or not in time, say that it holds the entry.
    pub fn record_failure(&mut self, node: NodeId) {
        self.asked.retain(|asked| *asked != node);
        self.quorum.record_failure(node);
    }

    /// Whether enough replicas hold the entry, may still, or cannot any more.
    pub fn progress(&self) -> Progress {
        self.quorum.progress()
    }

    /// The number of replicas known to hold the entry, or a newer one.
    pub fn achieved(&self) -> usize {
        self.quorum.achieved()
    }

    /// The number of replicas sent to whose answer is missing.
    pub fn outstanding(&self) -> usize {
        self.asked.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Entry, QuorumSpec, Timestamp, Value, Version};

    fn node(i: usize) -> NodeId {
        NodeId::new(i as u64)
    }

    fn copy(t: u64) -> Option<Entry> {
        let version = Version::new(Timestamp::from_nanos(t), node(1));
        (t > 0).then(|| Entry::live(version, Value::new("v")))
    }

    /// What a peer was found to be when the read had what it needed.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Found {
        Holds(u64),
        Failed,
        Silent,
        NotAsked,
    }

    const EVERY_FINDING: [Found; 6] = [
        Found::Holds(2),
        Found::Holds(1),
        Found::Holds(0),
        Found::Failed,
        Found::Silent,
        Found::NotAsked,
    ];

    /// A read by node 0, which holds `own`, and what became of nodes 1 and up.
    fn read(required: u32, own: u64, found: &[Found]) -> ReadQuorum {
        let spec: QuorumSpec = required.to_string().parse().unwrap();
        let (unasked, asked): (Vec<_>, Vec<_>) =
            (1..=found.len()).partition(|i| found[i - 1] == Found::NotAsked);
        let peers = asked.iter().chain(&unasked).map(|i| node(*i));
        let mut read = ReadQuorum::new(spec.among(found.len() + 1), node(0), copy(own), peers);
        for i in asked {
            read.ask_one_more();
            match found[i - 1] {
                Found::Holds(t) => read.record_reply(node(i), copy(t)),
                Found::Failed => read.record_failure(node(i)),
                Found::Silent | Found::NotAsked => {}
            }
        }
        read
    }

    /// Every order in which those sent to acknowledge or fail, with the driver sending to a
    /// replacement whenever the machine wants one. `open` are those that may still acknowledge.
    fn explore(machine: &Confirmation, required: u32, held: usize, open: usize) {
        let expected = if held as u32 >= required {
            Progress::Met
        } else if ((held + open) as u32) < required {
            Progress::Unreachable
        } else {
            Progress::Pending
        };
        assert_eq!((machine.progress(), machine.achieved()), (expected, held));
        let mut machine = machine.clone();
        while machine.next_to_ask().is_some() {}
        // Never more sent to than is needed, never fewer while anyone is left.
        let wanted = (required as usize).saturating_sub(held);
        assert_eq!(machine.outstanding(), wanted.min(open));
        for node in machine.asked.clone() {
            let mut next = machine.clone();
            next.record_held(node);
            next.record_held(node);
            next.record_failure(node);
            explore(&next, required, held + 1, open - 1);
            let mut next = machine.clone();
            next.record_failure(node);
            next.record_failure(node);
            explore(&next, required, held, open - 1);
        }
    }

    #[test]
    fn after_every_read_and_in_every_order_as_many_are_sent_to_as_must_hold_it() {
        for peers in 0..=3u32 {
            for combination in 0..6usize.pow(peers) {
                let found: Vec<_> =
                    (0..peers).map(|i| EVERY_FINDING[combination / 6usize.pow(i) % 6]).collect();
                for (own, required) in [(0, 2), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (1, 5)] {
                    let read = read(required, own, &found);
                    let newest = read.newest().map_or(0, |e| e.version.timestamp.as_nanos());
                    if newest == 0 {
                        continue;
                    }
                    let holds = |t: &u64| *t == newest;
                    let held = found.iter().filter(|f| **f == Found::Holds(newest)).count()
                        + usize::from(holds(&own));
                    let open = peers as usize + 1 - held;
                    explore(&Confirmation::of(&read), required, held, open);
                }
            }
        }
    }

    #[test]
    fn a_read_whose_majority_agrees_sends_nothing() {
        let mut agreed = Confirmation::of(&read(2, 2, &[Found::Holds(2), Found::NotAsked]));
        assert_eq!((agreed.progress(), agreed.next_to_ask()), (Progress::Met, None));
    }

    #[test]
    fn those_behind_come_first_then_those_not_asked_the_slow_and_the_failed() {
        let found =
            [Found::Failed, Found::Silent, Found::NotAsked, Found::Holds(2), Found::Holds(1)];
        let mut all = Confirmation::of(&read(6, 1, &found));
        let order: Vec<_> = std::iter::from_fn(|| all.next_to_ask()).collect();
        assert_eq!(order, [0, 5, 3, 2, 1].map(node));
    }

    #[test]
    fn the_slow_can_be_hedged_and_a_stranger_does_not_count() {
        let found = [Found::Holds(2), Found::NotAsked];
        let mut two = Confirmation::of(&read(2, 1, &found));
        assert_eq!(two.next_to_ask(), Some(node(0)));
        assert_eq!(two.next_to_ask(), None);
        assert_eq!(two.ask_one_more(), Some(node(2)));
        two.record_held(node(9));
        assert_eq!(two.progress(), Progress::Pending);
        two.record_held(node(2));
        assert_eq!((two.progress(), two.outstanding()), (Progress::Met, 1));
    }
}
