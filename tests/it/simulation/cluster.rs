//! `Cluster`: the nodes of one simulation: started, crashed, wiped, and looked at from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lally::adapters::memory::{MemoryQuarantine, MemoryStore};
use lally::adapters::swim::{Swim, SwimOptions};
use lally::app::{Identity, Node, NodeParts, NodeSettings, Walks};
use lally::domain::{KeptData, NodeId, Phase, Start, Timestamp};
use lally::ports::{ClientApi, Clock, PeerTransport};
use tokio_util::sync::CancellationToken;

use super::disk::Disk;
use super::history::{Destroyed, Newcomer, Op};
use super::network::Network;
use super::transport::SimTransport;
use super::world::{Detail, Site, World, spawn};

/// The default of a request without a timeout of its own.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// All nodes, whether they run or not.
pub struct Cluster {
    pub world: Arc<World>,
    pub network: Network,
    places: Mutex<BTreeMap<Site, Place>>,
    records: Mutex<Records>,
    /// Sites below this one and the others do not know of each other.
    apart: Mutex<Option<Site>>,
    /// Members may lose their data although another one has not recovered from that.
    reckless: bool,
    pub(super) max_hint_bytes: usize,
}

/// What is recorded while the nodes run.
#[derive(Default)]
pub struct Records {
    pub ops: Vec<Op>,
    pub replicas: Vec<(Duration, BTreeSet<Site>)>,
    pub destroyed: Vec<Destroyed>,
    pub newcomers: Vec<Newcomer>,
    pub overruns: Vec<String>,
}

/// A place for a node.
pub(super) struct Place {
    pub(super) disk: Disk,
    offset_ns: Arc<AtomicI64>,
    pub(super) running: Option<Arc<Running>>,
    leaving: bool,
    /// Begins without the log it had.
    fresh: bool,
    /// Lost data, and has not been ready since.
    pub(super) recovering: bool,
    /// When it began without data, unless it has counted since.
    pub(super) empty_since: Option<Duration>,
}

/// A node that runs.
pub struct Running {
    pub site: Site,
    pub id: NodeId,
    pub node: Node,
    pub client: Arc<dyn ClientApi>,
    pub life: CancellationToken,
    pub(super) store: Arc<MemoryStore>,
}

/// A clock that is off.
struct SimClock {
    world: Arc<World>,
    offset_ns: Arc<AtomicI64>,
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let now = self.world.wall(self.offset_ns.load(Ordering::SeqCst));
        self.world.note_quietly(now.as_nanos());
        now
    }
}

/// What is lost of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    Everything,
    Log,
}

impl Cluster {
    pub fn new(world: &Arc<World>) -> Arc<Self> {
        let max_hint_bytes = if world.chance(250) { 300 } else { 64 << 20 };
        Arc::new(Self {
            world: Arc::clone(world),
            network: Network::new(world),
            places: Mutex::default(),
            records: Mutex::default(),
            apart: Mutex::default(),
            reckless: world.chance(100),
            max_hint_bytes,
        })
    }

    /// A new place, with an empty disk.
    pub fn add_site(&self) -> Site {
        let mut places = self.places();
        let site = Site::try_from(places.len()).unwrap();
        let offset_ns = Arc::new(AtomicI64::new(0));
        let place = Place {
            disk: Disk::default(),
            offset_ns,
            running: None,
            leaving: false,
            fresh: false,
            recovering: false,
            empty_since: None,
        };
        places.insert(site, place);
        site
    }

    pub fn sites(&self) -> Vec<Site> {
        self.places().keys().copied().collect()
    }

    pub fn running(&self) -> Vec<Arc<Running>> {
        self.places().values().filter_map(|place| place.running.clone()).collect()
    }

    fn running_at(&self, site: Site) -> Option<Arc<Running>> {
        self.places().get(&site)?.running.clone()
    }

    /// Starts the node at a site, unless it runs. The first one of all founds the cluster.
    pub async fn start(self: &Arc<Self>, site: Site) {
        let (disk, offset_ns, fresh) = {
            let places = self.places();
            let Some(place) = places.get(&site).filter(|p| p.running.is_none()) else { return };
            (place.disk.clone(), Arc::clone(&place.offset_ns), place.fresh)
        };
        let others = self.sites().into_iter().filter(|other| *other != site);
        let seeds: Vec<_> =
            others.filter(|other| self.are_together(site, *other)).map(Network::addr).collect();
        let (world, life) = (&self.world, CancellationToken::new());
        let began = world.now();
        let open = disk.open(world, site, &life);
        let new_id = NodeId::new(world.pick(1..u64::MAX));
        let data = if fresh { KeptData::None } else { KeptData::All };
        let identity = Identity::load(open.as_ref(), "lally", new_id).await.unwrap();
        let (book, last_phase) = identity.claim(open.as_ref(), data).await.unwrap();
        let start = Start::decide(last_phase, data, !seeds.is_empty() || !book.members.is_empty());
        let settings = self.settings(site, seeds);
        let transport: Arc<dyn PeerTransport> = SimTransport::new(&self.network, site, &life);
        let me = Node::first_record(&book, start, &settings);
        let options = SwimOptions::new(me, "lally", world.pick(0..u64::MAX));
        let store = Arc::new(MemoryStore::new());
        let parts = NodeParts {
            store: Arc::clone(&store) as _,
            log: Arc::clone(&open) as _,
            transport: Arc::clone(&transport),
            detector: Swim::start(&options, transport),
            book: open,
            quarantine: Arc::new(MemoryQuarantine::default()),
            clock: Arc::new(SimClock { world: Arc::clone(world), offset_ns }),
            hooks: Vec::new(),
        };
        let node = Node::new(parts, settings, &book, start);
        node.replay().await.unwrap();
        self.network.attach(site, book.id, node.replica_api());
        node.start();
        world.note("starts", site, site, Detail::Text(format!("{start:?} as {}", book.id)));
        let client = node.client_api();
        let running = Arc::new(Running { site, id: book.id, node, client, life, store });
        if let Some(place) = self.places().get_mut(&site) {
            place.running = Some(running);
            place.fresh = false;
            let kept = last_phase == Some(Phase::Whole) || last_phase == Some(Phase::Left);
            let empty_since = (!kept || fresh).then_some(began);
            place.empty_since = empty_since.or(place.empty_since);
        }
    }

