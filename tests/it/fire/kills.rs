//! SIGKILL at random moments under load, twenty times and once more: no acknowledged write is lost,
//! under any policy, also while the log is compacted.
//!
//! The seed of the moments is printed; `LALLY_TEST_SEED` repeats it, `LALLY_TEST_KILLS` sets the
//! number of kills per policy.

use std::time::{Duration, Instant};

use super::super::process::node::Setup;
use super::super::process::turn::Turn;
use super::campaign::{report, side_by_side};
use super::server::Kind;
use crate::results::{self, from_env, say};

#[test]
fn twenty_kills_under_load_lose_no_acknowledged_write() {
    let _alone = Turn::alone();
    let (seed, kills) = (results::seed(), from_env("LALLY_TEST_KILLS"));
    let began = Instant::now();
    let tallies = side_by_side(kills.unwrap_or(7), seed, |campaign| Some(campaign.kill()));
    let report = report("Kills", &tallies, began.elapsed());
    if kills.is_some() {
        say(&report);
    }
    results::keep("LALLY_KILLS_RESULT", || report.clone());
    let of_lally: Vec<_> = tallies.iter().filter(|(kind, ..)| *kind == Kind::Lally).collect();
    assert_eq!(of_lally.len(), 3);
    for (_, policy, tally) in of_lally {
        let broken = tally.lost + tally.disorder.len() + tally.wrong.len();
        assert_eq!(broken, 0, "{policy}:\n{report}");
        assert!(tally.acknowledged > 20, "{policy}: the load was none\n{report}");
    }
    if kills.is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    }
}

#[test]
fn a_killed_node_is_started_and_killed_again_before_it_is_ready() {
    let mut node = Setup::new().start_ready();
    for i in 0..500 {
        node.client().add(&format!("k{i}"), "v").succeeded();
    }
    for _ in 0..5 {
        node.kill9();
        node.restart();
    }
    node.wait_ready();
    assert_eq!(node.holdings().1, 500);
}
