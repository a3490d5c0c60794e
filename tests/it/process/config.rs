//! Every setting, in every layer, with an effect that can be seen from outside; and every mistake.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::client::Client;
use super::node::{Node, Setup, file_with, free_port};
use super::ring;
use super::wait::{PATIENCE, eventually, is};

/// Where a setting is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    Yaml,
    Env,
    Flag,
    FlagWithUnderscores,
}

const LAYERS: [Layer; 4] = [Layer::Yaml, Layer::Env, Layer::Flag, Layer::FlagWithUnderscores];

/// A setup with these settings in that layer, and no ports but those among them.
fn with(layer: Layer, settings: &[(&str, &str)]) -> Setup {
    let bare = Setup::new().http_port(None).grpc_port(None);
    match layer {
        Layer::Yaml => {
            let lines: Vec<_> = settings.iter().map(|(k, v)| format!("{k}: {v}\n")).collect();
            bare.yaml(&lines.concat())
        }
        Layer::Env => settings.iter().fold(bare, |setup, (key, value)| {
            setup.env(&format!("LALLY_{}", key.to_uppercase()), value)
        }),
        Layer::Flag | Layer::FlagWithUnderscores => {
            settings.iter().fold(bare, |setup, (key, value)| {
                let flag = if layer == Layer::Flag { key.replace('_', "-") } else { (*key).into() };
                match *value {
                    "true" => setup.args([format!("--{flag}")]),
                    _ => setup.args([format!("--{flag}"), (*value).to_owned()]),
                }
            })
        }
    }
}

const FREE_PORTS: [(&str, &str); 2] = [("http_port", "0"), ("grpc_port", "0")];

#[test]
fn every_setting_is_taken_from_every_layer() {
    for layer in LAYERS {
        let (http_port, grpc_port) = (free_port(), free_port());
        let node = with(
            layer,
            &[
                ("http_port", &http_port.to_string()),
                ("grpc_port", &grpc_port.to_string()),
                ("read_quorum", "3"),
                ("write_quorum", "4"),
                ("bind", "127.0.0.2"),
                ("advertise_addr", "localhost:4321"),
                ("data_dir", "./elsewhere"),
                ("fsync", "always"),
                ("cluster_name", "orchestra"),
                ("request_timeout", "900ms"),
                ("log_level", "debug"),
                ("log_format", "json"),
            ],
        )
        .start_ready();
        assert_eq!(node.http(), (Ipv4Addr::new(127, 0, 0, 2), http_port).into(), "{layer:?}");
        assert_eq!(node.grpc(), (Ipv4Addr::new(127, 0, 0, 2), grpc_port).into(), "{layer:?}");
        assert_eq!(node.client().get("k").quorum(), (3, 1), "{layer:?}");
        assert_eq!(node.client().add("k", "v").quorum(), (4, 1), "{layer:?}");
        let cluster = node.cluster();
        assert_eq!(cluster["cluster"], "orchestra", "{layer:?}");
        assert_eq!(cluster["node"]["grpc_addr"], "localhost:4321", "{layer:?}");
        assert!(node.setup().dir().join("elsewhere").is_dir(), "{layer:?}");
        assert!(!node.setup().data_dir().exists(), "{layer:?}");
        node.wait_for_log(&["\"level\":\"DEBUG\""]);
        for line in node.log().lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["fields"]["message"].is_string(), "{line}");
        }
    }
}

#[test]
fn without_any_setting_the_defaults_hold() {
    let node = Setup::new().start_ready();
    assert!(node.http().ip().is_loopback() && node.grpc().ip().is_loopback());
    assert_eq!(node.client().get("k").quorum(), (1, 1));
    assert_eq!(node.client().add("k", "v").quorum(), (1, 1));
    let cluster = node.cluster();
    assert_eq!(cluster["cluster"], "lally");
    assert_eq!(cluster["node"]["grpc_addr"], node.grpc().to_string());
    assert_eq!(cluster["node"]["http_addr"], node.http().to_string());
    assert!(node.setup().data_dir().is_dir());
    assert!(node.log().contains(" INFO "), "{}", node.log());
    assert!(!node.log().contains("DEBUG"), "{}", node.log());
}

