//! A real data set through three real nodes: Debian's `unicode-data` and `iso-codes`.
//!
//! Every code point (key: its hexadecimal number, value: its whole record line) and the
//! translations of the ISO lists (non-ASCII names, by list, language and English name) are written
//! through all three nodes at once with quorums of two. In the middle one node is killed; it is
//! restarted while the writing goes on. In the end every node holds the input, key by key.
//!
//! The packages are looked for below `LALLY_DATASET_ROOT`, below `target/dataset` (where
//! `make dataset-files` unpacks them if they cannot be installed) and below `/`. Where they are
//! missing the test is skipped and says so, unless `CI` is set: then it fails. Translations of the
//! five shorter lists are taken; `LALLY_DATASET=all` takes every message of every list.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{Client, JSON};
use super::node::Node;
use super::ring;
use super::turn::Turn;

const UNICODE: &str = "usr/share/unicode/UnicodeData.txt";
const LOCALES: &str = "usr/share/locale";
const SHORTER_LISTS: [&str; 5] = ["iso_3166-1", "iso_3166-3", "iso_15924", "iso_4217", "iso_639-5"];
const CONNECTIONS_PER_NODE: usize = 2;
/// Requests sent before the first answer is read, when comparing.
const AHEAD: usize = 64;

type Entries = BTreeMap<String, String>;

#[test]
fn unicode_data_and_iso_codes_are_on_every_node_after_one_was_killed_in_the_middle() {
    let Some(entries) = input() else {
        assert!(std::env::var_os("CI").is_none(), "the data set is missing: `make dataset-files`");
        eprintln!(
            "SKIPPED: the packages unicode-data and iso-codes are missing; see `make dataset`"
        );
        return;
    };
    let _alone = Turn::alone();
    let foreign = entries.values().filter(|value| !value.is_ascii()).count();
    eprintln!("{} entries, {foreign} of them not ASCII", entries.len());
    assert!(entries.len() > 34_000 && foreign > 10_000, "too few: a wrong file?");
    let mut nodes = ring::start(3, &["--read-quorum", "2", "--write-quorum", "2"]);
    load(&entries, &mut nodes);
    ring::wait_whole(&nodes);
    let progress = Progress::new("equal digests", 1);
    ring::wait_equal(&nodes);
    progress.add(1);
    for (i, node) in nodes.iter().enumerate() {
        compare(&entries, node, &format!("comparing node {i}"));
    }
}

/// Writes everything, through all nodes; one is away for a part of it.
fn load(entries: &Entries, nodes: &mut [Node]) {
    let progress = Progress::new("writing", entries.len());
    let addresses: Vec<_> = nodes.iter().map(Node::http).collect();
    let work: Vec<_> = entries.iter().collect();
    let workers = CONNECTIONS_PER_NODE * addresses.len();
    thread::scope(|scope| {
        for worker in 0..workers {
            let (addresses, work, progress) = (&addresses, &work, &progress);
            scope.spawn(move || {
                // A client keeps to its node, and goes to the next one if that does not answer.
                let mut at = worker % addresses.len();
                let mut client = Client::new(addresses[at]);
                for (key, value) in work.iter().skip(worker).step_by(workers) {
                    let body = json!({"key": key, "value": value}).to_string();
                    let deadline = Instant::now() + Duration::from_secs(30);
                    loop {
                        let reply = client.try_send("POST", "/add", &[JSON], body.as_bytes());
                        match reply {
                            Ok(reply) if reply.status == 200 && reply.verdict() == "success" => {
                                break;
                            }
                            other => assert!(Instant::now() < deadline, "{key}: {other:?}"),
                        }
                        at = (at + 1) % addresses.len();
                        client = Client::new(addresses[at]);
                    }
                    progress.add(1);
                }
            });
        }
        progress.wait_for(entries.len() / 3);
        nodes[2].kill9();
        progress.say("killed node 2");
        progress.wait_for(entries.len() * 2 / 3);
        nodes[2].restart();
        progress.say("restarted node 2");
    });
}

/// Reads everything from this node's own copy.
fn compare(entries: &Entries, node: &Node, what: &str) {
    assert_eq!(node.holdings().1, entries.len() as u64, "{what}: the number of keys");
    let progress = Progress::new(what, entries.len());
    let mut client = node.client();
    let entries: Vec<_> = entries.iter().collect();
    for batch in entries.chunks(AHEAD) {
        let bodies: Vec<_> =
            batch.iter().map(|(key, _)| json!({"key": key, "quorum": 1})).collect();
        for ((key, value), reply) in batch.iter().zip(client.pipeline("/get", &bodies)) {
            assert_eq!(reply.value().as_ref(), Some(*value), "{what}: {key:?}");
        }
        progress.add(batch.len());
    }
}

