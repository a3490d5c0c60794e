//! Rounds of load, failure, restart and comparison; and their table.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::ballast::Ballast;
use super::disk::{Cut, Disk};
use super::history::{Ending, History, Order, judge};
use super::redis::Redis;
use super::server::{Kind, Outcome, Policy, Server, Session};
use crate::results::{self, say};

const WRITERS: usize = 4;

/// The longest load before a failure.
const LOAD: Duration = Duration::from_millis(300);
/// And where what may be lost is counted in seconds.
const LONG_LOAD: Duration = Duration::from_secs(3);

/// A moment within this time. A seed repeats it, as far as a machine repeats itself.
pub fn moment_within(random: &mut StdRng, most: Duration) -> Duration {
    random.random_range(Duration::ZERO..most)
}

/// What happens to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Kill,
    Cut(Cut),
    /// It is stopped, and the power is cut when it has ended.
    StopAndCut,
}

/// What came of the rounds of a server with one policy.
#[derive(Default)]
pub struct Tally {
    pub rounds: usize,
    pub acknowledged: usize,
    pub lost: usize,
    /// The longest time from the oldest lost acknowledgement to the failure,
    pub oldest: Duration,
    /// and to the last acknowledgement before it.
    pub span: Duration,
    pub lost_after_stop: usize,
    pub compacted: usize,
    /// States that are no prefix of what was done.
    pub disorder: Vec<String>,
    /// Starts that failed, and answers and ends that should not be.
    pub wrong: Vec<String>,
}

/// One server with one policy, failing again and again.
pub struct Campaign {
    pub kind: Kind,
    pub policy: Policy,
    pub rounds: usize,
    pub seed: u64,
}

impl Campaign {
    /// Kills it with SIGKILL.
    pub fn kill(&self) -> Tally {
        let dir = tempfile::tempdir().unwrap();
        self.run(dir.path(), None)
    }

    /// Cuts the power of its disk; `None` where that is not possible.
    pub fn cut(&self) -> Option<Tally> {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::mount(dir.path())?;
        let root = disk.root.clone();
        Some(self.run(&root, Some(&disk)))
    }

    fn run(&self, root: &Path, disk: Option<&Disk>) -> Tally {
        let Self { kind, policy, rounds, seed } = *self;
        let mut random = StdRng::seed_from_u64(seed);
        let mut tally = Tally::default();
        let start = |place: usize| {
            let server = kind.start(&root.join(format!("data-{place}")), policy);
            server.unwrap_or_else(|why| panic!("{kind} does not start on nothing: {why}"))
        };
        let mut server = start(0);
        let mut histories: Vec<_> = (0..WRITERS).map(History::new).collect();
        let mut ballast = Ballast::default();
        for round in 1..=rounds {
            // In the first half snapshots are of one piece.
            if round > rounds / 2 {
                tally.wrong.extend(ballast.take_on(&mut *server.session()).err());
            }
            let failure = match (disk, random.random_range(0..8)) {
                (None, _) => Failure::Kill,
                (_, 0 | 1) => Failure::StopAndCut,
                (_, 2 | 3) => Failure::Cut(Cut::AfterJournal),
                _ => Failure::Cut(Cut::Hard),
            };
            let is_short = disk.is_none() || policy != Policy::Everysec;
            let load = moment_within(&mut random, if is_short { LOAD } else { LONG_LOAD });
            // Every other time: without, more is written.
            let compacts = random.random_bool(0.5);
            let failed = fail_under_load(
                (&mut *server, disk),
                &mut histories,
                (failure, load, compacts),
                &mut tally,
            );
            if let Some(disk) = disk {
                disk.power_on();
            }
            tally.rounds += 1;
            if let Err(why) = server.restart() {
                tally.wrong.push(format!("round {round}: it does not start again: {why}"));
                server = start(round);
                ballast = Ballast::default();
                histories = (0..WRITERS).map(History::new).collect();
                continue;
            }
            let mut session = server.session();
            let found: Vec<_> = histories.iter().map(|one| one.look(&mut *session)).collect();
            tally.wrong.extend(ballast.missing_from(&mut *session));
            let judged = judge(&histories, &found, failed);
            tally.lost += judged.lost;
            tally.oldest = tally.oldest.max(judged.oldest);
            tally.span = tally.span.max(judged.span);
            if failure == Failure::StopAndCut {
                tally.lost_after_stop += judged.lost;
            }
            tally.disorder.extend(judged.disorder.iter().map(|why| format!("{failure:?}: {why}")));
            for (history, found) in histories.iter_mut().zip(found) {
                tally.acknowledged += history.acknowledged();
                history.begin_with(found);
            }
            if round.is_multiple_of(100) {
                say(&format!("{kind}, {policy}: {round} of {rounds}"));
            }
        }
        tally
    }
}