/// The default ports are named in the refusal when they are taken; whoever takes them.
#[test]
fn the_default_ports_are_3000_and_50071() {
    let _taken: Vec<_> =
        [3000, 50071].map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).into();
    Setup::new().http_port(None).run().refused(1, &["3000"]);
    Setup::new().grpc_port(None).run().refused(1, &["50071"]);
}

#[test]
fn fresh_starts_empty_from_every_layer_and_keeps_the_old_log_aside() {
    for layer in LAYERS {
        let mut node = Setup::new().start_ready();
        node.client().add("old", "needle-of-the-old-log").succeeded();
        assert_eq!(node.terminate(), Some(0));
        let fresh = match layer {
            Layer::Yaml => node.setup().clone().yaml("fresh: true\n"),
            Layer::Env => node.setup().clone().env("LALLY_FRESH", "true"),
            Layer::Flag | Layer::FlagWithUnderscores => node.setup().clone().args(["--fresh"]),
        };
        let fresh = fresh.start_ready();
        assert_eq!(fresh.client().get("old").value(), None, "{layer:?}");
        let aside = super::node::contents(fresh.setup().dir()).into_iter().any(|(name, bytes)| {
            name.to_string_lossy().contains(".bak-")
                && bytes.is_some_and(|b| String::from_utf8_lossy(&b).contains("needle-of-the-old"))
        });
        assert!(aside, "{layer:?}: no *.bak-* with the old log below {:?}", fresh.setup().dir());
    }
}

#[test]
fn replay_log_takes_another_nodes_log_from_every_layer() {
    let mut other = Setup::new().start_ready();
    for i in 0..50 {
        other.client().add(&format!("theirs-{i}"), &format!("their-value-{i}")).succeeded();
    }
    other.client().add("removed", "x").succeeded();
    other.client().remove("removed").succeeded();
    other.kill9();
    let (log, _) = file_with(&other.setup().data_dir(), "their-value-49");
    let before = fs::read(&log).unwrap();
    let path = log.to_str().unwrap();
    for layer in LAYERS {
        let mut node = Setup::new().start_ready();
        node.client().add("mine", "my-old-value").succeeded();
        assert_eq!(node.terminate(), Some(0));
        let plain = node.setup().clone();
        let replaying = match layer {
            Layer::Yaml => plain.clone().yaml(&format!("replay_log: {path}\n")),
            Layer::Env => plain.clone().env("LALLY_REPLAY_LOG", path),
            Layer::Flag => plain.clone().args(["--replay-log", path]),
            Layer::FlagWithUnderscores => plain.clone().args(["--replay_log", path]),
        };
        let mut node = replaying.start_ready();
        let check = |node: &Node| {
            let mut client = node.client();
            for i in 0..50 {
                let value = client.get(&format!("theirs-{i}")).value();
                assert_eq!(value, Some(format!("their-value-{i}")), "{layer:?}");
            }
            assert_eq!(client.get("removed").value(), None, "{layer:?}");
            assert_eq!(client.get("mine").value(), None, "{layer:?}");
        };
        check(&node);
        let aside = super::node::contents(node.setup().dir());
        let aside = aside.iter().any(|(name, _)| name.to_string_lossy().contains(".bak-"));
        assert!(aside, "{layer:?}");
        // It is this node's log now: the next start does not need the other one.
        node.kill9();
        fs::write(plain.dir().join("lally.yml"), "").unwrap();
        check(&plain.start_ready());
    }
    assert_eq!(fs::read(&log).unwrap(), before, "the other node's log was changed");
}

#[test]
fn seeds_are_taken_from_every_layer_and_form() {
    let first = Setup::new().start_ready();
    let live = first.grpc().to_string();
    let by_name = format!("localhost:{}", first.grpc().port());
    let dead = format!("127.0.0.1:{}", free_port());
    let joiners = [
        Setup::new().args(["--seed-node", &live]),
        Setup::new().args(["--seed_node", &by_name]),
        Setup::new().args(["--seed-node", &dead, "--seed-node", &live]),
        Setup::new().args([format!("--seed-node={dead},{live}")]),
        Setup::new().env("LALLY_SEED_NODE", &live),
        Setup::new().env("LALLY_SEED_NODE", &format!("{dead},{live}")),
        Setup::new().yaml(&format!("seed_node: {live}\n")),
        Setup::new().yaml(&format!("seed_node: \"{dead},{live}\"\n")),
        Setup::new().yaml(&format!("seed_node: [\"{dead}\", \"{live}\"]\n")),
        Setup::new().yaml(&format!("seed_node:\n  - {dead}\n  - {live}\n")),
    ];
    for joiner in joiners {
        // Each leaves again, so that few run at a time.
        let mut joined = joiner.start_ready();
        ring::wait_state(&joined, &first, "alive");
        assert_eq!(joined.terminate(), Some(0));
    }
}