fn input() -> Option<Entries> {
    let roots = [
        std::env::var_os("LALLY_DATASET_ROOT").map(PathBuf::from),
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/dataset")),
        Some(PathBuf::from("/")),
    ];
    let found =
        |path: &str| roots.iter().flatten().map(|root| root.join(path)).find(|path| path.exists());
    let mut entries = Entries::new();
    for line in fs::read_to_string(found(UNICODE)?).unwrap().lines() {
        let (code_point, _) = line.split_once(';').unwrap();
        entries.insert(code_point.to_owned(), line.to_owned());
    }
    let translations = roots.iter().flatten().find_map(|root| {
        let found = translations(&root.join(LOCALES));
        (!found.is_empty()).then_some(found)
    })?;
    entries.extend(translations);
    Some(entries)
}

/// The messages of the compiled catalogues of `iso-codes`: `locale/LANGUAGE/LC_MESSAGES/LIST.mo`.
fn translations(locales: &Path) -> Entries {
    let all = std::env::var_os("LALLY_DATASET").is_some_and(|size| size == "all");
    let mut entries = Entries::new();
    for language in fs::read_dir(locales).into_iter().flatten().flatten() {
        let Ok(files) = fs::read_dir(language.path().join("LC_MESSAGES")) else { continue };
        let language = language.file_name().into_string().unwrap();
        for file in files.flatten() {
            let path = file.path();
            let list = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let wanted =
                list.starts_with("iso_") && (all || SHORTER_LISTS.contains(&list.as_str()));
            // The other names of the same lists are links.
            if !wanted || path.is_symlink() || path.extension().is_none_or(|e| e != "mo") {
                continue;
            }
            for (english, translated) in messages(&fs::read(&path).unwrap()) {
                if all || !translated.is_ascii() {
                    entries.insert(format!("{list}/{language}/{english}"), translated);
                }
            }
        }
    }
    entries
}

/// The messages of a compiled gettext catalogue: two tables of (length, offset), little-endian.
fn messages(file: &[u8]) -> Vec<(String, String)> {
    let number = |at: usize| {
        let bytes = file[at..at + 4].try_into().unwrap();
        usize::try_from(u32::from_le_bytes(bytes)).unwrap()
    };
    assert_eq!(number(0), 0x9504_12de, "not a little-endian catalogue");
    let (count, originals, translated) = (number(8), number(12), number(16));
    let text = |table: usize, i: usize| {
        let (length, at) = (number(table + 8 * i), number(table + 8 * i + 4));
        String::from_utf8(file[at..at + length].to_vec()).unwrap()
    };
    (0..count).map(|i| (text(originals, i), text(translated, i))).collect()
}

/// Says on stderr how far it has come, at every tenth.
struct Progress {
    what: String,
    total: usize,
    done: AtomicUsize,
    started: Instant,
}

impl Progress {
    fn new(what: &str, total: usize) -> Self {
        Self { what: what.into(), total, done: AtomicUsize::new(0), started: Instant::now() }
    }

    fn add(&self, count: usize) {
        let before = self.done.fetch_add(count, Ordering::Relaxed);
        let tenth = |n: usize| n * 10 / self.total.max(1);
        if tenth(before) != tenth(before + count) {
            self.say(&format!("{}/{}", before + count, self.total));
        }
    }

    fn say(&self, text: &str) {
        let Self { what, started, .. } = self;
        eprintln!("{:6.1} s  {what}: {text}", started.elapsed().as_secs_f32());
    }

    fn wait_for(&self, count: usize) {
        super::wait::eventually("the load goes on", Duration::from_secs(600), || {
            let done = self.done.load(Ordering::Relaxed);
            super::wait::is(done >= count, done)
        });
    }
}

#[test]
fn a_catalogue_is_read() {
    let mut file = Vec::new();
    let strings = b"Chad\0Tchad \xc3\xa9\0";
    for number in [0x9504_12de_u32, 0, 1, 20, 28, 4, 36, 8, 41] {
        file.extend(number.to_le_bytes());
    }
    file.extend(strings);
    assert_eq!(messages(&file), [("Chad".to_owned(), "Tchad é".to_owned())]);
}