    fn settings(&self, site: Site, seeds: Vec<String>) -> NodeSettings {
        NodeSettings {
            seeds,
            request_timeout: REQUEST_TIMEOUT,
            peer_timeout: Duration::from_secs(2),
            anti_entropy_interval: Duration::from_secs(4),
            max_hint_bytes: self.max_hint_bytes,
            random_seed: self.world.pick(0..u64::MAX),
            walks: Walks::InPlace,
            ..NodeSettings::new("lally", &Network::addr(site), "none:1")
        }
    }

    /// Ends a node without a word.
    pub fn crash(&self, site: Site) {
        let Some((running, disk)) = self.places().get_mut(&site).and_then(|place| {
            place.leaving = false;
            Some((place.running.take()?, place.disk.clone()))
        }) else {
            return;
        };
        running.life.cancel();
        self.network.detach(site);
        running.node.abandon();
        disk.crash(&self.world);
        self.world.note("crashes", site, site, Detail::Nothing);
    }

    /// From now on the sites below this one and the others know nothing of each other.
    pub fn set_apart(&self, boundary: Option<Site>) {
        *self.apart.lock().unwrap() = boundary;
    }

    pub(super) fn are_together(&self, one: Site, other: Site) -> bool {
        let boundary = *self.apart.lock().unwrap();
        boundary.is_none_or(|boundary| (one < boundary) == (other < boundary))
    }

    pub const fn is_reckless(&self) -> bool {
        self.reckless
    }

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

    /// Notes which versions are on no other disk.
    fn record_destroyed(&self, site: Site) {
        let places = self.places();
        let Some(lost) = places.get(&site).map(|place| place.disk.newest()) else { return };
        let others: Vec<_> = places
            .iter()
            .filter(|(other, _)| **other != site)
            .map(|(_, place)| place.disk.newest())
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

    /// Stops a node gracefully. Returns at once.
    pub fn leave(self: &Arc<Self>, site: Site) {
        let Some(running) = self.places().get_mut(&site).and_then(|place| {
            let running = place.running.clone().filter(|_| !place.leaving)?;
            place.leaving = true;
            Some(running)
        }) else {
            return;
        };
        self.world.note("leaves", site, site, Detail::Nothing);
        let this = Arc::clone(self);
        spawn(async move {
            running.node.leave().await;
            if running.life.is_cancelled() {
                return;
            }
            this.network.detach(site);
            running.node.close().await.unwrap();
            running.life.cancel();
            this.world.note("has left", site, site, Detail::Nothing);
            if let Some(place) = this.places().get_mut(&site)
                && place.running.as_ref().is_some_and(|now| Arc::ptr_eq(now, &running))
            {
                place.running = None;
                place.leaving = false;
            }
        });
    }

    pub fn skew(&self, site: Site, offset_ns: i64) {
        if let Some(place) = self.places().get(&site) {
            place.offset_ns.store(offset_ns, Ordering::SeqCst);
            self.world.note("clock off", site, site, Detail::Text(format!("{offset_ns} ns")));
        }
    }

    pub fn set_disk_full(&self, site: Site, full: bool) {
        if let Some(place) = self.places().get(&site) {
            place.disk.set_full(full);
        }
    }

    /// No fault is left, and every node runs.
    pub async fn heal(self: &Arc<Self>) {
        self.world.note("healed", 0, 0, Detail::Nothing);
        self.network.heal();
        for site in self.sites() {
            self.skew(site, 0);
            self.set_disk_full(site, false);
            self.start(site).await;
        }
    }

    pub fn record(&self, op: Op) {
        self.records().ops.push(op);
    }

    pub fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap()
    }

    pub fn is_up(&self, site: Site) -> bool {
        self.running_at(site).is_some()
    }

    pub(super) fn places(&self) -> MutexGuard<'_, BTreeMap<Site, Place>> {
        self.places.lock().unwrap()
    }
}
