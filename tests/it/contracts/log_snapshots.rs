//! Logs that are compacted, or half compacted, or damaged since: whatever is there, a reader finds
//! all of it or refuses.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use lally::adapters::file_aof::{FileAof, install_log};
use lally::domain::KeyedEntry;
use lally::ports::{LogError, LogRecord, OpLog, SnapshotEntries, SnapshotSource};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::super::process::wait::{PATIENCE, eventually, is};
use super::logs_on_disk::{Held, entry, open, options, write};

/// Some records, the snapshot of them that a compaction wrote, and one record behind it.
struct Sample {
    /// The directory before the compaction, when it began, and after it.
    before: TempDir,
    begun: TempDir,
    after: TempDir,
    snapshot: Vec<LogRecord>,
    since: LogRecord,
}

const SNAPSHOT: &str = "0000000000000002.snap";
const FIRST: &str = "0000000000000001.log";
const SECOND: &str = "0000000000000002.log";

impl Sample {
    async fn new() -> Self {
        let begun = Arc::new(tempfile::tempdir().unwrap());
        let (before, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open(dir.path()).await.unwrap();
        for time in 1..=30 {
            log.append(&[write(time, time % 3)]).await.unwrap();
        }
        let held = vec![write(28, 1), write(29, 2), write(30, 0)];
        copy(dir.path(), before.path());
        let source = Source {
            held: Some(held.iter().map(entry).collect()),
            dir: dir.path().to_owned(),
            copied: Arc::clone(&begun),
        };
        log.compact(Box::new(source)).await.unwrap();
        let since = write(31, 1);
        log.append(std::slice::from_ref(&since)).await.unwrap();
        log.close().await.unwrap();
        copy(dir.path(), after.path());
        let begun = Arc::into_inner(begun).unwrap();
        Self { before, begun, after, snapshot: held, since }
    }

    /// What the directory after the compaction says.
    fn all(&self) -> Vec<LogRecord> {
        self.snapshot.iter().chain([&self.since]).cloned().collect()
    }
}

#[tokio::test]
async fn a_compaction_leaves_the_snapshot_and_the_segment_behind_it() {
    let sample = Sample::new().await;
    assert_eq!(names(sample.before.path()), [FIRST]);
    assert_eq!(names(sample.begun.path()), [FIRST, SECOND]);
    assert_eq!(names(sample.after.path()), [SECOND, SNAPSHOT]);
    let (_, records) = open(sample.after.path()).await.unwrap();
    assert_eq!(records, sample.all());
}

#[tokio::test]
async fn a_crash_at_any_step_of_a_compaction_leaves_the_old_or_the_new() {
    let sample = Sample::new().await;
    let old: Vec<_> = (1..=30).map(|time| write(time, time % 3)).collect();
    let snapshot = fs::read(sample.after.path().join(SNAPSHOT)).unwrap();
    // While the draft is written.
    for length in (0..=snapshot.len()).step_by(7) {
        let dir = copied(sample.begun.path());
        let draft = dir.path().join("0000000000000002.snap.new");
        fs::write(&draft, &snapshot[..length]).unwrap();
        let (log, records) = open(dir.path()).await.unwrap();
        assert_eq!(records, old);
        assert!(!draft.exists());
        log.append(std::slice::from_ref(&sample.since)).await.unwrap();
        drop(log);
        let (_, records) = open(dir.path()).await.unwrap();
        assert_eq!(records.last(), Some(&sample.since));
    }
    // The snapshot has its name, and the old segment is still there, whole or not.
    let first = fs::read(sample.begun.path().join(FIRST)).unwrap();
    for length in [0, 1, first.len() / 2, first.len()] {
        let dir = copied(sample.after.path());
        fs::write(dir.path().join(FIRST), &first[..length]).unwrap();
        let (log, records) = open(dir.path()).await.unwrap();
        assert_eq!(records, sample.all());
        assert_eq!(names(dir.path()), [SECOND, SNAPSHOT]);
        drop(log);
    }
}

/// The entries of a snapshot; tells how often the log had been forced when the last was taken.
struct Forced {
    log: Arc<FileAof>,
    held: Option<Vec<KeyedEntry>>,
    when_taken: Arc<Mutex<u64>>,
}

#[async_trait]
impl SnapshotSource for Forced {
    async fn settle(&mut self) -> Result<Box<dyn SnapshotEntries>, LogError> {
        let (log, when_taken) = (Arc::clone(&self.log), Arc::clone(&self.when_taken));
        Ok(Box::new(Self { log, held: self.held.take(), when_taken }))
    }
}

impl SnapshotEntries for Forced {
    fn next(&mut self) -> Option<Vec<KeyedEntry>> {
        *self.when_taken.lock().unwrap() = self.log.stats().syncs.count();
        self.held.take()
    }
}

// A snapshot holds entries that were written while it was. A power cut would keep them, and take what
// was written before them, otherwise.
#[tokio::test]
async fn the_log_is_forced_up_to_the_last_entry_of_a_snapshot_before_that_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).await.unwrap();
    let (log, when_taken) = (Arc::new(log), Arc::default());
    log.append(&[write(1, 1)]).await.unwrap();
    let held = Some(vec![entry(&write(1, 1))]);
    let source = Forced { log: Arc::clone(&log), held, when_taken: Arc::clone(&when_taken) };
    log.compact(Box::new(source)).await.unwrap();
    // The policy is `never`: nobody else forces it.
    assert_eq!(log.stats().syncs.count(), *when_taken.lock().unwrap() + 1);
}

