//! The power of a real file system is cut at random moments under load, and right after a graceful
//! stop: each policy keeps what it promises.
//!
//! `LALLY_TEST_SEED` repeats the moments, `LALLY_TEST_CUTS` sets the number of cuts per policy.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use super::super::process::turn::Turn;
use super::campaign::{report, side_by_side};
use super::server::{Kind, Policy};
use crate::results::{self, from_env, say};

/// How far back `everysec` may fall.
const WINDOW: Duration = Duration::from_secs(2);

#[test]
fn a_power_cut_takes_no_more_than_the_policy_says() {
    let _alone = Turn::alone();
    let seed: u64 = from_env("LALLY_TEST_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let cuts = from_env("LALLY_TEST_CUTS");
    eprintln!("LALLY_TEST_SEED={seed}");
    let began = Instant::now();
    let tallies = side_by_side(cuts.unwrap_or(4), seed, super::campaign::Campaign::cut);
    let report = report("Power cuts", &tallies, began.elapsed());
    if cuts.is_some() {
        say(&report);
    }
    if let Ok(path) = std::env::var("LALLY_CUTS_RESULT") {
        results::write(&path, &report);
    }
    for (_, policy, tally) in tallies.iter().filter(|(kind, ..)| *kind == Kind::Lally) {
        let may_lose = match policy {
            Policy::Always => tally.lost == 0,
            Policy::Everysec => tally.oldest <= WINDOW,
            // A prefix, which disorder is not.
            Policy::Never => true,
        };
        let broken = tally.lost_after_stop + tally.disorder.len() + tally.wrong.len();
        assert!(may_lose && broken == 0, "{policy}:\n{report}");
        assert!(tally.acknowledged > 20, "{policy}: the load was none\n{report}");
    }
}
