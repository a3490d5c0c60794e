//! Whether a node can be stopped now without harm, as a value.
//!
//! "Stopped" means gracefully: the node says good-bye, so the number that quorums are computed from
//! shrinks by one. What is asked is what an operator who restarts one node after the other has to
//! know: does another member have everything that this one has, does anybody still need something
//! from it, and are there enough members without it. When in doubt the answer is no: the next
//! comparison, a few seconds later, may turn it into yes.

use std::fmt;

use super::{MemberState, NodeId, Phase, QuorumSpec};

/// What a node knows when it is asked whether it may stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopCheck {
    /// The other members, those that left too.
    pub others: Vec<StopWitness>,
    /// The configured read quorum.
    pub read_quorum: QuorumSpec,
    /// The configured write quorum.
    pub write_quorum: QuorumSpec,
}

/// Another member, as the node that is to stop sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopWitness {
    /// Who.
    pub id: NodeId,
    /// How far it has come.
    pub phase: Phase,
    /// Whether it is up, in one word.
    pub state: MemberState,
    /// Keys it missed and that are kept for it.
    pub hints: u64,
    /// Whether its data was equal when the two last compared, and it has missed nothing since.
    pub in_sync: bool,
}

/// Why a node should not be stopped now. Shown as a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopRisk {
    /// There is no other member: nothing is lost, since the data is in the log, but nobody serves
    /// it until the node is back.
    Alone,
    /// Nobody else who is up is known to have everything that this node has.
    LastCopy,
    /// Writes that a member missed are kept here for it, in memory.
    Hints {
        /// Who missed them.
        member: NodeId,
        /// How many keys.
        count: u64,
    },
    /// A member is getting its data, perhaps from here.
    Joining {
        /// Who.
        member: NodeId,
    },
    /// A member that is up is not known to have the same data.
    NotInSync {
        /// Who.
        member: NodeId,
    },
    /// Too few members would be up for a configured quorum.
    Quorum {
        /// Which one.
        of: QuorumKind,
        /// As configured.
        spec: QuorumSpec,
        /// The number that would have to answer.
        needed: u32,
        /// The number of whole members that would be up.
        up: usize,
    },
}

/// What a quorum is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuorumKind {
    /// Reads.
    Read,
    /// Writes.
    Write,
}

impl StopCheck {
    /// Everything that speaks against a stop; nothing if it is safe.
    pub fn risks(&self) -> Vec<StopRisk> {
        let members: Vec<_> = self.others.iter().filter(|m| m.phase != Phase::Left).collect();
        if members.is_empty() {
            return vec![StopRisk::Alone];
        }
        let mut risks = Vec::new();
        if !members.iter().any(|m| m.state == MemberState::Alive && m.in_sync) {
            risks.push(StopRisk::LastCopy);
        }
        for witness in &members {
            let (member, count) = (witness.id, witness.hints);
            risks.extend(match witness.state {
                _ if count > 0 => Some(StopRisk::Hints { member, count }),
                MemberState::Joining => Some(StopRisk::Joining { member }),
                MemberState::Alive if !witness.in_sync => Some(StopRisk::NotInSync { member }),
                _ => None,
            });
        }
        let whole = members.iter().filter(|m| m.phase == Phase::Whole).count();
        let up = members.iter().filter(|m| m.state == MemberState::Alive).count();
        for (of, spec) in
            [(QuorumKind::Read, self.read_quorum), (QuorumKind::Write, self.write_quorum)]
        {
            let required = spec.among(whole);
            if !required.is_met_by(up) {
                risks.push(StopRisk::Quorum { of, spec, needed: required.get(), up });
            }
        }
        risks
    }
}

