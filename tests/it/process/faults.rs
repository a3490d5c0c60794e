//! Members that die, hang, come back, or lose their disk.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::node::{Node, Setup};
use super::ring::{self, wait_equal, wait_state, wait_value, wait_whole};
use super::turn::Turn;
use super::wait::{PATIENCE, eventually, is};

/// What an answer may take beyond its timeout.
const GRACE: Duration = Duration::from_millis(250);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// Requests with quorums of two through these nodes, each of which must succeed in time.
fn quorum_of_two_works<'a>(through: impl IntoIterator<Item = &'a Node>, rounds: usize) {
    for node in through {
        let mut client = node.client();
        for i in 0..rounds {
            let key = format!("q{i}");
            let bodies: [(&str, &str, Value); 3] = [
                ("POST", "/add", json!({"key": key, "value": "v", "quorum": 2})),
                ("POST", "/get", json!({"key": key, "quorum": 2})),
                ("DELETE", "/remove", json!({"key": key, "quorum": 2})),
            ];
            for (method, path, body) in bodies {
                let started = Instant::now();
                let reply = client.call(method, path, &body).succeeded();
                let took = started.elapsed();
                assert!(took <= DEFAULT_TIMEOUT + GRACE, "{path} took {took:?}");
                assert!(reply.quorum().1 >= 2, "{reply:?}");
            }
        }
    }
}

#[test]
fn with_one_of_three_killed_quorums_of_two_keep_succeeding() {
    let _alone = Turn::alone();
    let mut nodes = ring::start(3, &[]);
    quorum_of_two_works(&nodes, 3);
    nodes[1].kill9();
    let started = Instant::now();
    quorum_of_two_works([&nodes[0], &nodes[2]], 15);
    // A dead peer costs nothing: these are 90 requests, most on the time of none.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    wait_state(&nodes[0], &nodes[1], "down");
    let live = nodes[0].client().ask("GET", "/nodes").json()["nodes"].clone();
    assert_eq!(live, json!([nodes[2].grpc().to_string()]), "a dead member is listed");
    quorum_of_two_works([&nodes[0], &nodes[2]], 5);
    // It stays a member: all three are still required for "all".
    let all = nodes[0].client().add_to("k", "v", "all");
    assert_eq!((all.verdict().as_str(), all.quorum()), ("partial", (3, 2)));
    nodes[1].restart();
    wait_whole(&nodes);
    wait_equal(&nodes);
    wait_value(&nodes[1], "k", Some("v"));
}

#[test]
fn a_member_that_hangs_delays_no_request_beyond_its_timeout() {
    let _alone = Turn::alone();
    let nodes = ring::start(3, &[]);
    nodes[2].signal("STOP");
    for timeout_ms in [100, 500, 1000] {
        for (method, path, value) in
            [("POST", "/add", Some("v")), ("POST", "/get", None), ("DELETE", "/remove", None)]
        {
            let mut body = json!({"key": "k", "quorum": "all", "timeout_ms": timeout_ms});
            if let Some(value) = value {
                body["value"] = value.into();
            }
            let started = Instant::now();
            let reply = nodes[0].client().call(method, path, &body);
            let took = started.elapsed();
            let (required, achieved) = reply.quorum();
            assert_eq!((reply.verdict().as_str(), required), ("partial", 3), "{reply:?}");
            assert!((1..=2).contains(&achieved), "{reply:?}");
            let limit = Duration::from_millis(timeout_ms) + GRACE;
            assert!(took <= limit, "{path} with {timeout_ms} ms took {took:?}");
        }
    }
    quorum_of_two_works(&nodes[..2], 10);
    nodes[0].client().add("while it hung", "v").succeeded();
    nodes[2].signal("CONT");
    wait_whole(&nodes);
    wait_equal(&nodes);
    wait_value(&nodes[2], "while it hung", Some("v"));
}

