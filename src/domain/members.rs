//! The members of a cluster as one node knows them.
//!
//! Two kinds of knowledge are kept apart:
//!
//! * The **record** of a member, [`Member`], is a fact its owner states: who, where, and how far it
//!   has come ([`Phase`]). Records spread to every node and merge like entries do: the higher
//!   generation wins, within a generation the later phase. A node raises its generation at every
//!   start, so its newest statement always wins, in whatever order statements arrive.
//! * Its **liveness** is what this node's failure detector believes. It is local, changes nothing
//!   about membership and is never spread as a record: a member that is down stays a member, its
//!   hints are kept and quorums do not shrink, until it leaves.

use std::collections::BTreeMap;

use super::NodeId;

/// How far above the last generation known of it the record of a forgotten member is placed: more
/// starts than a node makes without meeting anybody (one a second for twelve days). Whatever the
/// member states if it does come back is below that, so it counts for nothing, and it learns from
/// the answer that its data is not trusted any more ([`RecordChange::Outlived`]).
pub const FORGOTTEN_AHEAD: u64 = 1 << 20;

/// How far a member has come in its current generation. Later phases win.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Receives every write, does not have all the data yet, counts for no quorum.
    Joining,
    /// Has the data and counts for quorums.
    Whole,
    /// Has said good-bye. It gets no writes until it comes back with a higher generation.
    Left,
}

/// What the failure detector believes of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Liveness {
    /// Answers.
    Alive,
    /// Did not answer lately; may be slow.
    Suspect,
    /// Did not answer for so long that nobody waits for it any more.
    Down,
}

/// A member's state as users see it: phase and liveness in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberState {
    /// Fetching the data.
    Joining,
    /// Up and whole.
    Alive,
    /// Up or down, not known yet.
    Suspect,
    /// Unreachable, still a member.
    Down,
    /// No member any more.
    Left,
}

/// What a member states about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who: stays the same for as long as the data directory does.
    pub id: NodeId,
    /// The number of the member's start, from 1.
    pub generation: u64,
    /// How far it has come since.
    pub phase: Phase,
    /// `HOST:PORT` where peers reach it.
    pub grpc_addr: String,
    /// `HOST:PORT` where clients reach it.
    pub http_addr: String,
}

impl Member {
    /// Whether this statement replaces `other`, one by the same member.
    fn replaces(&self, other: &Self) -> bool {
        (self.generation, self.phase) > (other.generation, other.phase)
    }
}

/// What a record changed about the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordChange {
    /// Nothing: it was known, or older than what is known.
    Nothing,
    /// A member nobody had heard of here, or one that came back with a new generation.
    Appeared,
    /// A known member went on to another phase.
    Advanced,
    /// Others believe that this node has left, or know it in a later phase than it is in. It must
    /// state itself anew, with a generation above this one.
    Disputed {
        /// The generation to rise above.
        generation: u64,
    },
    /// Others know a generation of this node that it does not: its data directory is a copy of an
    /// older state. It must state itself anew, above this generation, and join again.
    Outlived {
        /// The generation to rise above.
        generation: u64,
    },
}

/// What came of forgetting a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Forgotten {
    /// It counts no more. This is its record now.
    Now(Member),
    /// It had left, or was forgotten, before.
    Before,
}

/// Why a member is not forgotten. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CannotForget {
    /// No member of this id is known here.
    #[error("no member with the id {0} is known here")]
    Unknown(NodeId),
    /// It is the node that was asked.
    #[error("{0} is the node that was asked; to remove it, stop it")]
    ThisNode(NodeId),
    /// It is not known to be down.
    #[error("the member {0} is not down; to remove a member that is up, stop it")]
    NotDown(NodeId),
}

/// What two members are to each other that state themselves for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// Members of one cluster.
    Mates,
    /// Members of two clusters of one name, founded apart. This one's gives in: it joins the other.
    JoinTheirs,
    /// Likewise; the other's gives in, and is no member before it has joined.
    AwaitTheirs,
}

