//! The contract of the `Quarantine` port, over `JsonQuarantine` and its in-memory twin.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use lally::adapters::json_quarantine::JsonQuarantine;
use lally::adapters::memory::MemoryQuarantine;
use lally::domain::{Entry, Key, KeyedEntry, NodeId, Timestamp, Value, Version};
use lally::ports::Quarantine;
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::suite::contract;

contract! {
    async over {
        json: #[tokio::test(flavor = "multi_thread")] => &Files::new();
        memory: #[tokio::test(flavor = "multi_thread")] => &Twin::default();
    }
    holds {
        what_is_kept_is_there_whole_whatever_it_holds,
        what_was_kept_before_stays_in_this_life_and_the_next,
        nothing_kept_is_nothing_there,
        whoever_keeps_at_the_same_time_loses_nothing_and_tears_nothing,
        a_place_is_named,
    }
}

const NOW: Timestamp = Timestamp::from_nanos(1_700_000_000_123_456_789);

/// Somebody may have taken the directory for something else, or taken its rights away.
#[tokio::test]
async fn what_cannot_be_kept_is_an_error_and_what_comes_after_it_mended_is_kept() {
    let files = Files::new();
    fs::write(files.dir(), "not a directory").unwrap();
    let quarantine = files.open();
    let failed = quarantine.keep(&[ghost(1)], NOW, "why").await.unwrap_err();
    assert_eq!(failed.place, files.dir().display().to_string());
    assert!(!failed.reason.is_empty());
    fs::remove_file(files.dir()).unwrap();
    quarantine.keep(&[ghost(2)], NOW, "why").await.unwrap();
    assert_eq!(files.kept(), [ghost(2)]);
}

#[tokio::test]
async fn only_its_owner_may_look_into_it() {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::new();
    files.open().keep(&[ghost(1)], NOW, "why").await.unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(files.dir()), 0o700);
    for file in fs::read_dir(files.dir()).unwrap() {
        assert_eq!(mode(file.unwrap().path()), 0o600);
    }
}

async fn what_is_kept_is_there_whole_whatever_it_holds(place: &dyn Place) {
    let odd = ["", "\"quoted\"\n", "\0", "grün 🦀", "{\"key\":1}", "\u{2028}"];
    let mut ghosts: Vec<_> = (0..).zip(odd).map(|(i, text)| holding(i, text)).collect();
    ghosts.push(holding(u64::MAX, &"v".repeat(1 << 20)));
    let key = Key::new(&"k\"\\\n".repeat(256)).unwrap();
    ghosts.push(KeyedEntry::new(key, ghost(7).entry));
    let removed = Version::new(Timestamp::from_nanos(9), NodeId::new(9));
    ghosts.push(KeyedEntry::new(Key::new("t").unwrap(), Entry::tombstone(removed)));
    place.open().keep(&ghosts, NOW, "a \"reason\"\n").await.unwrap();
    assert!(place.kept() == ghosts);
}

async fn what_was_kept_before_stays_in_this_life_and_the_next(place: &dyn Place) {
    let mut all = Vec::new();
    // Two lives within a second.
    for life in 0..3 {
        let quarantine = place.open();
        for time in 0..3 {
            // The same one twice is kept twice: nobody looks.
            let ghosts = [ghost(life), ghost(life * 10 + time)];
            quarantine.keep(&ghosts, NOW, "why").await.unwrap();
            all.extend(ghosts);
            assert_eq!(sorted(place.kept()), sorted(all.clone()));
        }
    }
}

async fn nothing_kept_is_nothing_there(place: &dyn Place) {
    let quarantine = place.open();
    assert_eq!(place.kept(), []);
    quarantine.keep(&[], NOW, "why").await.unwrap();
    assert_eq!(place.kept(), []);
}

