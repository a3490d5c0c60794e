//! How a node comes (back) into its cluster: decided from what it remembers and who answers.
//!
//! The rules protect one promise: a node that counts for quorums has every write that a quorum
//! acknowledged while it did not count. So a node that was away as a *non-member* (new, or after a
//! graceful stop) first compares with the members it can reach; one that crashed never stopped
//! counting and serves at once what its log holds. A newcomer needs half of the members, since a
//! majority that acknowledged a write has a node in every such half; one that lost its data counts
//! itself among them, and others that did, for they may have been part of that majority.
//!
//! And a cluster must always be able to start: a node that used to be a member goes on alone if
//! nobody answers, and when only newcomers meet, and nobody is missing, the one with the smallest id
//! founds the cluster.

use super::{NodeId, Phase};

/// What became of the data in the log since the last life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptData {
    /// The log is the one this node wrote.
    All,
    /// The log was set aside; the node begins empty.
    None,
    /// Another log was put in its place.
    Replaced,
    /// The log lacks records that were in it: it was damaged, and repaired.
    Incomplete,
}

/// How a node starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The first node of a cluster: whole at once.
    Found,
    /// A newcomer, without data that counts: joins before it serves, however long that takes.
    Join,
    /// A member whose data is lost, all or some: as a newcomer, but its acknowledgements of old are
    /// missing.
    Rejoin,
    /// A former member with its data: compares with whoever answers, then serves.
    Return,
    /// A member that was interrupted: serves at once, and catches up.
    Resume,
}

impl Start {
    /// Decides from the phase the node had reached in its last life (`None` if this is its first),
    /// its data, and whether it knows any address to join.
    pub fn decide(last_phase: Option<Phase>, data: KeptData, knows_others: bool) -> Self {
        let was_member = matches!(last_phase, Some(Phase::Whole | Phase::Left));
        match (was_member, data) {
            (true, KeptData::All) if last_phase == Some(Phase::Whole) => Self::Resume,
            (true, KeptData::All | KeptData::Replaced) => Self::Return,
            _ if !knows_others => Self::Found,
            (true, KeptData::None | KeptData::Incomplete) => Self::Rejoin,
            (false, _) => Self::Join,
        }
    }

    /// The phase in which the node states itself first.
    pub const fn first_phase(self) -> Phase {
        match self {
            Self::Found | Self::Resume => Phase::Whole,
            Self::Join | Self::Rejoin | Self::Return => Phase::Joining,
        }
    }

    /// What is written down of the node until it is whole (`None` if it is), whatever it states
    /// meanwhile. One that returns with its data may go on alone the next time, too.
    pub const fn kept_until_whole(self) -> Option<Phase> {
        match self {
            Self::Found | Self::Resume => None,
            Self::Return => Some(Phase::Left),
            Self::Join | Self::Rejoin => Some(Phase::Joining),
        }
    }

    /// Whether the node is whole and caught up, after a round of announcements.
    pub fn is_complete(self, me: NodeId, round: &Roundup) -> bool {
        let answered = &round.answered;
        let all_compared = answered.iter().all(|contact| contact.compared);
        match self {
            Self::Found => true,
            Self::Resume => all_compared,
            Self::Return => all_compared && (round.silent_members == 0 || round.patience_is_over),
            Self::Join | Self::Rejoin => {
                let whole: Vec<_> =
                    answered.iter().filter(|contact| contact.phase == Phase::Whole).collect();
                if whole.is_empty() {
                    let nobody_is_missing = round.silent_members == 0 && round.silent_addrs == 0;
                    let smallest = answered.iter().all(|contact| me < contact.id);
                    return nobody_is_missing && all_compared && smallest;
                }
                let lost = usize::from(self == Self::Rejoin || round.replaces_a_member);
                let members = whole.len() + round.silent_members + round.others_lost + lost;
                // Where nobody is missing there is nothing more to be had.
                let enough = whole.len() >= members.div_ceil(2) || round.silent_members == 0;
                whole.iter().all(|contact| contact.compared) && enough
            }
        }
    }
}

