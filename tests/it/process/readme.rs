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
const BACKUP: &str = include_str!("../../../docs/backup.md");
const OPERATIONS: &str = include_str!("../../../docs/operations.md");

/// Whether there is a `curl`; says so if not.
pub(super) fn curl_is_there() -> bool {
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

/// Runs a line that writes a backup into a file, and starts a node on that.
fn saves_a_backup(line: &str, node: &Node) {
    let place = tempfile::tempdir().unwrap();
    let file = line.split_whitespace().skip_while(|word| *word != "--output").nth(1).unwrap();
    let path = place.path().join(file).display().to_string();
    run(&line.replace(file, &path), &[("localhost:3000", node)]);
    let restored = Setup::new().args(["--replay-log", &path]).start_ready();
    assert_eq!(restored.holdings(), node.holdings());
}

/// The words of a line that runs `lally`, with other places and ports.
fn words(line: &str, places: &[(&str, String)]) -> Vec<String> {
    let words = line.split_whitespace().skip(1).map(|word| {
        let place = places.iter().find(|(named, _)| word == *named);
        place.map_or_else(|| word.to_owned(), |(_, here)| here.clone())
    });
    words.collect()
}

#[test]
fn the_backups_of_the_documents_are_made_and_nodes_start_on_them() {
    let node = Setup::new().start_ready();
    node.client().add("k", "v").succeeded();
    let place = tempfile::tempdir().unwrap();
    let here = |name: &str| place.path().join(name).display().to_string();
    let (http, grpc) = (node.http().to_string(), node.grpc().to_string());
    for (number, document) in [README, BACKUP].into_iter().enumerate() {
        let places = [
            ("/backup/monday", here(&format!("monday-{number}"))),
            ("/backup/tuesday", here(&format!("tuesday-{number}"))),
            ("/var/lib/lally", here(&format!("lally-{number}"))),
            ("/var/lib/lally-2", here(&format!("lally-2-{number}"))),
            ("./restored", here(&format!("restored-{number}"))),
            ("db-2.internal:3000", http.clone()),
            ("127.0.0.1:50071", grpc.clone()),
        ];
        let (mut made, mut started) = (0, 0);
        for line in lines(document, "lally ") {
            let mut words = words(line, &places);
            if words[0] == "backup" {
                // The port of the machine's configuration.
                if !words.iter().any(|word| word == "--from") {
                    words.extend(["--from".to_owned(), http.clone()]);
                }
                let backup = Setup::new().http_port(None).grpc_port(None).args(&words).run();
                assert_eq!(backup.code, Some(0), "{line}: {backup:?}");
                made += 1;
            } else if words[0].starts_with("--") {
                let is_port = |word: &String| word == "--http-port" || word == "--grpc-port";
                while let Some(at) = words.iter().position(is_port) {
                    words.drain(at..at + 2);
                }
                let restored = Setup::new().args(&words).start_ready();
                assert_eq!(restored.holdings(), node.holdings(), "{line}");
                started += 1;
            }
        }
        assert!(made >= 1 && started >= 1, "{made} {started}");
    }
}

#[test]
fn the_calls_of_the_readme_and_of_the_reference_succeed_on_one_node() {
    if !curl_is_there() {
        return;
    }
    let node = Setup::new().start_ready();
    let mut called = 0;
    for document in [README, API, OPERATIONS] {
        for line in lines(document, "curl ").filter(|line| line.contains("localhost:3000")) {
            if line.contains("--output") {
                saves_a_backup(line, &node);
                called += 1;
            // A quorum of more than one node is for the three below.
            } else if !line.contains("quorum") {
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
