//! `lally config`: what a node that is started here would be configured to; and it touches nothing.

use std::fs;

use serde_json::{Value, json};

use super::node::{Finished, Setup, contents};

fn config(setup: &Setup, args: &[&str]) -> Finished {
    setup.run_command([&["config"], args].concat())
}

#[test]
fn a_fine_configuration_is_called_fine_and_nothing_is_touched() {
    let setup = Setup::new().yaml("http_port: 0\nmax_memory: 8GiB\n").env("LALLY_FSYNC", "always");
    let before = contents(setup.dir());
    let done = config(&setup, &["check", "--grpc-port", "0"]);
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{done:?}");
    for said in ["fine", "2 from ./lally.yml", "1 from the environment", "1 from the command line"]
    {
        assert!(done.stdout.contains(said), "{said}: {}", done.stdout);
    }
    assert_eq!(config(&setup, &["show"]).code, Some(0));
    assert_eq!(contents(setup.dir()), before);
}

#[test]
fn every_mistake_is_named_at_once_with_its_place_and_the_form() {
    let setup = Setup::new()
        .yaml("http_prot: 1\nread_quorum: 0\nmax_memory: 1 GB\nfresh: true\n")
        .env("LALLY_GRPC_PORT", "many")
        .env("LALLY_REPLAY_LOG", "old.log");
    let done = config(&setup, &["check", "--request-timeout", "2"]);
    let mistakes = [
        "configuration file ./lally.yml: unknown key \"http_prot\"; did you mean http_port?",
        "configuration file ./lally.yml, key read_quorum: 0 is not a quorum; expected a quorum",
        "configuration file ./lally.yml, key max_memory: \"1 GB\" is not a size; expected a size",
        "environment variable LALLY_GRPC_PORT (key grpc_port): \"many\" is not a whole number",
        "flag --request-timeout (key request_timeout): \"2\" is not a duration",
    ];
    done.refused(2, &mistakes);
    assert_eq!(done.stderr.matches("error: ").count(), mistakes.len(), "{}", done.stderr);
    assert_eq!(done.stdout, "");
    // A node says the same, and so does `show`.
    let node = setup.run_command(["--request-timeout", "2"]);
    assert_eq!((node.code, node.stderr), (Some(2), done.stderr.clone()));
    assert_eq!(config(&setup, &["show", "--request-timeout", "2"]).stderr, done.stderr);
    // Once the values are right, the rules between them are looked at, all of them.
    let setup = Setup::new().yaml("fresh: true\nreplay_log: a\nhttp_port: 1\n");
    let done = config(&setup, &["check", "--grpc-port", "1"]);
    done.refused(2, &["exclude each other", "are both 1"]);
    config(&setup, &["check", "--config", "no.yml"]).refused(2, &["no.yml does not exist"]);
}

#[test]
fn the_files_that_are_named_are_read_as_a_start_reads_them_and_all_that_is_wrong_with_them_is_said()
{
    let setup = Setup::new().yaml(
        "http_port: 0\ngrpc_port: 0\ntokens: tokens.yml\nhttp_tls_cert: none.pem\nhttp_tls_key: none.key\n\
         peer_tls_ca: lally-tls/ca.pem\npeer_tls_cert: bad.pem\npeer_tls_key: lally-tls/n1.key\n\
         webhooks: [{name: w, url: 'https://h/', secret_file: none, ca_file: bad.pem}]\n",
    );
    fs::write(setup.dir().join("bad.pem"), "nothing").unwrap();
    fs::write(setup.dir().join("tokens.yml"), "- {name: a}").unwrap();
    let made = |args: &[&str]| {
        let done = setup.clone().run_command(args);
        assert_eq!(done.code, Some(0), "{done:?}");
    };
    made(&["tls", "init"]);
    made(&["tls", "node", "n1", "--config", "None"]);
    let before = contents(setup.dir());
    let done = config(&setup, &["check"]);
    let mistakes = [
        "tokens: the file of tokens tokens.yml: ",
        "http_tls_cert: none.pem: No such file",
        "http_tls_key: none.key: No such file",
        "peer_tls_cert: bad.pem: there is no certificate in it",
        "webhooks: w, secret_file: none: No such file",
        "webhooks: w, ca_file: bad.pem: there is no certificate in it",
    ];
    done.refused(2, &mistakes);
    assert_eq!(done.stderr.matches("error: ").count(), mistakes.len(), "{}", done.stderr);
    assert_eq!((done.stdout.as_str(), contents(setup.dir())), ("", before));
    // A node says the same.
    let node = setup.run();
    assert_eq!(node.code, Some(2));
    assert!(node.stderr.ends_with(&done.stderr), "{}", node.stderr);
    assert!(!setup.data_dir().exists());

    let setup = setup.yaml(
        "http_port: 0\ngrpc_port: 0\nhttp_tls_cert: lally-tls/n1.pem\nhttp_tls_key: lally-tls/ca.key\n",
    );
    let pair = ["http_tls_key", "ca.key", "not the key of the certificate", "n1.pem", "tls node"];
    config(&setup, &["check"]).refused(2, &pair);
    let fine = config(&setup, &["check", "--http-tls-key", "lally-tls/n1.key"]);
    assert_eq!(fine.code, Some(0), "{fine:?}");
}

