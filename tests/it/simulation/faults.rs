//! What goes wrong, and when: a schedule drawn from the seed before anything runs.

use std::sync::Arc;
use std::time::Duration;

use super::cluster::Cluster;
use super::losses::{Ending, Loss};
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
    /// The process stands still for this long.
    Freeze(Site, Duration),
    Crash(Site),
    /// The log is compacted.
    Compact(Site),
    PowerCut(Site),
    /// A node is no more, and does not come back.
    End(Site, Ending),
    /// An operator has a dead member forgotten.
    Forget(Site),
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

/// Draws the faults of `lasting` among this many sites; `with_an_absence`: one of them is that a site
/// is away for long, from early on.
pub fn schedule(world: &World, sites: Site, lasting: Duration, with_an_absence: bool) -> Schedule {
    let mut drawn = Drawn { world, sites, lasting, steps: Vec::new() };
    // Most seeds have a few kinds of faults, so that each kind is also seen without the others.
    let kinds: Vec<u64> = (0..world.pick(1..6)).map(|_| world.pick(0..KINDS)).collect();
    for _ in 0..world.pick(4..16) {
        let kind = world.one_of(&kinds).unwrap();
        let at = world.millis(0..u64::try_from(lasting.as_millis()).unwrap());
        drawn.fault(kind, at);
    }
    if with_an_absence {
        drawn.fault(ABSENCE, world.millis(1_000..8_000));
    }
    let mut steps = drawn.steps;
    steps.sort_by_key(|(at, _)| *at);
    steps
}

const KINDS: u64 = 15;

/// The kind of fault in which a site is away for long.
const ABSENCE: u64 = 14;

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
                self.compact_before(at, site);
                self.push(at, Step::Crash(site));
                self.push(at + world.millis(10..9_000), Step::Start(site));
            }
            4 => {
                let loss = if world.chance(700) { Loss::Everything } else { Loss::Log };
                self.push(at, Step::Wipe(site, loss));
                if world.chance(500) {
                    // What it needs is hard to come by.
                    let noise = Noise { resets: 500, lost_replies: 200, ..Noise::default() };
                    self.push(at, Step::Noise(noise));
                    self.push(at + world.millis(3_000..12_000), Step::Noise(Noise::default()));
                }
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
            11 => {
                // Some for longer than a write takes to be old.
                let lasts = if world.chance(700) { 200..6_000 } else { 10_000..15_000 };
                let lasts = world.millis(lasts);
                self.push(at.min(self.lasting.saturating_sub(lasts)), Step::Freeze(site, lasts));
            }
            12 => {
                self.compact_before(at, site);
                self.push(at, Step::PowerCut(site));
                self.push(at + world.millis(10..9_000), Step::Start(site));
            }
            13 => {
                let ending = if world.chance(500) { Ending::Death } else { Ending::Leave };
                self.push(at, Step::End(site, ending));
                self.push(at + world.millis(4_000..12_000), Step::Forget(site));
            }
            ABSENCE => {
                // Away for longer than others wait before they forget without it; alone, dead, or
                // forgotten itself.
                let back = at + world.millis(9_000..25_000);
                if world.chance(400) {
                    let ways = self.apart(site);
                    self.push(at, Step::Cut(ways.clone()));
                    self.push(back, Step::Mend(ways));
                } else {
                    self.push(at, Step::Crash(site));
                    if world.chance(200) {
                        self.push(at + Duration::from_secs(7), Step::Forget(site));
                    }
                    self.push(back, Step::Start(site));
                }
            }
            _ => {
                self.push(at, Step::DiskFull(site, true));
                self.push(at + world.millis(100..5_000), Step::DiskFull(site, false));
            }
        }
    }

    /// Perhaps a compaction, under way or done when the site goes down.
    fn compact_before(&mut self, at: Duration, site: Site) {
        if self.world.chance(500) {
            self.push(at.saturating_sub(self.world.millis(0..200)), Step::Compact(site));
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

    /// All ways to a site and from it.
    fn apart(&self, site: Site) -> Vec<(Site, Site)> {
        let others = (0..self.sites).filter(|other| *other != site);
        others.flat_map(|other| [(site, other), (other, site)]).collect()
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
            1 => self.apart(one),
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
        Step::Freeze(site, lasts) => cluster.freeze(site, lasts),
        Step::Crash(site) => cluster.crash(site),
        Step::Compact(site) => cluster.compact(site),
        Step::PowerCut(site) => cluster.lose_power(site),
        Step::End(site, ending) => cluster.end(site, ending),
        Step::Forget(site) => cluster.forget(site).await,
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
