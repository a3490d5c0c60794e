//! What is done to the cluster, and the schedule of it, which follows from a seed alone.
//!
//! A step is something done to the network, something done to a process, or both at once; it heals
//! itself before the next one begins. A round has every fault in a random order, so a short run has
//! all of them.
//!
//! Two things wait for the cluster before the next step: a node that lost its disk, and one that
//! was restarted gracefully, are let in again over a whole network first. A majority can lose a
//! write only if several of its nodes lose their disks at the same time, and no database with
//! majorities claims otherwise; what nodes that left count for is another matter than faults.

use std::fs;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::super::process::node::Node;
use super::history::Trouble;
use super::lab::{Lab, NODES};

const FLAP: Duration = Duration::from_millis(300);
/// How long a wiped node reaches only those that lack what it had acknowledged.
const TEMPTATION: Duration = Duration::from_millis(1_500);
/// Of the first step of a round, and another: until members are believed down, which takes 3.2 s.
const LONG_MS: Range<u64> = 4_000..5_500;
/// The other eleven; a round never takes more than 30 s.
const SHORT_MS: Range<u64> = 800..1_700;

/// Something done to the network between nodes; clients reach all nodes meanwhile, except over a
/// flapping link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Two nodes, the given one and the next, on one side and three on the other.
    Halves(usize),
    /// One node alone.
    Isolate(usize),
    /// What the first sends the second does not arrive; the other way it does.
    OneWay(usize, usize),
    /// The cable of a node goes in and out.
    Flapping(usize),
    /// Two halves of two nodes that do not reach each other, and one node that reaches all.
    Bridge(usize),
}

/// Something done to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// SIGSTOP, SIGCONT.
    Pause(usize),
    /// SIGKILL, and started again.
    Kill(usize),
    /// SIGKILL, and started again without its data directory. With halves it is killed
    /// at their end, and comes back on the side of those that lack what it acknowledged.
    Wipe(usize),
    /// SIGTERM and a start, node by node.
    Rolling,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub cut: Option<Cut>,
    pub harm: Option<Harm>,
    pub length: Duration,
}

/// The schedule of a run: as many steps as have room in this time, in whole rounds but for the last.
pub fn schedule(seed: u64, time: Duration) -> Vec<Step> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut steps = Vec::new();
    let mut left = time;
    loop {
        for (i, (cut, harm)) in round(&mut random).into_iter().enumerate() {
            // Whoever takes the place of a member must be believed: that one has to be down.
            let moved = matches!((cut, harm), (Some(_), Some(Harm::Wipe(_))));
            let long = i == 0 || moved;
            let length = random.random_range(if long { LONG_MS } else { SHORT_MS });
            let length = Duration::from_millis(length);
            let Some(rest) = left.checked_sub(length) else { return steps };
            left = rest;
            steps.push(Step { cut, harm, length });
        }
    }
}

fn round(random: &mut StdRng) -> Vec<(Option<Cut>, Option<Harm>)> {
    let mut node = || random.random_range(0..NODES);
    let from = node();
    let first = node();
    let mut to_another = || (from + 1 + node() % (NODES - 1)) % NODES;
    let one_way = Cut::OneWay(from, to_another());
    let mut round = vec![
        (Some(Cut::Halves(node())), None),
        (Some(Cut::Isolate(node())), None),
        (Some(one_way), None),
        (Some(Cut::Flapping(node())), None),
        (Some(Cut::Bridge(node())), None),
        (None, Some(Harm::Pause(node()))),
        (None, Some(Harm::Kill(node()))),
        (None, Some(Harm::Wipe(node()))),
        (None, Some(Harm::Rolling)),
        (Some(Cut::Halves(node())), Some(Harm::Kill(node()))),
        (Some(Cut::Isolate(node())), Some(Harm::Pause(node()))),
        (Some(Cut::Bridge(node())), Some(Harm::Kill(node()))),
        // One of those three that went on as a majority, moved to the two that went without.
        (Some(Cut::Halves(first)), Some(Harm::Wipe((first + 2) % NODES))),
    ];
    round.shuffle(random);
    round
}

impl Cut {
    /// Whether `to` gets what `from` sends.
    pub fn reaches(self, from: usize, to: usize) -> bool {
        let small = |first: usize, node: usize| node == first || node == (first + 1) % NODES;
        match self {
            Self::Halves(first) => small(first, from) == small(first, to),
            Self::Isolate(alone) => from != alone && to != alone,
            Self::OneWay(sender, receiver) => (from, to) != (sender, receiver),
            Self::Flapping(_) => true,
            Self::Bridge(bridge) => {
                let half = |node: usize| small((bridge + 1) % NODES, node);
                from == bridge || to == bridge || half(from) == half(to)
            }
        }
    }
}