#[derive(Debug, Clone)]
struct Known {
    record: Member,
    liveness: Liveness,
    /// Whether it is whole, or was and has not left since: one that lost its data, and joins again.
    counts: bool,
}

impl Known {
    /// Takes over a later statement.
    fn state(&mut self, record: Member) {
        self.counts = match record.phase {
            Phase::Whole => true,
            Phase::Joining => self.counts,
            Phase::Left => false,
        };
        self.record = record;
    }
}

/// All members known to one node, itself included.
#[derive(Debug, Clone)]
pub struct MemberView {
    me: Member,
    others: BTreeMap<NodeId, Known>,
}

impl MemberView {
    /// The view of a node that knows only itself.
    pub const fn new(me: Member) -> Self {
        Self { me, others: BTreeMap::new() }
    }

    /// This node's own record.
    pub const fn me(&self) -> &Member {
        &self.me
    }

    /// This node goes on to another phase.
    pub const fn enter(&mut self, phase: Phase) {
        self.me.phase = phase;
    }

    /// States this node anew, above a generation that others know of it.
    pub const fn rise_above(&mut self, generation: u64) {
        if self.me.generation <= generation {
            self.me.generation = generation.saturating_add(1);
        }
    }

    /// What this node and the sender of an announcement are to each other. Clusters that were
    /// founded apart (a founder that lost its disk founds anew, say) hold different data, so the
    /// members of one must not count in the other before they have compared theirs. The cluster
    /// with fewer members gives in; of equal ones, that of the member with the larger id.
    pub fn meet(&self, sender: &Member, others: &[Member]) -> Meeting {
        let whole = |member: &&Member| member.phase == Phase::Whole;
        let known_to_me =
            |m: &Member| self.me.id == m.id || self.get(m.id).is_some_and(|k| k.phase == m.phase);
        let theirs: Vec<_> = others.iter().chain([sender]).filter(whole).collect();
        if self.me.phase != Phase::Whole
            || sender.phase != Phase::Whole
            || theirs.iter().any(|member| known_to_me(member))
        {
            return Meeting::Mates;
        }
        let ours = (self.replicas().count(), std::cmp::Reverse(self.me.id));
        if ours < (theirs.len(), std::cmp::Reverse(sender.id)) {
            Meeting::JoinTheirs
        } else {
            Meeting::AwaitTheirs
        }
    }

    /// Whether a record in an announcement is not to be taken at its sender's word: a whole member of
    /// which this node, being whole, has not heard, from one that joins. Such a one may have found
    /// two clusters that were founded apart; those two have to [meet](Self::meet) themselves.
    pub fn is_hearsay(&self, sender: &Member, record: &Member) -> bool {
        self.me.phase == Phase::Whole
            && sender.phase != Phase::Whole
            && record.phase == Phase::Whole
            && record.id != self.me.id
            && record.id != sender.id
            && !self.others.contains_key(&record.id)
    }

    /// Takes in a record, from whomever it comes.
    pub fn merge(&mut self, record: Member) -> RecordChange {
        if record.id == self.me.id {
            return self.merge_own(&record);
        }
        match self.others.get_mut(&record.id) {
            None => {
                // Down until the failure detector or the member itself says otherwise.
                let (liveness, counts) = (Liveness::Down, record.phase == Phase::Whole);
                self.others.insert(record.id, Known { record, liveness, counts });
                RecordChange::Appeared
            }
            Some(known) if record.replaces(&known.record) => {
                let reborn = record.generation > known.record.generation;
                known.state(record);
                if reborn { RecordChange::Appeared } else { RecordChange::Advanced }
            }
            Some(_) => RecordChange::Nothing,
        }
    }

    fn merge_own(&self, record: &Member) -> RecordChange {
        let generation = record.generation;
        if self.me.phase == Phase::Left || generation < self.me.generation {
            RecordChange::Nothing
        } else if generation > self.me.generation {
            RecordChange::Outlived { generation }
        } else if record.phase > self.me.phase {
            RecordChange::Disputed { generation }
        } else {
            RecordChange::Nothing
        }
    }