#[test]
fn an_ipv6_seed_is_understood() {
    // Nobody listens there: what counts is that the form is not refused.
    let node = Setup::new().args(["--seed-node", &format!("[::1]:{}", free_port())]).start();
    assert_eq!(node.client().ask("GET", "/healthz").status, 200);
}

#[test]
fn the_configuration_file_is_found_by_flag_by_environment_and_by_its_default_name() {
    let write = |setup: &Setup, name: &str, quorum: u64| {
        fs::write(setup.dir().join(name), format!("read_quorum: {quorum}\n")).unwrap();
    };
    let required = |setup: Setup| setup.start_ready().client().get("k").quorum().0;

    let by_default = Setup::new();
    write(&by_default, "lally.yml", 5);
    assert_eq!(required(by_default), 5);

    let by_env = Setup::new().env("LALLY_CONFIG", "from-env.yml");
    write(&by_env, "lally.yml", 5);
    write(&by_env, "from-env.yml", 6);
    assert_eq!(required(by_env.clone()), 6);

    write(&by_env, "from-flag.yml", 7);
    assert_eq!(required(by_env.args(["--config", "from-flag.yml"])), 7);
}

#[test]
fn a_later_layer_overrides_an_earlier_one() {
    let yaml = Setup::new()
        .yaml("read_quorum: 2\nwrite_quorum: 2\ncluster_name: from-yaml\nlog_format: json\n");
    let env = yaml
        .clone()
        .env("LALLY_READ_QUORUM", "3")
        .env("LALLY_WRITE_QUORUM", "3")
        .env("LALLY_CLUSTER_NAME", "from-env");
    let flag = env.clone().args(["--read-quorum", "4"]);
    let seen = |setup: Setup| {
        let node = setup.start_ready();
        let mut client = node.client();
        let quorums = (client.get("k").quorum().0, client.add("k", "v").quorum().0);
        let name = node.cluster()["cluster"].as_str().unwrap().to_owned();
        assert!(node.log().starts_with('{'), "{}", node.log());
        let mut node = node;
        assert_eq!(node.terminate(), Some(0));
        (quorums, name)
    };
    // The data directory is shared, and its log belongs to the first cluster name: start afresh.
    assert_eq!(seen(yaml), ((2, 2), "from-yaml".to_owned()));
    assert_eq!(seen(env.args(["--data-dir", "b"])), ((3, 3), "from-env".to_owned()));
    assert_eq!(seen(flag.args(["--data-dir", "c"])), ((4, 3), "from-env".to_owned()));
}

#[test]
fn a_flag_may_carry_its_value_behind_an_equals_sign() {
    let node = Setup::new()
        .http_port(None)
        .grpc_port(None)
        .args(["--http_port=0", "--grpc-port=0", "--read_quorum=majority"])
        .start_ready();
    assert_eq!(node.client().get("k").quorum(), (1, 1));
}

#[test]
fn the_log_level_may_come_from_rust_log() {
    let node = Setup::new().env("RUST_LOG", "debug").start_ready();
    node.client().add("k", "v").succeeded();
    node.wait_for_log(&["DEBUG"]);
}

#[test]
fn a_higher_log_level_silences_information() {
    let node = Setup::new()
        .http_port(Some(free_port()))
        .grpc_port(Some(free_port()))
        .args(["--log-level", "warn"])
        .start_silent();
    node.wait_ready();
    assert!(!node.log().contains(" INFO "), "{}", node.log());
}

