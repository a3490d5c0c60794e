//! `Reconciler`: the comparison of two nodes, the one mechanism that alone makes replicas equal.
//!
//! Two nodes compare digests; if they differ, those of groups of buckets, then those of the buckets
//! in groups that differ; then what differs in those buckets goes both ways (`exchange.rs`), through
//! the ordinary merge. A second look, a moment later, filters differences that are only writes under
//! way. A comparison that breaks off
//! has lost nothing: what was exchanged is merged, and the next one finds the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::domain::{
    BucketSet, DigestLevel, EqualRound, Evidence, Liveness, NodeId, Phase, Timestamp,
};
use crate::ports::{Clock, ComparisonStats, Peer, PeerError};

use super::exchange::{Exchange, Moved, Sides};
use super::members::Members;
use super::settings::time_for;

/// Between the two looks: longer than a write takes to reach a peer that is up.
const SECOND_LOOK_AFTER: Duration = Duration::from_millis(100);

/// Rounds of one comparison; under constant writes the last differences are always writes under
/// way, so a comparison that needs more is repeated later.
const MAX_ROUNDS: usize = 8;

/// Entries stamped this long before a round began were not under way: they were missing.
const UNDER_WAY_NS: u64 = 2_000_000_000;

/// A peer whose comparison failed is tried again this much later.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Whether differences are looked at twice before they are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FirstLook {
    /// Exchange at once what differs: this node is known to lack data.
    Trusted,
    /// Look again first: most differences between two complete nodes are writes under way.
    Checked,
}

/// Compares this node with others.
pub(crate) struct Reconciler {
    members: Arc<Members>,
    sides: Sides,
    clock: Arc<dyn Clock>,
    /// Peers to compare with as soon as possible.
    due: Mutex<BTreeSet<NodeId>>,
    wake: Notify,
    /// Whether the last comparison with a peer ended in equality.
    in_sync: Mutex<BTreeMap<NodeId, bool>>,
    /// The last ones that did, as evidence.
    evidence: Mutex<Evidence>,
    /// One comparison at a time: two at once would exchange the same entries twice.
    comparing: tokio::sync::Mutex<()>,
}

impl Reconciler {
    pub(crate) fn new(members: Arc<Members>, sides: Sides, clock: Arc<dyn Clock>) -> Self {
        Self {
            members,
            sides,
            clock,
            due: Mutex::default(),
            wake: Notify::new(),
            in_sync: Mutex::default(),
            evidence: Mutex::default(),
            comparing: tokio::sync::Mutex::default(),
        }
    }

    /// Asks for a comparison with a member as soon as possible.
    pub(crate) fn request(&self, member: NodeId) {
        lock(&self.due).insert(member);
        lock(&self.in_sync).insert(member, false);
        self.wake.notify_one();
    }

    /// Whether the last comparison with a member ended in equality.
    pub(crate) fn is_in_sync(&self, member: NodeId) -> bool {
        lock(&self.in_sync).get(&member).copied().unwrap_or(false)
    }

    /// As if a comparison had just ended in equality.
    #[cfg(test)]
    pub(crate) fn believe_in_sync(&self, member: NodeId) {
        lock(&self.in_sync).insert(member, true);
    }

    /// What was compared and exchanged since the start.
    pub(crate) fn counts(&self) -> ComparisonStats {
        let mut now = ComparisonStats::default();
        self.sides.count(|counts| now = *counts);
        now
    }

    /// Compares with whoever is due, and with somebody every `interval` on average, for as long as
    /// the node runs.
    pub(crate) async fn run(&self, interval: Duration, random_seed: u64) {
        let mut random = StdRng::seed_from_u64(random_seed);
        let mut next_round = Instant::now() + interval.mul_f64(random.random_range(0.5..1.5));
        loop {
            tokio::select! {
                // In this order: members that are always due must not put off the regular round.
                biased;
                () = tokio::time::sleep_until(next_round) => {
                    next_round += interval.mul_f64(random.random_range(0.5..1.5));
                    self.pick_one(&mut random);
                }
                () = self.wake.notified() => {}
            }
            if !self.compare_with_all_due().await {
                tokio::time::sleep(RETRY_AFTER).await;
                self.wake.notify_one();
            }
        }
    }

    /// Compares with one peer until both hold the same. Says whether they do.
    pub(crate) async fn reconcile(&self, peer: &Peer, first: FirstLook) -> Result<bool, PeerError> {
        let _turn = self.comparing.lock().await;
        let generation = self.members.view().get(peer.id).map(|member| member.generation);
        let beyond = self.beyond(peer.id);
        let result = self.rounds(peer, first, beyond).await;
        lock(&self.in_sync).insert(peer.id, matches!(result, Ok(Some(_))));
        if let (Ok(Some(began)), Some(generation)) = (&result, generation) {
            lock(&self.evidence).record(peer.id, EqualRound { generation, began: *began });
        }
        if let (Ok(Some(began)), Some(horizon)) = (&result, beyond) {
            // It holds everything up to there, and this node holds the same.
            let certified = self.sides.replica.certify(horizon, *began).await;
            certified.map_err(|error| PeerError::Rejected(error.to_string()))?;
            self.members.restate();
        }
        result.map(|equal| equal.is_some())
    }

