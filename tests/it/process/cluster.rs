//! Nodes together, with nothing broken: quorums, spreading, joining, leaving, refusing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::node::{Setup, free_port};
use super::ring::{self, wait_equal, wait_state, wait_value, wait_whole};
use super::turn::Turn;
use super::wait::{PATIENCE, eventually, is};

#[test]
fn three_nodes_with_default_quorums_answer_success_and_spread_every_write() {
    let nodes = ring::start(3, &[]);
    for (i, node) in nodes.iter().enumerate() {
        let key = format!("written-at-{i}");
        let reply = node.client().add(&key, "here").succeeded();
        assert_eq!(reply.quorum().0, 1);
        for other in &nodes {
            wait_value(other, &key, Some("here"));
        }
        assert_eq!(node.client().remove(&key).value().as_deref(), Some("here"));
        for other in &nodes {
            wait_value(other, &key, None);
        }
    }
    wait_equal(&nodes);
    eventually("nothing is owed to anybody", PATIENCE * 2, || {
        let clusters: Vec<_> = nodes.iter().map(super::node::Node::cluster).collect();
        let settled = clusters
            .iter()
            .flat_map(|cluster| cluster["members"].as_array().unwrap())
            .filter(|member| member["state"] == "alive")
            .all(|member| member["hints"] == 0 && member["in_sync"] == true);
        is(settled, format!("{clusters:?}"))
    });
}

#[test]
fn the_other_nodes_are_listed_sorted() {
    let nodes = ring::start(3, &[]);
    for node in &nodes {
        let mut others: Vec<_> = nodes
            .iter()
            .filter(|other| other.grpc() != node.grpc())
            .map(|other| other.grpc().to_string())
            .collect();
        others.sort();
        let reply = node.client().ask("GET", "/nodes");
        assert_eq!(reply.shape(), "{status,nodes[]}");
        assert_eq!(reply.json(), json!({"status": "success", "nodes": others}));
    }
    let ids: std::collections::BTreeSet<_> =
        nodes.iter().map(|node| node.cluster()["node"]["id"].to_string()).collect();
    assert_eq!(ids.len(), 3);
}

#[test]
fn quorums_are_numbers_majorities_or_all_and_count_this_node() {
    let _alone = Turn::alone();
    let nodes = ring::start(3, &["--read-quorum", "majority", "--write-quorum", "all"]);
    for node in &nodes {
        let mut client = node.client();
        assert_eq!(client.add("k", "v").succeeded().quorum(), (3, 3));
        let read = client.get("k").succeeded();
        assert_eq!(read.quorum().0, 2);
        assert!((2..=3).contains(&read.quorum().1), "{read:?}");
        for (quorum, required) in [(json!(2), 2), (json!("majority"), 2), (json!("all"), 3)] {
            let added = client.add_to("k", "v", quorum.clone()).succeeded();
            let found = client.get_from("k", quorum.clone()).succeeded();
            let removed = client
                .call("DELETE", "/remove", &json!({"key": "k", "quorum": quorum}))
                .succeeded();
            for reply in [added, found, removed] {
                assert_eq!(reply.quorum().0, required, "{reply:?}");
                assert!((required..=3).contains(&reply.quorum().1), "{reply:?}");
            }
        }
        for quorum in [4, 50] {
            let started = Instant::now();
            let replies = [client.add_to("k", "v", quorum), client.get_from("k", quorum)];
            assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
            for reply in replies {
                assert_eq!((reply.status, reply.verdict().as_str()), (200, "partial"));
                assert_eq!(reply.quorum(), (quorum, 3));
            }
        }
    }
}

