//! A log of a million keys: what its compaction does to writes beside it, and how long a node takes
//! to come back from it, beside `redis-server` with the same data in the same run.
//!
//! By default there are few keys and no ratio is checked: what is checked then is that nothing is
//! missing. `make large-log` takes 1,000,000 keys, a release build and `redis-server` if there is
//! one, and writes a dated result.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::super::fire::redis::Redis;
use super::super::fire::server::{Outcome, Policy, Server};
use super::node::{Node, Setup};
use super::turn::Turn;
use super::wait::PATIENCE;
use crate::results;

/// Requests sent before the first answer is read.
const AHEAD: usize = 200;

/// Connections that write while the log is compacted.
const WRITERS: usize = 4;

/// Writes of each connection that are watched before a compaction: some seconds of them.
const CALM_WRITES: usize = 20_000;

/// Measurements of each kind; the middle one counts.
const ROUNDS: usize = 3;

fn keys() -> usize {
    std::env::var("LALLY_TEST_LARGE_LOG").map_or(5_000, |keys| keys.parse().unwrap())
}

/// Sixteen bytes.
fn key(i: usize) -> String {
    format!("key-{i:012}")
}

/// A hundred letters in no order: a file that is smaller is not so because they can be compressed.
fn value(i: usize) -> String {
    let mut random = StdRng::seed_from_u64(i as u64);
    (0..100).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect()
}

fn load(node: &Node, keys: usize) {
    let mut client = node.client();
    let all: Vec<usize> = (0..keys).collect();
    for batch in all.chunks(AHEAD) {
        let bodies: Vec<_> =
            batch.iter().map(|i| json!({"key": key(*i), "value": value(*i)})).collect();
        for reply in client.pipeline("/add", &bodies) {
            assert_eq!(reply.status, 200, "{reply:?}");
        }
    }
}

fn holds_all(node: &Node, keys: usize) {
    let mut client = node.client();
    for i in (0..keys).step_by(keys / 1_000) {
        assert_eq!(client.get(&key(i)).value(), Some(value(i)), "{i}");
    }
}

fn bytes_below(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files.map(|at| if at.is_dir() { bytes_below(&at) } else { at.metadata().unwrap().len() }).sum()
}

/// The time from the start of a process to its readiness, in the middle of a few.
fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn start_time(node: &mut Node) -> Duration {
    let times = (0..ROUNDS).map(|_| {
        assert_eq!(node.terminate(), Some(0));
        let began = Instant::now();
        node.restart();
        node.wait_ready();
        began.elapsed()
    });
    middle(times.collect())
}

/// Writes to keys that exist, as this writer of so many keys, until `phase` is over; the latencies of
/// phase 0 and phase 1. `calm` is told how many writes there were in phase 0.
fn write_until_done(
    addr: SocketAddr,
    (writer, keys): (usize, usize),
    phase: &AtomicU8,
    calm: impl Fn(usize),
) -> [Vec<Duration>; 2] {
    let mut latencies = [Vec::new(), Vec::new()];
    let mut client = super::client::Client::new(addr);
    let mut turn = writer;
    loop {
        let began_in = phase.load(Ordering::Relaxed);
        let Some(latencies) = latencies.get_mut(usize::from(began_in)) else { return latencies };
        // Far apart, so that they are of all parts of the store.
        turn = (turn + 7_919) % keys;
        let began = Instant::now();
        client.add(&key(turn), &value(turn)).succeeded();
        latencies.push(began.elapsed());
        if began_in == 0 {
            calm(latencies.len());
        }
    }
}

struct Tail {
    before: Duration,
    during: Duration,
    slowest: Duration,
    took: Duration,
    writes: usize,
}

/// The 99th percentile of the latency of writes before and during a compaction.
fn compact_under_load(node: &Node, keys: usize, calm_writes: usize) -> Tail {
    let phase = AtomicU8::new(0);
    let (tell, told) = sync_channel(WRITERS);
    let (latencies, took) = thread::scope(|scope| {
        let writing: Vec<_> = (0..WRITERS)
            .map(|n| {
                let (addr, phase, tell) = (node.http(), &phase, tell.clone());
                let calm = move |written| {
                    if written == calm_writes {
                        tell.send(()).unwrap();
                    }
                };
                scope.spawn(move || write_until_done(addr, (n, keys), phase, calm))
            })
            .collect();
        // Whatever a writer panics with is told when it is joined.
        let is_calm = (0..WRITERS).all(|_| told.recv_timeout(PATIENCE).is_ok());
        phase.store(1, Ordering::Relaxed);
        let began = Instant::now();
        let mut client = super::client::Client::with_patience(node.http(), 10 * PATIENCE);
        client.ask("POST", "/admin/compact").succeeded();
        let took = began.elapsed();
        phase.store(2, Ordering::Relaxed);
        let latencies: Vec<_> = writing.into_iter().map(|w| w.join().unwrap()).collect();
        assert!(is_calm, "{calm_writes} writes took too long");
        (latencies, took)
    });
    let of = |phase: usize| {
        let mut all: Vec<_> = latencies.iter().flat_map(|of| of[phase].clone()).collect();
        all.sort_unstable();
        all
    };
    let p99 =
        |sorted: &[Duration]| sorted.get(sorted.len() * 99 / 100).copied().unwrap_or_default();
    let (calm, busy) = (of(0), of(1));
    let slowest = busy.last().copied().unwrap_or_default();
    Tail { before: p99(&calm), during: p99(&busy), slowest, took, writes: busy.len() }
}

