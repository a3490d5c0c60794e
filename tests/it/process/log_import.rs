//! `lally log import`: records into the log of a node that does not run.

use std::fs;

use lally::adapters::file_aof::{AofOptions, FileAof};
use lally::domain::{NodeId, Timestamp};
use lally::ports::{LogRecord, OpLog};
use serde_json::{Value, json};

use super::log_commands::{damage, stopped_with};
use super::node::{Finished, Node, Setup, contents};
use super::ring::{self, wait_equal, wait_value, wait_whole};

const NODE: &str = "00000000000000aa";

fn write(key: &str, value: &str, timestamp: &str) -> String {
    line(
        &json!({"kind": "write", "key": key, "value": value, "timestamp": timestamp, "node": NODE}),
    )
}

fn tombstone(key: &str, timestamp: &str) -> String {
    line(&json!({"kind": "tombstone", "key": key, "timestamp": timestamp, "node": NODE}))
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

fn import(setup: &Setup, lines: &str) -> Finished {
    fs::write(setup.dir().join("lines.jsonl"), lines).unwrap();
    setup.run_command(["log", "import", "lines.jsonl"])
}

fn dump(setup: &Setup, path: &str) -> String {
    let dumped = setup.run_command(["log", "dump", path]);
    assert_eq!((dumped.code, dumped.stderr.as_str()), (Some(0), ""));
    dumped.stdout
}

/// Records of every kind and of awkward texts come out of an empty directory as they went in.
#[test]
fn what_was_dumped_and_imported_is_dumped_again_to_the_byte() {
    let mut node = Setup::new().start_ready();
    let mut client = node.client();
    for (key, value) in [("a \"b\"\n", "\u{0}\t\\"), ("🦀", ""), ("k", "old"), ("k", "new")] {
        client.add(key, value).succeeded();
    }
    client.remove("🦀").succeeded();
    client.remove("never there").succeeded();
    assert_eq!(node.terminate(), Some(0));
    let setup = node.setup();
    let before = "2026-01-31T12:00:00.000000001Z";
    let others = [
        line(&json!({"kind": "horizon", "timestamp": before})),
        line(&json!({"kind": "expunged", "key": "k", "timestamp": before, "node": NODE})),
        write("older than the horizon", "v", "2025-01-31T12:00:00.1Z"),
    ];
    // As a dump has them: fields in its order, and all nine digits.
    let others = others.concat();
    let (first, second) = (setup.dir().join("first"), setup.dir().join("second"));
    for dir in [&first, &second] {
        fs::create_dir(dir).unwrap();
    }
    let into = |dir: &str, file: &str| {
        let imported = setup.run_command(["log", "import", file, "--data-dir", dir]);
        assert_eq!((imported.code, imported.stderr.as_str()), (Some(0), ""), "{imported:?}");
    };
    fs::write(setup.dir().join("all.jsonl"), dump(setup, "lally-data") + &others).unwrap();
    into("first", "all.jsonl");
    let dumped = dump(setup, "first");
    assert_eq!(dumped.lines().count(), dump(setup, "lally-data").lines().count() + 3);
    fs::write(setup.dir().join("again.jsonl"), &dumped).unwrap();
    into("second", "again.jsonl");
    assert!(dump(setup, "second") == dumped);
    assert!(dumped.starts_with(&dump(setup, "lally-data")));
}

#[test]
fn a_node_starts_on_what_was_imported_into_an_empty_directory() {
    let node = stopped_with(20);
    let lines = dump(node.setup(), "lally-data");
    let other = Setup::new();
    fs::create_dir(other.data_dir()).unwrap();
    // From standard input.
    fs::write(other.dir().join("lines.jsonl"), lines).unwrap();
    let piped = other.clone().under(["sh", "-c", "exec \"$0\" \"$@\" < lines.jsonl"]);
    let imported = piped.run_command(["log", "import", "-"]);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    assert!(imported.stdout.contains(" records imported into "), "{imported:?}");
    let started = other.start_ready();
    let mut client = started.client();
    for i in 0..20 {
        let value = client.get(&format!("key-{i}")).value();
        assert_eq!(value, Some(format!("value-{i:04}-end")));
    }
}

#[test]
fn an_import_is_a_merge() {
    let mut node = stopped_with(3);
    let long_ago = "2020-01-01T00:00:00.000000000Z";
    let lines = [
        write("key-0", "too old", long_ago),
        tombstone("key-1", long_ago),
        write("elsewhere", "v", long_ago),
        String::from("\n  \n"),
        write("gone", "v", long_ago),
        tombstone("gone", "2020-01-01T00:00:00.000000001Z"),
    ]
    .concat();
    let imported = import(node.setup(), &lines);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    assert!(imported.stdout.starts_with("5 records imported into "), "{imported:?}");
    node.restart();
    node.wait_ready();
    let mut client = node.client();
    for (key, value) in [
        ("key-0", Some("value-0000-end")),
        ("key-1", Some("value-0001-end")),
        ("elsewhere", Some("v")),
        ("gone", None),
    ] {
        assert_eq!(client.get(key).value().as_deref(), value, "{key}");
    }
    let reply = client.get("elsewhere").succeeded();
    assert_eq!(reply.timestamp(), long_ago);
    // It is appended to as before.
    client.add("elsewhere", "now").succeeded();
    node.kill9();
    assert_eq!(node.setup().run_command(["log", "check", "lally-data"]).code, Some(0));
    node.restart();
    node.wait_ready();
    assert_eq!(node.client().get("elsewhere").value().as_deref(), Some("now"));
}

#[test]
fn of_lines_with_a_mistake_nothing_is_imported() {
    let node = stopped_with(3);
    let before = contents(&node.setup().data_dir());
    let good = write("k", "v", "2020-01-01T00:00:00Z");
    for (wrong, says) in [
        ("nonsense\n", &["expected"][..]),
        ("{\"kind\":\"write\"", &["expected"]),
        (&good.replace("\"value\"", "\"vlaue\""), &["vlaue", "value"]),
        (&good.replace("write", "wirte"), &["wirte", "tombstone"]),
        (&good.replace("2020", "2120"), &["future", "max_clock_drift"]),
        (&good.replace(NODE, "7"), &["16 hexadecimal digits"]),
    ] {
        let refused = import(node.setup(), &format!("{good}\n{wrong}{good}"));
        refused.refused(2, says);
        refused.refused(2, &["lines.jsonl, line 3: ", "nothing was imported"]);
        assert!(contents(&node.setup().data_dir()) == before, "{wrong}");
    }
    let missing = node.setup().run_command(["log", "import", "missing.jsonl"]);
    missing.refused(2, &["missing.jsonl", "lally log dump"]);
    let elsewhere = ["log", "import", "lines.jsonl", "--data-dir", "typo"];
    node.setup().run_command(elsewhere).refused(2, &["typo", "no such directory"]);
    assert!(!node.setup().dir().join("typo").exists());
    let cluster = ["log", "import", "lines.jsonl", "--cluster-name", "blue"];
    node.setup().run_command(cluster).refused(1, &["blue", "lally"]);
    assert!(contents(&node.setup().data_dir()) == before);
}

#[test]
fn nothing_is_imported_into_a_damaged_log_and_a_torn_tail_is_cut_as_a_start_does() {
    let node = stopped_with(30);
    let good = write("k", "v", "2020-01-01T00:00:00Z");
    let data_dir = node.setup().data_dir();
    let (log, at) = super::node::file_with(&data_dir.join("log"), "value-0010-end");
    let whole = fs::read(&log).unwrap();
    damage(&data_dir, "value-0010-end");
    let before = contents(&data_dir);
    import(node.setup(), &good).refused(65, &["at byte offset"]);
    assert!(contents(&data_dir) == before);
    fs::write(&log, &whole[..at]).unwrap();
    let imported = import(node.setup(), &good);
    assert_eq!(imported.code, Some(0), "{imported:?}");
    assert!(imported.stdout.contains("torn tail"), "{imported:?}");
    assert_eq!(node.setup().run_command(["log", "check", "lally-data"]).code, Some(0));
    assert!(dump(node.setup(), "lally-data").contains("\"value-0009-end\""));
}

/// Its tombstone is forgotten: nothing but the horizon says that it was there.
#[tokio::test]
async fn what_is_not_newer_than_the_horizon_stays_away() {
    let mut node = stopped_with(3);
    let setup = node.setup().clone();
    let book = fs::read_to_string(setup.data_dir().join("node.json")).unwrap();
    let id: Value = serde_json::from_str(&book).unwrap();
    let id: NodeId = id["id"].as_str().unwrap().parse().unwrap();
    let options = AofOptions::new(&setup.data_dir().join("log"), "lally", id);
    let log = FileAof::open(options).unwrap();
    log.replay(Box::new(drop)).await.unwrap();
    let horizon = Timestamp::from_nanos(1_600_000_000_000_000_000);
    log.append(&[LogRecord::Horizon(horizon)]).await.unwrap();
    log.close().await.unwrap();
    drop(log);
    let lines = [
        write("removed and forgotten", "v", "2020-09-13T12:26:40Z"),
        write("newer", "v", "2020-09-13T12:26:40.000000001Z"),
        line(&json!({"kind": "horizon", "timestamp": "2021-01-01T00:00:00Z"})),
    ];
    let imported = import(&setup, &lines.concat());
    assert_eq!(imported.code, Some(0), "{imported:?}");
    assert!(imported.stdout.starts_with("1 records imported"), "{imported:?}");
    assert!(imported.stdout.contains("\n1 left out: not newer than the horizon"), "{imported:?}");
    assert!(imported.stdout.contains("\n1 horizons left out"), "{imported:?}");
    node.restart();
    node.wait_ready();
    assert_eq!(node.client().get("removed and forgotten").value(), None);
    assert_eq!(node.client().get("newer").value().as_deref(), Some("v"));
}

#[test]
fn what_is_imported_into_a_member_reaches_the_others() {
    let mut nodes = ring::start(2, &[]);
    nodes[0].client().add_to("k", "v", 2).succeeded();
    assert_eq!(nodes[1].terminate(), Some(0));
    let imported = import(nodes[1].setup(), &write("imported", "v", "2020-01-01T00:00:00Z"));
    assert_eq!(imported.code, Some(0), "{imported:?}");
    nodes[1].restart();
    wait_whole(&nodes);
    wait_value(&nodes[0], "imported", Some("v"));
    wait_equal(&nodes);
}

/// With nothing but imported records it must not pass for the member that it was.
#[test]
fn an_import_does_not_make_up_for_a_lost_log() {
    let mut nodes: Vec<Node> = ring::start(2, &[]);
    nodes[0].client().add_to("k", "v", 2).succeeded();
    nodes[1].kill9();
    nodes[0].kill9();
    fs::remove_dir_all(nodes[1].setup().data_dir().join("log")).unwrap();
    let imported = import(nodes[1].setup(), &write("imported", "v", "2020-01-01T00:00:00Z"));
    assert_eq!(imported.code, Some(0), "{imported:?}");
    nodes[1].restart();
    nodes[1].client().get("k").failed(503, "not_ready");
    nodes[0].restart();
    wait_whole(&nodes);
    wait_value(&nodes[1], "k", Some("v"));
    wait_value(&nodes[0], "imported", Some("v"));
}
