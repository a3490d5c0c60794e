//! The hooks that come with Lally: rules that refuse, and webhooks whose receiver is there, slow, gone,
//! back again or on a node that is killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::client::Client;
use super::node::{Node, Setup, contents, free_port};
use super::receiver::{NEVER, Receiver};
use super::ring;
use super::wait::{PATIENCE, eventually, is};

const REFERENCE: &str = include_str!("../../../docs/hooks.md");

const SECRET: &str = "a secret of the tests";

/// A node with a webhook to this address, and more lines for it.
fn hooked(to: SocketAddr, more: &str) -> Setup {
    let url = format!("http://{to}/changes?from=lally");
    with_webhook(&format!("name: w, url: '{url}', secret_file: secret, {more}"))
}

fn with_webhook(webhook: &str) -> Setup {
    let setup = Setup::new().yaml(&format!("webhooks: [{{{webhook}}}]\n"));
    fs::write(setup.dir().join("secret"), format!("{SECRET}\n")).unwrap();
    setup
}

/// The value of a metric of the webhook.
fn metric(node: &Node, name: &str) -> u64 {
    let text = node.client().ask("GET", "/metrics").body;
    let begins = format!("lally_webhook_{name}{{webhook=\"w\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&begins));
    line.unwrap_or_else(|| panic!("no {begins} in {text}")).parse().unwrap()
}

fn wait_for_metric(node: &Node, name: &str, expected: u64) {
    eventually(&format!("{name} is {expected}"), PATIENCE, || {
        let value = metric(node, name);
        is(value == expected, value)
    });
}

/// Writes keys that begin so; their names, sorted.
fn write(node: &Node, prefix: &str, count: usize) -> Vec<String> {
    let mut client = node.client();
    let keys: Vec<_> = (0..count).map(|n| format!("{prefix}:{n:03}")).collect();
    for key in &keys {
        client.add(key, "v").succeeded();
    }
    keys
}

#[test]
fn a_policy_refuses_by_key_and_by_length_with_its_reason() {
    let policy = "\
policy:
  - refuse: [add, remove]
    keys: 'frozen:*'
  - refuse: add
    keys: ['note:?', 'short:*']
    except_keys: 'note:x'
    value_over: 5
  - refuse: get
    keys: secret
    reason: ask somebody else
";
    let node = Setup::new().yaml(policy).start_ready();
    let mut client = node.client();
    client.add("free", "value").succeeded();
    client.get("frozen:1").succeeded();
    for reply in [client.add("frozen:1", "v"), client.remove("frozen:1")] {
        reply.failed(403, "vetoed");
        assert!(reply.text("message").contains("policy hook: "), "{}", reply.body);
        assert!(reply.text("message").contains("frozen:*"), "{}", reply.body);
    }
    client.add("note:1", "12345").succeeded();
    client.add("note:x", "123456").succeeded();
    client.add("note:1", "123456").failed(403, "vetoed");
    client.get("note:1").succeeded();
    client.add("secret", "v").succeeded();
    assert!(client.get("secret").text("message").ends_with("ask somebody else"));
    // No thread waits for a hook that refuses only.
    let threads = format!("/proc/{}/task", node.pid());
    let names = fs::read_dir(threads).unwrap();
    let names = names.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    assert!(names.into_iter().all(|name| !name.contains("hook")));
}

#[test]
fn a_policy_holds_however_many_ask_at_a_time() {
    let node = Setup::new().yaml("policy: [{refuse: add, keys: 'frozen:*'}]").start_ready();
    let bodies: Vec<_> =
        (0..200).map(|n| json!({"key": format!("frozen:{n}"), "value": "v"})).collect();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for reply in node.client().pipeline("/add", &bodies) {
                    reply.failed(403, "vetoed");
                }
            });
        }
    });
    assert_eq!(node.holdings().1, 0);
}