/// Loads the same into `redis-server`.
fn load_redis(redis: &Redis, keys: usize) {
    let mut stream = redis.connect();
    let all: Vec<usize> = (0..keys).collect();
    for batch in all.chunks(AHEAD) {
        let mut requests = String::new();
        for i in batch {
            let (key, value) = (key(*i), value(*i));
            write!(requests, "*3\r\n$3\r\nSET\r\n$16\r\n{key}\r\n$100\r\n{value}\r\n").unwrap();
        }
        stream.write_all(requests.as_bytes()).unwrap();
        let mut answers = vec![0; 5 * batch.len()];
        stream.read_exact(&mut answers).unwrap();
        assert!(answers.chunks(5).all(|answer| answer == b"+OK\r\n"));
    }
}

fn redis_start_time(redis: &mut Redis) -> Duration {
    let times = (0..ROUNDS).map(|_| {
        redis.stop().unwrap();
        let began = Instant::now();
        redis.restart().unwrap();
        began.elapsed()
    });
    middle(times.collect())
}

/// The log of `redis-server` with the same keys, if it is installed.
fn redis_log(keys: usize) -> Option<Log> {
    Redis::version()?;
    let dir = tempfile::tempdir().unwrap();
    let mut redis = Redis::start(dir.path(), Policy::Everysec).unwrap();
    load_redis(&redis, keys);
    let mut log = Log { bytes: [0; 2], start: [Duration::ZERO; 2] };
    (log.start[0], log.bytes[0]) = (redis_start_time(&mut redis), bytes_below(dir.path()));
    assert_eq!(redis.session().compact(), Outcome::Acknowledged);
    (log.start[1], log.bytes[1]) = (redis_start_time(&mut redis), bytes_below(dir.path()));
    Some(log)
}

/// Bytes of the log and seconds to come back from it: of what was written, and when compacted.
struct Log {
    bytes: [u64; 2],
    start: [Duration; 2],
}

#[test]
fn a_large_log_is_compacted_beside_writes_and_comes_back() {
    let _alone = Turn::alone();
    let keys = keys();
    let is_full_size = std::env::var_os("LALLY_TEST_LARGE_LOG").is_some();
    let mut node = Setup::new().start_ready();
    load(&node, keys);
    let log_dir = node.setup().data_dir().join("log");
    let mut ours = Log { bytes: [0; 2], start: [Duration::ZERO; 2] };
    (ours.start[0], ours.bytes[0]) = (start_time(&mut node), bytes_below(&log_dir));
    holds_all(&node, keys);
    let calm_writes = if is_full_size { CALM_WRITES } else { 50 };
    let mut tails: Vec<_> =
        (0..ROUNDS).map(|_| compact_under_load(&node, keys, calm_writes)).collect();
    node.client().ask("POST", "/admin/compact").succeeded();
    (ours.start[1], ours.bytes[1]) = (start_time(&mut node), bytes_below(&log_dir));
    holds_all(&node, keys);
    assert_eq!(node.cluster()["keys"], keys);
    drop(node);
    if !is_full_size {
        return;
    }
    let theirs = redis_log(keys);
    tails.sort_unstable_by(|a, b| a.ratio().total_cmp(&b.ratio()));
    let text = report(keys, &tails, &ours, theirs.as_ref());
    eprintln!("{text}");
    results::keep("LALLY_LARGE_LOG_RESULT", || text);
    let ratio = tails[ROUNDS / 2].ratio();
    assert!(ratio <= 2.0, "the 99th percentile of writes is {ratio:.2} times as long");
}

impl Tail {
    fn ratio(&self) -> f64 {
        self.during.as_secs_f64() / self.before.as_secs_f64()
    }
}

fn report(keys: usize, tails: &[Tail], ours: &Log, theirs: Option<&Log>) -> String {
    let mut text = format!(
        "# A log of {keys} keys, {}\n\nRevision {}, `make large-log`, {}, {} cores. \
         Keys of 16 bytes, values of 100 random letters.\n\n\
         ## Writes while it is compacted\n\n{WRITERS} connections that write one value after the \
         other, on the cores that the node has.\n\n\
         | compaction | writes meanwhile | p99 before | p99 meanwhile | ratio | slowest |\n\
         |---|---|---|---|---|---|\n",
        results::date(),
        results::revision(),
        results::build(),
        results::cores()
    );
    let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
    for tail in tails {
        writeln!(
            text,
            "| {:.1} s | {} | {} | {} | {:.2} | {} |",
            tail.took.as_secs_f64(),
            tail.writes,
            ms(tail.before),
            ms(tail.during),
            tail.ratio(),
            ms(tail.slowest)
        )
        .unwrap();
    }
    text += "\n## Start and size\n\nFrom the start of the process until it answers; the middle of \
             three.\n\n| | Lally | redis-server | ratio |\n|---|---|---|---|\n";
    for (at, what) in [(0, "as written"), (1, "compacted")] {
        let theirs_start = theirs.map(|log| log.start[at].as_secs_f64());
        let megabytes = |log: &Log| f64::from(u32::try_from(log.bytes[at] / 1_000).unwrap()) / 1e3;
        let theirs_mb = theirs.map(megabytes);
        let (start, mb) = (ours.start[at].as_secs_f64(), megabytes(ours));
        for (what, unit, our, their) in [
            (format!("start, {what}"), "s", start, theirs_start),
            (format!("size, {what}"), "MB", mb, theirs_mb),
        ] {
            let their_text = their.map_or("-".into(), |their| format!("{their:.2} {unit}"));
            let ratio = their.map_or("-".into(), |their| format!("{:.2}", our / their));
            writeln!(text, "| {what} | {our:.2} {unit} | {their_text} | {ratio} |").unwrap();
        }
    }
    text
}
