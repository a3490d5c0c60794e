//! When tombstones may be forgotten: the evidence for a *horizon*.
//!
//! A node is certified at a horizon when it holds every entry stamped up to there that exists. From
//! then on such an entry that it does not hold is a ghost, of a removed key, and is refused (the
//! *fence*); so the tombstones up to there have nothing left to do, and are dropped.
//!
//! That every member holds everything up to a horizon is shown by comparisons that ended in
//! equality, one with each member, all of them after the last entry that arrived here late: what
//! arrived late may be missing at a member that was compared before.
//!
//! Not decided here: who asks whom, and what a node does that finds itself behind.

use std::collections::BTreeMap;

use super::{Liveness, MemberView, NodeId, Phase, Timestamp};

/// An entry older than this on arrival, in nanoseconds, came late: longer than a write takes to
/// reach a member that is up.
pub const LATE_NS: u64 = 10_000_000_000;

/// A comparison with a member that ended in equality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EqualRound {
    /// The member's start that was compared.
    pub generation: u64,
    /// When the comparison began, by this node's clock.
    pub began: Timestamp,
}

/// A horizon that may be proposed, and what it rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// Every member counted holds every entry stamped up to here.
    pub horizon: Timestamp,
    /// When the oldest of the comparisons began: a member that something arrived late at since then
    /// must not accept.
    pub since: Timestamp,
    /// The members counted, with the starts that were compared.
    pub members: BTreeMap<NodeId, u64>,
}

/// What one node knows of the equality of the others.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    rounds: BTreeMap<NodeId, EqualRound>,
    disturbed: Option<Timestamp>,
}

impl Evidence {
    /// A comparison with a member ended in equality.
    pub fn record(&mut self, member: NodeId, round: EqualRound) {
        self.rounds.insert(member, round);
    }

    /// Something arrived here late, at this time or before.
    pub fn disturb(&mut self, at: Timestamp) {
        self.disturbed = self.disturbed.max(Some(at));
    }

    /// Whether there is a comparison with this start of a member, later than everything that
    /// arrived late.
    fn round(&self, member: NodeId, generation: u64) -> Option<&EqualRound> {
        let round = self.rounds.get(&member).filter(|round| round.generation == generation);
        round.filter(|round| Some(round.began) > self.disturbed)
    }

    /// The horizon that may be proposed now, `grace_ns` behind the present at least; `None` as long
    /// as a comparison with one of these members is missing.
    pub fn propose(
        &self,
        now: Timestamp,
        grace_ns: u64,
        members: &BTreeMap<NodeId, u64>,
    ) -> Option<Proposal> {
        let mut since = now;
        for (member, generation) in members {
            since = since.min(self.round(*member, *generation)?.began);
        }
        let equal_through = since.as_nanos().saturating_sub(LATE_NS);
        let horizon = now.as_nanos().saturating_sub(grace_ns).min(equal_through);
        let horizon = Timestamp::from_nanos(horizon);
        (horizon > Timestamp::ZERO).then(|| Proposal { horizon, since, members: members.clone() })
    }
}

/// The members, with their generations, that must hold everything up to a horizon; `None` as long
/// as nobody can say. Those that have been down for longer than the longest absence (`given_up`)
/// are left out, if a majority is up: they join again when they are back.
pub fn counted(
    view: &MemberView,
    given_up: impl Fn(NodeId) -> bool,
) -> Option<BTreeMap<NodeId, u64>> {
    let (mut counted, mut total) = (BTreeMap::new(), 1);
    for member in view.peers() {
        total += 1;
        let down = view.liveness(member.id) == Liveness::Down;
        match (down, member.phase) {
            (true, _) if given_up(member.id) => {}
            (false, Phase::Whole) => {
                counted.insert(member.id, member.generation);
            }
            _ => return None,
        }
    }
    let nobody_left_out = counted.len() + 1 == total;
    let majority = (counted.len() + 1) * 2 > total;
    (view.me().phase == Phase::Whole && (nobody_left_out || majority)).then_some(counted)
}