/// The moment at which it failed.
fn fail_under_load(
    (server, disk): (&mut dyn Server, Option<&Disk>),
    histories: &mut [History],
    (failure, load, compacts): (Failure, Duration, bool),
    tally: &mut Tally,
) -> Instant {
    let (order, over, compacted) = (Order::new(0), AtomicBool::new(false), AtomicUsize::new(0));
    let (failed, refusal) = thread::scope(|scope| {
        let (order, over, compacted) = (&order, &over, &compacted);
        let ending = Ending(over);
        for history in histories.iter_mut() {
            let mut session = server.session();
            scope.spawn(move || history.write(&mut *session, order, over));
        }
        let compacting = compacts.then(|| {
            let session = server.session();
            scope.spawn(move || compact(session, over, compacted))
        });
        let switch = disk.map(Disk::switch);
        // Not a wait for a fact: the moment is what is random here.
        thread::sleep(load);
        let failed = match (failure, switch) {
            (Failure::Kill, _) | (_, None) => {
                server.kill();
                None
            }
            (Failure::Cut(how), Some(switch)) => {
                let failed = Instant::now();
                switch.cut(how);
                server.kill();
                Some(failed)
            }
            (Failure::StopAndCut, Some(switch)) => {
                tally.wrong.extend(server.stop().err());
                let failed = Instant::now();
                switch.cut(Cut::Hard);
                Some(failed)
            }
        };
        drop(ending);
        (failed, compacting.and_then(|compacting| compacting.join().unwrap()))
    });
    tally.compacted += compacted.into_inner();
    if failure == Failure::Kill {
        // A server whose disk is gone may say what it wants, but not one that is only killed.
        let refusals = histories.iter().filter_map(|history| history.refusal.clone());
        tally.wrong.extend(refusals.chain(refusal));
    }
    // Whatever a server that is killed has sent, it has acknowledged.
    failed.unwrap_or_else(Instant::now)
}

/// Has the log compacted again and again; what was refused.
fn compact(
    mut session: Box<dyn Session>,
    over: &AtomicBool,
    compacted: &AtomicUsize,
) -> Option<String> {
    while !over.load(Ordering::Relaxed) {
        match session.compact() {
            Outcome::Acknowledged => _ = compacted.fetch_add(1, Ordering::Relaxed),
            Outcome::Refused(why) => return Some(why),
            Outcome::Silence => return None,
        }
    }
    None
}

/// Runs a campaign of every policy for Lally, and for `redis-server` beside it if that is there.
/// What was skipped has no tally.
pub fn side_by_side(
    rounds: usize,
    seed: u64,
    run: impl Fn(&Campaign) -> Option<Tally> + Sync,
) -> Vec<(Kind, Policy, Tally)> {
    let of = |kind| {
        let campaigns =
            Policy::ALL.into_iter().map(|policy| Campaign { kind, policy, rounds, seed });
        let run = |one: Campaign| Some((one.kind, one.policy, run(&one)?));
        campaigns.filter_map(run).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        // Nodes take their turns by the thread: Lally stays on this one.
        let redis = Redis::version().map(|_| scope.spawn(|| of(Kind::Redis)));
        let mut tallies = of(Kind::Lally);
        tallies.extend(redis.into_iter().flat_map(|redis| redis.join().unwrap()));
        tallies
    })
}

/// The dated result, in Markdown.
pub fn report(title: &str, tallies: &[(Kind, Policy, Tally)], took: Duration) -> String {
    let redis = Redis::version().map(|version| format!(", redis-server {version}"));
    let mut out = format!(
        "# {title}, {}\n\nRevision {}, {}{}, {} cores, {} s. What is done and what is \
         counted: [docs/durability.md](../durability.md#kills-and-power-cuts).\n\n\
         | server | policy | failures | compactions | acknowledged | lost | oldest lost | \
         lost writes span | after a stop | no prefix | wrong |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
        results::date(),
        results::revision(),
        results::build(),
        redis.unwrap_or_default(),
        results::cores(),
        took.as_secs(),
    );
    let shown = |time: Duration| match time {
        Duration::ZERO => "-".to_owned(),
        time => format!("{} ms", time.as_millis()),
    };
    for (kind, policy, tally) in tallies {
        writeln!(
            out,
            "| {kind} | `{policy}` | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            tally.rounds,
            tally.compacted,
            tally.acknowledged,
            tally.lost,
            shown(tally.oldest),
            shown(tally.span),
            tally.lost_after_stop,
            tally.disorder.len(),
            tally.wrong.len(),
        )
        .unwrap();
    }
    for (kind, policy, tally) in tallies {
        for why in tally.disorder.iter().chain(&tally.wrong).take(5) {
            write!(out, "\n{kind}, `{policy}`:\n\n```text\n{why}\n```\n").unwrap();
        }
    }
    out
}