#[test]
fn the_example_file_of_the_description_starts_a_node_with_the_defaults() {
    let node = Setup::new().yaml(include_str!("../../fixtures/lally.yml")).start_ready();
    assert_eq!(node.client().get("k").quorum(), (1, 1));
    assert_eq!(node.client().add("k", "v").succeeded().quorum(), (1, 1));
    assert_eq!(node.cluster()["members"].as_array().map_or(0, Vec::len), 0);
}

#[test]
fn none_null_tilde_nothing_and_absent_are_the_same() {
    for nothing in ["None", "null", "~", "", "\"None\""] {
        let node = Setup::new()
            .yaml(&format!("replay_log: {nothing}\nseed_node: {nothing}\n"))
            .start_ready();
        assert_eq!(node.client().add("k", "v").succeeded().quorum(), (1, 1), "{nothing:?}");
    }
    for empty in ["", "# only a comment\n", "---\n"] {
        Setup::new().yaml(empty).start_ready();
    }
}

#[test]
fn foreign_variables_of_the_environment_do_no_harm() {
    // What Kubernetes injects for a service that is called "lally".
    let node = Setup::new()
        .env("LALLY_PORT", "tcp://10.0.0.1:3000")
        .env("LALLY_SERVICE_HOST", "10.0.0.1")
        .env("LALLY_PORT_3000_TCP_PORT", "3000")
        .start_ready();
    node.client().add("k", "v").succeeded();
}

#[test]
fn an_advertised_host_without_a_port_gets_the_real_one() {
    let node = Setup::new().args(["--advertise-addr", "localhost"]).start_ready();
    let expected = format!("localhost:{}", node.grpc().port());
    assert_eq!(node.cluster()["node"]["grpc_addr"], expected);
    let other = Setup::new().seed(node.grpc()).start_ready();
    eventually("the peer lists the advertised address", PATIENCE, || {
        let nodes = other.client().ask("GET", "/nodes").body;
        is(nodes.contains(&expected), nodes)
    });
}

#[test]
fn a_wildcard_bind_advertises_the_address_of_the_route_to_the_seed() {
    let first = Setup::new().start_ready();
    let port = free_port();
    let joiner = Setup::new()
        .args(["--bind", "0.0.0.0", "--insecure"])
        .http_port(Some(port))
        .seed(first.grpc())
        .start();
    let grpc = joiner.grpc().port();
    eventually("joined", PATIENCE, || {
        let ready = Client::new((Ipv4Addr::LOCALHOST, port).into()).ask("GET", "/readyz");
        is(ready.status == 200, ready.body)
    });
    eventually("reachable by the address of the route", PATIENCE, || {
        let nodes = first.client().ask("GET", "/nodes").body;
        is(nodes.contains(&format!("127.0.0.1:{grpc}")), nodes)
    });
}

#[test]
fn the_request_timeout_bounds_a_request_from_every_layer() {
    let _alone = super::turn::Turn::alone();
    let first = Setup::new().start_ready();
    let seed = first.grpc();
    let timeouts = [(Layer::Yaml, 300), (Layer::Env, 500), (Layer::Flag, 700)];
    let nodes: Vec<_> = timeouts
        .iter()
        .map(|(layer, ms)| {
            let mut settings = FREE_PORTS.to_vec();
            let timeout = format!("{ms}ms");
            settings.push(("request_timeout", &timeout));
            with(*layer, &settings).seed(seed).start()
        })
        .collect();
    ring::wait_whole(nodes.iter().chain([&first]));
    first.signal("STOP");
    std::thread::scope(|scope| {
        for (node, (layer, ms)) in nodes.iter().zip(timeouts) {
            scope.spawn(move || {
                let started = Instant::now();
                let reply = node.client().add_to("k", "v", "all");
                let took = started.elapsed();
                assert_eq!((reply.status, reply.verdict().as_str()), (200, "partial"), "{layer:?}");
                assert!(took >= Duration::from_millis(ms - 50), "{layer:?}: {took:?}");
                assert!(took <= Duration::from_millis(ms + 250), "{layer:?}: {took:?}");
            });
        }
    });
}

#[test]
fn the_data_directory_is_created_for_the_owner_alone() {
    let node = Setup::new().args(["--data-dir", "deep/er/data"]).start_ready();
    let mode = fs::metadata(node.setup().dir().join("deep/er/data")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "{mode:o}");
}