/// Whether this node is the one that proposes: the whole member with the smallest id of those that
/// are up. Two that believe so at once do no harm.
pub fn is_proposer(view: &MemberView) -> bool {
    let up = |id| view.liveness(id) == Liveness::Alive;
    let mut before = view.peers().filter(|m| m.phase == Phase::Whole && m.id < view.me().id);
    view.me().phase == Phase::Whole && !before.any(|member| up(member.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Member;

    const SECOND: u64 = 1_000_000_000;
    const GRACE: u64 = 100 * SECOND;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * SECOND)
    }

    fn id(n: u64) -> NodeId {
        NodeId::new(n)
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Event {
        Equal(u64),
        Restart(u64),
        Late,
    }

    /// Every sequence of six events with up to three members: a proposal exists exactly if after
    /// the last late arrival every member was compared in its present generation, and it does not
    /// reach beyond the oldest such comparison.
    #[test]
    fn a_horizon_rests_on_a_comparison_with_everybody_after_the_last_late_arrival() {
        for others in 0..=3_u64 {
            let mut events = vec![Event::Late];
            for member in 1..=others {
                events.extend([Event::Equal(member), Event::Restart(member)]);
            }
            let count = events.len().pow(6);
            for mut choice in 0..count {
                let (mut evidence, mut generations) = (Evidence::default(), BTreeMap::new());
                let mut compared: BTreeMap<u64, u64> = BTreeMap::new();
                generations.extend((1..=others).map(|n| (id(n), 1)));
                for step in 1..=6_u64 {
                    let event = events[choice % events.len()];
                    choice /= events.len();
                    let now = 1_000 + step;
                    match event {
                        Event::Late => {
                            evidence.disturb(at(now));
                            compared.clear();
                        }
                        Event::Restart(n) => {
                            *generations.get_mut(&id(n)).unwrap() += 1;
                            compared.remove(&n);
                        }
                        Event::Equal(n) => {
                            let generation = generations[&id(n)];
                            evidence.record(id(n), EqualRound { generation, began: at(now) });
                            compared.insert(n, now);
                        }
                    }
                }
                let now = at(1_007);
                let proposal = evidence.propose(now, 5 * SECOND, &generations);
                let expected = (compared.len() as u64 == others).then(|| {
                    let oldest = compared.values().copied().min().unwrap_or(1_007);
                    at((oldest - 10).min(1_002))
                });
                assert_eq!(proposal.map(|p| p.horizon), expected);
            }
        }
    }

    #[test]
    fn a_horizon_stays_behind_the_grace_and_is_never_the_beginning_of_time() {
        let nobody = BTreeMap::new();
        let horizon = |now| Evidence::default().propose(now, GRACE, &nobody).map(|p| p.horizon);
        assert_eq!(horizon(at(1_000)), Some(at(900)));
        assert_eq!(horizon(at(100)), None);
        assert_eq!(horizon(at(5)), None);
    }

    #[test]
    fn a_late_arrival_in_the_moment_of_a_comparison_counts_as_after_it() {
        let mut evidence = Evidence::default();
        evidence.record(id(2), EqualRound { generation: 1, began: at(1_000) });
        evidence.disturb(at(1_000));
        evidence.disturb(at(999));
        assert_eq!(evidence.propose(at(2_000), GRACE, &[(id(2), 1)].into()), None);
    }

    fn view(others: &[(Phase, Liveness)]) -> MemberView {
        let member = |n: u64, phase| Member {
            id: id(n),
            generation: 1,
            phase,
            grpc_addr: format!("10.0.0.{n}:1"),
            http_addr: format!("10.0.0.{n}:2"),
        };
        let mut view = MemberView::new(member(5, Phase::Whole));
        for (n, (phase, liveness)) in (10..).zip(others) {
            view.merge(member(n, *phase));
            view.set_liveness(id(n), 1, *liveness);
        }
        view
    }

    /// Every combination of phases and liveness of three other members.
    #[test]
    fn everybody_counts_but_those_that_left_or_are_given_up_while_a_majority_is_up() {
        let phases = [Phase::Joining, Phase::Whole, Phase::Left];
        let states = [Liveness::Alive, Liveness::Suspect, Liveness::Down];
        let mut all = Vec::new();
        for phase in phases {
            for liveness in states {
                all.push((phase, liveness));
            }
        }
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                for c in &all {
                    for given_up in [false, true] {
                        let others = [*a, *b, *c];
                        let members: Vec<_> =
                            others.iter().filter(|(phase, _)| *phase != Phase::Left).collect();
                        let up = members.iter().filter(|(_, l)| *l != Liveness::Down).count();
                        let blocked = members.iter().any(|(phase, liveness)| {
                            if *liveness == Liveness::Down {
                                !given_up
                            } else {
                                *phase == Phase::Joining
                            }
                        });
                        let majority = (up + 1) * 2 > members.len() + 1;
                        let counted = counted(&view(&others), |_| given_up).map(|c| c.len());
                        let expected = (!blocked && majority).then_some(up);
                        assert_eq!(counted, expected, "{i} {j} {others:?} {given_up}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_smallest_whole_member_that_is_up_proposes() {
        let mut me = view(&[(Phase::Whole, Liveness::Alive)]);
        assert!(is_proposer(&me));
        let smaller = Member { id: id(1), ..me.me().clone() };
        me.merge(smaller.clone());
        assert!(is_proposer(&me), "the smaller one is down");
        me.set_liveness(id(1), 1, Liveness::Alive);
        assert!(!is_proposer(&me));
        me.enter(Phase::Joining);
        assert!(!is_proposer(&me));
    }
}
