//! `Cluster`: the nodes of one simulation: started, crashed, wiped, and looked at from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use lally::adapters::memory::MemoryStore;
use lally::adapters::swim::{Swim, SwimOptions};
use lally::app::{Identity, Node, NodeParts, NodeSettings, Walks};
use lally::domain::{KeptData, NodeId, Phase, Start, Timestamp};
use lally::ports::{ClientApi, Clock, PeerTransport};
use tokio_util::sync::CancellationToken;

use super::disk::{Disk, SimQuarantine};
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
    pub(super) reckless: bool,
    pub(super) max_hint_bytes: usize,
    forgetfulness: Forgetfulness,
}

/// How soon removals are forgotten.
#[derive(Debug, Clone, Copy)]
struct Forgetfulness {
    grace: Duration,
    max_absence: Duration,
}

impl Forgetfulness {
    /// Soon in part of the seeds, in part of those also without members that are away.
    fn draw(world: &World) -> Self {
        let day = Duration::from_secs(86_400);
        let (mut grace, mut max_absence) = (day, day);
        if world.chance(400) {
            grace = world.millis(10_000..12_000);
            if world.chance(600) {
                max_absence = world.millis(500..6_000);
            }
        }
        Self { grace, max_absence }
    }
}

/// What is recorded while the nodes run.
#[derive(Default)]
pub struct Records {
    pub ops: Vec<Op>,
    pub replicas: Vec<(Duration, BTreeSet<Site>)>,
    pub destroyed: Vec<Destroyed>,
    pub cut: Vec<Destroyed>,
    pub frozen: Vec<(Site, Duration, Duration)>,
    pub newcomers: Vec<Newcomer>,
    pub overruns: Vec<String>,
    /// Whether a node forgot a removal while things went wrong.
    pub collected: bool,
    /// Whether two clusters were founded apart.
    pub apart: bool,
    /// Whether a node was stopped against its advice.
    pub stopped_unsafely: bool,
}

/// A place for a node.
#[expect(clippy::struct_excessive_bools, reason = "what happened to it, in any combination")]
pub(super) struct Place {
    pub(super) disk: Disk,
    offset_ns: Arc<AtomicI64>,
    pub(super) running: Option<Arc<Running>>,
    leaving: bool,
    /// Is there no more, and does not come back.
    pub(super) gone: bool,
    /// Who was there last.
    pub(super) last_id: Option<NodeId>,
    /// Begins without the log it had.
    pub(super) fresh: bool,
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
    disk: Disk,
    offset_ns: Arc<AtomicI64>,
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let now = self.world.wall(self.offset_ns.load(Ordering::SeqCst));
        self.world.note_quietly(now.as_nanos());
        self.disk.note_time(now);
        now
    }
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
            forgetfulness: Forgetfulness::draw(world),
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
            gone: false,
            last_id: None,
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
            let Some(place) = places.get(&site).filter(|p| p.running.is_none() && !p.gone) else {
                return;
            };
            (place.disk.clone(), Arc::clone(&place.offset_ns), place.fresh)
        };
        let others = self.sites().into_iter().filter(|other| *other != site);
        let seeds: Vec<_> =
            others.filter(|other| self.are_together(site, *other)).map(Network::addr).collect();
        let (world, life) = (&self.world, CancellationToken::new());
        let began = world.now();
        world.thaw(site);
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
            quarantine: Arc::new(SimQuarantine { world: Arc::clone(world), site }),
            clock: Arc::new(SimClock { world: Arc::clone(world), disk: disk.clone(), offset_ns }),
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
            place.last_id = Some(running.id);
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
            tombstone_grace: self.forgetfulness.grace,
            max_absence: self.forgetfulness.max_absence,
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

    /// Whether removals are soon forgotten without members that are away.
    pub fn goes_on_without(&self) -> bool {
        self.forgetfulness.max_absence < self.forgetfulness.grace
    }

    pub const fn is_reckless(&self) -> bool {
        self.reckless
    }

    /// Has a node compact its log. Returns at once.
    pub fn compact(self: &Arc<Self>, site: Site) {
        let Some(running) = self.places().get(&site).and_then(|place| place.running.clone()) else {
            return;
        };
        self.world.note("compacts", site, site, Detail::Nothing);
        let this = Arc::clone(self);
        spawn(async move {
            // Refused while the node joins or stops; a crash cuts it off.
            let compacting = running.node.client_api();
            this.world.held(running.site, compacting.compact_log()).await.ok();
        });
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
        if !running.node.client_api().stop_risks().is_empty() {
            self.records().stopped_unsafely = true;
        }
        let this = Arc::clone(self);
        spawn(async move {
            this.world.held(running.site, running.node.leave()).await;
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
            if this.is_gone(running.site) {
                // What it could not deliver is lost with it.
                this.record_destroyed(running.site);
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

    pub fn is_gone(&self, site: Site) -> bool {
        self.places().get(&site).is_some_and(|place| place.gone)
    }

    pub fn is_up(&self, site: Site) -> bool {
        self.running_at(site).is_some()
    }

    pub(super) fn places(&self) -> MutexGuard<'_, BTreeMap<Site, Place>> {
        self.places.lock().unwrap()
    }
}