async fn whoever_keeps_at_the_same_time_loses_nothing_and_tears_nothing(place: &dyn Place) {
    let (quarantine, mut keeping) = (place.open(), JoinSet::new());
    let text = "v".repeat(100_000);
    for writer in 0..8 {
        let (quarantine, text) = (Arc::clone(&quarantine), text.clone());
        keeping.spawn(async move {
            for i in 0..10 {
                let ghosts = [holding(writer * 100 + i, &text), ghost(writer * 100 + i)];
                quarantine.keep(&ghosts, NOW, "why").await.unwrap();
            }
        });
    }
    keeping.join_all().await;
    let numbers = (0..8).flat_map(|writer| (0..10).map(move |i| writer * 100 + i));
    let expected = numbers.flat_map(|i| [holding(i, &text), ghost(i)]).collect();
    assert!(sorted(place.kept()) == sorted(expected));
}

async fn a_place_is_named(place: &dyn Place) {
    let quarantine = place.open();
    for i in 0..2 {
        assert!(!quarantine.keep(&[ghost(i)], NOW, "why").await.unwrap().is_empty());
    }
}

/// Where a quarantine outlives whoever put something into it.
trait Place: Send + Sync {
    /// The quarantine of the next life.
    fn open(&self) -> Arc<dyn Quarantine>;

    /// What a person finds there, oldest first within a life.
    fn kept(&self) -> Vec<KeyedEntry>;
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("quarantine")
    }
}

impl Place for Files {
    fn open(&self) -> Arc<dyn Quarantine> {
        Arc::new(JsonQuarantine::new(&self.dir()))
    }

    fn kept(&self) -> Vec<KeyedEntry> {
        let mut files: Vec<_> = fs::read_dir(self.dir())
            .map(|dir| dir.map(|file| file.unwrap().path()).collect())
            .unwrap_or_default();
        files.sort();
        let texts = files.into_iter().map(|file| fs::read_to_string(file).unwrap());
        texts.flat_map(|text| text.lines().map(read_line).collect::<Vec<_>>()).collect()
    }
}

/// A line, as whoever wants an entry back reads it.
fn read_line(line: &str) -> KeyedEntry {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let text = |field: &str| line[field].as_str().unwrap();
    let at: jiff::Timestamp = text("timestamp").parse().unwrap();
    let at = Timestamp::from_nanos(at.as_nanosecond().try_into().unwrap());
    let version = Version::new(at, NodeId::new(u64::from_str_radix(text("node"), 16).unwrap()));
    let value = line["value"].as_str().map(Value::new);
    let entry = value.map_or_else(|| Entry::tombstone(version), |v| Entry::live(version, v));
    KeyedEntry::new(Key::new(text("key")).unwrap(), entry)
}

/// Lives as long as the process: the place is the quarantine.
#[derive(Default)]
struct Twin(Arc<MemoryQuarantine>);

impl Place for Twin {
    fn open(&self) -> Arc<dyn Quarantine> {
        Arc::clone(&self.0) as _
    }

    fn kept(&self) -> Vec<KeyedEntry> {
        self.0.kept()
    }
}

fn sorted(mut ghosts: Vec<KeyedEntry>) -> Vec<KeyedEntry> {
    ghosts.sort_by(|a, b| {
        let order = |g: &KeyedEntry| (g.key.as_str().to_owned(), g.entry.version);
        order(a).cmp(&order(b))
    });
    ghosts
}

fn ghost(number: u64) -> KeyedEntry {
    let version = Version::new(Timestamp::from_nanos(number), NodeId::new(u64::MAX - number));
    KeyedEntry::new(
        Key::new(&format!("small-{number}")).unwrap(),
        Entry::live(version, Value::new("v")),
    )
}

fn holding(number: u64, text: &str) -> KeyedEntry {
    let stamp = Timestamp::from_nanos(NOW.as_nanos().saturating_sub(number));
    let version = Version::new(stamp, NodeId::new(number));
    KeyedEntry::new(
        Key::new(&format!("key-{number}")).unwrap(),
        Entry::live(version, Value::new(text)),
    )
}
