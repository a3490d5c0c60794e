//! `Joining`: brings this node (back) into its cluster.
//!
//! Round by round: state this node at every address it knows (from that moment on it is sent every
//! write), compare data with the members that answer, and let [`Start`] decide whether that is
//! enough. Rounds are repeated for ever, with backoff; seeds are resolved anew in each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::domain::{Contact, Member, NodeId, Phase, Start};
use crate::ports::{Peer, PeerError, Refusal};

use super::announcer::Announcer;
use super::members::Members;
use super::reconcile::{FirstLook, Reconciler};
use super::stage::{LifeStage, Stage};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Brings this node in.
pub(crate) struct Joining {
    pub(crate) start: Start,
    pub(crate) seeds: Vec<String>,
    pub(crate) members: Arc<Members>,
    pub(crate) announcer: Arc<Announcer>,
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) stage: Arc<Stage>,
}

/// What a round of announcements found.
#[derive(Default)]
struct Round {
    answered: BTreeMap<NodeId, Member>,
    /// Addresses that were tried and are not this node's own.
    others: usize,
    /// Why somebody did not answer, for whoever waits.
    failure: Option<String>,
}

impl Joining {
    /// Runs until this node is whole and has compared itself with whoever answers.
    pub(crate) async fn run(self) {
        self.stage.advance(match self.start {
            Start::Found | Start::Resume => LifeStage::CatchingUp,
            Start::Join | Start::Return => LifeStage::Joining("joining the cluster".into()),
        });
        let mut backoff = BACKOFF_MIN;
        loop {
            let round = self.announce_everywhere().await;
            let contacts = self.compare(&round).await;
            if self.start.is_complete(self.members.me(), &contacts, round.others == 0) {
                break self.complete(contacts.len()).await;
            }
            self.report(&round);
            tokio::time::sleep(backoff).await;
            backoff = BACKOFF_MAX.min(backoff * 2);
        }
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
        let any_whole = answered().any(|member| member.phase == Phase::Whole);
        let newcomer = self.start == Start::Join;
        let mut contacts = Vec::new();
        for member in answered() {
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

    async fn complete(&self, compared: usize) {
        if self.start.first_phase() == Phase::Joining {
            self.members.restate(0, Phase::Whole);
            self.announcer.save().await;
        }
        self.stage.advance(LifeStage::Serving);
        let members = self.members.view().replicas().count();
        tracing::info!(members, compared, "ready");
    }

    fn report(&self, round: &Round) {
        let why = match (&round.failure, round.answered.len()) {
            (Some(failure), 0) => format!("joining the cluster: no member answered; {failure}"),
            (_, 0) => "joining the cluster: no member answered".to_owned(),
            (_, n) => format!("joining the cluster: getting the data from {n} members"),
        };
        tracing::warn!(reason = why, "not joined yet, trying again");
        if self.start.first_phase() == Phase::Joining {
            self.stage.advance(LifeStage::Joining(why));
        }
    }
}

impl Round {
    fn note(&mut self, addr: &str, outcome: Result<Member, PeerError>) {
        match outcome {
            Err(PeerError::Refused(Refusal::Myself)) => {}
            Ok(member) => {
                self.others += 1;
                self.answered.insert(member.id, member);
            }
            Err(error) => {
                self.others += 1;
                self.failure = Some(format!("{addr}: {error}"));
            }
        }
    }
}
