//! The simulations that run with every `cargo test`, and those that run on demand.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::runner::{self, Failed};
use super::world::TAIL;

/// Seeds of every run of the tests.
const SEEDS: u64 = 200;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Runs these seeds on two threads; the reports of those that failed.
fn run_all(first: u64, seeds: u64, progress: bool) -> Vec<Failed> {
    let (next, failed) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    if let Err(failure) = runner::run(seed, TAIL) {
                        eprintln!("seed {seed} FAILED: {}", failure.what.join("\n  "));
                        failed.lock().unwrap().push(failure);
                    }
                    if progress && (seed + 1 - first).is_multiple_of(100) {
                        eprintln!("{} of {seeds} seeds", seed + 1 - first);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap()
}

#[test]
fn two_hundred_seeds() {
    let failed = run_all(1, number("LALLY_SIM_SEEDS").unwrap_or(SEEDS), true);
    if let Some(first) = failed.first() {
        let seeds: Vec<_> = failed.iter().map(|failure| failure.seed).collect();
        panic!("{}\nfailed: {seeds:?}", first.report());
    }
}

/// With `LALLY_SIM_SEED`: that one, told in full.
#[test]
fn one_seed() {
    let seed = number("LALLY_SIM_SEED").unwrap_or(0);
    match runner::run(seed, usize::MAX) {
        Ok(passed) => {
            eprintln!("{} operations, settled after {:?}", passed.ops, passed.settled_after)
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
}
