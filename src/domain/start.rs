//! How a node comes (back) into its cluster: decided from what it remembers and who answers.
//!
//! The rules protect one promise: a node that counts for quorums has every write that a quorum
//! acknowledged while it did not count. So a node that was away as a *non-member* (new, or after a
//! graceful stop) first compares with the members it can reach; one that crashed never stopped
//! counting and serves at once what its log holds. And a cluster must always be able to start: a
//! node that used to be a member goes on alone if nobody answers, and when only newcomers meet, the
//! one with the smallest id founds the cluster.

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
}

/// How a node starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The first node of a cluster: whole at once.
    Found,
    /// A newcomer, without data that counts: joins before it serves, however long that takes.
    Join,
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
            (false, KeptData::Replaced) if !knows_others => Self::Found,
            _ if knows_others => Self::Join,
            _ => Self::Found,
        }
    }

    /// The phase in which the node states itself first.
    pub const fn first_phase(self) -> Phase {
        match self {
            Self::Found | Self::Resume => Phase::Whole,
            Self::Join | Self::Return => Phase::Joining,
        }
    }

    /// Whether the node is whole and caught up, after a round in which these members answered.
    /// `nobody_else` says that there was no other address to try.
    pub fn is_complete(self, me: NodeId, answered: &[Contact], nobody_else: bool) -> bool {
        let all_compared = answered.iter().all(|contact| contact.compared);
        let whole = || answered.iter().filter(|contact| contact.phase == Phase::Whole);
        match self {
            Self::Found => true,
            Self::Return | Self::Resume => all_compared,
            Self::Join if nobody_else => true,
            Self::Join if whole().next().is_some() => whole().all(|contact| contact.compared),
            Self::Join => {
                !answered.is_empty()
                    && all_compared
                    && answered.iter().all(|contact| me < contact.id)
            }
        }
    }
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
    fn a_member_without_its_data_is_a_newcomer() {
        for last in [Phase::Whole, Phase::Left, Phase::Joining] {
            assert_eq!(Start::decide(Some(last), KeptData::None, true), Start::Join);
            assert_eq!(Start::decide(Some(last), KeptData::None, false), Start::Found);
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

    #[test]
    fn a_newcomer_waits_for_a_member_however_long_it_takes() {
        assert!(!Start::Join.is_complete(ME, &[], false));
        assert!(!Start::Join.is_complete(ME, &[contact(9, Phase::Whole, false)], false));
        assert!(Start::Join.is_complete(ME, &[contact(9, Phase::Whole, true)], false));
    }

    #[test]
    fn a_newcomer_does_not_wait_for_other_newcomers_when_there_is_a_member() {
        let answered = [contact(9, Phase::Whole, true), contact(1, Phase::Joining, false)];
        assert!(Start::Join.is_complete(ME, &answered, false));
    }

    #[test]
    fn of_newcomers_among_themselves_the_smallest_id_founds() {
        assert!(Start::Join.is_complete(ME, &[contact(9, Phase::Joining, true)], false));
        assert!(!Start::Join.is_complete(ME, &[contact(1, Phase::Joining, true)], false));
    }

    #[test]
    fn a_newcomer_whose_only_seed_is_itself_founds() {
        assert!(Start::Join.is_complete(ME, &[], true));
    }

    #[test]
    fn a_former_member_goes_on_alone_but_not_before_it_compared_with_whoever_answers() {
        for start in [Start::Return, Start::Resume] {
            assert!(start.is_complete(ME, &[], false));
            assert!(!start.is_complete(ME, &[contact(9, Phase::Whole, false)], false));
            assert!(!start.is_complete(ME, &[contact(9, Phase::Joining, false)], false));
            assert!(start.is_complete(ME, &[contact(9, Phase::Whole, true)], false));
        }
    }
}
