//! `lally get`, `add`, `remove`, `nodes`, `cluster` and `status`, as people and scripts use them.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::node::{Setup, free_port};

/// Runs a command against this node, with this on its standard input.
fn ask_with(addr: SocketAddr, args: &[&str], input: &[u8]) -> Output {
    let mut process = Command::new(env!("CARGO_BIN_EXE_lally"))
        .args(args)
        .env("LALLY_ADDR", addr.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses need not read.
    process.stdin.take().unwrap().write_all(input).ok();
    process.wait_with_output().unwrap()
}

fn ask(addr: SocketAddr, args: &[&str]) -> Output {
    ask_with(addr, args, b"")
}

/// What it printed; it must have ended well.
#[track_caller]
fn said(addr: SocketAddr, args: &[&str]) -> String {
    let output = ask(addr, args);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// It must have ended with this code, with nothing on standard output, and say all of this.
#[track_caller]
fn refused(output: &Output, code: i32, mentions: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    for word in mentions {
        assert!(said.contains(word), "nothing about {word:?}: {said}");
    }
}

#[test]
fn a_value_comes_back_as_it_was_given_and_is_gone_when_it_is_removed() {
    let node = Setup::new().start_ready();
    let at = node.http();
    let stored = said(at, &["add", "greeting", "hello"]);
    assert!(stored.starts_with("stored at 20") && stored.contains("on 1 nodes of 1 required"));
    assert_eq!(said(at, &["get", "greeting"]), "hello");
    assert_eq!(said(at, &["get", "greeting", "--confirmed"]), "hello");
    assert_eq!(said(at, &["remove", "greeting"]), "removed\n");
    for args in [["get", "greeting"], ["remove", "greeting"]] {
        refused(&ask(at, &args), 3, &["no such key: \"greeting\""]);
    }
}

#[test]
fn a_value_on_standard_input_is_taken_to_the_byte() {
    let node = Setup::new().start_ready();
    let at = node.http();
    for (args, value) in [
        (&["add", "k"][..], "two\nlines\n\u{1b}[2J\t\0"),
        (&["add", "k", "-"], ""),
        (&["add", "k"], "🦀"),
    ] {
        assert_eq!(ask_with(at, args, value.as_bytes()).status.code(), Some(0));
        assert_eq!(said(at, &["get", "k"]), value);
    }
    refused(&ask_with(at, &["add", "k"], b"ab\xff"), 2, &["not UTF-8", "byte 2"]);
    let long = vec![b'x'; 16 * 1_024 * 1_024 + 1];
    refused(&ask_with(at, &["add", "k"], &long), 2, &["16777216", "longest"]);
    assert_eq!(said(at, &["get", "k"]), "🦀");
}

#[test]
fn programs_get_the_answer_of_the_node() {
    let node = Setup::new().start_ready();
    let at = node.http();
    said(at, &["add", "k", "-5", "--quorum", "1", "--timeout", "1s"]);
    let answer: Value = serde_json::from_str(&said(at, &["get", "k", "--json"])).unwrap();
    assert_eq!((&answer["status"], &answer["value"]), (&"success".into(), &"-5".into()));
    let missing = ask(at, &["get", "other", "--json"]);
    assert_eq!(missing.status.code(), Some(3));
    let answer: Value = serde_json::from_slice(&missing.stdout).unwrap();
    assert!(answer["value"].is_null());
    for (command, field) in [("nodes", "nodes"), ("cluster", "digest"), ("status", "ready")] {
        let answer: Value = serde_json::from_str(&said(at, &[command, "--json"])).unwrap();
        assert!(!answer[field].is_null(), "{command}: {answer}");
    }
}

#[test]
fn a_quorum_that_is_not_met_has_its_own_exit_code_and_what_was_found_is_shown() {
    let node = Setup::new().start_ready();
    let at = node.http();
    said(at, &["add", "k", "v"]);
    refused(&ask(at, &["add", "k", "w", "--quorum", "2"]), 4, &["Only 1 of the 2 nodes"]);
    let read = ask(at, &["get", "k", "--quorum", "2"]);
    assert_eq!((read.status.code(), read.stdout.as_slice()), (Some(4), &b"w"[..]), "{read:?}");
}

#[test]
fn what_a_node_refuses_is_told_in_its_words() {
    let node = Setup::new().start_ready();
    let key = "k".repeat(1_025);
    refused(&ask(node.http(), &["get", &key]), 1, &["bad_request", "1024"]);
    let late = ask(node.http(), &["get", "k", "--timeout", "1m"]);
    refused(&late, 1, &["bad_request", "10000"]);
}

#[test]
fn where_no_node_is_says_where_one_is_looked_for_and_how_to_name_another() {
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    for args in [&["get", "k"][..], &["add", "k", "v"], &["cluster"], &["status"]] {
        refused(&ask(nobody, args), 5, &[&nobody.to_string(), "--addr", "LALLY_ADDR"]);
    }
}

#[test]
fn the_option_names_the_node_before_the_environment_does_and_that_before_the_configuration() {
    let node = Setup::new().start_ready();
    let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (at, port) = (node.http().to_string(), node.http().port().to_string());
    said(nobody, &["add", "k", "v", "--addr", &at]);
    assert_eq!(said(nobody, &["get", "k", "--http-port", &port]), "v");
    let file = node.setup().dir().join("other.yml");
    std::fs::write(&file, format!("http_port: {port}\n")).unwrap();
    let file = file.display().to_string();
    assert_eq!(said(nobody, &["get", "k", "--config", &file]), "v");
    let setup = Setup::new().env("LALLY_ADDR", "here").http_port(None).grpc_port(None);
    for command in [&["get", "k"][..], &["bench"], &["backup", "there"]] {
        let finished = setup.clone().args(command.iter().copied()).run();
        finished.refused(2, &["environment variable LALLY_ADDR", "no port"]);
    }
}

#[test]
fn the_members_are_shown_as_the_node_sees_them() {
    let first = Setup::new().start_ready();
    let second = Setup::new().seed(first.grpc()).start_ready();
    super::ring::wait_whole([&first, &second]);
    let other = second.grpc().to_string();
    assert_eq!(said(first.http(), &["nodes"]), format!("{other}\n"));
    let shown = said(first.http(), &["cluster"]);
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines[0].starts_with("cluster lally: 0 keys"), "{shown}");
    assert_eq!(lines.len(), 4, "{shown}");
    assert!(lines[1].starts_with("ID ") && lines[3].contains(&other), "{shown}");
    let status = said(first.http(), &["status"]);
    assert!(
        status.contains(": ready\n")
            && status.contains(env!("CARGO_PKG_VERSION"))
            && status.contains("1 other members, 1 alive"),
        "{status}"
    );
}

/// Run as they stand, one after the other, by a shell that knows where the node is.
#[test]
fn the_commands_of_the_documents_do_what_they_say() {
    let documents = [include_str!("../../../README.md"), include_str!("../../../docs/commands.md")];
    let commands = ["get", "add", "remove", "nodes", "cluster", "status"];
    let is_one = |line: &&str| {
        let mut words = line.split_whitespace();
        words.next() == Some("lally") && words.next().is_some_and(|word| commands.contains(&word))
    };
    for document in documents {
        let (node, place) = (Setup::new().start_ready(), tempfile::tempdir().unwrap());
        std::fs::write(place.path().join("greeting.txt"), "hello").unwrap();
        let lines: Vec<_> = document.lines().filter(is_one).collect();
        assert!(lines.len() >= 3, "{lines:?}");
        for line in lines {
            let shell = format!("lally() {{ '{}' \"$@\"; }}; {line}", env!("CARGO_BIN_EXE_lally"));
            let output = Command::new("sh")
                .args(["-c", &shell])
                .current_dir(place.path())
                .env("LALLY_ADDR", node.http().to_string())
                .output()
                .unwrap();
            assert!(output.status.success(), "{line}: {output:?}");
        }
    }
}
