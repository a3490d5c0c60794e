//! Who is let in, as what, and how it is spoken: the real binary, its own certificates and tokens.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use super::node::{Finished, Node, Setup, free_port};
use super::readme::curl_is_there;
use super::ring;
use super::wait::{PATIENCE, eventually, is};

/// A node's directory with an authority and a token of each role in it.
struct Closed {
    setup: Setup,
    reader: String,
    writer: String,
    admin: String,
}

pub fn made(finished: &Finished) -> String {
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished.stdout.trim().to_owned()
}

pub fn token(setup: &Setup, name: &str, role: &str, more: &[&str]) -> String {
    let args = ["token", "new", name, "--role", role, "--file", "tokens.yml"];
    made(&setup.run_command(args.iter().chain(more)))
}

pub fn certificate(setup: &Setup, name: &str, more: &[&str]) {
    made(&setup.run_command(["tls", "node", name].iter().chain(more)));
}

fn closed() -> Closed {
    let setup = Setup::new();
    let reader = token(&setup, "reader", "read", &[]);
    let writer = token(&setup, "writer", "write", &["--prefix", "a:"]);
    let admin = token(&setup, "admin", "admin", &[]);
    made(&setup.run_command(["tls", "init"]));
    certificate(&setup, "n1", &[]);
    Closed { setup, reader, writer, admin }
}

pub const HTTP_TLS: [&str; 4] =
    ["--http-tls-cert", "lally-tls/n1.pem", "--http-tls-key", "lally-tls/n1.key"];
pub const PEER_TLS: [&str; 6] = [
    "--peer-tls-ca",
    "lally-tls/ca.pem",
    "--peer-tls-cert",
    "lally-tls/n1.pem",
    "--peer-tls-key",
    "lally-tls/n1.key",
];
pub const TOKENS: [&str; 2] = ["--tokens", "tokens.yml"];

/// Status and body of a request with this token.
fn ask(node: &Node, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, Value) {
    let authorization = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> =
        authorization.iter().map(|text| ("Authorization", text.as_str())).collect();
    let response = match node.client().try_send(method, path, &headers, body.as_bytes()) {
        // A refusal is text, a backup is none.
        Err(error) if path == "/admin/backup" && error.kind() == ErrorKind::InvalidData => {
            return (200, Value::Null);
        }
        response => response.unwrap(),
    };
    (response.status, serde_json::from_str(&response.body).unwrap_or_default())
}