#[tokio::test]
async fn any_change_to_a_snapshot_is_noticed() {
    let sample = Sample::new().await;
    let dir = copied(sample.after.path());
    let path = dir.path().join(SNAPSHOT);
    let intact = fs::read(&path).unwrap();
    let check = async |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        match open(dir.path()).await {
            Err(LogError::Corrupt { file, .. }) => assert!(file.ends_with(SNAPSHOT), "{file}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("a damaged snapshot was read"),
        }
        assert_eq!(fs::read(&path).unwrap(), bytes);
    };
    for length in 0..intact.len() {
        check(&intact[..length]).await;
    }
    for byte in 0..intact.len() {
        let mut damaged = intact.clone();
        damaged[byte] ^= 1 << (byte % 8);
        check(&damaged).await;
    }
    check(&[intact.as_slice(), &[0]].concat()).await;
    check(&[intact.as_slice(), intact.as_slice()].concat()).await;
    fs::write(&path, &intact).unwrap();
    assert!(open(dir.path()).await.is_ok());
}

#[tokio::test]
async fn a_snapshot_without_the_segment_behind_it_is_refused() {
    let sample = Sample::new().await;
    let missing = copied(sample.after.path());
    fs::remove_file(missing.path().join(SECOND)).unwrap();
    // Another one in its place, of another length of the log.
    let other = copied(sample.after.path());
    fs::rename(other.path().join(SECOND), other.path().join("0000000000000003.log")).unwrap();
    let first = fs::read(sample.before.path().join(FIRST)).unwrap();
    fs::write(other.path().join(SECOND), first).unwrap();
    for dir in [missing, other] {
        let before = names(dir.path());
        assert!(matches!(open(dir.path()).await, Err(LogError::Corrupt { .. })));
        assert_eq!(names(dir.path()), before);
    }
}

#[tokio::test]
async fn segments_whose_snapshot_is_gone_are_refused() {
    let sample = Sample::new().await;
    let dir = copied(sample.after.path());
    fs::remove_file(dir.path().join(SNAPSHOT)).unwrap();
    assert!(matches!(open(dir.path()).await, Err(LogError::Corrupt { .. })));
}

#[tokio::test]
async fn a_compacted_log_or_its_snapshot_alone_can_be_installed_elsewhere() {
    let sample = Sample::new().await;
    let sources = [
        (sample.after.path().to_owned(), sample.all()),
        (sample.after.path().join(SNAPSHOT), sample.snapshot.clone()),
    ];
    for (source, expected) in sources {
        let dir = tempfile::tempdir().unwrap();
        let replayed = install_log(&source, &options(dir.path())).unwrap();
        assert_eq!(replayed.records, expected.len() as u64);
        assert_eq!(open(dir.path()).await.unwrap().1, expected);
    }
}

