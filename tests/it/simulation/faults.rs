//! What goes wrong, and when: a schedule drawn from the seed before anything runs.

use std::sync::Arc;
use std::time::Duration;

use super::cluster::{Cluster, Loss};
use super::network::Noise;
use super::world::{Detail, Site, World};

/// A step of a schedule.
#[derive(Debug, Clone)]
pub enum Step {
    Cut(Vec<(Site, Site)>),
    Mend(Vec<(Site, Site)>),
    SlowDown(Site, Duration),
    HoldUp(Site, Duration),
    Noise(Noise),
    Crash(Site),
    Start(Site),
    Wipe(Site, Loss),
    Leave(Site),
    /// A node that was never there.
    Join,
    Skew(Site, i64),
    DiskFull(Site, bool),
}

/// Steps with their times, in order.
pub type Schedule = Vec<(Duration, Step)>;

/// Draws the faults of `lasting` among this many sites.
pub fn schedule(world: &World, sites: Site, lasting: Duration) -> Schedule {
    let mut drawn = Drawn { world, sites, lasting, steps: Vec::new() };
    // Most seeds have a few kinds of faults, so that each kind is also seen without the others.
    let kinds: Vec<u64> = (0..world.pick(1..6)).map(|_| world.pick(0..KINDS)).collect();
    for _ in 0..world.pick(4..16) {
        let kind = world.one_of(&kinds).unwrap();
        let at = world.millis(0..u64::try_from(lasting.as_millis()).unwrap());
        drawn.fault(kind, at);
    }
    let mut steps = drawn.steps;
    steps.sort_by_key(|(at, _)| *at);
    steps
}

const KINDS: u64 = 11;

struct Drawn<'a> {
    world: &'a World,
    sites: Site,
    lasting: Duration,
    steps: Schedule,
}

impl Drawn<'_> {
    fn fault(&mut self, kind: u64, at: Duration) {
        let (world, site) = (self.world, self.site());
        match kind {
            0 | 1 => {
                let (ways, lasts) = (self.cut(), world.millis(200..12_000));
                self.push(at, Step::Cut(ways.clone()));
                self.push(at + lasts, Step::Mend(ways));
            }
            2 | 3 => {
                self.push(at, Step::Crash(site));
                self.push(at + world.millis(10..9_000), Step::Start(site));
            }
            4 => {
                let loss = if world.chance(700) { Loss::Everything } else { Loss::Log };
                self.push(at, Step::Wipe(site, loss));
                self.push(at + world.millis(10..9_000), Step::Start(site));
            }
            5 => {
                self.push(at, Step::Leave(site));
                self.push(at + world.millis(500..12_000), Step::Start(site));
            }
            6 => {
                self.push(at, Step::SlowDown(site, world.millis(10..400)));
                self.push(at + world.millis(500..9_000), Step::SlowDown(site, Duration::ZERO));
            }
            7 => self.push(at, Step::HoldUp(site, world.millis(200..6_000))),
            8 => {
                let offset = self.offset();
                self.push(at, Step::Skew(site, offset));
            }
            9 => {
                let noise = self.noise();
                self.push(at, Step::Noise(noise));
            }
            10 if world.chance(333) => self.push(at, Step::Join),
            _ => {
                self.push(at, Step::DiskFull(site, true));
                self.push(at + world.millis(100..5_000), Step::DiskFull(site, false));
            }
        }
    }

    fn push(&mut self, at: Duration, step: Step) {
        if at < self.lasting {
            self.steps.push((at, step));
        }
    }

    fn site(&self) -> Site {
        Site::try_from(self.world.pick(0..u64::from(self.sites))).unwrap()
    }

    /// Halves, one apart, one-way, or a bridge.
    fn cut(&self) -> Vec<(Site, Site)> {
        let all = || 0..self.sites;
        let (one, other) = (self.site(), self.site());
        let halves = self.world.pick(0..1 << self.sites);
        let side = |site: Site| halves >> site & 1;
        let pairs = all().flat_map(|a| all().map(move |b| (a, b))).filter(|(a, b)| a != b);
        match self.world.pick(0..5) {
            0 => pairs.filter(|(a, b)| side(*a) != side(*b)).collect(),
            1 => pairs.filter(|(a, b)| *a == one || *b == one).collect(),
            2 => pairs.filter(|(a, _)| *a == one).collect(),
            3 => pairs.filter(|(a, b)| *a == one && *b == other).collect(),
            _ => {
                let bridge = |site: Site| site == one;
                pairs.filter(|(a, b)| !bridge(*a) && !bridge(*b) && side(*a) != side(*b)).collect()
            }
        }
    }

    /// Within the drift that is allowed, or beyond, forwards or back.
    fn offset(&self) -> i64 {
        let bound = if self.world.chance(700) { 400_000_000 } else { 6_000_000_000 };
        let offset = self.world.pick(0..2 * bound);
        i64::try_from(offset).unwrap() - i64::try_from(bound).unwrap()
    }

    fn noise(&self) -> Noise {
        let world = self.world;
        let rate = |most: u64| if world.chance(500) { 0 } else { world.pick(0..most) };
        Noise {
            lost_requests: rate(200),
            lost_replies: rate(200),
            duplicates: rate(300),
            resets: rate(300),
            stragglers: rate(100),
        }
    }
}

/// Carries a step out.
pub async fn carry_out(cluster: &Arc<Cluster>, step: Step) {
    cluster.world.note("fault", 0, 0, Detail::Text(format!("{step:?}")));
    match step {
        Step::Cut(ways) => cluster.network.cut(&ways),
        Step::Mend(ways) => cluster.network.mend(&ways),
        Step::SlowDown(site, by) => cluster.network.slow_down(site, by),
        Step::HoldUp(site, lasts) => cluster.network.hold_up(site, lasts),
        Step::Noise(noise) => cluster.network.set_noise(noise),
        Step::Crash(site) => cluster.crash(site),
        Step::Start(site) => cluster.start(site).await,
        Step::Wipe(site, loss) => cluster.wipe(site, loss),
        Step::Leave(site) => cluster.leave(site),
        Step::Join => {
            if cluster.sites().len() < 7 {
                let site = cluster.add_site();
                cluster.start(site).await;
            }
        }
        Step::Skew(site, offset_ns) => cluster.skew(site, offset_ns),
        Step::DiskFull(site, full) => cluster.set_disk_full(site, full),
    }
}
