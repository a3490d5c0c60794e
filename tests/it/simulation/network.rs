//! `Network`: the ways between the sites, and what is wrong with them at the moment.
//!
//! Nothing here knows what travels; that is `transport`'s. A message is delayed, held up by a site
//! that stands still, or does not arrive. A cut is one-way; a partition is many of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lally::domain::NodeId;
use lally::ports::ReplicaApi;
use tokio::time::Instant;

use super::world::{Site, World};

/// All ways. A clone is the same network.
#[derive(Clone)]
pub struct Network {
    pub world: Arc<World>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    attached: BTreeMap<Site, Attached>,
    lives: u64,
    /// How many faults cut a way at the moment.
    cuts: BTreeMap<(Site, Site), u32>,
    slow: BTreeMap<Site, Duration>,
    still_until: BTreeMap<Site, Instant>,
    noise: Noise,
    round_trips: BTreeMap<(Site, NodeId), Duration>,
}

/// A node that listens.
#[derive(Clone)]
pub struct Attached {
    pub id: NodeId,
    pub replica: Arc<dyn ReplicaApi>,
    /// Tells the lives of one site apart.
    pub life: u64,
}

/// What goes wrong on every way, in a thousand messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct Noise {
    /// Requests that do not arrive, which the caller is told.
    pub lost_requests: u64,
    /// Replies that do not arrive.
    pub lost_replies: u64,
    /// Requests that arrive a second time, later.
    pub duplicates: u64,
    /// Streams that break before their end.
    pub resets: u64,
    /// Messages that take much longer than others.
    pub stragglers: u64,
}

/// Whether a message arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leg {
    Arrived,
    Cut,
}

impl Network {
    /// A network without faults.
    pub fn new(world: &Arc<World>) -> Self {
        Self { world: Arc::clone(world), state: Arc::default() }
    }

    /// The address of a site.
    pub fn addr(site: Site) -> String {
        format!("node-{site}:1")
    }

    /// The site at an address.
    pub fn site(addr: &str) -> Option<Site> {
        addr.strip_prefix("node-")?.strip_suffix(":1")?.parse().ok()
    }

    /// A node listens at a site from now on.
    pub fn attach(&self, site: Site, id: NodeId, replica: Arc<dyn ReplicaApi>) {
        let mut state = self.state();
        state.lives += 1;
        let life = state.lives;
        state.attached.insert(site, Attached { id, replica, life });
    }

    /// Nobody listens at a site any more.
    pub fn detach(&self, site: Site) {
        self.state().attached.remove(&site);
    }

    pub fn attached(&self, site: Site) -> Option<Attached> {
        self.state().attached.get(&site).cloned()
    }

    pub fn cut(&self, ways: &[(Site, Site)]) {
        let mut state = self.state();
        for way in ways {
            *state.cuts.entry(*way).or_insert(0) += 1;
        }
    }

    pub fn mend(&self, ways: &[(Site, Site)]) {
        let mut state = self.state();
        for way in ways {
            if let Some(count) = state.cuts.get_mut(way) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// Messages to and from a site take this much longer.
    pub fn slow_down(&self, site: Site, by: Duration) {
        self.state().slow.insert(site, by);
    }

    /// Messages to and from a site wait for this long.
    pub fn hold_up(&self, site: Site, for_so_long: Duration) {
        self.state().still_until.insert(site, Instant::now() + for_so_long);
    }

    pub fn set_noise(&self, noise: Noise) {
        self.state().noise = noise;
    }

    pub fn noise(&self) -> Noise {
        self.state().noise
    }

    /// Nothing is wrong any more.
    pub fn heal(&self) {
        let mut state = self.state();
        state.cuts.clear();
        state.slow.clear();
        state.still_until.clear();
        state.noise = Noise::default();
    }

    pub fn is_cut(&self, from: Site, to: Site) -> bool {
        self.state().cuts.get(&(from, to)).is_some_and(|count| *count > 0)
    }

    /// A message goes from one site to another.
    pub async fn travel(&self, from: Site, to: Site) -> Leg {
        self.wait_for(from).await;
        let delay = self.delay(from, to);
        tokio::time::sleep(delay).await;
        self.wait_for(to).await;
        if self.is_cut(from, to) { Leg::Cut } else { Leg::Arrived }
    }

    /// How long a message takes.
    fn delay(&self, from: Site, to: Site) -> Duration {
        let (slow, stragglers) = {
            let state = self.state();
            let slow = |site| state.slow.get(&site).copied().unwrap_or_default();
            (slow(from) + slow(to), state.noise.stragglers)
        };
        let usual = self.world.millis(1..6);
        let extra = if self.world.chance(stragglers) {
            self.world.millis(20..1_500)
        } else {
            Duration::ZERO
        };
        usual + extra + slow
    }

    /// Waits for a site that stands still.
    async fn wait_for(&self, site: Site) {
        let until = self.state().still_until.get(&site).copied();
        if let Some(until) = until.filter(|until| *until > Instant::now()) {
            tokio::time::sleep_until(until).await;
        }
    }

    pub fn note_round_trip(&self, from: Site, peer: NodeId, took: Duration) {
        self.state().round_trips.insert((from, peer), took);
    }

    pub fn round_trip(&self, from: Site, peer: NodeId) -> Option<Duration> {
        self.state().round_trips.get(&(from, peer)).copied()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}
