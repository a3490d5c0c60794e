//! The same nodes with the real gRPC adapter, over the simulated TCP of `turmoil`: handshakes,
//! streams, keep-alives and reconnections, under partitions, holds and crashes.
//!
//! Fewer seeds than the rest, since every message is encoded; and not asked to repeat themselves to
//! the letter, since the HTTP/2 library keeps its own order of things.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use lally::adapters::grpc::{Dial, GrpcOptions, GrpcPeers, ServerOptions, serve_connections};
use lally::adapters::memory::{MemoryBook, MemoryLog, MemoryQuarantine, MemoryStore};
use lally::adapters::swim::{Swim, SwimOptions};
use lally::app::{Identity, Node, NodeParts, NodeSettings, Walks};
use lally::domain::{BucketSet, KeptData, Key, NodeId, QuorumSpec, Start, Timestamp, Value};
use lally::ports::{ClientApi, Clock, LogRecord, OpLog, RequestOptions, Store};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use turmoil::net::{TcpListener, TcpStream};

use super::checks;
use super::history::{Evidence, FinalState, Op, OpKind, Outcome};
use super::tests::number;
use super::world::{EPOCH, Seen};

const PORT: u16 = 50_071;
const NODES: u8 = 3;

/// Seeds of every run of the tests.
const SEEDS: u64 = 8;

const FAULTY: Duration = Duration::from_secs(20);
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// A connection of the simulated network, as the server wants it.
struct Accepted(TcpStream);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A node that runs, as it is looked at from outside.
type Running = (Arc<dyn ClientApi>, Arc<MemoryStore>);

/// What outlives the crashes of one node, and what is seen of it from outside.
struct Place {
    site: u8,
    log: Arc<MemoryLog>,
    book: Arc<MemoryBook>,
    running: Mutex<Option<Running>>,
    ops: Mutex<Vec<Op>>,
    seed: u64,
}

struct SimClock;

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let elapsed = turmoil::sim_elapsed().unwrap_or_default();
        Timestamp::from_nanos(EPOCH + u64::try_from(elapsed.as_nanos()).unwrap())
    }
}

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

fn host(site: u8) -> String {
    format!("node-{site}")
}

/// One life of a node, with a client of its own until the faults end.
async fn live(place: Arc<Place>) -> turmoil::Result {
    let addr = format!("{}:{PORT}", host(place.site));
    let id = NodeId::new(u64::from(place.site) + 1);
    let identity = Identity::load(place.book.as_ref(), "lally", id).await?;
    let (book, last_phase) = identity.claim(place.book.as_ref(), KeptData::All).await?;
    let mut random = StdRng::seed_from_u64(place.seed ^ book.generation << 8);
    let mut settings = NodeSettings::new("lally", &addr, "none:1");
    let founds = place.site == 0 && last_phase.is_none();
    let others = (0..NODES).filter(|other| *other != place.site && !founds);
    settings.seeds = others.map(|other| format!("{}:{PORT}", host(other))).collect();
    settings.request_timeout = Duration::from_secs(1);
    settings.anti_entropy_interval = Duration::from_secs(4);
    settings.walks = Walks::InPlace;
    settings.random_seed = random.random();
    let start = Start::decide(last_phase, KeptData::All, !settings.seeds.is_empty());
    let options = GrpcOptions::new("lally", id, random.random())
        .dialling(Dial::with(|addr| async move { TcpStream::connect(addr).await }));
    let transport = GrpcPeers::new(options);
    let me = Node::first_record(&book, start, &settings);
    let options = SwimOptions::new(me, "lally", random.random());
    let store = Arc::new(MemoryStore::new());
    let parts = NodeParts {
        store: Arc::clone(&store) as _,
        log: Arc::new(place.log.reopen()),
        transport: Arc::clone(&transport) as _,
        detector: Swim::start(&options, transport),
        book: Arc::clone(&place.book) as _,
        clock: Arc::new(SimClock),
        quarantine: Arc::new(MemoryQuarantine::default()),
        hooks: Vec::new(),
    };
    let node = Node::new(parts, settings, &book, start);
    node.replay().await?;
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let incoming = futures_util::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| Accepted(stream));
        Some((accepted, listener))
    });
    let options = ServerOptions::new("lally", id);
    let serving =
        serve_connections(incoming, node.replica_api(), options, CancellationToken::new());
    node.start();
    let client = node.client_api();
    *place.running.lock().unwrap() = Some((Arc::clone(&client), store));
    let asking = ask(&place, id, client, random);
    let (served, ()) = futures_util::future::join(serving, asking).await;
    Ok(served?)
}

/// Writes and reads with majorities, until the faults end.
async fn ask(place: &Place, node: NodeId, client: Arc<dyn ClientApi>, mut random: StdRng) {
    while now() < FAULTY {
        tokio::time::sleep(Duration::from_millis(random.random_range(20..300))).await;
        let key = Key::new(&format!("k{}", random.random_range(0..6))).unwrap();
        let options =
            RequestOptions { quorum: Some(QuorumSpec::Majority), ..RequestOptions::default() };
        let invoked = now();
        let op = |kind, outcome| Op {
            client: place.site,
            site: place.site,
            node,
            kind,
            key: key.clone(),
            quorum: options.quorum,
            consistency: options.consistency,
            timeout: Duration::from_secs(1),
            invoked,
            returned: now(),
            outcome,
        };
        let op = if random.random_range(0..2) == 0 {
            let value = format!("{}-{}", place.site, invoked.as_nanos());
            // Also when it never returns, since the node crashes.
            let unknown = op(OpKind::Add(value.clone()), Outcome::Unknown);
            place.ops.lock().unwrap().push(unknown);
            let answer = client.add(key.clone(), Value::new(&value), options).await;
            place.ops.lock().unwrap().pop();
            op(OpKind::Add(value), answer.map_or_else(Outcome::Refused, Outcome::Answered))
        } else {
            let answer = client.get(key.clone(), options).await;
            op(OpKind::Get, answer.map_or_else(Outcome::Refused, Outcome::Answered))
        };
        place.ops.lock().unwrap().push(op);
    }
}