#[test]
fn a_change_is_posted_once_signed_and_as_the_reference_says() {
    let receiver = Receiver::start();
    let more = "keys: ['user:*'], except_keys: ['*:tmp'], values: true, parallel: 1";
    let node = hooked(receiver.addr(), more).start_ready();
    let mut client = node.client();
    let added = client.add("user:1", "a \"value\"").succeeded();
    client.add("other", "v").succeeded();
    client.add("user:tmp", "v").succeeded();
    client.get("user:1").succeeded();
    let removed = client.remove("user:1").succeeded();
    wait_for_metric(&node, "deliveries_total", 2);
    let posts = receiver.posts();
    assert_eq!(posts.len(), 2);
    for (post, reply, kind) in [(&posts[0], &added, "add"), (&posts[1], &removed, "remove")] {
        assert_eq!(post.line, "POST /changes?from=lally HTTP/1.1");
        assert_eq!(post.header("host"), receiver.addr().to_string());
        assert_eq!(post.header("content-type"), "application/json");
        assert!(post.header("user-agent").starts_with("lally/"));
        assert!(post.is_signed_with(SECRET) && !post.is_signed_with("another secret"));
        let change = post.json();
        assert_eq!(change["id"], post.header("lally-delivery"));
        assert_eq!((change["kind"].as_str(), change["key"].as_str()), (Some(kind), Some("user:1")));
        assert_eq!(change["timestamp"], reply.timestamp());
        assert_eq!(change["node"], node.cluster()["node"]["id"]);
        assert_eq!(
            (change["webhook"].as_str(), change["cluster"].as_str()),
            (Some("w"), Some("lally"))
        );
    }
    assert_eq!(posts[0].json()["value"], "a \"value\"");
    assert!(posts[1].json().get("value").is_none());
    assert_eq!((metric(&node, "queue_length"), metric(&node, "drops_total")), (0, 0));
    assert!(!node.log().contains(SECRET) && !node.log().contains("from=lally"));
}

#[test]
fn a_secret_is_replaced_by_a_hangup_or_stays_and_what_needs_a_restart_is_said() {
    let receiver = Receiver::start();
    let node = hooked(receiver.addr(), "parallel: 1").start_ready();
    let write = |key: &str| {
        node.client().add(key, "v").succeeded();
        let post = |post: &super::receiver::Post| post.body.contains(key);
        eventually("the change is posted", PATIENCE, || {
            receiver.posts().into_iter().find(post).ok_or(node.log())
        })
    };
    assert!(write("first").is_signed_with(SECRET));
    let file = node.setup().dir().join("secret");
    fs::write(&file, "short").unwrap();
    node.signal("HUP");
    node.wait_for_log(&["not reloaded", "webhooks: w, secret_file", "16 to 4096 bytes"]);
    assert!(write("second").is_signed_with(SECRET));
    let new = "another secret of the tests";
    fs::write(&file, new).unwrap();
    node.signal("HUP");
    node.wait_for_log(&["configuration reloaded", "secrets of webhooks read anew"]);
    assert!(write("third").is_signed_with(new));
    let setup = node.setup().clone();
    let before = fs::read_to_string(setup.dir().join("lally.yml")).unwrap();
    let changed = before.replace("parallel: 1", "parallel: 2");
    setup.yaml(&format!("{changed}policy: [{{refuse: get}}]\n"));
    node.signal("HUP");
    node.wait_for_log(&["need a restart", "policy, webhooks"]);
    node.client().get("first").succeeded();
}

#[test]
fn of_a_cluster_only_the_node_that_a_client_called_posts() {
    let receiver = Receiver::start();
    let first = hooked(receiver.addr(), "").start_ready();
    let second = hooked(receiver.addr(), "").seed(first.grpc()).start_ready();
    let nodes = [first, second];
    ring::wait_whole(&nodes);
    let mut keys = Vec::new();
    for (node, prefix) in nodes.iter().zip(["a", "b"]) {
        keys.extend(write(node, prefix, 20));
        wait_for_metric(node, "deliveries_total", 20);
    }
    eventually("the nodes are equal", PATIENCE, || {
        is(nodes[0].holdings() == nodes[1].holdings(), "they differ")
    });
    receiver.wait_for(&keys);
    assert_eq!(receiver.posts().len(), 40);
}

#[test]
fn what_a_receiver_fails_at_is_sent_again_and_what_it_refuses_is_not() {
    let receiver = Receiver::start();
    let node = hooked(receiver.addr(), "parallel: 1").start_ready();
    receiver.answer(503);
    let key = write(&node, "late", 1);
    eventually("it was tried twice", PATIENCE, || {
        is(receiver.posts().len() >= 2, receiver.posts().len())
    });
    node.wait_for_log(&["a webhook fails", "status 503"]);
    receiver.answer(204);
    wait_for_metric(&node, "deliveries_total", 1);
    node.wait_for_log(&["a webhook works again"]);
    // One change: the same id and body each time, and a signature of its own.
    let posts = receiver.posts();
    assert!(posts.iter().all(|post| post.body == posts[0].body && post.is_signed_with(SECRET)));
    assert_eq!(receiver.keys(), key);
    assert!(metric(&node, "failures_total") >= 2);
    receiver.answer(410);
    write(&node, "unwanted", 3);
    wait_for_metric(&node, "refusals_total", 3);
    assert_eq!(receiver.posts().len(), posts.len() + 3);
    assert_eq!(metric(&node, "queue_length"), 0);
}