#[test]
fn each_endpoint_is_for_its_role_and_says_what_is_missing() {
    let Closed { setup, reader, writer, admin } = closed();
    let node = setup.args(TOKENS).args(["--metrics-need-token"]).start_ready();
    let calls = [
        ("GET", "/healthz", "", [200, 200, 200, 200, 200]),
        ("GET", "/readyz", "", [200, 200, 200, 200, 200]),
        ("GET", "/metrics", "", [401, 401, 200, 200, 200]),
        ("POST", "/get", r#"{"key":"a:1"}"#, [401, 401, 200, 200, 200]),
        ("POST", "/get", r#"{"key":"b:1"}"#, [401, 401, 200, 403, 200]),
        ("POST", "/add", r#"{"key":"a:1","value":"v"}"#, [401, 401, 403, 200, 200]),
        ("POST", "/add", r#"{"key":"b:1","value":"v"}"#, [401, 401, 403, 403, 200]),
        ("DELETE", "/remove", r#"{"key":"a:1"}"#, [401, 401, 403, 200, 200]),
        ("DELETE", "/remove", r#"{"key":"b:1"}"#, [401, 401, 403, 403, 200]),
        ("GET", "/nodes", "", [401, 401, 200, 200, 200]),
        ("GET", "/cluster", "", [401, 401, 200, 200, 200]),
        ("GET", "/cluster/safe-to-stop", "", [401, 401, 200, 200, 200]),
        ("POST", "/cluster/forget", r#"{"id":"0000000000000001"}"#, [401, 401, 403, 403, 404]),
        ("POST", "/admin/compact", "", [401, 401, 403, 403, 200]),
        ("GET", "/admin/backup", "", [401, 401, 403, 403, 200]),
        ("GET", "/nothing", "", [401, 401, 404, 404, 404]),
    ];
    let tokens = [None, Some("lally_wrong"), Some(&*reader), Some(&*writer), Some(&*admin)];
    for (method, path, body, expected) in calls {
        for (token, expected) in tokens.into_iter().zip(expected) {
            let (status, answer) = ask(&node, method, path, token, body);
            assert_eq!(status, expected, "{method} {path} {body} {token:?}: {answer}");
            let code = match status {
                401 => Some("unauthorized"),
                403 => Some("forbidden"),
                _ => continue,
            };
            assert_eq!(answer["code"].as_str(), code);
            assert_eq!(answer["status"], "error");
        }
    }
    let refused = node.client().try_send("GET", "/nodes", &[], b"").unwrap();
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    let log = node.log();
    for secret in [&reader, &writer, &admin] {
        assert!(!log.contains(secret.as_str()));
    }
}

#[test]
fn the_command_line_shows_its_token_and_believes_the_authority_it_is_given() {
    let Closed { setup, reader, writer, .. } = closed();
    fs::write(setup.dir().join("token"), format!("{writer}\n")).unwrap();
    let node = setup.args(TOKENS).args(HTTP_TLS).start();
    let addr = node.http().to_string();
    let ca = "lally-tls/ca.pem";
    let lally = |env: &[(&str, &str)], args: &[&str]| {
        let setup = node.setup().clone();
        let setup = env.iter().fold(setup, |setup, (name, value)| setup.env(name, value));
        setup.run_command(args)
    };
    let add = ["add", "a:1", "v", "--addr", &addr];
    made(&lally(&[("LALLY_TOKEN", &writer), ("LALLY_CA", ca)], &add));
    made(&lally(&[], &[&add[..], &["--ca", ca, "--token-file", "token"]].concat()));
    let get = ["get", "a:1", "--addr", &addr, "--ca", ca];
    assert_eq!(made(&lally(&[("LALLY_TOKEN", &reader)], &get)), "v");
    let status = ["status", "--addr", &addr, "--ca", ca];
    assert!(made(&lally(&[("LALLY_TOKEN", &reader)], &status)).contains("ready"));

    lally(&[("LALLY_CA", ca)], &add).refused(1, &["unauthorized", "LALLY_TOKEN"]);
    lally(&[("LALLY_TOKEN", &reader), ("LALLY_CA", ca)], &add).refused(1, &["forbidden", "write"]);
    // Not in TLS, or for another authority.
    assert_ne!(lally(&[("LALLY_TOKEN", &writer)], &add).code, Some(0));
    made(&node.setup().run_command(["tls", "init", "--dir", "other"]));
    lally(&[("LALLY_TOKEN", &writer), ("LALLY_CA", "other/ca.pem")], &add)
        .refused(5, &["certificate"]);
    lally(&[("LALLY_CA", "nowhere.pem")], &add).refused(2, &["nowhere.pem"]);
}

#[test]
fn curl_speaks_to_a_node_in_tls() {
    if !curl_is_there() {
        return;
    }
    let Closed { setup, writer, .. } = closed();
    let node = setup.args(TOKENS).args(HTTP_TLS).start_or_end().unwrap();
    let url = format!("https://localhost:{}/add", node.http().port());
    let output = Command::new("curl")
        .current_dir(node.setup().dir())
        .args([
            "-sS",
            "--cacert",
            "lally-tls/ca.pem",
            "-H",
            &format!("Authorization: Bearer {writer}"),
        ])
        .args(["-d", r#"{"key":"a:1","value":"v"}"#, "-H", "content-type: application/json", &url])
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert_eq!(answer["status"], "success", "{output:?}");
}

/// A node of a cluster that is closed, in a directory of its own.
pub fn member(authority: &Setup, name: &str, cluster: &str, seed: Option<SocketAddr>) -> Setup {
    let dir = authority.dir();
    let path = |file: &str| dir.join("lally-tls").join(file).display().to_string();
    certificate(authority, name, &["--cluster-name", cluster]);
    let setup = Setup::new().args([
        "--peer-tls-ca",
        &path("ca.pem"),
        "--peer-tls-cert",
        &path(&format!("{name}.pem")),
        "--peer-tls-key",
        &path(&format!("{name}.key")),
        "--cluster-name",
        cluster,
    ]);
    match seed {
        Some(seed) => setup.seed(seed),
        None => setup,
    }
}

fn add(node: &Node, key: &str, quorum: u32) -> Value {
    let body = format!(r#"{{"key":"{key}","value":"v","quorum":{quorum}}}"#);
    ask(node, "POST", "/add", None, &body).1
}

#[test]
fn three_nodes_in_tls_are_a_cluster_and_nobody_else_gets_in() {
    let Closed { setup, .. } = closed();
    let first = member(&setup, "a", "lally", None).start_ready();
    let second = member(&setup, "b", "lally", Some(first.grpc())).start_ready();
    let third = member(&setup, "c", "lally", Some(first.grpc())).start_ready();
    // Who is ready is not known to all others yet.
    ring::wait_whole([&first, &second, &third]);
    let written = add(&second, "k", 3);
    assert_eq!(
        (&written["status"], &written["quorum"]["achieved"]),
        (&"success".into(), &3.into())
    );
    let read = ask(&third, "POST", "/get", None, r#"{"key":"k","quorum":3}"#).1;
    assert_eq!((&read["value"], &read["quorum"]["achieved"]), (&"v".into(), &3.into()));

    let members = || {
        let seen = ask(&first, "GET", "/cluster", None, "").1;
        seen["members"].as_array().map_or(0, Vec::len)
    };
    // In the clear; of another authority; of another cluster, by its name alone or by its certificate.
    let plain = Setup::new().seed(first.grpc()).start();
    let foreign = Setup::new();
    made(&foreign.run_command(["tls", "init"]));
    let foreign = member(&foreign, "d", "lally", Some(first.grpc())).start();
    let other = member(&setup, "e", "other", Some(first.grpc())).start();
    for stranger in [&plain, &foreign, &other] {
        eventually("it says why it cannot join", PATIENCE, || {
            let log = stranger.log();
            is(log.contains("join"), log)
        });
        assert_eq!(ask(stranger, "GET", "/readyz", None, "").0, 503, "{}", stranger.log());
    }
    assert_eq!(members(), 2);
}

#[test]
fn whoever_speaks_plain_to_a_peer_port_in_tls_gets_nothing() {
    let Closed { setup, .. } = closed();
    let node = setup.args(PEER_TLS).start_ready();
    for said in
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..], b"GET / HTTP/1.1\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(node.grpc()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(said).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).ok();
        // At most an alert of TLS, which is a record of seven bytes.
        assert!(heard.is_empty() || (heard[0] == 0x15 && heard.len() == 7), "{heard:?}");
    }
    // Who says nothing is let go of as well.
    let mut silent = TcpStream::connect(node.grpc()).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut heard = Vec::new();
    silent.read_to_end(&mut heard).ok();
    assert!(heard.is_empty());
    assert_eq!(ask(&node, "GET", "/readyz", None, "").0, 200);
}

#[test]
fn listening_beyond_the_loopback_needs_tokens_and_certificates_or_the_word_that_it_does_not() {
    let Closed { setup, .. } = closed();
    let bind = ["--bind", "0.0.0.0"];
    let ways_out = ["--tokens", "--peer-tls-ca", "--insecure", "lally token new", "lally tls"];
    let open = setup.clone().args(bind).run();
    open.refused(2, &ways_out);
    open.refused(2, &["no tokens and no certificates"]);
    setup.clone().args(bind).args(TOKENS).run().refused(2, &["no certificates for nodes"]);
    setup.clone().args(bind).args(PEER_TLS).run().refused(2, &["no tokens"]);
    assert!(!setup.data_dir().exists());

    let insecure = setup.clone().args(bind).args(["--insecure"]).start_or_end().unwrap();
    assert!(insecure.log().contains("insecure"), "{}", insecure.log());
    drop(insecure);
    let closed = setup.args(bind).args(TOKENS).args(PEER_TLS).start_or_end().unwrap();
    assert!(closed.log().contains("in the clear"), "{}", closed.log());
}

#[test]
fn what_cannot_be_used_is_refused_before_anything_is_touched() {
    let Closed { setup, .. } = closed();
    let dir = setup.dir();
    fs::write(dir.join("bad.yml"), "- {name: a}\n").unwrap();
    fs::write(dir.join("bad.pem"), "no certificate\n").unwrap();
    let swap = |all: &[&str], at: usize, with: &str| {
        let mut all: Vec<String> = all.iter().map(ToString::to_string).collect();
        all[at] = with.to_owned();
        all
    };
    for (args, says) in [
        (swap(&TOKENS, 1, "nowhere.yml"), &["tokens", "nowhere.yml"][..]),
        (swap(&TOKENS, 1, "bad.yml"), &["tokens", "bad.yml", "expected"]),
        (swap(&HTTP_TLS, 1, "bad.pem"), &["http_tls", "bad.pem", "certificate"]),
        (swap(&HTTP_TLS, 3, "bad.pem"), &["http_tls", "bad.pem", "key"]),
        (swap(&HTTP_TLS, 3, "lally-tls/ca.key"), &["http_tls", "n1.pem"]),
        (swap(&PEER_TLS, 1, "bad.pem"), &["peer_tls", "bad.pem", "certificate"]),
        (swap(&PEER_TLS, 1, "lally-tls/n1.pem"), &["peer_tls", "n1.pem"]),
        (HTTP_TLS[..2].iter().map(ToString::to_string).collect(), &["http_tls_key", "together"]),
        (PEER_TLS[..4].iter().map(ToString::to_string).collect(), &["peer_tls_key", "together"]),
        (vec!["--metrics-need-token".into()], &["metrics_need_token", "tokens"]),
        (
            [PEER_TLS.map(String::from).as_slice(), &["--cluster-name".into(), "other".into()]]
                .concat(),
            &["peer_tls", "n1.pem", "cluster"],
        ),
    ] {
        setup.clone().args(&args).run().refused(2, says);
        assert!(!setup.data_dir().exists(), "{args:?}");
    }
}

#[test]
fn a_hangup_takes_tokens_and_certificates_anew_or_leaves_them_as_they_are() {
    let Closed { setup, reader, .. } = closed();
    let node = setup.args(TOKENS).args(PEER_TLS).start_ready();
    let nodes = |token: &str| ask(&node, "GET", "/nodes", Some(token), "").0;
    let new = token(node.setup(), "new", "read", &[]);
    assert_eq!((nodes(&reader), nodes(&new)), (200, 401));
    node.signal("HUP");
    eventually("the new token is known", PATIENCE, || is(nodes(&new) == 200, node.log()));
    let file = node.setup().dir().join("tokens.yml");
    fs::write(&file, "- {name: reader}\n").unwrap();
    node.signal("HUP");
    eventually("it says what is wrong", PATIENCE, || {
        let log = node.log();
        is(log.contains("not reloaded") && log.contains("tokens.yml"), log)
    });
    assert_eq!((nodes(&reader), nodes(&new)), (200, 200));
    fs::write(&file, "# nobody\n").unwrap();
    node.signal("HUP");
    eventually("no token is known any more", PATIENCE, || is(nodes(&new) == 401, node.log()));
}

#[test]
fn what_is_made_is_for_its_owner_only_and_nothing_is_overwritten() {
    let Closed { setup, .. } = closed();
    let mode =
        |file: &str| fs::metadata(setup.dir().join(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("tokens.yml"), mode("lally-tls/ca.key"), mode("lally-tls/n1.key")),
        (0o600, 0o600, 0o600)
    );
    setup.run_command(["tls", "init"]).refused(1, &["it exists"]);
    setup.run_command(["tls", "node", "n1"]).refused(1, &["it exists"]);
    let again = ["token", "new", "reader", "--role", "read", "--file", "tokens.yml"];
    setup.run_command(again).refused(1, &["another one of this name"]);
    let wrong = ["token", "new", "x", "--role", "root", "--file", "tokens.yml"];
    setup.run_command(wrong).refused(2, &["read, write or admin"]);
}

/// The command lines of the page, as they stand there; only the ports are others, and nothing is left
/// running behind them.
#[test]
fn the_three_closed_nodes_of_the_documents_are_a_cluster() {
    if !curl_is_there() {
        return;
    }
    let page = include_str!("../../../docs/security.md");
    let (_, block) = page.split_once("```sh\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let named = ["3001", "3002", "3003", "50071", "50072", "50073"];
    let script = named
        .into_iter()
        .fold(block.to_owned(), |script, named| script.replace(named, &free_port().to_string()));
    let dir = tempfile::tempdir().unwrap();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_lally")).parent().unwrap().display();
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("bash")
        .current_dir(dir.path())
        .env("PATH", format!("{binary}:{path}"))
        .args(["-ec", &format!("trap 'kill $(jobs -p); wait' EXIT\n{script}")])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("on 3 nodes of 3 required") && said.contains("hello"), "{said}");
    assert!(said.contains(r#""status":"success","key":"greeting","value":"hello""#), "{said}");
}