/// A mistaken value, and words of which at least one must be in the message beside the key.
const MISTAKES: &[(&str, &str, &[&str])] = &[
    ("http_port", "65536", &["65535", "number", "integer", "port"]),
    ("http_port", "many", &["65535", "number", "integer"]),
    ("http_port", "-1", &["65535", "number", "integer"]),
    ("grpc_port", "1.5", &["65535", "number", "integer"]),
    ("read_quorum", "0", &["majority"]),
    ("read_quorum", "most", &["majority"]),
    ("write_quorum", "0", &["majority"]),
    ("write_quorum", "-2", &["majority"]),
    ("write_quorum", "1.5", &["majority"]),
    ("bind", "somewhere", &["address", "ip"]),
    ("fsync", "sometimes", &["everysec"]),
    ("request_timeout", "soon", &["2s", "ms", "second", "duration"]),
    ("request_timeout", "-1s", &["2s", "ms", "second", "duration"]),
    ("max_memory", "1000", &["1mib"]),
    ("max_memory", "lots", &["1mib"]),
    ("max_memory", "1GB", &["1mib"]),
    ("max_memory", "1.5GiB", &["1mib"]),
    ("log_level", "chatty", &["debug"]),
    ("log_format", "xml", &["json"]),
    ("seed_node", "127.0.0.1", &["port"]),
    ("seed_node", "127.0.0.1:99999", &["port"]),
    ("seed_node", "::1:50071", &["["]),
    ("advertise_addr", "127.0.0.1:99999", &["port"]),
];

#[test]
fn every_mistake_is_refused_in_every_layer_with_its_key_and_the_expected_form() {
    for (key, value, expected) in MISTAKES {
        for layer in LAYERS {
            let mut settings: Vec<_> =
                FREE_PORTS.iter().copied().filter(|(other, _)| other != key).collect();
            // Quoted, because some would be YAML of another meaning; numbers stay numbers.
            let quoted = format!("\"{value}\"");
            let bare = value.parse::<f64>().is_ok() || layer != Layer::Yaml;
            settings.push((key, if bare { value } else { &quoted }));
            let mut setup = with(layer, &settings);
            if matches!(layer, Layer::Flag | Layer::FlagWithUnderscores) && value.starts_with('-') {
                let flag = key.replace('_', "-");
                setup = with(layer, &settings[..settings.len() - 1])
                    .args([format!("--{flag}={value}")]);
            }
            let refused = setup.run();
            refused.refused(2, &["error"]);
            let said = refused.stderr.to_lowercase();
            let named = said.contains(key) || said.contains(&key.replace('_', "-"));
            assert!(named, "{key}={value} in {layer:?}, the key is not named: {said}");
            let form = expected.iter().any(|word| said.contains(word));
            assert!(form, "{key}={value} in {layer:?}, none of {expected:?}: {said}");
            if layer == Layer::Yaml {
                assert!(said.contains("lally.yml"), "{key}={value}, no file: {said}");
            }
            assert!(!setup.data_dir().exists(), "{key}={value} in {layer:?} touched the disk");
        }
    }
}

#[test]
fn a_file_that_is_wrong_is_refused_with_its_name_and_the_key() {
    let wrong: &[(&str, &[&str])] = &[
        ("no_such_key: 1\n", &["no_such_key"]),
        ("http-port: 0\n", &["http-port"]),
        ("fresh: maybe\n", &["fresh"]),
        ("fresh: 3\n", &["fresh"]),
        ("http_port: [1]\n", &["http_port"]),
        ("read_quorum: {}\n", &["read_quorum"]),
        ("cluster_name: [a]\n", &["cluster_name"]),
        ("data_dir: {a: b}\n", &["data_dir"]),
        ("seed_node: 7\n", &["seed_node"]),
        ("http_port: 1\n  bad: [\n", &[]),
        ("- a\n- list\n", &[]),
        ("just text\n", &[]),
    ];
    for (yaml, mentions) in wrong {
        let setup = Setup::new().yaml(yaml);
        let refused = setup.run();
        refused.refused(2, &["error", "lally.yml"]);
        refused.refused(2, mentions);
        assert!(!setup.data_dir().exists(), "{yaml:?} touched the disk");
    }
}