/// One simulation; what the checks found.
fn simulate(seed: u64) -> Vec<String> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(Duration::from_millis(2))
        .simulation_duration(FAULTY + SETTLED_WITHIN + Duration::from_secs(10))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(20))
        .build();
    let places: Vec<_> = (0..NODES).map(|site| Arc::new(place(site, seed))).collect();
    for place in &places {
        let place = Arc::clone(place);
        sim.host(host(place.site), move || live(Arc::clone(&place)));
    }
    let until = |sim: &mut turmoil::Sim<'_>, at: Duration| {
        while sim.elapsed() < at {
            sim.step().unwrap();
        }
    };
    until(&mut sim, Duration::from_secs(3));
    while sim.elapsed() < FAULTY {
        let (one, other) = (random.random_range(0..NODES), random.random_range(1..NODES));
        let (a, b) = (host(one), host((one + other) % NODES));
        let kind = random.random_range(0..4);
        match kind {
            0 => sim.partition(a.as_str(), b.as_str()),
            1 => sim.partition_oneway(a.as_str(), b.as_str()),
            2 => sim.hold(a.as_str(), b.as_str()),
            _ => sim.crash(a.as_str()),
        }
        let lasts = Duration::from_millis(random.random_range(200..4_000));
        let end = sim.elapsed() + lasts;
        until(&mut sim, end);
        match kind {
            0 => sim.repair(a.as_str(), b.as_str()),
            1 => sim.repair_oneway(a.as_str(), b.as_str()),
            2 => sim.release(a.as_str(), b.as_str()),
            _ => sim.bounce(a.as_str()),
        }
        let pause = sim.elapsed() + Duration::from_millis(random.random_range(100..3_000));
        until(&mut sim, pause);
    }
    let deadline = sim.elapsed() + SETTLED_WITHIN;
    while !is_settled(&places) && sim.elapsed() < deadline {
        let next = sim.elapsed() + Duration::from_millis(200);
        until(&mut sim, next);
    }
    let evidence = evidence(&places);
    assert!(evidence.ops.iter().filter(|op| op.success().is_some()).count() > 20, "a quiet seed");
    let settled = if is_settled(&places) { Vec::new() } else { vec!["never settled".into()] };
    let found = checks::ALL.iter().flat_map(|(name, check)| {
        check(&evidence).into_iter().take(3).map(move |found| format!("{name}: {found}"))
    });
    settled.into_iter().chain(found).collect()
}

fn place(site: u8, seed: u64) -> Place {
    Place {
        site,
        log: Arc::default(),
        book: Arc::default(),
        running: Mutex::default(),
        ops: Mutex::default(),
        seed: seed ^ u64::from(site),
    }
}

fn is_settled(places: &[Arc<Place>]) -> bool {
    let mut digests = Vec::new();
    for place in places {
        let running = place.running.lock().unwrap();
        let Some((client, store)) = running.as_ref() else { return false };
        let status = client.cluster();
        if client.readiness().is_err()
            || status.members.len() + 1 != usize::from(NODES)
            || !status.members.iter().all(|member| member.in_sync)
        {
            return false;
        }
        digests.push(store.digest());
    }
    digests.windows(2).all(|pair| pair[0] == pair[1])
}

fn evidence(places: &[Arc<Place>]) -> Evidence {
    let mut evidence =
        Evidence { replicas: vec![(Duration::ZERO, (0..NODES).collect())], ..Evidence::default() };
    for place in places {
        evidence.ops.extend(place.ops.lock().unwrap().iter().cloned());
        let Some((_, store)) = place.running.lock().unwrap().clone() else { continue };
        let (sender, records) = std::sync::mpsc::sync_channel(100_000);
        let replay =
            place.log.reopen().replay(Box::new(move |record| sender.send(record).unwrap())).now();
        replay.unwrap();
        let mut logged: BTreeMap<_, lally::domain::Entry> = BTreeMap::new();
        for record in records {
            let LogRecord::Write(write) = record else { continue };
            let id = (write.key.clone(), write.entry.version);
            let first = Duration::ZERO;
            let content = write.entry.content.clone();
            evidence.seen.insert(id, Seen { content, first, conflict: None });
            let newest = logged
                .remove(&write.key)
                .map_or(write.entry.clone(), |held| held.merge(write.entry));
            logged.insert(write.key, newest);
        }
        let keys = store.keys_in(&BucketSet::all());
        let entries =
            keys.into_iter().filter_map(|key| Some((key.clone(), store.get(&key)?))).collect();
        let (site, digest) = (place.site, store.digest());
        evidence.finals.push(FinalState {
            site,
            digest,
            entries,
            logged,
            horizon: Timestamp::ZERO,
            forgotten: BTreeMap::new(),
        });
    }
    evidence.ops.sort_by_key(|op| op.invoked);
    evidence
}

/// The end of a future that waits for nothing.
trait Now: Future + Sized {
    fn now(self) -> Self::Output {
        futures_util::FutureExt::now_or_never(self).unwrap()
    }
}

impl<F: Future> Now for F {}

#[test]
fn nodes_that_speak_grpc_hold_the_same_once_faults_end() {
    for seed in 1..=number("LALLY_SIM_GRPC_SEEDS").unwrap_or(SEEDS) {
        let found = simulate(seed);
        assert!(found.is_empty(), "seed {seed}: {}", found.join("\n"));
    }
}