    /// Takes in a record that came from its owner, over a connection it opened or answered on: the
    /// owner is alive.
    pub fn merge_announced(&mut self, record: Member) -> RecordChange {
        let (id, generation) = (record.id, record.generation);
        let change = self.merge(record);
        self.set_liveness(id, generation, Liveness::Alive);
        change
    }

    /// `found` answered at its own address. A member known there under another id, and down, lost its
    /// data directory: it is counted as one that left. (One that is up is somewhere else, and one of
    /// the two states a wrong address; that is for people to mend.) But not before the one in its
    /// place is whole: until then quorums would shrink with every lost disk, down to a number of
    /// nodes that a write may have passed by. Returns those members, as they are now.
    pub fn replace_by(&mut self, found: &Member) -> Vec<Member> {
        let mut replaced = Vec::new();
        if found.phase != Phase::Whole {
            return replaced;
        }
        for known in self.others.values_mut() {
            let lost = known.record.grpc_addr == found.grpc_addr
                && known.record.id != found.id
                && known.record.phase != Phase::Left
                && known.liveness == Liveness::Down;
            if lost {
                known.state(Member { phase: Phase::Left, ..known.record.clone() });
                replaced.push(known.record.clone());
            }
        }
        replaced
    }

    /// Removes a member that is down and will never come back: it gets nothing more and counts for
    /// no quorum. Its record, as one that left far above its last generation, spreads and wins like
    /// any other.
    ///
    /// # Errors
    /// [`CannotForget`].
    pub fn forget(&mut self, id: NodeId) -> Result<Forgotten, CannotForget> {
        if id == self.me.id {
            return Err(CannotForget::ThisNode(id));
        }
        let known = self.others.get_mut(&id).ok_or(CannotForget::Unknown(id))?;
        if known.record.phase == Phase::Left {
            return Ok(Forgotten::Before);
        }
        if known.liveness != Liveness::Down {
            return Err(CannotForget::NotDown(id));
        }
        let generation = known.record.generation.saturating_add(FORGOTTEN_AHEAD);
        known.state(Member { generation, phase: Phase::Left, ..known.record.clone() });
        Ok(Forgotten::Now(known.record.clone()))
    }

    /// Takes in what the failure detector says of a member's generation. Says whether that is news.
    pub fn set_liveness(&mut self, id: NodeId, generation: u64, liveness: Liveness) -> bool {
        match self.others.get_mut(&id) {
            Some(known) if generation >= known.record.generation && known.liveness != liveness => {
                known.liveness = liveness;
                true
            }
            _ => false,
        }
    }

    /// The record of a member other than this node.
    pub fn get(&self, id: NodeId) -> Option<&Member> {
        self.others.get(&id).map(|known| &known.record)
    }

    /// What this node believes of another member; a stranger is down.
    pub fn liveness(&self, id: NodeId) -> Liveness {
        self.others.get(&id).map_or(Liveness::Down, |known| known.liveness)
    }

    /// Every other member that has not left, by id: those that get every write.
    pub fn peers(&self) -> impl Iterator<Item = &Member> {
        self.others.values().map(|known| &known.record).filter(|m| m.phase != Phase::Left)
    }

    /// The members that count for quorums, this node first: those that are whole, up or down.
    pub fn replicas(&self) -> impl Iterator<Item = NodeId> {
        let whole = self.peers().filter(|m| m.phase == Phase::Whole).map(|m| m.id);
        std::iter::once(self.me.id).chain(whole)
    }

    /// The number that quorums are computed from: the [replicas](Self::replicas), and the members that
    /// were whole, have not left, and join again. They may have been part of a quorum, so it would be
    /// wrong to need fewer others before they are back: after a second change of members, which not
    /// everybody has heard of, a majority could miss a write.
    pub fn size(&self) -> usize {
        1 + self.others.values().filter(|known| known.counts).count()
    }

    /// Whether another member counts for the [size](Self::size).
    pub fn counts(&self, id: NodeId) -> bool {
        self.others.get(&id).is_some_and(|known| known.counts)
    }