#[test]
fn a_receiver_that_is_gone_or_hangs_costs_nobody_anything_and_hears_of_everything_when_it_is_back()
{
    let receiver = Receiver::start();
    let addr = receiver.addr();
    let more = "timeout: 1s, outbox: true";
    let node = hooked(addr, more).start_ready();
    receiver.answer(NEVER);
    let begun = Instant::now();
    let mut keys = write(&node, "hanging", 50);
    drop(receiver);
    keys.splice(0..0, write(&node, "gone", 50));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(metric(&node, "queue_length") >= 50);
    assert!(metric(&node, "queue_bytes") > 0);
    let receiver = Receiver::start_at(addr);
    receiver.wait_for(&keys);
    wait_for_metric(&node, "queue_length", 0);
    assert_eq!(metric(&node, "drops_total"), 0);
}

#[test]
fn what_does_not_fit_into_the_queue_is_dropped_counted_and_warned_of() {
    for outbox in [false, true] {
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let more = format!("max_queue_changes: 10, outbox: {outbox}");
        let node = hooked(nobody, &more).start_ready();
        write(&node, "k", 30);
        wait_for_metric(&node, "drops_total", 20);
        assert_eq!(metric(&node, "queue_length"), 10);
        node.wait_for_log(&["a change was dropped"]);
    }
}