#[test]
fn a_read_sees_every_acknowledged_write_through_any_node() {
    let nodes = ring::start(3, &["--read-quorum", "2", "--write-quorum", "2"]);
    let mut clients: Vec<_> = nodes.iter().map(super::node::Node::client).collect();
    let mut last = String::new();
    for i in 0..150 {
        let value = format!("v{i}");
        let written = if i % 7 == 6 {
            clients[i % 3].remove("k").succeeded();
            None
        } else {
            let timestamp = clients[i % 3].add("k", &value).succeeded().timestamp();
            assert!(timestamp > last, "write {i}: {timestamp} after {last}");
            last = timestamp;
            Some(value)
        };
        for reader in [(i + 1) % 3, (i + 2) % 3] {
            assert_eq!(clients[reader].get("k").value(), written, "write {i}, node {reader}");
        }
    }
}

#[test]
fn concurrent_writers_of_one_key_leave_one_value_everywhere() {
    let nodes = ring::start(3, &[]);
    std::thread::scope(|scope| {
        for (i, node) in nodes.iter().enumerate() {
            scope.spawn(move || {
                let mut client = node.client();
                for round in 0..100 {
                    client.add(&format!("k{}", round % 5), &format!("{i}-{round}")).succeeded();
                    if round % 9 == i {
                        client.remove("k4").succeeded();
                    }
                }
            });
        }
    });
    wait_equal(&nodes);
    for key in ["k0", "k1", "k2", "k3", "k4"] {
        let values: Vec<_> = nodes.iter().map(|node| node.client().get(key).value()).collect();
        assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "{key}: {values:?}");
    }
}

#[test]
fn a_client_that_hangs_up_does_not_stop_the_write_from_spreading() {
    let nodes = ring::start(3, &[]);
    for i in 0..30 {
        let body = json!({"key": format!("k{i}"), "value": "v", "quorum": "all"});
        nodes[i % 3].client().send_and_hang_up("/add", &body);
    }
    nodes[0].client().add("last", "v").succeeded();
    wait_equal(&nodes);
    for node in &nodes {
        wait_value(node, "last", Some("v"));
    }
}

#[test]
fn a_node_that_joins_gets_everything_and_has_it_after_a_restart() {
    let mut first = Setup::new().start_ready();
    let mut client = first.client();
    // 95,325 times eleven bytes, and one more: 1 MiB.
    let large = "large \u{1F418} ".repeat(95_325) + "!";
    let large = large.as_str();
    assert_eq!(large.len(), 1 << 20);
    for i in 0..1000 {
        client.add(&format!("k{i}"), &format!("v{i}")).succeeded();
    }
    for i in 0..6 {
        client.add(&format!("large{i}"), large).succeeded();
    }
    for i in 0..100 {
        client.remove(&format!("k{i}")).succeeded();
    }
    let mut joined = Setup::new().seed(first.grpc()).start_ready();
    wait_equal([&first, &joined]);
    assert_eq!((joined.holdings().1, joined.holdings().2), (906, 100));

    // With the first node gone, and without a seed, it serves what it has.
    first.kill9();
    joined.kill9();
    joined.restart_as(Setup::without_seeds);
    wait_value(&joined, "k999", Some("v999"));
    let mut client = joined.client();
    for i in 0..1000 {
        let expected = (i >= 100).then(|| format!("v{i}"));
        assert_eq!(client.get(&format!("k{i}")).value(), expected, "k{i}");
    }
    for i in 0..6 {
        assert!(client.get(&format!("large{i}")).value().as_deref() == Some(large), "large{i}");
    }
    assert_eq!((joined.holdings().1, joined.holdings().2), (906, 100));
}

#[test]
fn a_node_that_joins_under_load_misses_nothing() {
    let first = Setup::new().start_ready();
    for i in 0..500 {
        first.client().add(&format!("before{i}"), "v").succeeded();
    }
    let joining = AtomicBool::new(true);
    let joined = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut client = first.client();
            for i in 0.. {
                client.add(&format!("during{i}"), "v").succeeded();
                if i >= 300 && !joining.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let joined = Setup::new().seed(first.grpc()).start_ready();
        joining.store(false, Ordering::Relaxed);
        writer.join().unwrap();
        joined
    });
    wait_equal([&first, &joined]);
}

