//! `Joining`: brings this node (back) into its cluster.
//!
//! Round by round: state this node at every address it knows (from that moment on it is sent every
//! write), compare data with the members that answer, and let [`Start`] decide whether that is
//! enough. Rounds are repeated for ever, with backoff; seeds are resolved anew in each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::domain::{Contact, Member, NodeId, Phase, Roundup, Start};
use crate::ports::{Peer, PeerError, Refusal};

use super::announcer::Announcer;
use super::apply::Replica;
use super::members::Members;
use super::reconcile::{FirstLook, Reconciler};
use super::stage::{LifeStage, Stage};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// How long a former member waits for those that were whole when it left, before it goes on alone.
const PATIENCE: Duration = Duration::from_secs(10);

const JOINING: &str = "joining the cluster";

/// Brings this node in.
pub(crate) struct Joining {
    pub(crate) start: Start,
    pub(crate) seeds: Vec<String>,
    pub(crate) members: Arc<Members>,
    pub(crate) announcer: Arc<Announcer>,
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) stage: Arc<Stage>,
    pub(crate) replica: Arc<Replica>,
    /// The members of the last life.
    pub(crate) remembered: BTreeSet<NodeId>,
}

/// What a round of announcements found.
#[derive(Default)]
struct Round {
    answered: BTreeMap<NodeId, Member>,
    /// Addresses at which nobody answered.
    silent: usize,
    /// Why somebody did not answer, for whoever waits.
    failure: Option<String>,
}

impl Joining {
    /// Runs until this node is whole and has compared itself with whoever answers; and again
    /// whenever it turns out that it has to join once more.
    pub(crate) async fn run(mut self) {
        self.stage.advance(match self.start {
            Start::Found | Start::Resume => LifeStage::CatchingUp,
            Start::Join | Start::Rejoin | Start::Return => LifeStage::Joining(JOINING.into()),
        });
        let mut rejoins = self.members.rejoins();
        loop {
            self.join(&mut rejoins).await;
            if rejoins.changed().await.is_err() {
                return;
            }
            rejoins.mark_changed();
        }
    }

    async fn join(&mut self, rejoins: &mut watch::Receiver<u64>) {
        let (mut backoff, began) = (BACKOFF_MIN, Instant::now());
        let mut is_newcomer = false;
        loop {
            if rejoins.has_changed().is_ok_and(|changed| changed) {
                rejoins.mark_unchanged();
                (self.start, is_newcomer) = (Start::Join, false);
                self.stage.advance(LifeStage::Joining(JOINING.into()));
            }
            // What it was certified for, it was in another cluster, or before others went on.
            if !is_newcomer && matches!(self.start, Start::Join | Start::Rejoin) {
                if let Err(error) = self.replica.uncertify().await {
                    tracing::warn!(%error, "not joined yet, trying again");
                    tokio::time::sleep(BACKOFF_MAX).await;
                    continue;
                }
                is_newcomer = true;
            }
            let generation = self.members.view().me().generation;
            let round = self.announce_everywhere().await;
            if self.start == Start::Return && self.finds_another_cluster(&round) {
                self.start = Start::Join;
                continue;
            }
            if self.finds_strangers(&round) {
                tokio::time::sleep(backoff).await;
                backoff = BACKOFF_MAX.min(backoff * 2);
                continue;
            }
            self.members.state_horizon(generation);
            let contacts = self.compare(&round).await;
            let roundup = self.round_up(&round, contacts, began.elapsed() >= PATIENCE);
            if self.start.is_complete(self.members.me(), &roundup)
                && self.complete(generation).await
            {
                let members = self.members.view().replicas().count();
                tracing::info!(members, compared = roundup.answered.len(), "ready");
                return;
            }
            self.report(&round, &roundup);
            tokio::time::sleep(backoff).await;
            backoff = BACKOFF_MAX.min(backoff * 2);
        }
    }

    fn round_up(&self, round: &Round, answered: Vec<Contact>, patience_is_over: bool) -> Roundup {
        let view = self.members.view();
        // Whoever was at this node's address is no more: this node is counted in its place.
        let is_here = |member: &Member| member.grpc_addr == view.me().grpc_addr;
        let replaces = view.others().any(|(member, _)| is_here(member));
        // So is whoever was at another's: nobody waits for it, but its data is lost.
        let taken: BTreeSet<_> = round.answered.values().map(|m| m.grpc_addr.as_str()).collect();
        // Whoever joined, as far as this node has heard, may have become whole since then, and counted
        // for writes that the others did not see.
        let (gone, silent): (Vec<_>, Vec<_>) = view
            .peers()
            .filter(|member| !round.answered.contains_key(&member.id) && !is_here(member))
            .partition(|member| taken.contains(member.grpc_addr.as_str()));
        // However often a disk was lost there, one member was.
        let places_lost: BTreeSet<_> = gone
            .iter()
            .filter(|member| view.counts(member.id))
            .map(|member| member.grpc_addr.as_str())
            .collect();
        let joins_again = |m: &&Member| m.phase == Phase::Joining && view.counts(m.id);
        let rejoining = round.answered.values().filter(joins_again).count();
        Roundup {
            answered,
            silent_members: silent.len(),
            silent_addrs: round.silent,
            others_lost: rejoining + places_lost.len(),
            replaces_a_member: replaces,
            patience_is_over,
        }
    }