/// What came of a round of announcements to every address that the node knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roundup {
    /// Who answered.
    pub answered: Vec<Contact>,
    /// Members that did not answer: whole ones, and those known as joining, which may be whole by now.
    pub silent_members: usize,
    /// Addresses at which nobody answered, those of the members included.
    pub silent_addrs: usize,
    /// Members whose data may be lost like this node's: those that answered and join again, and those
    /// at whose address another one answered.
    pub others_lost: usize,
    /// Whether this node stands at the address of a member of another id, whose data is lost.
    pub replaces_a_member: bool,
    /// Whether the rounds have gone on for as long as a former member waits for the others.
    pub patience_is_over: bool,
}

/// A member that answered in a round of announcements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contact {
    /// Who.
    pub id: NodeId,
    /// How far it says it has come.
    pub phase: Phase,
    /// Whether this node has compared its data with it, and both are equal now.
    pub compared: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contact(id: u64, phase: Phase, compared: bool) -> Contact {
        Contact { id: NodeId::new(id), phase, compared }
    }

    const ME: NodeId = NodeId::new(5);

    #[test]
    fn a_first_node_without_seeds_founds_and_one_with_seeds_joins() {
        assert_eq!(Start::decide(None, KeptData::All, false), Start::Found);
        assert_eq!(Start::decide(None, KeptData::All, true), Start::Join);
    }

    #[test]
    fn a_node_that_never_finished_joining_joins() {
        assert_eq!(Start::decide(Some(Phase::Joining), KeptData::All, true), Start::Join);
    }

    #[test]
    fn a_crashed_member_resumes_and_one_that_left_returns() {
        assert_eq!(Start::decide(Some(Phase::Whole), KeptData::All, true), Start::Resume);
        assert_eq!(Start::decide(Some(Phase::Left), KeptData::All, true), Start::Return);
    }

    #[test]
    fn a_member_without_all_its_data_is_a_newcomer() {
        for lost in [KeptData::None, KeptData::Incomplete] {
            for last in [Phase::Whole, Phase::Left] {
                assert_eq!(Start::decide(Some(last), lost, true), Start::Rejoin);
                assert_eq!(Start::decide(Some(last), lost, false), Start::Found);
            }
            assert_eq!(Start::decide(Some(Phase::Joining), lost, true), Start::Join);
            assert_eq!(Start::decide(None, lost, false), Start::Found);
        }
    }

    #[test]
    fn a_member_with_another_log_does_not_count_before_it_has_compared() {
        assert_eq!(Start::decide(Some(Phase::Whole), KeptData::Replaced, true), Start::Return);
        assert_eq!(Start::decide(None, KeptData::Replaced, false), Start::Found);
        assert_eq!(Start::decide(None, KeptData::Replaced, true), Start::Join);
    }

    #[test]
    fn whoever_does_not_count_yet_states_itself_as_joining() {
        assert_eq!(Start::Join.first_phase(), Phase::Joining);
        assert_eq!(Start::Return.first_phase(), Phase::Joining);
        assert_eq!(Start::Resume.first_phase(), Phase::Whole);
    }

    fn round(answered: &[Contact]) -> Roundup {
        Roundup { answered: answered.to_vec(), ..Roundup::default() }
    }

    fn with_silent_members(answered: &[Contact], silent: usize) -> Roundup {
        Roundup { silent_members: silent, silent_addrs: silent, ..round(answered) }
    }

    #[test]
    fn a_newcomer_waits_for_a_member_however_long_it_takes() {
        for start in [Start::Join, Start::Rejoin] {
            let silence = Roundup { silent_addrs: 1, patience_is_over: true, ..round(&[]) };
            assert!(!start.is_complete(ME, &silence));
            assert!(!start.is_complete(ME, &round(&[contact(9, Phase::Whole, false)])));
            assert!(start.is_complete(ME, &round(&[contact(9, Phase::Whole, true)])));
        }
    }

    #[test]
    fn a_newcomer_does_not_wait_for_other_newcomers_when_there_is_a_member() {
        let answered = [contact(9, Phase::Whole, true), contact(1, Phase::Joining, false)];
        assert!(Start::Join.is_complete(ME, &round(&answered)));
    }

    #[test]
    fn of_newcomers_among_themselves_the_smallest_id_founds_if_nobody_is_missing() {
        let alone = [contact(9, Phase::Joining, true)];
        assert!(Start::Join.is_complete(ME, &round(&alone)));
        assert!(!Start::Join.is_complete(ME, &round(&[contact(1, Phase::Joining, true)])));
        let somebody_missing = Roundup { silent_addrs: 1, ..round(&alone) };
        assert!(!Start::Join.is_complete(ME, &somebody_missing));
        assert!(!Start::Join.is_complete(ME, &with_silent_members(&alone, 1)));
    }

    #[test]
    fn a_newcomer_whose_only_seed_is_itself_founds() {
        assert!(Start::Join.is_complete(ME, &round(&[])));
    }

    #[test]
    fn a_newcomer_needs_half_of_the_members() {
        let one = [contact(9, Phase::Whole, true)];
        let two = [contact(8, Phase::Whole, true), contact(9, Phase::Whole, true)];
        for (answered, silent, enough) in [
            (&one[..], 0, true),
            (&one[..], 1, true),
            (&one[..], 2, false),
            (&two[..], 1, true),
            (&two[..], 2, true),
            (&two[..], 3, false),
        ] {
            let round = with_silent_members(answered, silent);
            assert_eq!(Start::Join.is_complete(ME, &round), enough, "{round:?}");
        }
    }

    /// Every majority of the members that may have acknowledged a write, the lost ones among them,
    /// has a node among those that were compared with; or there is nobody else.
    #[test]
    fn a_member_without_its_data_meets_every_majority_it_was_part_of() {
        for whole in 1..=6usize {
            for silent in 0..=6usize {
                for others_lost in 0..=3usize {
                    let mut answered: Vec<_> =
                        (0..whole).map(|i| contact(9 + i as u64, Phase::Whole, true)).collect();
                    answered.extend((0..others_lost as u64).map(|i| Contact {
                        id: NodeId::new(90 + i),
                        phase: Phase::Joining,
                        compared: false,
                    }));
                    let round = Roundup { others_lost, ..with_silent_members(&answered, silent) };
                    let by_address = Roundup { replaces_a_member: true, ..round.clone() };
                    let enough = Start::Rejoin.is_complete(ME, &round);
                    assert_eq!(Start::Join.is_complete(ME, &by_address), enough);
                    let lost = others_lost + 1;
                    let majority = (whole + silent + lost) / 2 + 1;
                    assert_eq!(enough, silent == 0 || silent + lost < majority, "{round:?}");
                }
            }
        }
    }

    #[test]
    fn a_crashed_member_goes_on_alone_but_not_before_it_compared_with_whoever_answers() {
        assert!(Start::Resume.is_complete(ME, &with_silent_members(&[], 2)));
        for phase in [Phase::Whole, Phase::Joining] {
            assert!(!Start::Resume.is_complete(ME, &round(&[contact(9, phase, false)])));
        }
        assert!(Start::Resume.is_complete(ME, &round(&[contact(9, Phase::Whole, true)])));
    }

    #[test]
    fn a_returning_member_waits_a_while_for_those_that_went_on_without_it() {
        assert!(Start::Return.is_complete(ME, &round(&[])));
        let silence = with_silent_members(&[], 1);
        assert!(!Start::Return.is_complete(ME, &silence));
        let long = Roundup { patience_is_over: true, ..silence };
        assert!(Start::Return.is_complete(ME, &long));
        let uncompared = Roundup { answered: vec![contact(9, Phase::Whole, false)], ..long };
        assert!(!Start::Return.is_complete(ME, &uncompared));
    }
}