#[test]
fn a_seed_that_is_not_up_yet_is_retried_until_it_is() {
    let port = free_port();
    let early = Setup::new().seed(format!("localhost:{port}")).start();
    let ready = early.client().ask("GET", "/readyz");
    assert_eq!(ready.status, 503, "{ready:?}");
    early.client().add("k", "v").failed(503, "not_ready");
    let seed = Setup::new().grpc_port(Some(port)).start_ready();
    seed.client().add("k", "of the seed").succeeded();
    wait_whole([&early, &seed]);
    wait_value(&early, "k", Some("of the seed"));
}

#[test]
fn a_node_that_stops_gracefully_has_left_and_comes_back() {
    let mut nodes = ring::start(3, &[]);
    nodes[0].client().add("k", "v").succeeded();
    assert_eq!(nodes[2].terminate(), Some(0));
    for node in &nodes[..2] {
        wait_state(node, &nodes[2], "left");
        let listed = node.client().ask("GET", "/nodes").body;
        assert!(!listed.contains(&nodes[2].grpc().to_string()), "{listed}");
    }
    // It does not count any more.
    let all = nodes[0].client().add_to("k", "while it was away", "all").succeeded();
    assert_eq!(all.quorum(), (2, 2));
    nodes[2].restart_as(Setup::without_seeds);
    wait_whole(&nodes);
    wait_value(&nodes[2], "k", Some("while it was away"));
    wait_equal(&nodes);
    assert_eq!(nodes[0].client().add_to("k", "v", "all").succeeded().quorum(), (3, 3));
}

#[test]
fn a_whole_cluster_comes_back_without_seeds() {
    let mut nodes = ring::start(3, &[]);
    for round in ["killed", "stopped"] {
        nodes[1].client().add_to("k", round, "all").succeeded();
        for node in &mut nodes {
            if round == "killed" {
                node.kill9();
            } else {
                assert_eq!(node.terminate(), Some(0));
            }
        }
        for node in &mut nodes {
            node.restart_as(Setup::without_seeds);
        }
        wait_whole(&nodes);
        for node in &nodes {
            wait_value(node, "k", Some(round));
        }
        let reply = nodes[2].client().add_to("after", round, "all").succeeded();
        assert_eq!(reply.quorum(), (3, 3), "{round}");
    }
}

#[test]
fn nodes_of_different_clusters_refuse_each_other_and_both_say_so() {
    let mut lions = Setup::new().args(["--cluster-name", "lions"]).start_ready();
    lions.client().add("k", "of the lions").succeeded();
    let tigers = Setup::new().args(["--cluster-name", "tigers"]).seed(lions.grpc()).start();
    let refused = lions.wait_for_log(&["tigers", "cluster"]);
    assert!(refused.contains("WARN") || refused.contains("ERROR"), "{refused}");
    eventually("the other side says so, too", PATIENCE, || {
        let log = tigers.log();
        let said = log.lines().any(|line| {
            line.contains("lions")
                && line.contains("cluster")
                && (line.contains("WARN") || line.contains("ERROR") || line.starts_with("error"))
        });
        is(said, log)
    });
    assert_eq!(lions.cluster()["members"].as_array().map_or(0, Vec::len), 0);
    assert!(!lions.has_ended());
    lions.client().add("k2", "v").succeeded();
    if let Ok(ready) = tigers.client().try_send("GET", "/readyz", &[], b"") {
        assert_eq!(ready.status, 503, "{ready:?}");
    }
}

#[test]
fn a_joined_node_may_serve_as_a_seed_itself() {
    let first = Setup::new().start_ready();
    let second = Setup::new().seed(first.grpc()).start_ready();
    let third = Setup::new().seed(second.grpc()).start_ready();
    wait_whole([&first, &second, &third]);
    assert_eq!(first.client().add_to("k", "v", "all").succeeded().quorum(), (3, 3));
}