impl fmt::Display for StopRisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alone => f.write_str(
                "This is the only member: its data stays in its log, and is out of reach until it is back.",
            ),
            Self::LastCopy => f.write_str(
                "No other member is up and known to have everything that this node has.",
            ),
            Self::Hints { member, count } => write!(
                f,
                "{count} keys that the member {member} missed are kept here for it and not delivered yet."
            ),
            Self::Joining { member } => {
                write!(f, "The member {member} is joining, and may be getting its data from here.")
            }
            Self::NotInSync { member } => write!(
                f,
                "The member {member} is up, and not known to have the same data as this node."
            ),
            Self::Quorum { of, spec, needed, up } => {
                let kind = match of {
                    QuorumKind::Read => "read",
                    QuorumKind::Write => "write",
                };
                write!(
                    f,
                    "The configured {kind} quorum ({spec}) would need {needed} members, and {up} would be up."
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAJORITY: QuorumSpec = QuorumSpec::Majority;

    /// Every way in which a member can be seen.
    fn every_witness() -> Vec<StopWitness> {
        let mut all = Vec::new();
        for (phase, state) in [
            (Phase::Joining, MemberState::Joining),
            (Phase::Joining, MemberState::Down),
            (Phase::Whole, MemberState::Alive),
            (Phase::Whole, MemberState::Suspect),
            (Phase::Whole, MemberState::Down),
            (Phase::Left, MemberState::Left),
        ] {
            for hints in [0, 3] {
                for in_sync in [false, true] {
                    // As it is computed: who missed something, or is not up, is not in sync.
                    if !in_sync || state == MemberState::Alive && hints == 0 {
                        let id = NodeId::new(all.len() as u64);
                        all.push(StopWitness { id, phase, state, hints, in_sync });
                    }
                }
            }
        }
        all
    }

    fn check(others: &[StopWitness], quorum: QuorumSpec) -> StopCheck {
        StopCheck { others: others.to_vec(), read_quorum: QuorumSpec::ONE, write_quorum: quorum }
    }

    /// A stop is safe exactly if somebody has everything, nobody lacks anything that is here, and
    /// the quorums hold: counted independently for every combination of up to three others.
    #[test]
    fn every_combination_of_others_is_judged_right() {
        let all = every_witness();
        let mut combinations: Vec<Vec<StopWitness>> = vec![Vec::new()];
        for length in 0..3 {
            let longer: Vec<_> = combinations
                .iter()
                .filter(|c| c.len() == length)
                .flat_map(|c| all.iter().map(|w| [c.as_slice(), &[*w]].concat()))
                .collect();
            combinations.extend(longer);
        }
        for others in combinations {
            for quorum in [QuorumSpec::ONE, MAJORITY, QuorumSpec::All, "2".parse().unwrap()] {
                let risks = check(&others, quorum).risks();
                let here: Vec<_> = others.iter().filter(|m| m.phase != Phase::Left).collect();
                let up = here.iter().filter(|m| m.state == MemberState::Alive).count();
                let whole = here.iter().filter(|m| m.phase == Phase::Whole).count();
                let needed = match quorum {
                    QuorumSpec::Count(n) => n.get() as usize,
                    QuorumSpec::Majority => whole / 2 + 1,
                    QuorumSpec::All => whole.max(1),
                };
                let safe = here.iter().any(|m| m.in_sync)
                    && here.iter().all(|m| m.hints == 0)
                    && here.iter().all(|m| m.state != MemberState::Joining)
                    && here.iter().all(|m| m.state != MemberState::Alive || m.in_sync)
                    && up >= needed.max(1);
                assert_eq!(risks.is_empty(), safe, "{others:?} {quorum}: {risks:?}");
                assert_eq!(risks.contains(&StopRisk::Alone), here.is_empty());
                let hints = risks.iter().filter(|r| matches!(r, StopRisk::Hints { .. })).count();
                assert_eq!(hints, here.iter().filter(|m| m.hints > 0).count());
            }
        }
    }

    fn alive(id: u64) -> StopWitness {
        StopWitness {
            id: NodeId::new(id),
            phase: Phase::Whole,
            state: MemberState::Alive,
            hints: 0,
            in_sync: true,
        }
    }

    #[test]
    fn one_of_three_equal_nodes_may_stop_and_then_one_of_two() {
        assert_eq!(check(&[alive(2), alive(3)], MAJORITY).risks(), []);
        let left = StopWitness { phase: Phase::Left, state: MemberState::Left, ..alive(3) };
        assert_eq!(check(&[alive(2), left], MAJORITY).risks(), []);
    }

    #[test]
    fn with_one_of_three_down_the_majority_of_those_left_would_be_missed() {
        let down = StopWitness { state: MemberState::Down, in_sync: false, ..alive(3) };
        let (of, spec) = (QuorumKind::Write, MAJORITY);
        let risks = check(&[alive(2), down], MAJORITY).risks();
        assert_eq!(risks, [StopRisk::Quorum { of, spec, needed: 2, up: 1 }]);
    }

    #[test]
    fn risks_are_sentences_that_name_who_and_how_many() {
        let member = NodeId::new(0xab);
        let (of, spec) = (QuorumKind::Read, MAJORITY);
        for (risk, words) in [
            (StopRisk::Alone, vec!["only member"]),
            (StopRisk::LastCopy, vec!["No other member"]),
            (StopRisk::Hints { member, count: 7 }, vec!["7 keys", "00000000000000ab"]),
            (StopRisk::Joining { member }, vec!["joining", "00000000000000ab"]),
            (StopRisk::NotInSync { member }, vec!["same data", "00000000000000ab"]),
            (StopRisk::Quorum { of, spec, needed: 2, up: 1 }, vec!["read", "majority", "2", "1"]),
        ] {
            let text = risk.to_string();
            assert!(text.ends_with('.') && words.iter().all(|word| text.contains(word)), "{text}");
        }
    }
}