#[test]
fn what_keeps_strangers_out_is_not_left_blank() {
    let setup = Setup::new().yaml("tokens:\nhttp_port: 0\n");
    let blank = ["lally.yml, key tokens: it is empty", "or write None, or leave the key out"];
    config(&setup, &["check"]).refused(2, &blank);
    setup.run().refused(2, &blank);
    assert!(!setup.data_dir().exists());
    assert_eq!(config(&setup.clone().yaml("tokens: None\n"), &["check"]).code, Some(0));
    let variable = Setup::new().env("LALLY_HTTP_TLS_CERT", "");
    config(&variable, &["check"]).refused(2, &["LALLY_HTTP_TLS_CERT", "it is empty"]);
    assert_eq!(config(&Setup::new().env("LALLY_BIND", ""), &["check"]).code, Some(0));
}

#[test]
fn what_is_shown_is_what_a_node_has() {
    let setup = Setup::new()
        .yaml("read_quorum: 3\nwrite_quorum: 4\ncluster_name: blue\n")
        .env("LALLY_WRITE_QUORUM", "5")
        .env("LALLY_READ_QUORUM", "6");
    let flags = ["--read-quorum", "7", "--http-port", "0"];
    let done = config(&setup, &[&["show", "--sources", "--json"][..], &flags].concat());
    let shown: Value = serde_json::from_str(&done.stdout).unwrap();
    let from = |value: Value, source: &str, name: Value| json!({"value": value, "source": source, "name": name});
    let flag = json!("--read-quorum");
    assert_eq!(shown["read_quorum"], from(json!(7), "command line", flag));
    let variable = json!("LALLY_WRITE_QUORUM");
    assert_eq!(shown["write_quorum"], from(json!(5), "environment", variable));
    assert_eq!(shown["cluster_name"], from(json!("blue"), "file", json!("./lally.yml")));
    assert_eq!(shown["fsync"], from(json!("everysec"), "default", Value::Null));
    let node = setup.clone().args(["--read-quorum", "7"]).start_ready();
    assert_eq!(node.client().get("k").quorum(), (7, 1));
    assert_eq!(node.client().add("k", "v").quorum(), (5, 1));
    assert_eq!(node.cluster()["cluster"], "blue");
}

#[test]
fn what_is_shown_can_be_a_configuration_file() {
    let setup = Setup::new().yaml("log_level: debug\nseed_node: [\"localhost:1\"]\nhooks: audit\n");
    for sources in [&[][..], &["--sources"]] {
        let shown = config(&setup, &[&["show"], sources].concat()).stdout;
        fs::write(setup.dir().join("shown.yml"), &shown).unwrap();
        let again = config(&setup, &["show", "--config", "shown.yml"]).stdout;
        let settings = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(|line| line.split("  #").next().unwrap().to_owned()).collect()
        };
        assert_eq!(settings(&shown), settings(&again));
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure_and_a_full_disk_is_one() {
    let shell = |line: &str| {
        let shell = format!("lally() {{ '{}' \"$@\"; }}; {line}", env!("CARGO_BIN_EXE_lally"));
        std::process::Command::new("sh").args(["-c", &shell]).output().unwrap()
    };
    let cut = shell("lally config show | head -1");
    assert!(cut.status.success() && cut.stderr.is_empty(), "{cut:?}");
    let full = shell("lally config show > /dev/full");
    assert_eq!(full.status.code(), Some(1), "{full:?}");
}

/// Run as they stand, in a directory with a fine configuration.
#[test]
fn the_commands_of_the_documents_do_what_they_say() {
    let documents = [
        include_str!("../../../README.md"),
        include_str!("../../../docs/commands.md"),
        include_str!("../../../docs/configuration.md"),
        include_str!("../../../docs/operations.md"),
    ];
    let commands = ["lally config ", "lally completions ", "lally man "];
    let is_one = |line: &&str| commands.iter().any(|command| line.starts_with(command));
    let mut ran = 0;
    for line in documents.iter().flat_map(|document| document.lines()).filter(is_one) {
        let setup = Setup::new().yaml("read_quorum: 2\n");
        let shell = format!("lally() {{ '{}' \"$@\"; }}; {line}", env!("CARGO_BIN_EXE_lally"));
        let done = std::process::Command::new("sh")
            .args(["-c", &shell])
            .current_dir(setup.dir())
            .output()
            .unwrap();
        assert!(done.status.success() && done.stderr.is_empty(), "{line}: {done:?}");
        assert!(!done.stdout.is_empty() || setup.dir().read_dir().unwrap().count() == 2, "{line}");
        ran += 1;
    }
    assert!(ran >= 12, "{ran}");
}
