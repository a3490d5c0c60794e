//! SIGHUP: what changes while the node runs, what does not, and what a mistake does.

use std::fs;

use super::client::Client;
use super::node::{Node, Setup};
use super::wait::{PATIENCE, eventually, is};

/// Writes the configuration file anew, as its reader should find it: whole.
fn write(node: &Node, text: &str) {
    let (new, file) = (node.setup().dir().join("new.yml"), node.setup().dir().join("lally.yml"));
    fs::write(&new, text).unwrap();
    fs::rename(&new, &file).unwrap();
}

/// How many reloads took effect, and how many were refused.
fn reloads(node: &Node) -> (u64, u64) {
    let text = node.client().ask("GET", "/metrics").body;
    let count = |result: &str| {
        let name = format!("lally_reloads_total{{result=\"{result}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
    };
    (count("ok"), count("failed"))
}

/// Writes the file, sends the signal, and waits until the node has dealt with it.
fn reload(node: &Node, text: &str) {
    let before = reloads(node);
    write(node, text);
    node.signal("HUP");
    eventually("the node has reloaded", PATIENCE, || {
        let now = reloads(node);
        is(now != before, format!("{now:?}"))
    });
}

/// What the node says of a read: once it has answered, that is in its log or nowhere.
fn says_debug(node: &Node) -> bool {
    let before = node.log().matches("request answered").count();
    node.client().get("k").succeeded();
    // A line that comes in any case, behind it: of a level that is let through always.
    let lines = node.log().matches("configuration not reloaded").count();
    write(node, "no_such_key: 1\n");
    node.signal("HUP");
    eventually("the log has come further", PATIENCE, || {
        let now = node.log().matches("configuration not reloaded").count();
        is(now > lines, now)
    });
    node.log().matches("request answered").count() > before
}

#[test]
fn a_new_log_level_shows_in_what_the_node_prints() {
    let node = Setup::new().yaml("log_level: info\n").start_ready();
    assert!(!says_debug(&node));
    reload(&node, "log_level: debug\n");
    node.wait_for_log(&["configuration reloaded", "log_level: info -> debug"]);
    assert!(says_debug(&node));
    // Said before it is silenced.
    reload(&node, "log_level: error\n");
    node.wait_for_log(&["configuration reloaded", "log_level: debug -> error"]);
    assert!(!says_debug(&node));
    reload(&node, "");
    node.wait_for_log(&["configuration reloaded", "log_level: error -> info"]);
}

#[test]
fn as_json_too() {
    let node = Setup::new().args(["--log-format", "json"]).yaml("").start_ready();
    reload(&node, "log_level: debug\n");
    assert!(says_debug(&node));
    for line in node.log().lines() {
        let _: serde_json::Value = serde_json::from_str(line).unwrap();
    }
}

#[test]
fn a_call_changes_the_log_level_until_the_configuration_is_read_again() {
    // A variable wins over the file, and nobody can change it while the process runs.
    let node = Setup::new().yaml("").env("LALLY_LOG_LEVEL", "info").start_ready();
    let set = |level: &str| {
        let body = format!(r#"{{"level":"{level}"}}"#);
        node.client().send("PUT", "/admin/log-level", &[], body.as_bytes())
    };
    assert!(!says_debug(&node));
    assert_eq!(set("debug").status, 200);
    node.wait_for_log(&["log level changed", "from=\"info\" to=\"debug\""]);
    assert!(says_debug(&node));
    // A configuration with a mistake changes nothing, this neither.
    set("hyper=trace").failed(400, "bad_request");
    set("loud").failed(400, "bad_request");
    assert!(says_debug(&node));
    reload(&node, "log_level: trace\n");
    node.wait_for_log(&["configuration reloaded", "log_level: debug -> info"]);
    assert!(!says_debug(&node));
}

#[test]
fn a_configuration_with_a_mistake_changes_nothing_and_is_explained_as_at_a_start() {
    let node = Setup::new().yaml("read_quorum: 2\n").start_ready();
    let wrong = "read_quorum: 3\nlog_level: debug\nmax_memory: 1 GB\nfsnyc: always\n";
    reload(&node, wrong);
    let size = node.wait_for_log(&["configuration not reloaded", "key max_memory", "1 GB"]);
    let unknown = node.wait_for_log(&["configuration not reloaded", "did you mean fsync?"]);
    assert!(size.contains("ERROR") && unknown.contains("ERROR"), "{size}\n{unknown}");
    assert_eq!(reloads(&node), (0, 1));
    assert_eq!(node.client().get("k").quorum(), (2, 1));
    assert!(!node.log().contains("DEBUG"), "{}", node.log());
    // A start says the same.
    let start = Setup::new().yaml(wrong).run();
    start.refused(2, &["key max_memory", "1 GB", "did you mean fsync?"]);
    for said in [&size, &unknown] {
        let mistake = said.split("mistake=").nth(1).unwrap();
        let mistake = mistake.trim_start_matches("configuration file ./lally.yml");
        assert!(start.stderr.contains(mistake), "{mistake}: {}", start.stderr);
    }
    // A file that is gone is none with the defaults.
    fs::remove_file(node.setup().dir().join("lally.yml")).unwrap();
    node.signal("HUP");
    node.wait_for_log(&["configuration not reloaded", "does not exist any more"]);
    assert_eq!(node.client().get("k").quorum(), (2, 1));
    reload(&node, "read_quorum: 3\n");
    assert_eq!(node.client().get("k").quorum(), (3, 1));
}

#[test]
fn quorums_and_limits_hold_from_the_next_request_on() {
    let node = Setup::new().yaml("").start_ready();
    let mut client = node.client();
    let value = "x".repeat(700_000);
    client.add("a", &value).succeeded();
    client.add("b", &value).succeeded();
    reload(
        &node,
        "write_quorum: 2\nread_quorum: 3\nmax_memory: 1MiB\nmax_value_bytes: 1000\n\
         request_timeout: 300ms\nmax_body_bytes: 2KiB\n",
    );
    assert_eq!(client.add("c", "short").status, 507);
    client.add("a", &"x".repeat(1_001)).failed(413, "too_large");
    client.add("a", &value).failed(413, "too_large");
    assert_eq!(client.add("a", "short").quorum(), (2, 1));
    assert_eq!(client.get("b").quorum(), (3, 1));
    let text = client.ask("GET", "/metrics").body;
    assert!(text.contains("lally_memory_limit_bytes 1048576"), "{text}");
    reload(&node, "");
    client.add("c", &value).succeeded();
    assert_eq!(client.add("c", &value).quorum(), (1, 1));
}

#[test]
fn how_many_requests_and_connections_there_may_be_changes_while_they_are_there() {
    let node = Setup::new().yaml("").start_ready();
    let mut open: Vec<_> = (0..3).map(|_| node.client()).collect();
    let mut all_are_served =
        || open.iter_mut().for_each(|client| drop(client.get("k").succeeded()));
    all_are_served();
    let limit_to = |text: &str, said: &str| {
        write(&node, text);
        node.signal("HUP");
        node.wait_for_log(&["configuration reloaded", said]);
    };
    limit_to("max_connections: 3\n", "max_connections: 4096 -> 3");
    let refused = node.client().try_send("GET", "/healthz", &[], b"");
    assert!(refused.is_err(), "{refused:?}");
    // What is open goes on, also above the limit.
    limit_to("max_connections: 1\n", "max_connections: 3 -> 1");
    all_are_served();
    limit_to("", "max_connections: 1 -> 4096");
    node.client().get("k").succeeded();
}

#[test]
fn the_cap_on_requests_changes_while_some_are_worked_on() {
    let node = Setup::new().yaml("max_in_flight: 2\n").start_ready();
    // Requests that wait for members that are not there, until the longest timeout ends.
    let bodies = |count: usize| -> Vec<_> {
        (0..count).map(|i| super::overload::Awaited::begin(node.http(), body(i))).collect()
    };
    let taken = bodies(2);
    assert!(taken.iter().all(Result::is_ok));
    assert!(bodies(1)[0].is_err(), "one body more is waited for");
    reload(&node, "max_in_flight: 3\n");
    let third = bodies(1);
    assert!(third[0].is_ok());
    assert!(bodies(1)[0].is_err(), "one body more is waited for");
    reload(&node, "max_in_flight: 1\n");
    assert!(bodies(1)[0].is_err());
    // Those that are there are served nevertheless.
    for awaited in taken.into_iter().chain(third) {
        let Ok(mut awaited) = awaited else { panic!("refused") };
        awaited.send_body();
        assert_eq!(awaited.reply().status, 200);
    }
    node.client().get("k").succeeded();
}

fn body(number: usize) -> String {
    format!(r#"{{"key":"k{number}","value":"v"}}"#)
}

#[test]
fn variables_and_flags_still_win_and_what_needs_a_restart_is_named() {
    let node = Setup::new()
        .yaml("")
        .env("LALLY_READ_QUORUM", "4")
        .args(["--write-quorum", "5"])
        .start_ready();
    let file = "read_quorum: 2\nwrite_quorum: 3\nmax_in_flight: 9\nfsync: always\nhttp_port: 1\n";
    reload(&node, file);
    let said = node.wait_for_log(&["configuration reloaded"]);
    assert!(said.contains("max_in_flight: 1024 -> 9"), "{said}");
    assert!(!said.contains("quorum"), "{said}");
    let restart = node.wait_for_log(&["need a restart"]);
    // The port of this node is given on the command line.
    assert!(restart.contains("WARN") && restart.ends_with("keys=fsync"), "{restart}");
    assert_eq!(node.client().get("k").quorum(), (4, 1));
    assert_eq!(node.client().add("k", "v").quorum(), (5, 1));
    // Named again until the restart comes, or the change is taken back.
    let warnings = || node.log().matches("need a restart").count();
    let before = warnings();
    reload(&node, file);
    node.wait_for_log(&["configuration reloaded", "changed=nothing"]);
    eventually("it is named again", PATIENCE, || is(warnings() == before + 1, node.log()));
    reload(&node, "max_in_flight: 9\n");
    reload(&node, "max_in_flight: 8\n");
    node.wait_for_log(&["max_in_flight: 9 -> 8"]);
    assert_eq!(warnings(), before + 1, "{}", node.log());
}

#[test]
fn a_node_that_still_starts_reloads_when_it_runs_and_one_that_stops_does_not_mind() {
    let mut node = Setup::new().yaml("").start();
    for _ in 0..20 {
        node.signal("HUP");
    }
    node.wait_ready();
    node.wait_for_log(&["configuration reloaded"]);
    let mut client: Client = node.client();
    client.add("k", "v").succeeded();
    node.signal("TERM");
    node.signal("HUP");
    assert_eq!(node.wait_for_exit(), Some(0));
}
