//! What the nodes of a simulation lose: their data, power, time, and each other for good. And what an
//! operator does about it.

use std::sync::Arc;
use std::time::Duration;

use lally::domain::{Key, MemberState, Version};

use super::cluster::Cluster;
use super::disk::Disk;
use super::history::Destroyed;
use super::world::{Detail, Site};

/// How long an operator waits for an answer.
const FORGET_WITHIN: Duration = Duration::from_secs(5);

/// How a node ends for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Death,
    Leave,
}

/// What is lost of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Everything,
    Log,
}

impl Cluster {
    /// Takes the data of a node away, unless another one has not recovered from that yet.
    pub fn wipe(&self, site: Site, loss: Loss) {
        let nobody_recovers = self.places().values().all(|place| !place.recovering);
        if !nobody_recovers && !self.reckless {
            return;
        }
        self.crash(site);
        self.record_destroyed(site);
        self.world.note("wiped", site, site, Detail::Text(format!("{loss:?}")));
        let mut places = self.places();
        let Some(place) = places.get_mut(&site) else { return };
        place.recovering = true;
        match loss {
            Loss::Everything => place.disk = Disk::default(),
            Loss::Log => {
                place.disk.lose_log();
                place.fresh = true;
            }
        }
    }

    /// A power cut: as a crash, but what was not synced is lost although it was acknowledged.
    pub fn lose_power(&self, site: Site) {
        let nobody_recovers = self.places().values().all(|place| !place.recovering);
        if self.world.always_syncs || (!nobody_recovers && !self.reckless) {
            return self.crash(site);
        }
        self.crash(site);
        self.world.note("power cut", site, site, Detail::Nothing);
        let lost = {
            let mut places = self.places();
            let Some(place) = places.get_mut(&site) else { return };
            let before = place.disk.kept().newest;
            place.disk.lose_power(&self.world);
            place.recovering = true;
            let after = place.disk.kept().newest;
            let mut lost = Vec::new();
            for (key, had) in before {
                let above = after.get(&key).map(|entry| entry.version);
                if above < Some(had.version) {
                    lost.push((above, key, had.version));
                }
            }
            lost
        };
        for (above, key, up_to) in lost {
            let kept = self.newest_version(&key);
            let mut records = self.records();
            if kept < Some(up_to) {
                let key = key.clone();
                records.destroyed.push(Destroyed { key, above: kept, up_to });
            }
            records.cut.push(Destroyed { key, above, up_to });
        }
    }

    /// The newest version of a key on any disk.
    fn newest_version(&self, key: &Key) -> Option<Version> {
        let places = self.places();
        let disks = places.values().filter(|place| !place.gone).map(|place| place.disk.kept());
        disks.filter_map(|disk| disk.newest.get(key).map(|entry| entry.version)).max()
    }

    /// A node that dies, or leaves, and never comes back: only while others are left that have what
    /// they need.
    pub fn end(self: &Arc<Self>, site: Site, ending: Ending) {
        {
            let mut places = self.places();
            let left = places.values().filter(|place| !place.gone).count();
            let nobody_recovers = places.values().all(|place| !place.recovering);
            let Some(place) = places.get_mut(&site).filter(|place| place.running.is_some()) else {
                return;
            };
            if left <= 2 || !nobody_recovers {
                return;
            }
            (place.gone, place.recovering) = (true, true);
        }
        self.world.note("ends", site, site, Detail::Text(format!("{ending:?}")));
        match ending {
            Ending::Death => {
                self.crash(site);
                self.record_destroyed(site);
            }
            Ending::Leave => self.leave(site),
        }
    }

    /// An operator has a node forget a member that is dead, or has left for good.
    pub async fn forget(&self, site: Site) {
        let id = self.places().get(&site).filter(|p| p.running.is_none()).and_then(|p| p.last_id);
        let (Some(id), Some(through)) = (id, self.world.one_of(&self.running())) else { return };
        let forgotten = self.world.held(through.site, through.client.forget(id));
        let forgotten = tokio::time::timeout(FORGET_WITHIN, forgotten).await;
        let detail = Detail::Text(format!("{id} by {}: {forgotten:?}", through.site));
        self.world.note("forgets", through.site, site, detail);
    }

    /// The operator goes on until nobody waits any more for those that do not come back.
    pub async fn forget_the_gone(&self) {
        let gone: Vec<_> = {
            let places = self.places();
            let gone = places.iter().filter(|(_, place)| place.gone);
            gone.filter_map(|(site, place)| Some((*site, place.last_id?))).collect()
        };
        for (site, id) in gone {
            let waited_for = self.running().iter().any(|running| {
                let status = running.client.cluster();
                let member = status.members.iter().find(|member| member.id() == id);
                member.is_some_and(|member| member.state != MemberState::Left)
            });
            if waited_for {
                self.forget(site).await;
            }
        }
    }

    /// The process at a site stands still, timers and all, as after SIGSTOP.
    pub fn freeze(&self, site: Site, lasts: Duration) {
        if !self.is_up(site) {
            return;
        }
        self.world.freeze(site, lasts);
        self.network.hold_up(site, lasts);
        let now = self.world.now();
        self.records().frozen.push((site, now, now + lasts));
    }

    /// Notes which versions are on no other disk.
    pub(super) fn record_destroyed(&self, site: Site) {
        let places = self.places();
        let Some(lost) = places.get(&site).map(|place| place.disk.kept().newest) else { return };
        let others: Vec<_> = places
            .iter()
            .filter(|(other, place)| **other != site && !place.gone)
            .map(|(_, place)| place.disk.kept().newest)
            .collect();
        for (key, entry) in lost {
            let kept = others.iter().filter_map(|disk| disk.get(&key)).map(|kept| kept.version);
            let above = kept.max();
            if above < Some(entry.version) {
                let destroyed = Destroyed { key, above, up_to: entry.version };
                self.records().destroyed.push(destroyed);
            }
        }
    }
}