    /// Whether this node, which has its data, is told of a cluster in which it never was: it gives in,
    /// as members of one do that meet another.
    fn finds_another_cluster(&self, round: &Round) -> bool {
        let whole: Vec<_> = round.whole().collect();
        let another = !whole.is_empty() && !whole.iter().any(|id| self.remembered.contains(id));
        if another {
            tracing::warn!("met a cluster of this name, founded apart: joining it");
        }
        another
    }

    /// Whether members that answered do not know of each other. This node has brought them together,
    /// and waits for one side to give in: it must take nothing from one for the other.
    fn finds_strangers(&self, round: &Round) -> bool {
        let whole: Vec<_> = round.whole().collect();
        let joins = self.members.view().me().phase == Phase::Joining;
        let strangers = joins && self.members.statements().are_apart(&whole);
        if strangers {
            tracing::warn!("not joined yet: members that answered do not know each other");
        }
        strangers
    }

    /// States this node at every address known, also those that are only learned on the way.
    async fn announce_everywhere(&self) -> Round {
        let mut round = Round::default();
        let mut tried = BTreeSet::from([self.members.view().me().grpc_addr.clone()]);
        loop {
            let untried: Vec<String> =
                self.addresses().into_iter().filter(|addr| tried.insert(addr.clone())).collect();
            if untried.is_empty() {
                return round;
            }
            let announcements = untried.iter().map(|addr| self.announcer.announce_to(addr));
            for (addr, outcome) in untried.iter().zip(join_all(announcements).await) {
                round.note(addr, outcome);
            }
        }
    }

    /// Seeds, and where members were last; those that left may have come back.
    fn addresses(&self) -> BTreeSet<String> {
        let view = self.members.view();
        let known = view.others().map(|(member, _)| member.grpc_addr.clone());
        self.seeds.iter().cloned().chain(known).collect()
    }

    /// Compares data with those that answered: members that are whole first; if there are none,
    /// everybody, since one of them may hold what the others need.
    async fn compare(&self, round: &Round) -> Vec<Contact> {
        let answered = || round.answered.values().filter(|m| m.phase != Phase::Left);
        let any_whole = round.whole().next().is_some();
        let newcomer = matches!(self.start, Start::Join | Start::Rejoin);
        let mut contacts = Vec::new();
        let mut in_turn: Vec<_> = answered().collect();
        // Whose word counts on what was removed long ago: first who knows most.
        in_turn.sort_by_key(|member| {
            std::cmp::Reverse(self.members.statements().horizon_of(member.id))
        });
        for member in in_turn {
            let needed = !(newcomer && any_whole) || member.phase == Phase::Whole;
            let compared = needed && self.compare_with(member).await;
            contacts.push(Contact { id: member.id, phase: member.phase, compared });
        }
        contacts
    }

    async fn compare_with(&self, member: &Member) -> bool {
        match self.reconciler.reconcile(&Peer::from(member), FirstLook::Trusted).await {
            Ok(equal) => equal,
            Err(error) => {
                tracing::warn!(peer = %member.id, %error, "comparison broken off, trying again");
                false
            }
        }
    }

    /// Says whether this node counts from now on.
    async fn complete(&self, generation: u64) -> bool {
        if !self.members.become_whole(generation) {
            return false;
        }
        self.announcer.save().await;
        self.stage.advance(LifeStage::Serving);
        true
    }

    fn report(&self, round: &Round, roundup: &Roundup) {
        let missing = roundup.silent_members;
        let state = match (round.answered.len(), missing) {
            (0, _) => "no member answered".to_owned(),
            (n, 0) => format!("getting the data from {n} members"),
            (n, missing) => format!("{n} members answered, {missing} others did not"),
        };
        let failure = round.failure.as_ref().map(|why| format!("; {why}")).unwrap_or_default();
        let why = format!("{JOINING}: {state}{failure}");
        tracing::warn!(reason = why, "not joined yet, trying again");
        if self.members.view().me().phase == Phase::Joining {
            self.stage.advance(LifeStage::Joining(why));
        }
    }
}

impl Round {
    /// The whole members that answered.
    fn whole(&self) -> impl Iterator<Item = NodeId> {
        self.answered.values().filter(|member| member.phase == Phase::Whole).map(|member| member.id)
    }

    fn note(&mut self, addr: &str, outcome: Result<Member, PeerError>) {
        match outcome {
            Err(PeerError::Refused(Refusal::Myself)) => {}
            Ok(member) => {
                self.answered.insert(member.id, member);
            }
            Err(error) => {
                self.silent += 1;
                self.failure = Some(format!("{addr}: {error}"));
            }
        }
    }
}