/// Does the step, heals it, and says what it was. Nodes that it ends are started again with the
/// same addresses.
pub fn suffer(step: Step, lab: &Lab, nodes: &mut [Node], start: Instant) -> Trouble {
    let began = start.elapsed();
    let until = Instant::now() + step.length;
    if let Some(cut) = step.cut {
        lab.connect(|from, to| cut.reaches(from, to));
    }
    match step.harm {
        Some(Harm::Pause(node)) => nodes[node].signal("STOP"),
        Some(Harm::Kill(node)) => nodes[node].kill9(),
        Some(Harm::Wipe(node)) if step.cut.is_none() => nodes[node].kill9(),
        Some(Harm::Wipe(_) | Harm::Rolling) | None => {}
    }
    if let Some(Cut::Flapping(node)) = step.cut {
        flap(lab, node, until);
    }
    // The length of a fault, not a wait for a fact.
    thread::sleep(until.saturating_duration_since(Instant::now()));
    if let Some(Harm::Pause(node)) = step.harm {
        nodes[node].signal("CONT");
    }
    // Started again while the network is still cut: the harder case.
    if let Some(Harm::Kill(node)) = step.harm {
        nodes[node].restart();
    }
    if let (Some(Harm::Wipe(node)), Some(_)) = (step.harm, step.cut) {
        nodes[node].kill9();
        let other_side = Cut::Halves((node + 1) % NODES);
        lab.connect(|from, to| other_side.reaches(from, to));
        wipe(lab, nodes, node);
        // With whom it may not make a majority: how long it is tempted to.
        thread::sleep(TEMPTATION);
    }
    lab.connect(|_, _| true);
    match step.harm {
        Some(Harm::Wipe(node)) => {
            if step.cut.is_none() {
                wipe(lab, nodes, node);
            }
            nodes[node].wait_ready();
        }
        Some(Harm::Rolling) => roll(nodes),
        _ => {}
    }
    let what = [step.cut.map(|c| format!("{c:?}")), step.harm.map(|h| format!("{h:?}"))];
    Trouble {
        what: what.into_iter().flatten().collect::<Vec<_>>().join(" and "),
        began,
        ended: start.elapsed(),
        silent: step.silent(),
        wiped: if let Some(Harm::Wipe(node)) = step.harm { Some(node) } else { None },
    }
}

impl Step {
    /// Nodes that cannot answer all of their clients while it lasts.
    fn silent(self) -> Vec<usize> {
        let unplugged = if let Some(Cut::Flapping(node)) = self.cut { Some(node) } else { None };
        let harmed = match self.harm {
            Some(Harm::Pause(node) | Harm::Kill(node) | Harm::Wipe(node)) => vec![node],
            Some(Harm::Rolling) => (0..NODES).collect(),
            None => Vec::new(),
        };
        unplugged.into_iter().chain(harmed).collect()
    }
}

fn flap(lab: &Lab, node: usize, until: Instant) {
    let mut plugged = true;
    while Instant::now() < until {
        plugged = !plugged;
        lab.plug(node, plugged);
        // How long the link stays as it is.
        thread::sleep(FLAP);
    }
    lab.plug(node, true);
}

/// Starts a node that was killed without its data directory.
fn wipe(lab: &Lab, nodes: &mut [Node], node: usize) {
    fs::remove_dir_all(nodes[node].setup().data_dir()).unwrap();
    nodes[node].restart_as(|setup| lab.seeded(setup, node));
}

fn roll(nodes: &mut [Node]) {
    for node in nodes {
        assert_eq!(node.terminate(), Some(0), "the exit code of a graceful stop");
        node.restart();
        node.wait_ready();
    }
}

#[test]
fn a_schedule_follows_from_its_seed_and_a_round_has_every_fault() {
    let long = Duration::from_secs(100);
    assert_eq!(schedule(7, long), schedule(7, long));
    assert_ne!(schedule(7, long), schedule(8, long));
    for seed in 0..50 {
        let round = schedule(seed, Duration::from_secs(30));
        let has = |wanted: fn(&Step) -> bool| round[..13].iter().any(wanted);
        assert!(has(|s| matches!(s.cut, Some(Cut::Halves(_)))));
        assert!(has(|s| matches!(s.cut, Some(Cut::Isolate(_)))));
        assert!(has(|s| matches!(s.cut, Some(Cut::OneWay(from, to)) if from != to)));
        assert!(has(|s| matches!(s.cut, Some(Cut::Flapping(_)))));
        assert!(has(|s| matches!(s.cut, Some(Cut::Bridge(_)))));
        assert!(has(|s| matches!(s.harm, Some(Harm::Pause(_)))));
        assert!(has(|s| matches!(s.harm, Some(Harm::Kill(_)))));
        assert!(has(|s| matches!(s.harm, Some(Harm::Wipe(_)))));
        assert!(has(|s| s.harm == Some(Harm::Rolling)));
        assert!(has(|s| s.cut.is_some() && s.harm.is_some()));
    }
}

#[test]
fn cuts_separate_whom_they_say() {
    let reached = |cut: Cut| {
        (0..NODES)
            .map(|from| {
                (0..NODES).filter(|to| *to != from && cut.reaches(from, *to)).collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        reached(Cut::Halves(4)),
        [vec![4], vec![2, 3], vec![1, 3], vec![1, 2], vec![0]],
        "nodes 4 and 0 apart from 1, 2 and 3"
    );
    assert_eq!(
        reached(Cut::Isolate(1)),
        [vec![2, 3, 4], vec![], vec![0, 3, 4], vec![0, 2, 4], vec![0, 2, 3]]
    );
    assert_eq!(
        reached(Cut::OneWay(0, 2))[..3],
        [vec![1, 3, 4], vec![0, 2, 3, 4], vec![0, 1, 3, 4]]
    );
    assert_eq!(
        reached(Cut::Bridge(0)),
        [vec![1, 2, 3, 4], vec![0, 2], vec![0, 1], vec![0, 4], vec![0, 3]]
    );
}
