//! Looking at a cluster from outside: whose copies count, whether it is settled, what it holds.

use std::collections::{BTreeMap, BTreeSet};

use lally::adapters::memory::MemoryStore;
use lally::domain::{BucketSet, Digest, Entry, Key, MemberState, NodeId, Phase};
use lally::ports::{ClusterStatus, Store};

use super::cluster::{Cluster, Running};
use super::history::{FinalState, Newcomer};
use super::network::Network;

/// Bytes that a hint for a key of two letters costs: its text, and the places for it.
const HINT_BYTES: u64 = 66;

impl Cluster {
    /// Looks at all nodes, and records whose copies count.
    pub fn look(&self) {
        let mut counting = BTreeSet::new();
        let mut overruns = Vec::new();
        let mut collected = false;
        for running in self.running() {
            collected |= running.client.stats().tombstones_dropped > 0;
            let status = running.client.cluster();
            if status.node.member.phase == Phase::Whole {
                self.note_newcomer(&running);
                counting.insert(running.site);
                if running.client.readiness().is_ok()
                    && let Some(place) = self.places().get_mut(&running.site)
                {
                    place.recovering = false;
                }
            }
            let others = status.members.iter().filter(|m| m.member.phase == Phase::Whole);
            counting.extend(others.filter_map(|m| Network::site(&m.member.grpc_addr)));
            let too_many = |hints: &u64| hints * HINT_BYTES > self.max_hint_bytes as u64;
            let hints = status.members.iter().map(|member| member.hints).find(too_many);
            overruns.extend(hints.map(|n| format!("site {} keeps {n} hints", running.site)));
        }
        let mut records = self.records();
        if records.replicas.last().is_none_or(|(_, last)| *last != counting) {
            records.replicas.push((self.world.now(), counting));
        }
        records.overruns.extend(overruns);
        records.collected |= collected;
    }

    /// Records what a node holds that began empty and counts from now on.
    fn note_newcomer(&self, running: &Running) {
        let mut places = self.places();
        let Some(place) = places.get_mut(&running.site) else { return };
        let Some(started) = place.empty_since.take() else { return };
        let held = entries(&running.store).into_iter().map(|(key, entry)| (key, entry.version));
        let (site, counted) = (running.site, self.world.now());
        let horizon = running.client.cluster().horizon.unwrap_or_default();
        let newcomer = Newcomer { site, started, counted, held: held.collect(), horizon };
        self.records().newcomers.push(newcomer);
    }

    /// Why the cluster is not what it has to become when nothing is wrong.
    pub fn unsettled(&self) -> Option<String> {
        let running = self.running();
        if running.len() != self.sites().into_iter().filter(|site| !self.is_gone(*site)).count() {
            return Some("not every node runs".into());
        }
        for node in &running {
            let (site, status) = (node.site, node.client.cluster());
            if let Err(why) = node.client.readiness() {
                return Some(format!("site {site} is not ready: {why}"));
            }
            let mates = running.iter().filter(|other| self.are_together(site, other.site));
            let mates = mates.map(|other| other.id).collect();
            if let Some(why) = unsettled_view(&status, &mates) {
                return Some(format!("site {site} {why}"));
            }
        }
        let mut digests: Vec<Digest> =
            running.iter().map(|running| running.store.digest()).collect();
        digests.dedup();
        (digests.len() > 1).then(|| "not all hold the same".into())
    }

    /// What every running node holds.
    pub fn finals(&self) -> Vec<FinalState> {
        let places = self.places();
        let running = places.values().filter_map(|place| Some((place, place.running.clone()?)));
        running
            .map(|(place, running)| {
                let kept = place.disk.kept();
                FinalState {
                    site: running.site,
                    digest: running.store.digest(),
                    entries: entries(&running.store),
                    logged: kept.held(),
                    horizon: kept.horizon,
                    forgotten: kept.forgotten(),
                }
            })
            .collect()
    }
}

/// Everything in a store.
pub fn entries(store: &MemoryStore) -> BTreeMap<Key, Entry> {
    let keys = store.keys_in(&BucketSet::all());
    keys.into_iter().filter_map(|key| Some((key.clone(), store.get(&key)?))).collect()
}

/// What is wrong with a node's view of the others.
fn unsettled_view(status: &ClusterStatus, all: &BTreeSet<NodeId>) -> Option<String> {
    let mut members = BTreeSet::from([status.node.member.id]);
    for member in status.members.iter().filter(|m| m.state != MemberState::Left) {
        members.insert(member.id());
        if member.state != MemberState::Alive {
            return Some(format!("sees {} as {:?}", member.id(), member.state));
        }
        if member.hints > 0 || !member.in_sync {
            let (id, hints) = (member.id(), member.hints);
            return Some(format!("is not in sync with {id} ({hints} hints)"));
        }
    }
    (members != *all).then(|| format!("knows {members:?}, not {all:?}"))
}