    /// All records, this node's first.
    pub fn records(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.me).chain(self.others.values().map(|known| &known.record))
    }

    /// The other members with their states, by id.
    pub fn others(&self) -> impl Iterator<Item = (&Member, MemberState)> {
        self.others.values().map(|known| (&known.record, state(known.record.phase, known.liveness)))
    }

    /// This node's own state.
    pub const fn my_state(&self) -> MemberState {
        state(self.me.phase, Liveness::Alive)
    }
}

const fn state(phase: Phase, liveness: Liveness) -> MemberState {
    match (phase, liveness) {
        (Phase::Left, _) => MemberState::Left,
        (_, Liveness::Down) => MemberState::Down,
        (_, Liveness::Suspect) => MemberState::Suspect,
        (Phase::Joining, Liveness::Alive) => MemberState::Joining,
        (Phase::Whole, Liveness::Alive) => MemberState::Alive,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(id: u64, generation: u64, phase: Phase) -> Member {
        Member {
            id: NodeId::new(id),
            generation,
            phase,
            grpc_addr: format!("10.0.0.{id}:50071"),
            http_addr: format!("10.0.0.{id}:3000"),
        }
    }

    fn view() -> MemberView {
        MemberView::new(member(1, 1, Phase::Whole))
    }

    #[test]
    fn a_member_that_is_down_still_counts_until_it_leaves() {
        let mut view = view();
        view.merge_announced(member(2, 1, Phase::Whole));
        assert_eq!(view.replicas().count(), 2);
        view.set_liveness(NodeId::new(2), 1, Liveness::Down);
        assert_eq!(view.replicas().count(), 2);
        assert_eq!(view.others().next().map(|(_, s)| s), Some(MemberState::Down));
        view.merge(member(2, 1, Phase::Left));
        assert_eq!(view.replicas().count(), 1);
        assert_eq!(view.peers().count(), 0);
    }

    #[test]
    fn a_joining_member_gets_writes_but_counts_for_no_quorum() {
        let mut view = view();
        view.merge(member(2, 1, Phase::Joining));
        assert_eq!(view.peers().count(), 1);
        assert_eq!(view.replicas().count(), 1);
        assert_eq!(view.merge(member(2, 1, Phase::Whole)), RecordChange::Advanced);
        assert_eq!(view.replicas().count(), 2);
    }

    #[test]
    fn a_member_that_left_comes_back_with_a_new_generation_only() {
        let mut view = view();
        view.merge(member(2, 1, Phase::Left));
        assert_eq!(view.merge(member(2, 1, Phase::Whole)), RecordChange::Nothing);
        assert_eq!(view.merge(member(2, 2, Phase::Joining)), RecordChange::Appeared);
        assert_eq!(view.peers().count(), 1);
    }

    #[test]
    fn old_news_about_a_generation_that_has_passed_is_ignored() {
        let mut view = view();
        view.merge_announced(member(2, 5, Phase::Whole));
        assert!(!view.set_liveness(NodeId::new(2), 4, Liveness::Down));
        assert_eq!(view.liveness(NodeId::new(2)), Liveness::Alive);
        assert_eq!(view.merge(member(2, 4, Phase::Left)), RecordChange::Nothing);
    }

    #[test]
    fn a_node_told_that_it_left_disputes_it() {
        let mut view = view();
        let told = view.merge(member(1, 1, Phase::Left));
        assert_eq!(told, RecordChange::Disputed { generation: 1 });
        assert_eq!(
            view.merge(member(1, 3, Phase::Joining)),
            RecordChange::Outlived { generation: 3 }
        );
        view.rise_above(3);
        assert_eq!(view.merge(member(1, 3, Phase::Left)), RecordChange::Nothing);
        assert_eq!((view.me().generation, view.me().phase), (4, Phase::Whole));
        view.rise_above(2);
        assert_eq!(view.me().generation, 4);
    }

    #[test]
    fn a_node_that_leaves_does_not_dispute_that_it_left() {
        let mut view = view();
        view.enter(Phase::Left);
        assert_eq!(view.merge(member(1, 1, Phase::Left)), RecordChange::Nothing);
    }

    #[test]
    fn clusters_founded_apart_are_told_apart_and_the_smaller_one_joins() {
        let one = view();
        let mut two = MemberView::new(member(2, 1, Phase::Whole));
        two.merge_announced(member(3, 1, Phase::Whole));
        let stated = |v: &MemberView| -> Vec<_> { v.others().map(|(m, _)| m.clone()).collect() };
        assert_eq!(one.meet(two.me(), &stated(&two)), Meeting::JoinTheirs);
        assert_eq!(two.meet(one.me(), &stated(&one)), Meeting::AwaitTheirs);
        // Of two lone founders the one with the larger id.
        let four = MemberView::new(member(4, 1, Phase::Whole));
        assert_eq!(one.meet(four.me(), &[]), Meeting::AwaitTheirs);
        assert_eq!(four.meet(one.me(), &[]), Meeting::JoinTheirs);
    }

    #[test]
    fn members_that_know_somebody_in_common_or_are_joining_are_of_one_cluster() {
        let mut one = view();
        one.merge(member(3, 1, Phase::Whole));
        let two = member(2, 1, Phase::Whole);
        assert_eq!(one.meet(&two, &[member(3, 1, Phase::Whole)]), Meeting::Mates);
        assert_eq!(one.meet(&two, &[member(1, 1, Phase::Whole)]), Meeting::Mates);
        assert_eq!(one.meet(&member(3, 1, Phase::Whole), &[]), Meeting::Mates);
        assert_eq!(one.meet(&member(5, 1, Phase::Joining), &[]), Meeting::Mates);
        // One that left is not somebody in common.
        assert_ne!(one.meet(&two, &[member(3, 1, Phase::Left)]), Meeting::Mates);
    }

    #[test]
    fn an_old_generation_of_this_node_is_not_a_dispute() {
        let mut view = MemberView::new(member(1, 2, Phase::Joining));
        assert_eq!(view.merge(member(1, 1, Phase::Left)), RecordChange::Nothing);
    }

    #[test]
    fn a_node_that_lost_its_disk_replaces_the_member_at_its_address_once_that_is_down() {
        let mut view = view();
        let lost = member(2, 7, Phase::Whole);
        view.merge_announced(lost.clone());
        let joins = Member { grpc_addr: lost.grpc_addr.clone(), ..member(3, 1, Phase::Joining) };
        let whole = Member { phase: Phase::Whole, ..joins.clone() };
        view.merge_announced(joins.clone());
        // As long as it answers, somebody has just stated a wrong address.
        assert_eq!(view.replace_by(&whole), []);
        view.set_liveness(NodeId::new(2), 7, Liveness::Down);
        // It counts until somebody counts in its place.
        assert_eq!(view.replace_by(&joins), []);
        assert_eq!(view.replicas().count(), 2);
        view.merge_announced(whole.clone());
        let left = Member { phase: Phase::Left, ..lost };
        assert_eq!(view.replace_by(&whole), [left]);
        assert_eq!(view.replace_by(&whole), []);
        let peers: Vec<_> = view.peers().map(|m| m.id.as_u64()).collect();
        assert_eq!((peers, view.replicas().count(), view.size()), (vec![3], 2, 2));
    }

    /// Every sequence of five statements of a member, of three kinds, each of a later start.
    #[test]
    fn a_member_that_was_whole_counts_for_the_size_until_it_leaves() {
        let phases = [Phase::Joining, Phase::Whole, Phase::Left];
        for mut choice in 0..phases.len().pow(5) {
            let (mut view, mut counts) = (view(), false);
            for generation in 1..=5 {
                let phase = phases[choice % phases.len()];
                choice /= phases.len();
                view.merge(member(2, generation, phase));
                counts = phase == Phase::Whole || (counts && phase == Phase::Joining);
                assert_eq!(view.size(), 1 + usize::from(counts));
                assert_eq!(view.replicas().count(), 1 + usize::from(phase == Phase::Whole));
            }
            view.forget(NodeId::new(2)).unwrap();
            assert_eq!(view.size(), 1);
        }
    }

    /// Every liveness and phase of the member, and whether it can be forgotten then.
    #[test]
    fn only_a_member_that_is_down_is_forgotten_and_only_once() {
        let two = NodeId::new(2);
        assert_eq!(view().forget(two), Err(CannotForget::Unknown(two)));
        assert_eq!(view().forget(NodeId::new(1)), Err(CannotForget::ThisNode(NodeId::new(1))));
        for phase in [Phase::Joining, Phase::Whole, Phase::Left] {
            for liveness in [Liveness::Alive, Liveness::Suspect, Liveness::Down] {
                let mut view = view();
                view.merge(member(2, 7, phase));
                view.set_liveness(two, 7, liveness);
                let gone = member(2, 7 + FORGOTTEN_AHEAD, Phase::Left);
                let expected = match (phase, liveness) {
                    (Phase::Left, _) => Ok(Forgotten::Before),
                    (_, Liveness::Down) => Ok(Forgotten::Now(gone)),
                    _ => Err(CannotForget::NotDown(two)),
                };
                assert_eq!(view.forget(two), expected, "{phase:?} {liveness:?}");
                if expected.is_ok() {
                    assert_eq!((view.replicas().count(), view.peers().count()), (1, 0));
                    assert_eq!(view.forget(two), Ok(Forgotten::Before));
                }
            }
        }
    }

    #[test]
    fn a_forgotten_member_that_comes_back_counts_for_nothing_and_learns_that_it_has_to_join() {
        let mut one = view();
        one.merge(member(2, 7, Phase::Whole));
        one.forget(NodeId::new(2)).unwrap();
        // It has restarted many times meanwhile, without meeting anybody.
        let mut two = MemberView::new(member(2, 7_000, Phase::Whole));
        assert_eq!(one.merge_announced(two.me().clone()), RecordChange::Nothing);
        assert_eq!((one.replicas().count(), one.peers().count()), (1, 0));
        let told = one.get(NodeId::new(2)).unwrap().clone();
        let RecordChange::Outlived { generation } = two.merge(told) else {
            panic!("it does not notice");
        };
        two.rise_above(generation);
        two.enter(Phase::Joining);
        assert_eq!(one.merge_announced(two.me().clone()), RecordChange::Appeared);
        assert_eq!((one.replicas().count(), one.peers().count()), (1, 1));
    }

    #[test]
    fn what_others_still_say_of_a_forgotten_member_does_not_bring_it_back() {
        let (mut one, mut three) = (view(), MemberView::new(member(3, 1, Phase::Whole)));
        for view in [&mut one, &mut three] {
            view.merge(member(2, 7, Phase::Whole));
        }
        let Ok(Forgotten::Now(gone)) = one.forget(NodeId::new(2)) else { panic!("not forgotten") };
        let heard = three.get(NodeId::new(2)).unwrap().clone();
        assert_eq!(one.merge(heard), RecordChange::Nothing);
        assert_eq!(three.merge(gone), RecordChange::Appeared);
        assert_eq!(three.replicas().count(), 1);
    }

    #[test]
    fn a_member_heard_of_is_down_until_it_is_heard() {
        let mut view = view();
        view.merge(member(2, 1, Phase::Whole));
        assert_eq!(view.liveness(NodeId::new(2)), Liveness::Down);
        assert!(view.set_liveness(NodeId::new(2), 1, Liveness::Alive));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn views_agree_whatever_the_order_of_records(
            records in proptest::collection::vec((2u64..5, 1u64..4, 0u8..3), 0..12)
        ) {
            let phase = |p| match p { 0 => Phase::Joining, 1 => Phase::Whole, _ => Phase::Left };
            let records: Vec<_> =
                records.into_iter().map(|(id, g, p)| member(id, g, phase(p))).collect();
            let (mut forward, mut backward) = (view(), view());
            for r in &records {
                forward.merge(r.clone());
            }
            for r in records.iter().rev() {
                backward.merge(r.clone());
                backward.merge(r.clone());
            }
            let list = |v: &MemberView| v.records().cloned().collect::<Vec<_>>();
            prop_assert_eq!(list(&forward), list(&backward));
        }
    }
}
