//! What the README and the API reference tell people to type does what they say.
//!
//! The command lines are taken from the documents; only ports, paths and the name of the program
//! are replaced. Needs `curl`; where that is missing the tests are skipped and say so, unless `CI`
//! is set: then they fail.

use std::process::Command;

use serde_json::Value;

use super::node::{Node, Setup};
use super::ring;

const README: &str = include_str!("../../../README.md");
const API: &str = include_str!("../../../docs/api.md");

/// Whether there is a `curl`; says so if not.
fn curl_is_there() -> bool {
    let found = Command::new("curl").arg("--version").output().is_ok_and(|o| o.status.success());
    assert!(found || std::env::var_os("CI").is_none(), "curl is missing");
    if !found {
        eprintln!("SKIPPED: curl is missing");
    }
    found
}

/// The lines of a document that begin like this, without comments.
fn lines<'a>(document: &'a str, begins: &'a str) -> impl Iterator<Item = &'a str> {
    let lines = document.lines().filter(move |line| line.starts_with(begins));
    lines.map(|line| line.split("  #").next().unwrap_or_default().trim_end_matches([' ', '&']))
}

/// Runs a line with these hosts in place of those it names; what it printed.
fn run(line: &str, hosts: &[(&str, &Node)]) -> String {
    let mut line = line.to_owned();
    for (named, node) in hosts {
        line = line.replace(named, &node.http().to_string());
    }
    assert!(!line.contains("localhost:"), "nobody is at {line}");
    let shell = format!("{line} --silent --show-error");
    let output = Command::new("sh").args(["-c", &shell]).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn succeeds(line: &str, hosts: &[(&str, &Node)]) {
    let printed = run(line, hosts);
    let reply: Value = serde_json::from_str(&printed).unwrap_or_default();
    assert_eq!(reply["status"], "success", "{line}: {printed}");
}

#[test]
fn the_calls_of_the_readme_and_of_the_reference_succeed_on_one_node() {
    if !curl_is_there() {
        return;
    }
    let node = Setup::new().start_ready();
    let mut called = 0;
    for document in [README, API] {
        for line in lines(document, "curl ").filter(|line| line.contains("localhost:3000")) {
            // A quorum of more than one node is for the three below.
            if !line.contains("quorum") {
                succeeds(line, &[("localhost:3000", &node)]);
                called += 1;
            }
        }
    }
    assert!(called >= 6, "only {called} calls are documented");
}

#[test]
fn the_three_nodes_of_the_readme_form_a_cluster_that_takes_its_calls() {
    if !curl_is_there() {
        return;
    }
    let mut nodes: Vec<Node> = Vec::new();
    for line in lines(README, "target/release/lally --data-dir /tmp/") {
        let mut setup = Setup::new();
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        for pair in words.chunks(2) {
            setup = match pair {
                // Free ports, and a directory of the test's own.
                ["--http-port" | "--grpc-port" | "--data-dir", _] => setup,
                ["--seed-node", "127.0.0.1:50071"] => setup.seed(nodes[0].grpc()),
                other => setup.args(other),
            };
        }
        nodes.push(setup.start_ready());
    }
    assert_eq!(nodes.len(), 3);
    ring::wait_whole(&nodes);
    let hosts = [
        ("localhost:3001", &nodes[0]),
        ("localhost:3002", &nodes[1]),
        ("localhost:3003", &nodes[2]),
    ];
    let calls: Vec<_> =
        lines(README, "curl localhost:300").filter(|l| !l.contains(":3000")).collect();
    assert!(calls.len() >= 4, "{calls:?}");
    for line in calls {
        succeeds(line, &hosts);
    }
}