#[test]
fn with_the_only_peer_hanging_the_local_copy_still_answers_at_once() {
    let _alone = Turn::alone();
    let nodes = ring::start(2, &[]);
    nodes[1].signal("STOP");
    let mut client = nodes[0].client();
    let started = Instant::now();
    for i in 0..50 {
        client.add(&format!("k{i}"), "v").succeeded();
        client.get(&format!("k{i}")).succeeded();
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    nodes[1].signal("CONT");
    wait_equal(&nodes);
}

#[test]
fn a_write_that_a_member_missed_is_delivered_when_it_is_back() {
    let mut nodes = ring::start(3, &[]);
    let mut client = nodes[0].client();
    for i in 0..50 {
        client.add_to(&format!("k{i}"), "old", "all").succeeded();
    }
    nodes[2].kill9();
    for i in 0..50 {
        client.add_to(&format!("k{i}"), "new", 2).succeeded();
        client.add_to(&format!("missed{i}"), "v", 2).succeeded();
    }
    let missing = nodes[2].grpc().to_string();
    eventually("the hints are counted", PATIENCE, || {
        let cluster = nodes[0].cluster();
        let members = cluster["members"].as_array().unwrap();
        let hints = |m: &Value| m["grpc_addr"] == missing.as_str() && m["hints"].as_u64() > Some(0);
        is(members.iter().any(hints), &cluster)
    });
    nodes[2].restart();
    for i in 0..50 {
        wait_value(&nodes[2], &format!("k{i}"), Some("new"));
        wait_value(&nodes[2], &format!("missed{i}"), Some("v"));
    }
    wait_equal(&nodes);
}

#[test]
fn a_removal_while_a_member_is_down_stays_after_it_and_then_all_restart() {
    let mut nodes = ring::start(3, &[]);
    nodes[2].client().add_to("gone", "v", "all").succeeded();
    nodes[2].client().add_to("stays", "v", "all").succeeded();
    nodes[2].kill9();
    assert_eq!(nodes[0].client().remove("gone").value().as_deref(), Some("v"));
    nodes[2].restart();
    wait_whole(&nodes);
    wait_value(&nodes[2], "gone", None);
    wait_equal(&nodes);
    let gone_everywhere = |nodes: &[Node]| {
        for node in nodes {
            for quorum in [json!(1), json!(2), json!("all")] {
                assert_eq!(node.client().get_from("gone", quorum).value(), None);
            }
            assert_eq!(node.client().get("stays").value().as_deref(), Some("v"));
        }
    };
    gone_everywhere(&nodes);
    for node in &mut nodes {
        node.kill9();
    }
    // The one that was away first: it must not bring its old copy back.
    for i in [2, 1, 0] {
        nodes[i].restart_as(Setup::without_seeds);
    }
    wait_whole(&nodes);
    wait_equal(&nodes);
    gone_everywhere(&nodes);
}

#[test]
fn a_member_that_lost_its_data_directory_gets_everything_again() {
    let mut nodes = ring::start(3, &[]);
    for i in 0..200 {
        nodes[i % 3].client().add_to(&format!("k{i}"), "v", "all").succeeded();
    }
    nodes[0].client().remove("k0").succeeded();
    nodes[2].kill9();
    fs::remove_dir_all(nodes[2].setup().data_dir()).unwrap();
    nodes[2].restart();
    nodes[2].wait_ready();
    wait_equal(&nodes);
    let mut client = nodes[2].client();
    assert_eq!(client.get("k0").value(), None);
    for i in 1..200 {
        assert_eq!(client.get(&format!("k{i}")).value().as_deref(), Some("v"));
    }
}

#[test]
fn a_founder_that_lost_its_data_directory_joins_and_is_watched_like_any_member() {
    let mut nodes = ring::start(3, &["--read-quorum", "2", "--write-quorum", "2"]);
    for i in 0..50 {
        nodes[0].client().add_to(&format!("k{i}"), "v", "all").succeeded();
    }
    // Of a later start than the one that will stand in its place.
    for _ in 0..3 {
        nodes[0].kill9();
        nodes[0].restart();
    }
    wait_whole(&nodes);
    nodes[0].kill9();
    fs::remove_dir_all(nodes[0].setup().data_dir()).unwrap();
    // Without a seed, as the first time: it founds a cluster of its own, until the others find it.
    nodes[0].restart();
    eventually("it has joined", PATIENCE, || {
        let held = nodes[0].holdings();
        is(held.1 == 50, format!("{held:?}"))
    });
    wait_whole(&nodes);
    wait_equal(&nodes);
    eventually("its old self has left", PATIENCE, || {
        let all = nodes[1].client().add_to("k", "v", "all");
        is(all.quorum() == (3, 3), &all.body)
    });
    let (gone, others) = nodes.split_first_mut().unwrap();
    gone.kill9();
    for other in others {
        wait_state(other, gone, "down");
    }
}

#[test]
fn a_member_that_lost_only_its_log_counts_for_nothing_before_it_has_the_data() {
    let mut nodes = ring::start(2, &[]);
    nodes[0].client().add_to("k", "v", 2).succeeded();
    nodes[1].kill9();
    nodes[0].kill9();
    fs::remove_dir_all(nodes[1].setup().data_dir().join("log")).unwrap();
    nodes[1].restart();
    // Nobody has the data: it must not answer "not found" as a replica that would know.
    nodes[1].client().get("k").failed(503, "not_ready");
    nodes[0].restart();
    wait_whole(&nodes);
    wait_value(&nodes[1], "k", Some("v"));
}

#[test]
fn a_member_that_starts_fresh_gets_everything_from_the_others() {
    let mut nodes = ring::start(2, &[]);
    nodes[0].client().add_to("k", "v", 2).succeeded();
    assert_eq!(nodes[1].terminate(), Some(0));
    nodes[1].restart_as(|setup| setup.args(["--fresh"]));
    nodes[1].wait_ready();
    wait_equal(&nodes);
    wait_value(&nodes[1], "k", Some("v"));
}

#[test]
fn members_that_die_one_after_the_other_lose_nothing() {
    let mut nodes = ring::start(3, &["--read-quorum", "2", "--write-quorum", "2"]);
    for round in 0..3 {
        nodes[round].kill9();
        let survivor = &nodes[(round + 1) % 3];
        let mut client = survivor.client();
        for i in 0..30 {
            client.add(&format!("r{round}-{i}"), "v").succeeded();
        }
        nodes[round].restart();
        wait_whole(&nodes);
    }
    wait_equal(&nodes);
    for node in &nodes {
        let mut client = node.client();
        for round in 0..3 {
            for i in 0..30 {
                let value = client.get_from(&format!("r{round}-{i}"), 1).value();
                assert_eq!(value.as_deref(), Some("v"));
            }
        }
    }
}

#[test]
fn an_old_copy_does_not_win_over_a_newer_one_in_a_read() {
    let mut nodes = ring::start(2, &[]);
    nodes[0].client().add_to("k", "old", 2).succeeded();
    nodes[1].kill9();
    nodes[0].client().add("k", "new").succeeded();
    nodes[1].restart();
    wait_whole(&nodes);
    assert_eq!(nodes[1].client().get_from("k", 2).value().as_deref(), Some("new"));
    wait_value(&nodes[1], "k", Some("new"));
    nodes[1].kill9();
    nodes[1].restart();
    // What repair brought is in its log.
    wait_value(&nodes[1], "k", Some("new"));
}

#[test]
fn a_hanging_peer_does_not_keep_a_node_from_stopping() {
    let _alone = Turn::alone();
    let mut nodes = ring::start(2, &[]);
    nodes[1].signal("STOP");
    let _ = nodes[0].client().add_to("k", "v", 2);
    let started = Instant::now();
    assert_eq!(nodes[0].terminate(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}
