//! What becomes of a damaged log: `lally log repair`, and starts with `--recover-from-peers`.

use std::fs;
use std::path::{Path, PathBuf};

use super::log_commands::{damage, stopped_with};
use super::node::{Setup, contents};
use super::ring::{self, wait_equal, wait_value, wait_whole};

/// The logs that were set aside.
fn aside(data_dir: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(data_dir).unwrap().map(|file| file.unwrap().path());
    names.filter(|path| path.to_string_lossy().contains(".bak-")).collect()
}

#[test]
fn a_repaired_log_has_every_intact_record_and_the_original_is_kept() {
    let mut node = stopped_with(200);
    let data_dir = node.setup().data_dir();
    let (log, _) = damage(&data_dir, "value-0050-end");
    damage(&data_dir, "value-0150-end");
    let damaged = fs::read(&log).unwrap();
    let repaired = node.setup().run_command(["log", "repair", "lally-data"]);
    assert_eq!((repaired.code, repaired.stderr.as_str()), (Some(0), ""), "{repaired:?}");
    assert_eq!(repaired.stdout.matches("at byte offset ").count(), 2, "{repaired:?}");
    let [original] = &aside(&data_dir)[..] else { panic!("{:?}", aside(&data_dir)) };
    assert!(repaired.stdout.contains(original.file_name().unwrap().to_str().unwrap()));
    assert!(fs::read(original.join(log.file_name().unwrap())).unwrap() == damaged);
    assert_eq!(node.setup().run_command(["log", "check", "lally-data"]).code, Some(0));
    node.restart();
    node.wait_ready();
    let mut client = node.client();
    for i in 0..200 {
        let value = (![50, 150].contains(&i)).then(|| format!("value-{i:04}-end"));
        assert_eq!(client.get(&format!("key-{i}")).value(), value);
    }
    client.add("key-50", "again").succeeded();
    // It is a log like any other now.
    node.kill9();
    node.restart();
    node.wait_ready();
    assert_eq!(node.client().get("key-50").value().as_deref(), Some("again"));
}

#[test]
fn nothing_is_repaired_where_nothing_is_damaged() {
    let node = stopped_with(5);
    let before = contents(&node.setup().data_dir());
    for path in ["lally-data", "lally-data/log"] {
        let repaired = node.setup().run_command(["log", "repair", path]);
        assert_eq!(repaired.code, Some(0), "{repaired:?}");
        assert!(repaired.stdout.contains("nothing is damaged"), "{repaired:?}");
    }
    assert!(contents(&node.setup().data_dir()) == before);
}

#[test]
fn a_log_in_use_is_not_repaired_nor_imported_into() {
    let node = Setup::new().start_ready();
    node.client().add("k", "v").succeeded();
    fs::write(node.setup().dir().join("nothing.jsonl"), "").unwrap();
    let before = contents(&node.setup().data_dir().join("log"));
    for args in [["log", "repair", "lally-data/log"], ["log", "import", "nothing.jsonl"]] {
        node.setup().run_command(args).refused(1, &["lally-data", "in use"]);
    }
    assert!(contents(&node.setup().data_dir().join("log")) == before);
    assert!(!node.setup().data_dir().join("log.draft").exists());
}

#[test]
fn one_file_of_the_log_of_a_node_is_not_repaired_alone() {
    let node = stopped_with(30);
    let (log, _) = damage(&node.setup().data_dir(), "value-0010-end");
    let refused = node.setup().run_command(["log", "repair", log.to_str().unwrap()]);
    refused.refused(2, &["lally log repair", "lally-data"]);
    assert!(aside(&node.setup().data_dir()).is_empty());
}

#[test]
fn a_copy_is_repaired_where_it_is_and_a_node_starts_on_it() {
    for as_file in [false, true] {
        let mut node = stopped_with(30);
        let (log, _) = damage(&node.setup().data_dir(), "value-0010-end");
        let copy = node.setup().dir().join("copy");
        fs::create_dir(&copy).unwrap();
        let file = copy.join(log.file_name().unwrap());
        fs::copy(&log, &file).unwrap();
        let damaged = fs::read(&log).unwrap();
        let path = if as_file { &file } else { &copy };
        let repaired = node.setup().run_command(["log", "repair", path.to_str().unwrap()]);
        assert_eq!((repaired.code, repaired.stderr.as_str()), (Some(0), ""), "{repaired:?}");
        assert!(fs::read(&log).unwrap() == damaged, "the log itself was changed");
        let [original] = &aside(path.parent().unwrap())[..] else { panic!("no original") };
        let original =
            if as_file { original.clone() } else { original.join(log.file_name().unwrap()) };
        assert!(fs::read(original).unwrap() == damaged);
        assert_eq!(fs::read_dir(&copy).unwrap().count(), if as_file { 2 } else { 1 });
        node.restart_as(|setup| setup.args(["--replay-log", path.to_str().unwrap()]));
        node.wait_ready();
        assert_eq!(node.client().get("key-10").value(), None);
        assert_eq!(node.client().get("key-11").value().as_deref(), Some("value-0011-end"));
    }
}

