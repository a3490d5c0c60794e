//! The clients: reads, writes and removals of few keys, through any node, with all kinds of quorums.

use std::sync::Arc;
use std::time::Duration;

use lally::domain::{Key, QuorumSpec, Value};
use lally::ports::{Consistency, RequestOptions};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use super::cluster::{Cluster, REQUEST_TIMEOUT, Running};
use super::history::{Op, OpKind, Outcome};
use super::world::Detail;

/// Keys that are written about once a second, so that operations meet.
const HOT_KEYS: u64 = 10;

/// Keys that are left alone for long enough that a removal can be forgotten.
const COLD_KEYS: u64 = 50;

/// One client.
pub struct Client {
    cluster: Arc<Cluster>,
    number: u8,
    random: StdRng,
    writes: u64,
}

impl Client {
    pub fn new(cluster: &Arc<Cluster>, number: u8) -> Self {
        let random = StdRng::seed_from_u64(cluster.world.pick(0..u64::MAX));
        Self { cluster: Arc::clone(cluster), number, random, writes: 0 }
    }

    /// Asks one thing after the other, until this time.
    pub async fn run(mut self, until: Instant) {
        while Instant::now() < until {
            let pause = self.random.random_range(10..250);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            let running = self.cluster.running();
            if running.is_empty() {
                continue;
            }
            let at = self.random.random_range(0..running.len());
            let through = Arc::clone(&running[at]);
            drop(running);
            self.ask(&through).await;
        }
    }

    async fn ask(&mut self, through: &Arc<Running>) {
        let name = if self.random.random_range(0..10) < 7 {
            format!("k{}", self.random.random_range(0..HOT_KEYS))
        } else {
            format!("c{}", self.random.random_range(0..COLD_KEYS))
        };
        let key = Key::new(&name).unwrap();
        let kind = match self.random.random_range(0..10) {
            0..4 => OpKind::Get,
            4..8 => {
                self.writes += 1;
                OpKind::Add(format!("{}-{}", self.number, self.writes))
            }
            _ => OpKind::Remove,
        };
        let options = self.options();
        let timeout = options.timeout.unwrap_or(REQUEST_TIMEOUT);
        let (world, site) = (Arc::clone(&self.cluster.world), through.site);
        world.note(
            "asked",
            site,
            site,
            Detail::Text(format!("{} {kind:?} {options:?}", key.as_str())),
        );
        self.cluster.look();
        let invoked = world.now();
        let client = &through.client;
        let answering = async {
            match &kind {
                OpKind::Get => client.get(key.clone(), options).await,
                OpKind::Add(value) => client.add(key.clone(), Value::new(value), options).await,
                OpKind::Remove => client.remove(key.clone(), options).await,
            }
        };
        let answering = world.held(site, answering);
        let outcome = tokio::select! {
            biased;
            () = through.life.cancelled() => Outcome::Unknown,
            answer = answering => answer.map_or_else(Outcome::Refused, Outcome::Answered),
        };
        let returned = world.now();
        world.note("answered", site, site, Detail::Text(format!("{} {outcome:?}", key.as_str())));
        self.cluster.look();
        self.cluster.record(Op {
            client: self.number,
            site,
            node: through.id,
            kind,
            key,
            quorum: options.quorum,
            consistency: options.consistency,
            timeout,
            invoked,
            returned,
            outcome,
        });
    }

    fn options(&mut self) -> RequestOptions {
        let quorum = match self.random.random_range(0..10) {
            0..2 => None,
            2..4 => Some(QuorumSpec::ONE),
            4..9 => Some(QuorumSpec::Majority),
            _ => Some(QuorumSpec::All),
        };
        let timeout = self.random.random_range(0..4) == 0;
        let timeout = timeout.then(|| Duration::from_millis(self.random.random_range(20..2_500)));
        let confirmed = self.random.random_range(0..3) == 0;
        let consistency = if confirmed { Consistency::Confirmed } else { Consistency::Default };
        RequestOptions { quorum, timeout, consistency, trace: None }
    }
}