#[test]
fn contradictions_are_refused_before_anything_is_touched() {
    let port = free_port().to_string();
    let equal_ports = [("http_port", port.as_str()), ("grpc_port", &port)];
    for layer in LAYERS {
        let setup = with(layer, &equal_ports);
        setup.run().refused(2, &["error", &port]);
        assert!(!setup.data_dir().exists(), "{layer:?}");
        // A replay log that exists: it is the pair that is refused.
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let mut settings = FREE_PORTS.to_vec();
        settings.extend([("fresh", "true"), ("replay_log", file)]);
        let setup = with(layer, &settings);
        let refused = setup.run();
        refused.refused(2, &["error", "fresh"]);
        let said = refused.stderr;
        assert!(said.contains("replay_log") || said.contains("replay-log"), "{said}");
        assert!(!setup.data_dir().exists(), "{layer:?}");
    }
    // Also when the two come from different layers.
    let setup = Setup::new().yaml("fresh: true\n").args(["--replay-log", "lally.yml"]);
    setup.run().refused(2, &["error", "fresh"]);
}

#[test]
fn a_configuration_file_that_does_not_exist_is_refused_by_name() {
    for setup in [
        Setup::new().args(["--config", "missing.yml"]),
        Setup::new().env("LALLY_CONFIG", "missing.yml"),
    ] {
        setup.run().refused(2, &["error", "missing.yml"]);
        assert!(!setup.data_dir().exists());
    }
}

#[test]
fn unknown_flags_and_words_are_usage_errors() {
    for args in [["--no-such-flag", "1"], ["run", "now"], ["--http-port", "x"]] {
        let setup = Setup::new().http_port(None).args(args);
        setup.run().refused(2, &["error"]);
        assert!(!setup.data_dir().exists(), "{args:?}");
    }
}

#[test]
fn a_loopback_bind_with_a_seed_elsewhere_is_refused_with_the_flag_to_add() {
    let setup = Setup::new().args(["--seed-node", "192.0.2.1:50071"]);
    setup.run().refused(2, &["error", "192.0.2.1", "--bind"]);
    assert!(!setup.data_dir().exists());
}

#[test]
fn a_replay_log_that_cannot_be_read_is_refused_and_changes_nothing() {
    let mut node = Setup::new().start_ready();
    node.client().add("k", "v").succeeded();
    assert_eq!(node.terminate(), Some(0));
    fs::write(node.setup().dir().join("nonsense"), "this is not a log\n".repeat(100)).unwrap();
    let before = super::node::contents(&node.setup().data_dir());
    for path in ["missing.log", "nonsense"] {
        let refused = node.setup().clone().args(["--replay-log", path]).run();
        assert!(refused.code.is_some_and(|code| [1, 2, 65].contains(&code)), "{refused:?}");
        assert!(refused.stderr.contains(path), "{refused:?}");
        assert!(!refused.stderr.contains("panicked"), "{refused:?}");
    }
    assert!(super::node::contents(&node.setup().data_dir()) == before, "the data changed");
    node.restart();
    node.wait_ready();
    assert_eq!(node.client().get("k").value().as_deref(), Some("v"));
}

#[test]
fn help_names_every_flag_and_version_the_version() {
    let help = Setup::new().http_port(None).grpc_port(None).args(["--help"]).run();
    assert_eq!(help.code, Some(0));
    for flag in [
        "--config",
        "--fresh",
        "--replay-log",
        "--seed-node",
        "--http-port",
        "--grpc-port",
        "--read-quorum",
        "--write-quorum",
        "--bind",
        "--advertise-addr",
        "--data-dir",
        "--fsync",
        "--cluster-name",
        "--request-timeout",
        "--log-level",
        "--log-format",
        "--help",
        "--version",
    ] {
        assert!(help.stdout.contains(flag), "{flag}: {}", help.stdout);
    }
    let version = Setup::new().http_port(None).grpc_port(None).args(["--version"]).run();
    assert_eq!(version.code, Some(0));
    let expected = concat!("lally ", env!("CARGO_PKG_VERSION"));
    assert_eq!(version.stdout.trim(), expected);
}
