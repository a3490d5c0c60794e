//! The power of a real file system is cut at random moments under load, and right after a graceful
//! stop: each policy keeps what it promises.
//!
//! `LALLY_TEST_SEED` repeats the moments, `LALLY_TEST_CUTS` sets the number of cuts per policy.

use std::time::{Duration, Instant};

use super::super::process::turn::Turn;
use super::campaign::{report, side_by_side};
use super::disk::Disk;
use super::lally::Lally;
use super::server::{Kind, Outcome, Policy, Server};
use crate::results::{self, from_env, say};

/// How far back `everysec` may fall. That asks more than the node promises, which is that what is lost
/// was acknowledged within this time: the disk must not hang. The report has both.
const WINDOW: Duration = Duration::from_secs(2);

#[test]
fn a_power_cut_takes_no_more_than_the_policy_says() {
    let _alone = Turn::alone();
    let (seed, cuts) = (results::seed(), from_env("LALLY_TEST_CUTS"));
    let began = Instant::now();
    let tallies = side_by_side(cuts.unwrap_or(4), seed, super::campaign::Campaign::cut);
    let report = report("Power cuts", &tallies, began.elapsed());
    if cuts.is_some() {
        say(&report);
    }
    results::keep("LALLY_CUTS_RESULT", || report.clone());
    let of_lally = tallies.iter().filter(|(kind, ..)| *kind == Kind::Lally).count();
    assert!(of_lally == 3 || cuts.is_none(), "no power was cut");
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

/// Lengths and data go to the device at different times. A power cut left a log shorter than what is
/// in its last block, and the next one leaves it longer, before what was written since is there.
#[test]
fn what_a_power_cut_took_is_not_back_after_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(dir.path()) else { return };
    let data = disk.root.join("data");
    let mut server = Lally::start(&data, Policy::Always).unwrap();
    let segment = data.join("log/0000000000000001.log");
    let length = || segment.metadata().unwrap().len();
    let put = |server: &Lally, key: &str| {
        assert_eq!(server.session().put(key, Some("v")), Outcome::Acknowledged);
        length()
    };
    let shorter = put(&server, "kept");
    let longer = put(&server, "lost");
    server.kill();
    disk.set_length(&segment, shorter);
    let holds = |server: &mut Lally| {
        server.restart().unwrap();
        let mut session = server.session();
        let held = ["kept", "lost"].map(|key| session.get(key).is_some());
        server.kill();
        held
    };
    assert_eq!(holds(&mut server), [true, false]);
    assert_eq!(length(), shorter);
    disk.set_length(&segment, longer);
    assert_eq!(holds(&mut server), [true, false], "what was lost is back");
}
