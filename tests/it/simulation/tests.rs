//! The simulations that run with every `cargo test`, and those that run on demand.

use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::runner::{self, Failed, Passed};
use super::world::TAIL;

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
    slowest: Duration,
    failed: Vec<Failed>,
}

impl Tally {
    fn count(&mut self, outcome: Result<Passed, Failed>) {
        match outcome {
            Ok(passed) => {
                self.ops += passed.ops as u64;
                self.acknowledged += passed.acknowledged as u64;
                self.slowest = self.slowest.max(passed.settled_after);
            }
            Err(failed) => {
                eprintln!("seed {} failed: {}", failed.seed, failed.what.join("\n    "));
                self.failed.push(failed);
            }
        }
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
    if let Ok(file) = std::env::var("LALLY_SIM_RESULT") {
        write_result(Path::new(&file), first, seeds, &tally);
    }
    assert!(tally.acknowledged > seeds * 50, "clients got hardly anything done");
    if let Some(failed) = tally.failed.first() {
        panic!("{}\nfailed: {:?}", failed.report(), tally.seeds());
    }
}

fn write_result(file: &Path, first: u64, seeds: u64, tally: &Tally) {
    let mut text = String::from("# Simulation\n\n");
    let mut line = |what: &str, value: String| writeln!(text, "- {what}: {value}").unwrap();
    line("seeds", format!("{first} to {}", first + seeds - 1));
    line("failed", format!("{} {:?}", tally.failed.len(), tally.seeds()));
    line("operations of clients", tally.ops.to_string());
    line("acknowledged with their quorum", tally.acknowledged.to_string());
    line(
        "longest until all was settled",
        format!("{:.1} s, simulated", tally.slowest.as_secs_f64()),
    );
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, text).unwrap();
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
