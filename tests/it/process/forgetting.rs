//! Removed keys are forgotten by real processes, and a member that was away for too long brings none
//! of them back.
//!
//! What is removed is remembered for a minute at least, so this takes longer than other tests: it
//! runs when it is asked for (`make forgetting`), and the same in paused time in
//! `in_memory::forgetting`.

use std::time::Duration;

use super::node::{Node, contents};
use super::ring::{self, wait_equal, wait_state, wait_whole};
use super::turn::Turn;
use super::wait::{eventually, is};

/// The grace, the longest absence, and time for a proposal after both.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(150);

pub(super) fn forgotten<'a>(nodes: impl IntoIterator<Item = &'a Node>) {
    let nodes: Vec<_> = nodes.into_iter().collect();
    eventually("the removal is forgotten", FORGOTTEN_WITHIN, || {
        let clusters: Vec<_> = nodes.iter().map(|node| node.cluster()).collect();
        let all = clusters.iter().all(|c| c["tombstones"] == 0 && c["horizon"].is_string());
        is(all, format!("{clusters:?}"))
    });
}

/// Checks that the removed key, and nothing else, is in the quarantine of a node.
pub(super) fn quarantined(node: &Node) {
    let quarantine = contents(&node.setup().data_dir().join("quarantine"));
    let kept: String =
        quarantine.into_iter().filter_map(|(_, bytes)| String::from_utf8(bytes?).ok()).collect();
    assert!(kept.lines().count() == 1 && kept.contains("\"removed\""), "{kept}");
}

#[test]
fn a_member_that_was_away_when_a_removal_was_forgotten_does_not_bring_the_key_back() {
    if std::env::var_os("LALLY_TEST_FORGETTING").is_none() {
        eprintln!("SKIPPED: takes two minutes; see `make forgetting`");
        return;
    }
    let _alone = Turn::alone();
    let mut nodes = ring::start(3, &["--tombstone-grace", "1m", "--max-absence", "1m"]);
    for key in ["removed", "kept"] {
        nodes[0].client().add_to(key, "v", "all").succeeded();
    }
    nodes[2].kill9();
    for node in &nodes[..2] {
        wait_state(node, &nodes[2], "down");
    }
    nodes[1].client().remove("removed").succeeded();
    nodes[0].client().add_to("later", "v", 2).succeeded();
    forgotten(&nodes[..2]);
    nodes[2].restart();
    wait_whole(&nodes);
    wait_equal(&nodes);
    for node in &nodes {
        for (key, value) in [("removed", None), ("kept", Some("v")), ("later", Some("v"))] {
            assert_eq!(node.client().get_from(key, 1).value().as_deref(), value, "{key}");
        }
    }
    quarantined(&nodes[2]);
    // And then by all three.
    nodes[2].client().remove("kept").succeeded();
    forgotten(&nodes);
    wait_equal(&nodes);
}
