//! `Collector`: has all members forget old tombstones, together.
//!
//! One member proposes: the whole one with the smallest id of those that are up. It compares itself
//! with all others, and when that proves that everybody holds everything up to a horizon
//! (`domain/horizon.rs`), has each certify itself there, and then itself. A member that does not
//! answer is asked again on the next occasion; one that stays behind joins again by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use crate::domain::{Liveness, MemberView, NodeId, Proposal, counted, is_proposer};
use crate::ports::{Certification, Clock, Peer, PeerTransport};

use super::apply::Replica;
use super::members::Members;
use super::reconcile::{FirstLook, Reconciler};

/// The longest time between two proposals.
const INTERVAL_MAX: Duration = Duration::from_secs(600);

/// How long a member may take to certify itself: it writes to its log and walks over its keys.
const FENCE_WITHIN: Duration = Duration::from_secs(10);

/// Has old tombstones forgotten.
pub(crate) struct Collector {
    pub(crate) members: Arc<Members>,
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) grace: Duration,
    pub(crate) max_absence: Duration,
}

/// What is remembered from one occasion to the next.
#[derive(Default)]
struct Memory {
    /// Since when members have been down.
    down_since: BTreeMap<NodeId, Instant>,
    /// What was proposed last, and not taken by all.
    last: Option<Proposal>,
}

impl Collector {
    /// Proposes for as long as the node runs.
    pub(crate) async fn run(self, random_seed: u64) {
        let mut random = StdRng::seed_from_u64(random_seed);
        let interval = (self.grace / 10).min(INTERVAL_MAX);
        let mut memory = Memory::default();
        loop {
            tokio::time::sleep(interval.mul_f64(random.random_range(0.75..1.25))).await;
            self.collect(&mut memory).await;
        }
    }

    async fn collect(&self, memory: &mut Memory) {
        let view = self.members.view();
        memory.note_absences(&view);
        if !is_proposer(&view) {
            return;
        }
        if let Some(last) = memory.last.take() {
            memory.last = self.ask(last).await;
        }
        let given_up =
            |id| memory.down_since.get(&id).is_some_and(|at| at.elapsed() > self.max_absence);
        let Some(members) = counted(&view, given_up) else { return };
        if !self.is_worth_it() {
            return;
        }
        for member in view.peers().filter(|member| members.contains_key(&member.id)) {
            match self.reconciler.reconcile(&Peer::from(member), FirstLook::Checked).await {
                Ok(true) => {}
                other => {
                    tracing::debug!(peer = %member.id, ?other, "not equal: no tombstones forgotten");
                    return;
                }
            }
        }
        let evidence = self.reconciler.evidence();
        let proposal = evidence.propose(self.clock.now(), nanos(self.grace), &members);
        // What was compared may have restarted since.
        let Some(proposal) = proposal.filter(|p| self.grows(p.horizon)) else { return };
        memory.last = self.ask(proposal.clone()).await;
        let refused = memory.last.as_ref().map_or(0, |missed| missed.members.len());
        if refused > 0 && refused == proposal.members.len() {
            return;
        }
        match self.replica.certify(proposal.horizon, proposal.since).await {
            Ok(()) => self.members.restate(),
            Err(error) => tracing::warn!(%error, "no tombstones forgotten"),
        }
    }

    fn is_worth_it(&self) -> bool {
        let newest = self.clock.now().as_nanos().saturating_sub(nanos(self.grace));
        self.replica.store().stats().tombstones > 0
            && self.grows(crate::domain::Timestamp::from_nanos(newest))
    }

    fn grows(&self, horizon: crate::domain::Timestamp) -> bool {
        horizon.nanos_after(self.replica.horizon()) >= (nanos(self.grace) / 10).max(1)
    }

    /// Has the members of a proposal certify themselves. Returns what is left to be asked.
    async fn ask(&self, proposal: Proposal) -> Option<Proposal> {
        let view = self.members.view();
        let age = Duration::from_nanos(self.clock.now().nanos_after(proposal.since));
        let asked = proposal.members.iter().filter_map(|(id, generation)| {
            let as_compared = |m: &&crate::domain::Member| m.generation == *generation;
            let member = view.get(*id).filter(as_compared)?;
            let behind = self.members.statements().horizon_of(*id) < proposal.horizon;
            behind.then(|| (Peer::from(member), *generation))
        });
        let asking = asked.map(|(peer, generation)| async move {
            let horizon = proposal.horizon;
            let certification = Certification { horizon, generation, age };
            let certified = self.transport.fence(&peer, certification, FENCE_WITHIN).await;
            if let Err(error) = &certified {
                tracing::warn!(peer = %peer.id, %error, "member keeps its tombstones for now");
            }
            certified.is_err().then_some(peer.id)
        });
        let missed: BTreeSet<NodeId> = join_all(asking).await.into_iter().flatten().collect();
        let members: BTreeMap<_, _> =
            proposal.members.into_iter().filter(|(id, _)| missed.contains(id)).collect();
        (!members.is_empty()).then_some(Proposal { members, ..proposal })
    }
}

impl Memory {
    fn note_absences(&mut self, view: &MemberView) {
        self.down_since.retain(|id, _| view.liveness(*id) == Liveness::Down);
        for member in view.peers().filter(|m| view.liveness(m.id) == Liveness::Down) {
            self.down_since.entry(member.id).or_insert_with(Instant::now);
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
