//! The simulations that run with every `cargo test`, and those that run on demand.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::registers::registers;
use super::runner::{self, Failed, Passed};
use super::world::TAIL;
use crate::results;

/// Seeds of every run of the tests.
const SEEDS: u64 = 200;

/// How often many seeds say how far they are.
const PROGRESS_EVERY: u64 = 100;

/// A number in the environment.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// What came of many seeds.
#[derive(Default)]
struct Tally {
    ops: u64,
    acknowledged: u64,
    /// The longest until all was settled, and of which seed.
    slowest: (Duration, u64),
    /// Seeds in which a removal was forgotten while things went wrong.
    collected: u64,
    /// Seeds in which something came into quarantine.
    quarantined: u64,
    /// Operations of which it was decided whether their keys were registers.
    steps: usize,
    failed: Vec<Failed>,
}

impl Tally {
    fn count(&mut self, outcome: Result<Passed, Failed>) {
        match outcome {
            Ok(passed) => {
                self.ops += passed.ops as u64;
                self.acknowledged += passed.acknowledged as u64;
                self.collected += u64::from(passed.evidence.collected);
                let registers = registers(&passed.evidence);
                self.steps += registers.values().map(Vec::len).sum::<usize>();
                self.quarantined += u64::from(!passed.evidence.quarantined.is_empty());
                self.slowest = self.slowest.max((passed.settled_after, passed.seed));
            }
            Err(failed) => {
                eprintln!("seed {} failed: {}", failed.seed, failed.what.join("\n    "));
                self.failed.push(failed);
            }
        }
    }

    /// What happened, one thing a line.
    fn summary(&self, first: u64, seeds: u64) -> String {
        let mut text = String::new();
        let mut line = |what: &str, value: String| writeln!(text, "- {what}: {value}").unwrap();
        line("seeds", format!("{first} to {}", first + seeds - 1));
        line("failed", format!("{} {:?}", self.failed.len(), self.seeds()));
        line("operations of clients", self.ops.to_string());
        line("acknowledged with their quorum", self.acknowledged.to_string());
        line("of those decided to be of registers", self.steps.to_string());
        line("seeds in which removals were forgotten among faults", self.collected.to_string());
        line("seeds in which something came into quarantine", self.quarantined.to_string());
        let (slowest, seed) = (self.slowest.0.as_secs_f64(), self.slowest.1);
        line("longest until all was settled", format!("{slowest:.1} s, simulated (seed {seed})"));
        text
    }

    fn seeds(&self) -> Vec<u64> {
        self.failed.iter().map(|failed| failed.seed).collect()
    }
}

/// Runs these seeds on two threads.
fn run_all(first: u64, seeds: u64) -> Tally {
    let (next, tally) = (AtomicU64::new(0), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    if nth >= seeds {
                        return;
                    }
                    let outcome = runner::run(first + nth, TAIL);
                    tally.lock().unwrap().count(outcome);
                    if (nth + 1).is_multiple_of(PROGRESS_EVERY) {
                        eprintln!("{} of {seeds} seeds", nth + 1);
                    }
                }
            });
        }
    });
    tally.into_inner().unwrap()
}

/// As many as `LALLY_SIM_SEEDS` says, from `LALLY_SIM_FIRST` on; the result goes into the file that
/// `LALLY_SIM_RESULT` names.
#[test]
fn many_seeds() {
    let first = number("LALLY_SIM_FIRST").unwrap_or(1);
    let seeds = number("LALLY_SIM_SEEDS").unwrap_or(SEEDS);
    let tally = run_all(first, seeds);
    eprintln!("{}", tally.summary(first, seeds));
    let result = || format!("# Simulation\n\n{}", tally.summary(first, seeds));
    results::keep("LALLY_SIM_RESULT", result);
    assert!(tally.acknowledged > seeds * 50, "clients got hardly anything done");
    assert!(tally.steps as u64 > seeds * 20, "hardly any key was judged as a register");
    if seeds >= 100 {
        assert!(tally.collected > 0, "no removal was forgotten: nothing was checked about that");
        assert!(tally.quarantined > 0, "nothing came into quarantine: likewise");
    }
    if let Some(failed) = tally.failed.first() {
        panic!("{}\nfailed: {:?}", failed.report(), tally.seeds());
    }
}

/// With `LALLY_SIM_SEED`: that one, told in full if it fails.
#[test]
fn one_seed() {
    let seed = number("LALLY_SIM_SEED").unwrap_or(0);
    match runner::run(seed, usize::MAX) {
        Ok(passed) => {
            let (ops, acknowledged) = (passed.ops, passed.acknowledged);
            eprintln!(
                "{ops} operations, {acknowledged} acknowledged, settled after {:?}",
                passed.settled_after
            );
        }
        Err(failed) => panic!("{}", failed.report()),
    }
}

#[test]
fn the_same_seed_is_the_same_world() {
    for seed in 1..=8 {
        let (one, other) = (runner::run(seed, TAIL).unwrap(), runner::run(seed, TAIL).unwrap());
        assert_eq!(one.fingerprint, other.fingerprint, "seed {seed}");
        assert_eq!(one.evidence.ops, other.evidence.ops, "seed {seed}");
    }
    let [one, other] = [1, 2].map(|seed| runner::run(seed, TAIL).unwrap().fingerprint);
    assert_ne!(one, other);
}