    /// What the comparisons so far prove.
    pub(crate) fn evidence(&self) -> Evidence {
        let mut evidence = lock(&self.evidence);
        if let Some(at) = self.sides.replica.fence().last_late() {
            evidence.disturb(at);
        }
        evidence.clone()
    }

    /// Entries put into the quarantine.
    pub(crate) fn quarantined(&self) -> u64 {
        self.sides.ghosts.count()
    }

    /// The horizon of a member that is certified further than this node, while this node joins: what
    /// is older than that and unknown there is a ghost. (A whole node is about to be asked itself.)
    /// Not while there are members that do not know of each other: it says nothing of what those of
    /// another cluster hold.
    fn beyond(&self, peer: NodeId) -> Option<Timestamp> {
        let (theirs, view) = (self.members.statements().horizon_of(peer), self.members.view());
        if view.me().phase != Phase::Joining || theirs <= self.members.horizon() {
            return None;
        }
        let whole: Vec<_> =
            view.peers().filter(|m| m.phase == Phase::Whole).map(|m| m.id).collect();
        (!self.members.statements().are_apart(&whole)).then_some(theirs)
    }

    /// When the look at the data began that found both equal, if one did.
    async fn rounds(
        &self,
        peer: &Peer,
        first: FirstLook,
        beyond: Option<Timestamp>,
    ) -> Result<Option<Timestamp>, PeerError> {
        for round in 0..MAX_ROUNDS {
            let began = self.clock.now();
            self.sides.count(|counts| counts.rounds += 1);
            let mut differing = self.differing(peer).await?;
            if differing.is_empty() {
                return Ok(Some(began));
            }
            if round > 0 || first == FirstLook::Checked {
                tokio::time::sleep(SECOND_LOOK_AFTER).await;
                differing = differing.intersection(&self.differing(peer).await?);
                if differing.is_empty() {
                    return Ok(Some(began));
                }
            }
            let moved = self.exchange(peer, differing, beyond).await?;
            tracing::info!(peer = %peer.id, pulled = moved.pulled, pushed = moved.pushed,
                refused = moved.refused, "data compared and exchanged");
            if moved.refused > 0 {
                // This node lacks them until its clock is right, or they have come of age.
                return Ok(None);
            }
            let settled = moved.vanished == 0
                && moved.oldest.is_none_or(|at| began.nanos_after(at) < UNDER_WAY_NS);
            if settled && round > 0 {
                return Ok(Some(began));
            }
        }
        Ok(None)
    }

    /// The buckets in which this node and the peer differ.
    async fn differing(&self, peer: &Peer) -> Result<BucketSet, PeerError> {
        let theirs = self.sides.transport.digest(peer, self.sides.peer_timeout).await?;
        if theirs == self.sides.replica.store().digest() {
            return Ok(BucketSet::none());
        }
        let theirs = self.level_digests(peer, DigestLevel::Groups).await?;
        let ours = DigestLevel::Groups.of(&self.sides.replica.store().bucket_digests());
        let groups = DigestLevel::differing_groups(&ours, &theirs);
        let theirs = self.level_digests(peer, DigestLevel::BucketsOf(groups.clone())).await?;
        Ok(BucketSet::differing(&groups, &self.sides.replica.store().bucket_digests(), &theirs))
    }

    async fn level_digests(&self, peer: &Peer, level: DigestLevel) -> Result<Vec<u64>, PeerError> {
        let timeout = time_for(level.len() * size_of::<u64>(), self.sides.peer_timeout);
        self.sides.transport.level_digests(peer, level, timeout).await
    }

    /// Takes over what the peer holds newer in these buckets, and gives it what it lacks.
    async fn exchange(
        &self,
        peer: &Peer,
        buckets: BucketSet,
        beyond: Option<Timestamp>,
    ) -> Result<Moved, PeerError> {
        self.sides.count(|counts| counts.differing_buckets += buckets.len() as u64);
        let store = self.sides.replica.store();
        let own_keys = self.sides.walks.keys_in(store, buckets.clone()).await;
        Exchange::new(&self.sides, peer, own_keys, beyond).run(&buckets).await
    }

    /// Says whether every comparison went through.
    async fn compare_with_all_due(&self) -> bool {
        let view = self.members.view();
        let due = std::mem::take(&mut *lock(&self.due));
        let mut all_well = true;
        for id in due {
            // One that joins fetches what it lacks; all others giving it everything would only be
            // in its way.
            let Some(member) = view.get(id).filter(|m| m.phase == Phase::Whole) else { continue };
            if view.liveness(id) == Liveness::Down {
                continue;
            }
            let outcome = self.reconcile(&Peer::from(member), FirstLook::Checked).await;
            if let Err(error) = &outcome {
                tracing::debug!(peer = %id, %error, "comparison broken off");
            }
            if outcome != Ok(true) {
                all_well = false;
                lock(&self.due).insert(id);
            }
        }
        all_well
    }

    fn pick_one(&self, random: &mut StdRng) {
        let view = self.members.view();
        let up: Vec<_> =
            view.peers().map(|m| m.id).filter(|id| view.liveness(*id) == Liveness::Alive).collect();
        if !up.is_empty() {
            let picked = random.random_range(0..up.len());
            lock(&self.due).extend(up.get(picked));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
