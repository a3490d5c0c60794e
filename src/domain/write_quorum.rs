//! The write quorum as a value: fed with what replicas answered, asked where the write stands.
//!
//! After the put core of `riak_kv`: the decision apart from the process that does the sending.
//! Answers are counted by node, so duplicates count once; an acknowledgement that comes after the
//! same node was reported as failed (late, not lost) counts; answers of nodes that were not asked
//! do not.

use super::{NodeId, Progress, Required, Version};

/// One write and the answers to it.
#[derive(Debug, Clone)]
pub struct WriteQuorum {
    required: Required,
    replicas: Vec<(NodeId, Answer)>,
    superseded_by: Option<Version>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Missing,
    Acknowledged,
    Failed,
}

impl WriteQuorum {
    /// A write that goes to these replicas (this node among them) and needs this many of them.
    pub fn new(required: Required, replicas: impl IntoIterator<Item = NodeId>) -> Self {
        let mut distinct: Vec<(NodeId, Answer)> = Vec::new();
        for node in replicas {
            if !distinct.iter().any(|(known, _)| *known == node) {
                distinct.push((node, Answer::Missing));
            }
        }
        Self { required, replicas: distinct, superseded_by: None }
    }

    /// `node` holds the entry in its log.
    pub fn record_ack(&mut self, node: NodeId) {
        if let Some(answer) = self.answer_mut(node) {
            *answer = Answer::Acknowledged;
        }
    }

    /// `node` did not, or not in time, say that it holds the entry.
    pub fn record_failure(&mut self, node: NodeId) {
        if let Some(answer) = self.answer_mut(node).filter(|a| **a == Answer::Missing) {
            *answer = Answer::Failed;
        }
    }

    /// `node` holds a newer entry, of this version, and has not kept ours: not an acknowledgement.
    pub fn record_superseded(&mut self, node: NodeId, by: Version) {
        self.record_failure(node);
        self.superseded_by = self.superseded_by.max(Some(by));
    }

    /// The newest version a replica held against ours: the coordinator stamps past it and writes
    /// once more, or the write it acknowledges would not be seen.
    pub const fn superseded_by(&self) -> Option<Version> {
        self.superseded_by
    }

    /// Whether enough replicas hold the entry, may still, or cannot any more.
    pub fn progress(&self) -> Progress {
        if self.required.is_met_by(self.achieved()) {
            Progress::Met
        } else if self.required.is_met_by(self.achieved() + self.outstanding()) {
            Progress::Pending
        } else {
            Progress::Unreachable
        }
    }

    /// The number of replicas known to hold the entry.
    pub fn achieved(&self) -> usize {
        self.count(Answer::Acknowledged)
    }

    /// The number of replicas whose answer is missing.
    pub fn outstanding(&self) -> usize {
        self.count(Answer::Missing)
    }

    /// The number needed.
    pub const fn required(&self) -> Required {
        self.required
    }

    fn count(&self, kind: Answer) -> usize {
        self.replicas.iter().filter(|(_, answer)| *answer == kind).count()
    }

    fn answer_mut(&mut self, node: NodeId) -> Option<&mut Answer> {
        self.replicas.iter_mut().find(|(known, _)| *known == node).map(|(_, answer)| answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{QuorumSpec, Timestamp};

    fn node(i: usize) -> NodeId {
        NodeId::new(i as u64)
    }

    fn quorum(required: u32, replicas: usize) -> WriteQuorum {
        let spec: QuorumSpec = required.to_string().parse().unwrap();
        WriteQuorum::new(spec.among(replicas), (0..replicas).map(node))
    }

    /// Walks every order of every answer of `n` replicas and checks each state against a count
    /// made independently.
    fn explore(machine: &WriteQuorum, n: usize, acks: u32, fails: u32, required: u32) {
        let (a, f) = (acks.count_ones(), fails.count_ones());
        let expected = if a >= required {
            Progress::Met
        } else if n as u32 - f < required {
            Progress::Unreachable
        } else {
            Progress::Pending
        };
        assert_eq!(
            machine.progress(),
            expected,
            "n={n} acks={acks:b} fails={fails:b} r={required}"
        );
        assert_eq!(machine.achieved() as u32, a);
        assert_eq!(machine.outstanding() as u32, n as u32 - a - f);
        for i in 0..n {
            let bit = 1 << i;
            if (acks | fails) & bit != 0 {
                // A duplicate of the same answer changes nothing.
                let mut again = machine.clone();
                if acks & bit != 0 {
                    again.record_ack(node(i));
                    again.record_failure(node(i));
                } else {
                    again.record_failure(node(i));
                }
                assert_eq!(again.progress(), expected);
                assert_eq!(again.achieved() as u32, a);
                continue;
            }
            let mut acked = machine.clone();
            acked.record_ack(node(i));
            explore(&acked, n, acks | bit, fails, required);
            let mut failed = machine.clone();
            failed.record_failure(node(i));
            explore(&failed, n, acks, fails | bit, required);
        }
    }

    #[test]
    fn every_order_of_answers_failures_and_duplicates_is_counted_right() {
        for n in 1..=5 {
            for required in 1..=n as u32 + 1 {
                explore(&quorum(required, n), n, 0, 0, required);
            }
        }
    }

    #[test]
    fn a_quorum_of_one_is_met_by_one_acknowledgement() {
        let mut write = quorum(1, 3);
        write.record_ack(node(0));
        assert_eq!(write.progress(), Progress::Met);
    }

    #[test]
    fn more_than_there_are_is_unreachable_from_the_start() {
        assert_eq!(quorum(4, 3).progress(), Progress::Unreachable);
    }

    #[test]
    fn a_late_acknowledgement_counts_after_a_failure() {
        let mut write = quorum(2, 2);
        write.record_ack(node(0));
        write.record_failure(node(1));
        assert_eq!(write.progress(), Progress::Unreachable);
        write.record_ack(node(1));
        assert_eq!(write.progress(), Progress::Met);
    }

    #[test]
    fn a_stranger_and_a_replica_named_twice_do_not_count() {
        let two = QuorumSpec::Count(2.try_into().unwrap()).among(2);
        let mut write = WriteQuorum::new(two, [node(0), node(1), node(0)]);
        write.record_ack(node(0));
        write.record_ack(node(9));
        assert_eq!((write.achieved(), write.outstanding()), (1, 1));
    }

    #[test]
    fn a_superseded_write_is_not_acknowledged_and_the_newest_version_is_kept() {
        let v = |t| Version::new(Timestamp::from_nanos(t), node(7));
        let mut write = quorum(2, 3);
        write.record_superseded(node(1), v(9));
        write.record_superseded(node(2), v(5));
        assert_eq!(write.superseded_by(), Some(v(9)));
        assert_eq!(write.achieved(), 0);
        assert_eq!(write.progress(), Progress::Unreachable);
    }
}