#[test]
fn a_graceful_stop_delivers_what_it_can_and_says_what_it_cannot() {
    let receiver = Receiver::start();
    let mut node = hooked(receiver.addr(), "").start_ready();
    let keys = write(&node, "k", 100);
    assert_eq!(node.terminate(), Some(0));
    assert_eq!(receiver.keys(), keys);
    let mut node = hooked(receiver.addr(), "").start_ready();
    receiver.answer(NEVER);
    write(&node, "k", 3);
    let begun = Instant::now();
    assert_eq!(node.terminate(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    node.wait_for_log(&["changes are lost", "left=3"]);
}

#[test]
fn a_node_that_is_killed_before_it_delivered_delivers_everything_when_it_is_back() {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut node = hooked(addr, "outbox: true").start_ready();
    let mut keys = write(&node, "k", 100);
    node.kill9();
    node.restart();
    node.wait_ready();
    keys.extend(write(&node, "l", 100));
    node.kill9();
    let receiver = Receiver::start_at(addr);
    node.restart();
    receiver.wait_for(&keys);
    wait_for_metric(&node, "queue_length", 0);
    // Each once: nobody took any of them before.
    assert_eq!(receiver.posts().len(), 200);
    assert_eq!(node.terminate(), Some(0));
    // And none again.
    node.restart();
    node.wait_ready();
    assert_eq!(metric(&node, "queue_length"), 0);
    assert_eq!(receiver.posts().len(), 200);
}

#[test]
fn what_was_in_the_log_and_not_in_the_outbox_yet_is_found_there() {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut node = hooked(addr, "outbox: true, keys: 'k*'").start_ready();
    let mut keys = write(&node, "k", 20);
    write(&node, "other", 5);
    node.client().remove(&keys[19]).succeeded();
    wait_for_metric(&node, "queue_length", 21);
    node.kill9();
    // As if it had been killed before the first of them was put there.
    let outbox = node.setup().data_dir().join("outbox/w");
    let segments = contents(&outbox).into_iter().map(|(name, _)| name);
    for segment in segments.filter(|name| name.extension().is_some_and(|e| e == "outbox")) {
        fs::remove_file(outbox.join(segment)).unwrap();
    }
    let receiver = Receiver::start_at(addr);
    node.restart();
    receiver.wait_for(&keys);
    keys.retain(|key| {
        receiver.posts().iter().filter(|post| post.json()["key"] == **key).count() > 1
    });
    assert!(keys.len() <= 1, "only the removed key has two changes: {keys:?}");
    assert!(receiver.posts().iter().any(|post| post.json()["kind"] == "remove"));
}

#[test]
fn a_webhook_that_begins_hears_nothing_of_what_was_before() {
    let receiver = Receiver::start();
    let mut node = Setup::new().start_ready();
    write(&node, "before", 10);
    assert_eq!(node.terminate(), Some(0));
    let url = format!("http://{}", receiver.addr());
    node.restart_as(|setup| {
        fs::write(setup.dir().join("secret"), SECRET).unwrap();
        setup.yaml(&format!(
            "webhooks: [{{name: w, url: '{url}', secret_file: secret, outbox: true}}]"
        ))
    });
    node.wait_ready();
    let keys = write(&node, "since", 1);
    receiver.wait_for(&keys);
}

/// Whether there is a Python; says so if not.
fn python_is_there() -> bool {
    let found = Command::new("python3").arg("--version").output().is_ok_and(|o| o.status.success());
    assert!(found || std::env::var_os("CI").is_none(), "python3 is missing");
    if !found {
        eprintln!("SKIPPED: python3 is missing");
    }
    found
}

/// The blocks of the reference in this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let begins = format!("```{language}\n");
    let blocks = REFERENCE.split(begins.as_str()).skip(1);
    blocks.map(|block| block.split("```").next().unwrap()).collect()
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn the_receiver_of_the_reference_believes_the_node_of_the_reference_and_nobody_else() {
    if !python_is_there() {
        return;
    }
    let setup = Setup::new();
    let place = |name: &str| setup.dir().join(name);
    fs::write(place("receiver.py"), blocks("python")[0]).unwrap();
    fs::write(place("search.secret"), format!("{SECRET}\n")).unwrap();
    let mut python = Command::new("python3");
    python.args(["receiver.py", "search.secret", "0"]).current_dir(setup.dir());
    let mut running = Running(python.stdout(Stdio::piped()).spawn().unwrap());
    let mut said = BufReader::new(running.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = said.next().unwrap();
    let addr = format!("127.0.0.1:{}", first.strip_prefix("listening on ").unwrap());

    let webhooks = blocks("yaml")[1];
    for needed in ["127.0.0.1:8000", "/etc/lally/search.secret"] {
        assert!(webhooks.contains(needed), "{webhooks}");
    }
    let webhooks = webhooks
        .replace("127.0.0.1:8000", &addr)
        .replace("/etc/lally/search.secret", "search.secret");
    let node = setup.yaml(&webhooks).start_ready();
    let mut client = node.client();
    client.add("other", "v").succeeded();
    client.add("user:1", "Ada").succeeded();
    assert_eq!(said.next().unwrap(), "add user:1 Ada");
    client.remove("user:1").succeeded();
    assert_eq!(said.next().unwrap(), "remove user:1 None");

    let mut stranger = Client::new(addr.parse().unwrap());
    let forged = [("lally-signature", "t=1764491460,v1=00")];
    assert_eq!(stranger.send("POST", "/changes", &forged, b"{}").status, 403);
}

#[test]
fn the_policy_of_the_reference_refuses_what_it_says() {
    let node = Setup::new().yaml(blocks("yaml")[0]).start_ready();
    let mut client = node.client();
    let refused = client.add("frozen:1", "v");
    refused.failed(403, "vetoed");
    assert!(blocks("json")[0].contains(&refused.text("message")), "{}", refused.body);
    let reason = "this cluster is for the keys of the app";
    assert!(client.get("user:1").text("message").ends_with(reason));
    client.add("app:1", "v").succeeded();
}

/// A certificate for the loopback address, and the server that has it.
fn certified() -> (String, ServerConfig) {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    (own.cert.pem(), config)
}

#[test]
fn https_goes_to_whom_the_authority_knows_and_to_nobody_else() {
    let (authority, config) = certified();
    let receiver = Receiver::start_tls(config);
    let url = format!("https://{}/", receiver.addr());
    let webhook = format!("name: w, url: '{url}', secret_file: secret, ca_file: ca.pem");
    let setup = with_webhook(&webhook);
    fs::write(setup.dir().join("ca.pem"), authority).unwrap();
    let mut node = setup.start_ready();
    let keys = write(&node, "k", 3);
    receiver.wait_for(&keys);
    assert!(receiver.posts().iter().all(|post| post.is_signed_with(SECRET)));
    assert_eq!(node.terminate(), Some(0));

    let setup = with_webhook(&webhook);
    fs::write(setup.dir().join("ca.pem"), certified().0).unwrap();
    let node = setup.start_ready();
    write(&node, "l", 1);
    node.wait_for_log(&["a webhook fails", "certificate"]);
    assert_eq!(receiver.keys(), keys);
}

#[test]
fn a_webhook_that_cannot_work_is_refused_before_anything_is_touched() {
    let http = "name: w, url: 'http://h/secret-path'";
    for (webhook, says) in [
        (format!("{http}, secret_file: none"), "w, secret_file: none"),
        (format!("{http}, secret_file: short"), "16 to 4096 bytes"),
        ("name: w, url: 'https://h', secret_file: secret, ca_file: short".into(), "ca_file"),
        (format!("{http}, secret_file: secret, secret: {SECRET}"), "unknown key \"secret\""),
        ("name: w, secret_file: secret".into(), "webhook 1 has no url"),
        ("name: w, url: 'ftp://secret-path', secret_file: secret".into(), "http://HOST"),
    ] {
        let setup = with_webhook(&webhook);
        fs::write(setup.dir().join("short"), "short").unwrap();
        let finished = setup.run();
        finished.refused(2, &["webhooks", says]);
        assert!(!finished.stderr.contains("secret-path"), "{}", finished.stderr);
        assert!(!setup.data_dir().exists());
    }
}
