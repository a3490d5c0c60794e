//! What operators ask for: forgetting a member that will not come back, and whether a stop is safe.

use serde_json::{Value, json};

use super::client::Reply;
use super::node::{Node, Setup};
use super::ring::{self, wait_equal, wait_state, wait_value, wait_whole};
use super::wait::{PATIENCE, eventually, is};

fn forget(node: &Node, id: impl Into<Value>) -> Reply {
    node.client().call("POST", "/cluster/forget", &json!({ "id": id.into() }))
}

fn id(node: &Node) -> String {
    node.cluster()["node"]["id"].as_str().unwrap().to_owned()
}

/// Whether a stop is safe, and the reasons why not.
fn safe_to_stop(node: &Node) -> (bool, Vec<String>) {
    let reply = node.client().ask("GET", "/cluster/safe-to-stop");
    assert_eq!((reply.status, reply.shape().as_str()), (200, "{status,safe,reasons[]}"));
    let json = reply.json();
    let reasons = json["reasons"].as_array().unwrap();
    let reasons = reasons.iter().map(|reason| reason.as_str().unwrap().to_owned()).collect();
    (json["safe"].as_bool().unwrap(), reasons)
}

/// Waits until this is the answer.
fn wait_safe(node: &Node, safe: bool) -> Vec<String> {
    eventually(&format!("safe to stop: {safe}"), PATIENCE * 2, || {
        let (now, reasons) = safe_to_stop(node);
        is(now == safe, reasons.join(" ")).map(|()| reasons)
    })
}

#[test]
fn a_dead_member_is_forgotten_and_joins_anew_if_it_comes_back() {
    let mut nodes = ring::start(3, &[]);
    nodes[0].client().add_to("before", "v", "all").succeeded();
    let dead = id(&nodes[2]);
    forget(&nodes[0], dead.as_str()).failed(409, "conflict");
    forget(&nodes[0], id(&nodes[0])).failed(409, "conflict");
    forget(&nodes[0], "00000000000000ff").failed(404, "not_found");
    forget(&nodes[0], "ff").failed(400, "bad_request");
    nodes[0].client().ask("GET", "/cluster/forget").failed(405, "method_not_allowed");

    nodes[2].kill9();
    wait_state(&nodes[0], &nodes[2], "down");
    assert_eq!(nodes[0].client().add_to("k", "v", "all").quorum(), (3, 2));
    for _ in 0..2 {
        let reply = forget(&nodes[0], dead.as_str()).succeeded();
        assert_eq!(reply.shape(), "{status,message}");
    }
    for node in &nodes[..2] {
        wait_state(node, &nodes[2], "left");
        assert_eq!(node.client().add_to("k", "w", "all").succeeded().quorum(), (2, 2));
        let cluster = node.cluster();
        let owed = cluster["members"].as_array().unwrap().iter().map(|m| m["hints"].as_u64());
        assert!(owed.into_iter().all(|hints| hints == Some(0)), "{cluster}");
    }

    nodes[2].restart_as(Setup::without_seeds);
    wait_whole(&nodes);
    nodes[2].wait_for_log(&["WARN", "forgotten"]);
    wait_value(&nodes[2], "k", Some("w"));
    wait_value(&nodes[2], "before", Some("v"));
    wait_equal(&nodes);
    assert_eq!(nodes[1].client().add_to("k", "x", "all").succeeded().quorum(), (3, 3));
}

#[test]
fn a_stop_is_safe_while_others_have_everything_and_are_enough() {
    let mut nodes = ring::start(3, &["--write-quorum", "majority"]);
    nodes[0].client().add("k", "v").succeeded();
    for node in &nodes {
        assert_eq!(wait_safe(node, true), Vec::<String>::new());
    }
    eventually("the clocks of one machine agree", PATIENCE, || {
        let cluster = nodes[0].cluster();
        let members = cluster["members"].as_array().unwrap();
        let agree = |ms: &Value| ms.as_i64().is_some_and(|ms| ms.abs() < 500);
        is(members.iter().all(|m| agree(&m["clock_offset_ms"])), &cluster)
    });
    nodes[2].kill9();
    wait_state(&nodes[0], &nodes[2], "down");
    nodes[0].client().add("missed", "v");
    let reasons = wait_safe(&nodes[0], false).join(" ");
    let dead = nodes[0].cluster()["members"]
        .as_array()
        .unwrap()
        .iter()
        .find(|member| member["state"] == "down")
        .map(|member| member["id"].as_str().unwrap().to_owned())
        .unwrap();
    assert!(reasons.contains(&dead) && reasons.contains("missed"), "{reasons}");
    assert!(reasons.contains("write quorum (majority)"), "{reasons}");
    // Whole again, it is safe again; and so it is when one has stopped as it should.
    nodes[2].restart();
    wait_safe(&nodes[0], true);
    assert_eq!(nodes[0].terminate(), Some(0));
    wait_safe(&nodes[1], true);
    assert_eq!(nodes[1].terminate(), Some(0));
    let reasons = wait_safe(&nodes[2], false);
    assert!(reasons.len() == 1 && reasons[0].contains("only member"), "{reasons:?}");
}

#[test]
fn the_metrics_say_what_is_kept_for_whom_and_what_comparison_costs() {
    let mut nodes = ring::start(2, &[]);
    nodes[1].kill9();
    wait_state(&nodes[0], &nodes[1], "down");
    nodes[0].client().add("missed", "value").succeeded();
    let other = nodes[0].cluster()["members"][0]["id"].as_str().unwrap().to_owned();
    let gauge = format!("lally_member_hints{{member=\"{other}\"}} 1");
    let metrics = nodes[0].client().ask("GET", "/metrics").body;
    assert!(metrics.lines().any(|line| line == gauge), "{metrics}");
    for metric in [
        "lally_comparison_rounds_total",
        "lally_comparison_differing_buckets_total",
        "lally_comparison_entries_pulled_total",
        "lally_comparison_entries_pushed_total",
        "lally_comparison_bytes_pushed_total",
    ] {
        assert!(metrics.lines().any(|line| line.starts_with(metric)), "{metric}: {metrics}");
    }
}
