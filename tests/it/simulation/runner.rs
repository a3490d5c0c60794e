//! One simulation from its seed to its verdict: a cluster is founded, clients and faults run; then
//! the faults end, the clients are gone, and the cluster has a bounded time to settle.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::checks;
use super::cluster::Cluster;
use super::faults::{self, Step};
use super::history::Evidence;
use super::workload::Client;
use super::world::World;

/// How long faults go on.
const FAULTY: Duration = Duration::from_secs(30);

/// Within what time the cluster is settled once nothing is wrong any more: the longest wait of a
/// former member for others, the time until versions of a clock that was ahead may enter, the time
/// until a stream that hangs is given up, and a few regular comparisons.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);

/// How long the first nodes may take to become a cluster.
const FOUNDED_WITHIN: Duration = Duration::from_secs(30);

/// How often the state of things is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A simulation that held all checks.
#[derive(Debug)]
pub struct Passed {
    pub seed: u64,
    /// Equal for two runs in which the same happened.
    pub fingerprint: (u64, u64),
    pub ops: usize,
    pub acknowledged: usize,
    /// From the end of the faults until all was settled.
    pub settled_after: Duration,
    pub evidence: Evidence,
}

/// A simulation that did not.
#[derive(Debug)]
pub struct Failed {
    pub seed: u64,
    pub what: Vec<String>,
    pub tail: String,
}

impl Failed {
    /// All that is needed to look into it.
    pub fn report(&self) -> String {
        let (seed, what) = (self.seed, self.what.join("\n"));
        format!(
            "{}\nseed {seed}: {what}\nagain: LALLY_SIM_SEED={seed} cargo test --test it -- --nocapture simulation::tests::one_seed",
            self.tail
        )
    }
}

/// Runs the simulation of this seed; a failure tells its last `tail` events.
pub fn run(seed: u64, tail: usize) -> Result<Passed, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(simulate(seed, tail))
}

async fn simulate(seed: u64, tail: usize) -> Result<Passed, Failed> {
    let world = World::new(seed, tail);
    let cluster = Cluster::new(&world);
    let outcome = lead(&cluster).await;
    let records = std::mem::take(&mut *cluster.records());
    let evidence = Evidence {
        ops: records.ops,
        seen: world.seen(),
        replicas: records.replicas,
        destroyed: records.destroyed,
        newcomers: records.newcomers,
        finals: cluster.finals(),
        expunged: world.all_expunged(),
        quarantined: world.all_quarantined(),
        collected: records.collected,
        cut: records.cut,
        frozen: records.frozen,
        reckless: cluster.is_reckless(),
        apart: records.apart,
        stopped_unsafely: records.stopped_unsafely,
        overruns: records.overruns.into_iter().chain(world.overruns()).collect(),
    };
    let mut what = Vec::new();
    let settled_after = match outcome {
        Ok(settled_after) => settled_after,
        Err(why) => {
            what.push(why);
            Duration::ZERO
        }
    };
    for (name, check) in checks::ALL {
        what.extend(check(&evidence).into_iter().take(3).map(|found| format!("{name}: {found}")));
    }
    if !what.is_empty() {
        return Err(Failed { seed, what, tail: world.tail() });
    }
    Ok(Passed {
        seed,
        fingerprint: world.fingerprint(),
        ops: evidence.ops.len(),
        acknowledged: evidence.ops.iter().filter(|op| op.success().is_some()).count(),
        settled_after,
        evidence,
    })
}

/// Leads a cluster through its life; how long it took to settle in the end.
async fn lead(cluster: &Arc<Cluster>) -> Result<Duration, String> {
    let world = &cluster.world;
    let sites = 3 + u8::try_from(world.pick(0..3)).unwrap();
    let apart = world.chance(100);
    cluster.records().apart = apart;
    if apart {
        cluster.set_apart(Some(1 + u8::try_from(world.pick(0..u64::from(sites) - 1)).unwrap()));
    }
    for _ in 0..sites {
        let site = cluster.add_site();
        cluster.start(site).await;
        settle(cluster, FOUNDED_WITHIN).await.map_err(|why| format!("not founded: {why}"))?;
    }
    let mut schedule = faults::schedule(world, sites, FAULTY, cluster.goes_on_without());
    if apart {
        // One that is told of both brings them together.
        cluster.set_apart(None);
        schedule.insert(0, (Duration::from_secs(10), Step::Join));
        schedule.sort_by_key(|(at, _)| *at);
    }
    let (began, end) = (Instant::now(), Instant::now() + FAULTY);
    let clients: Vec<_> = (0..4).map(|number| Client::new(cluster, number)).collect();
    let clients = futures_util::future::join_all(clients.into_iter().map(|c| c.run(end)));
    let faults = async {
        for (at, step) in schedule {
            tokio::time::sleep_until(began + at).await;
            faults::carry_out(cluster, step).await;
        }
    };
    futures_util::future::join(clients, faults).await;
    let collected = cluster.records().collected;
    cluster.heal().await;
    let settled = settle(cluster, SETTLED_WITHIN).await;
    cluster.records().collected = collected;
    settled.map_err(|why| format!("never settled: {why}"))
}

async fn settle(cluster: &Arc<Cluster>, within: Duration) -> Result<Duration, String> {
    let began = Instant::now();
    while let Some(why) = {
        cluster.look();
        cluster.unsettled()
    } {
        if began.elapsed() > within {
            return Err(why);
        }
        cluster.forget_the_gone().await;
        // A node that was leaving when the faults ended comes back.
        for site in cluster.sites() {
            if !cluster.is_up(site) {
                cluster.start(site).await;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(began.elapsed())
}
