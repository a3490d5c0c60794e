//! Nodes are killed while one of them joins, or is given the writes that it missed: what was
//! acknowledged by the one that had it is on both of them afterwards.
//!
//! `LALLY_TEST_HANDOVERS` sets the number of rounds of each kind and policy, `LALLY_TEST_SEED`
//! repeats their moments.

use std::fmt::Write as _;
use std::fs;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::super::process::node::{Node, Setup};
use super::super::process::ring::{wait_equal, wait_whole};
use super::super::process::turn::Turn;
use super::campaign::moment_within;
use super::history::{Ending, History, Order, judge};
use super::lally::Connection;
use super::server::{Policy, Session};
use crate::results::{self, from_env, say};

const WRITERS: usize = 2;
/// Keys that a joining node has to fetch beside what is being written.
const KEYS: usize = 2_000;
/// How long the other node is away while writes go on.
const AWAY: Duration = Duration::from_millis(200);
/// The latest moment of the kill, after the other node began to listen.
const LATEST: Duration = Duration::from_millis(500);

/// Why the second node needs something of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// It comes with an empty disk.
    Join,
    /// It was away while writes went on.
    Missed,
}

#[derive(Default)]
struct Tally {
    rounds: usize,
    /// Kills before the second node was ready.
    in_time: usize,
    acknowledged: usize,
    lost: usize,
    disorder: Vec<String>,
}

#[test]
fn a_kill_while_a_node_joins_or_is_given_what_it_missed_loses_nothing() {
    let _alone = Turn::alone();
    let rounds: Option<usize> = from_env("LALLY_TEST_HANDOVERS");
    let mut random = StdRng::seed_from_u64(results::seed());
    let began = Instant::now();
    let mut out = String::from(
        "| the second node | policy | kills | before it was ready | acknowledged | lost | no prefix |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let (mut broken, mut all_in_time) = (0, 0);
    for policy in Policy::ALL {
        let [mut joins, mut missed] = [Tally::default(), Tally::default()];
        let mut nodes = pair(policy);
        let mut histories: Vec<_> = (0..WRITERS).map(History::new).collect();
        for _ in 0..rounds.unwrap_or(1) {
            round(&mut nodes, &mut histories, Need::Join, &mut random, &mut joins);
            round(&mut nodes, &mut histories, Need::Missed, &mut random, &mut missed);
        }
        for (need, tally) in [("joins", joins), ("is given what it missed", missed)] {
            let Tally { rounds, in_time, acknowledged, lost, disorder } = tally;
            let unordered = disorder.len();
            writeln!(
                out,
                "| {need} | `{policy}` | {rounds} | {in_time} | {acknowledged} | {lost} | {unordered} |"
            )
            .unwrap();
            broken += lost + unordered;
            all_in_time += in_time;
            for why in &disorder {
                say(why);
            }
        }
    }
    if rounds.is_some() {
        say(&out);
    }
    results::keep("LALLY_HANDOVERS_RESULT", || report(&out, began.elapsed()));
    assert_eq!(broken, 0, "{out}");
    assert!(all_in_time > 0 || rounds.is_none(), "every kill came too late\n{out}");
}

/// The dated result, in Markdown.
fn report(table: &str, took: Duration) -> String {
    format!(
        "# Kills during joins and deliveries, {}\n\nRevision {}, {}, {} cores, {} s. \
         What is done and what is counted: \
         [docs/durability.md](../durability.md#kills-and-power-cuts).\n\n{table}",
        results::date(),
        results::revision(),
        results::build(),
        results::cores(),
        took.as_secs()
    )
}

/// Two nodes that hold some data.
fn pair(policy: Policy) -> [Node; 2] {
    let setup = || Setup::new().args(["--fsync", &policy.to_string()]);
    let first = setup().start_ready();
    let bodies: Vec<_> = (0..KEYS)
        .map(|i| json!({"key": format!("before-{i}"), "value": "x".repeat(100 + i % 400)}))
        .collect();
    for batch in bodies.chunks(200) {
        for reply in first.client().pipeline("/add", batch) {
            reply.succeeded();
        }
    }
    let second = setup().seed(first.grpc()).start();
    let nodes = [first, second];
    wait_whole(&nodes);
    nodes
}

fn round(
    nodes: &mut [Node; 2],
    histories: &mut [History],
    need: Need,
    random: &mut StdRng,
    tally: &mut Tally,
) {
    let moment = moment_within(random, LATEST);
    let victim = usize::from(random.random_bool(0.5));
    nodes[1].kill9();
    if need == Need::Join {
        fs::remove_dir_all(nodes[1].setup().data_dir()).unwrap();
    }
    let (order, over) = (Order::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let (order, over) = (&order, &over);
        let _ending = Ending(over);
        for history in histories.iter_mut() {
            let mut session = Connection::to(nodes[0].http());
            scope.spawn(move || history.write(&mut session, order, over));
        }
        // Not waits for facts: the moments are what is random here.
        if need == Need::Missed {
            thread::sleep(AWAY);
        }
        nodes[1].restart();
        thread::sleep(moment);
        tally.in_time += usize::from(nodes[1].readiness().is_err());
        nodes[victim].kill9();
    });
    let failed = Instant::now();
    nodes[victim].restart();
    wait_whole(&*nodes);
    wait_equal(&*nodes);
    tally.rounds += 1;
    tally.acknowledged += histories.iter().map(History::acknowledged).sum::<usize>();
    let refusals = histories.iter().filter_map(|history| history.refusal.clone());
    tally.disorder.extend(refusals);
    let mut found = Vec::new();
    for node in &*nodes {
        let mut session = Connection::to(node.http());
        let session: &mut dyn Session = &mut session;
        found = histories.iter().map(|history| history.look(session)).collect();
        let judged = judge(histories, &found, failed);
        tally.lost += judged.lost;
        tally.disorder.extend(judged.disorder);
        let values = found.iter().flatten().flatten().count();
        let (keys, expected) = (node.holdings().1, (KEYS + values) as u64);
        if keys != expected {
            tally.disorder.push(format!("{keys} keys instead of {expected}"));
        }
    }
    for (history, found) in histories.iter_mut().zip(found) {
        history.begin_with(found);
    }
}