// What an earlier compaction could not remove, for instance.
#[tokio::test]
async fn the_length_of_a_log_is_that_of_the_files_that_count() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(open(dir.path()).await.unwrap().0);
    log.append(&[write(1, 1)]).await.unwrap();
    fs::write(dir.path().join("0000000000000000.log"), [0; 5_000]).unwrap();
    // Not removed either, which is no failure: a snapshot stands for it.
    fs::create_dir(dir.path().join("0000000000000000.snap")).unwrap();
    let nothing = Forced { log: Arc::clone(&log), held: None, when_taken: Arc::default() };
    let compacted = log.compact(Box::new(nothing)).await.unwrap();
    assert_eq!(names(dir.path()), ["0000000000000000.snap", SECOND, SNAPSHOT]);
    assert_eq!(compacted.bytes_after, length_of(dir.path(), &[SECOND, SNAPSHOT]));
}

/// Says when it is asked, and answers when it may.
struct Gated {
    asked: Option<oneshot::Sender<()>>,
    may_answer: Option<mpsc::Receiver<()>>,
}

#[async_trait]
impl SnapshotSource for Gated {
    async fn settle(&mut self) -> Result<Box<dyn SnapshotEntries>, LogError> {
        Ok(Box::new(Self { asked: self.asked.take(), may_answer: self.may_answer.take() }))
    }
}

impl SnapshotEntries for Gated {
    fn next(&mut self) -> Option<Vec<KeyedEntry>> {
        self.asked.take().unwrap().send(()).unwrap();
        self.may_answer.take().unwrap().recv().unwrap();
        None
    }
}

/// Begins a compaction for which nobody waits; it goes on when it is told to.
async fn compact_unwatched(log: &FileAof) -> mpsc::SyncSender<()> {
    let (asked, is_asked) = oneshot::channel();
    let (answer, may_answer) = mpsc::sync_channel(1);
    let source = Gated { asked: Some(asked), may_answer: Some(may_answer) };
    tokio::select! {
        _ = log.compact(Box::new(source)) => panic!("it has no entries yet"),
        asked = is_asked => asked.unwrap(),
    }
    answer
}

#[tokio::test]
async fn a_compaction_that_nobody_waits_for_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).await.unwrap();
    log.append(&[write(1, 1)]).await.unwrap();
    compact_unwatched(&log).await.send(()).unwrap();
    eventually("the old segment is removed", PATIENCE, || {
        is(!dir.path().join(FIRST).exists(), names(dir.path()).join(", "))
    });
    assert_eq!(log.stats().bytes, length_of(dir.path(), &[SECOND, SNAPSHOT]));
}

#[tokio::test]
async fn a_log_that_is_closed_waits_for_a_compaction_that_nobody_else_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(open(dir.path()).await.unwrap().0);
    log.append(&[write(1, 1)]).await.unwrap();
    let answer = compact_unwatched(&log).await;
    let nothing = Forced { log: Arc::clone(&log), held: None, when_taken: Arc::default() };
    let again = log.compact(Box::new(nothing)).await;
    assert_eq!(again, Err(LogError::Overloaded), "two compactions at once");
    let mut closing = Box::pin(log.close());
    assert!(timeout(Duration::from_millis(50), &mut closing).await.is_err());
    answer.send(()).unwrap();
    closing.await.unwrap();
    assert_eq!(names(dir.path()), [FIRST, SECOND]);
}

#[tokio::test]
async fn a_log_that_is_closed_waits_for_no_compaction_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).await.unwrap();
    log.append(&[write(1, 1)]).await.unwrap();
    let _never = compact_unwatched(&log).await;
    timeout(PATIENCE, log.close()).await.unwrap().unwrap();
    drop(log);
    assert_eq!(open(dir.path()).await.unwrap().1, [write(1, 1)]);
}

/// Holds these, and copies the directory when it is asked.
struct Source {
    held: Option<Vec<KeyedEntry>>,
    dir: std::path::PathBuf,
    copied: Arc<TempDir>,
}

#[async_trait]
impl SnapshotSource for Source {
    async fn settle(&mut self) -> Result<Box<dyn SnapshotEntries>, LogError> {
        copy(&self.dir, self.copied.path());
        Ok(Box::new(Held(self.held.take())))
    }
}

fn names(dir: &Path) -> Vec<String> {
    let files = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn length_of(dir: &Path, names: &[&str]) -> u64 {
    names.iter().map(|name| dir.join(name).metadata().unwrap().len()).sum()
}

fn copy(from: &Path, to: &Path) {
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

fn copied(from: &Path) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(from, dir.path());
    dir
}