#[test]
fn a_damaged_header_takes_no_records_with_it() {
    let node = stopped_with(30);
    let (log, _) = damage(&node.setup().data_dir(), "value-0010-end");
    let mut bytes = fs::read(&log).unwrap();
    bytes[45] ^= 1;
    fs::write(&log, &bytes).unwrap();
    let repaired = node.setup().run_command(["log", "repair", "lally-data"]);
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    assert!(repaired.stdout.contains("does not match its checksum"), "{repaired:?}");
    let dumped = node.setup().run_command(["log", "dump", "lally-data"]);
    assert_eq!(dumped.stdout.matches("\"kind\":\"write\"").count(), 29, "{}", dumped.stdout);
}

/// Nor if the records that it lost are held by nobody who answers.
#[test]
fn a_repaired_member_does_not_count_before_it_has_what_the_others_have() {
    let mut nodes = ring::start(2, &[]);
    for i in 0..20 {
        nodes[0].client().add_to(&format!("key-{i}"), &format!("value-{i:04}-end"), 2).succeeded();
    }
    nodes[1].kill9();
    nodes[0].kill9();
    let data_dir = nodes[1].setup().data_dir();
    damage(&data_dir, "value-0010-end");
    let repaired = nodes[1].setup().run_command(["log", "repair", "lally-data"]);
    assert_eq!(repaired.code, Some(0), "{repaired:?}");
    assert!(repaired.stdout.contains("joins its cluster again"), "{repaired:?}");
    for _ in 0..2 {
        // Not the second time either.
        nodes[1].restart();
        nodes[1].client().get("key-10").failed(503, "not_ready");
        nodes[1].client().get("key-11").failed(503, "not_ready");
        nodes[1].kill9();
    }
    nodes[1].restart();
    nodes[0].restart();
    wait_whole(&nodes);
    wait_value(&nodes[1], "key-10", Some("value-0010-end"));
    wait_equal(&nodes);
}

#[test]
fn a_damaged_member_recovers_from_its_peers_and_an_intact_one_changes_nothing() {
    let mut nodes = ring::start(2, &[]);
    for i in 0..20 {
        nodes[0].client().add_to(&format!("key-{i}"), &format!("value-{i:04}-end"), 2).succeeded();
    }
    let data_dir = nodes[1].setup().data_dir();
    let recover = |setup: Setup| setup.args(["--recover-from-peers"]);
    nodes[1].kill9();
    nodes[1].restart_as(recover);
    wait_whole(&nodes);
    assert!(aside(&data_dir).is_empty(), "an intact log was set aside");
    nodes[1].kill9();
    let (log, _) = damage(&data_dir, "value-0010-end");
    let damaged = fs::read(&log).unwrap();
    nodes[1].restart();
    wait_whole(&nodes);
    nodes[1].wait_for_log(&["recovering from the other members", "at byte offset"]);
    wait_value(&nodes[1], "key-10", Some("value-0010-end"));
    wait_equal(&nodes);
    let [original] = &aside(&data_dir)[..] else { panic!("{:?}", aside(&data_dir)) };
    assert!(fs::read(original.join(log.file_name().unwrap())).unwrap() == damaged);
}

#[test]
fn a_damaged_member_that_recovers_does_not_count_before_it_has_the_data() {
    let mut nodes = ring::start(2, &[]);
    nodes[0].client().add_to("key", "value-0010-end", 2).succeeded();
    nodes[0].client().add_to("key-2", "v", 2).succeeded();
    nodes[1].kill9();
    nodes[0].kill9();
    damage(&nodes[1].setup().data_dir(), "value-0010-end");
    nodes[1].restart_as(|setup| setup.args(["--recover-from-peers"]));
    nodes[1].client().get("key").failed(503, "not_ready");
    nodes[0].restart();
    wait_whole(&nodes);
    wait_value(&nodes[1], "key", Some("value-0010-end"));
}

#[test]
fn nobody_to_recover_from_is_a_refusal_that_touches_nothing() {
    let node = stopped_with(30);
    damage(&node.setup().data_dir(), "value-0010-end");
    let before = contents(&node.setup().data_dir());
    let refused = node.setup().clone().args(["--recover-from-peers"]).run();
    refused.refused(2, &["recover_from_peers", "--seed-node", "at byte offset", "lally log check"]);
    assert!(contents(&node.setup().data_dir()) == before);
    // Where nothing is damaged, nobody is needed.
    let alone = Setup::new().args(["--recover-from-peers"]).start_ready();
    alone.client().add("k", "v").succeeded();
}
