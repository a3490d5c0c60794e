//! Keys and values come back byte for byte: after SIGKILL and restart, on every node.

use std::fs;

use super::node::{Setup, file_with};
use super::ring::{self, wait_equal, wait_whole};

/// Text that breaks formats which separate, quote, terminate or measure carelessly.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        " ",
        "  spaces   inside and around  ",
        "\ttabs\tand\rreturns\r\n",
        "lines\nof\n\ntext\n",
        "\"double\" 'single' `back` \\backslash\\ \\n \\u0000",
        "NUL \0 in \0\0 the middle\0",
        "\u{1}\u{2}\u{1b}[31mcontrol\u{7f}\u{85}\u{2028}\u{2029}",
        "emoji 🐘👩‍👩‍👧‍👦🏳️‍🌈 and ünïcödé, 日本語, עברית, हिन्दी",
        "e\u{301} is not \u{e9}, \u{feff}nor is this mark nothing",
        "\u{10ffff}\u{fffd}\u{e000}",
        "null",
        "None",
        "true",
        "0",
        "{\"key\":\"k\",\"value\":\"v\"}",
        "ADD k v",
        "ADD k v\nREMOVE k\n",
        "k v 2026-11-24T08:31:00.123456789Z\nstays 0 forged",
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n",
        "%s%n{}{0}$HOME`id`",
        "LALLY\0\0\0\u{1}",
    ]
    .map(str::to_owned)
    .into();
    // Lengths around the limits of small length fields, and the largest value.
    for length in [127, 128, 255, 256, 4095, 4096, 65_535, 65_536] {
        texts.push("x".repeat(length));
    }
    texts.push("\u{1F418}".repeat((1 << 20) / 4));
    texts
}

#[test]
fn any_text_comes_back_byte_for_byte_after_sigkill_and_restart_on_every_node() {
    let mut nodes = ring::start(3, &[]);
    let mut texts = texts();
    // What the log itself looks like, as far as it is text: a value that imitates a record.
    nodes[0].client().add_to("needle", "needle-in-the-log", "all").succeeded();
    let (log, _) = file_with(&nodes[0].setup().data_dir(), "needle-in-the-log");
    let bytes = fs::read(log).unwrap();
    texts.push(String::from_utf8_lossy(&bytes).into_owned());
    texts.push(bytes.iter().map(|byte| char::from(*byte)).collect());
    for (i, text) in texts.iter().enumerate() {
        nodes[i % 3].client().add_to(&format!("text-{i}"), text, "all").succeeded();
    }
    let check = |nodes: &[super::node::Node], when: &str| {
        for (n, node) in nodes.iter().enumerate() {
            let mut client = node.client();
            for (i, text) in texts.iter().enumerate() {
                let value = client.get_from(&format!("text-{i}"), 1).value();
                let brief: String = text.chars().take(60).collect();
                assert!(value.as_ref() == Some(text), "{when}, node {n}: {brief:?} changed");
            }
            assert_eq!(node.holdings().1, texts.len() as u64 + 1, "{when}, node {n}");
        }
    };
    check(&nodes, "before");
    for node in &mut nodes {
        node.kill9();
    }
    for node in &mut nodes {
        node.restart_as(Setup::without_seeds);
    }
    wait_whole(&nodes);
    wait_equal(&nodes);
    check(&nodes, "after");
}

#[test]
fn any_key_is_found_again_after_sigkill() {
    let mut node = Setup::new().start_ready();
    let keys: Vec<_> = texts()
        .into_iter()
        .filter(|text| (1..=1024).contains(&text.len()) && !text.contains('\0'))
        .collect();
    for (i, key) in keys.iter().enumerate() {
        node.client().add(key, &i.to_string()).succeeded();
    }
    node.kill9();
    node.restart();
    node.wait_ready();
    for (i, key) in keys.iter().enumerate() {
        let reply = node.client().get(key);
        assert_eq!(reply.value(), Some(i.to_string()), "{key:?}");
        assert_eq!(&reply.text("key"), key);
    }
    assert_eq!(node.holdings().1, keys.len() as u64);
}

#[test]
fn a_timestamp_is_the_same_on_every_node_and_after_a_restart() {
    let mut nodes = ring::start(2, &[]);
    let written = nodes[0].client().add_to("k", "v", 2).succeeded().timestamp();
    assert_eq!(nodes[1].client().get_from("k", 1).timestamp(), written);
    nodes[1].kill9();
    nodes[1].restart();
    wait_whole(&nodes);
    assert_eq!(nodes[1].client().get_from("k", 1).timestamp(), written);
}
