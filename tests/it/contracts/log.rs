//! The contract of the `OpLog` port, over `FileAof` with every sync policy and its in-memory twin.
//!
//! A disk is what outlives a log. Each life opens the log on it anew and replays what the lives
//! before have left there.

use std::fs;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use lally::adapters::file_aof::{AofOptions, FileAof, FsyncPolicy};
use lally::adapters::memory::MemoryLog;
use lally::domain::{Entry, Key, KeyedEntry, NodeId, Timestamp, Value, Version};
use lally::ports::{
    LogError, LogRecord, LogStats, OpLog, Replayed, SnapshotEntries, SnapshotSource,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::suite::contract;
use crate::small_disk::SmallDisk;

contract! {
    async over {
        aof_always: #[tokio::test(flavor = "multi_thread")] => &Files::new(FsyncPolicy::Always);
        aof_everysec: #[tokio::test(flavor = "multi_thread")] => &Files::new(FsyncPolicy::EverySec);
        aof_never: #[tokio::test(flavor = "multi_thread")] => &Files::new(FsyncPolicy::Never);
        memory: #[tokio::test(flavor = "multi_thread")] => &Twin::default();
    }
    holds {
        a_new_log_replays_nothing,
        what_was_acknowledged_is_replayed_in_order_in_every_later_life,
        a_log_that_is_dropped_without_being_closed_keeps_what_it_acknowledged,
        what_was_acknowledged_outlives_a_process_that_ends_at_once,
        any_text_comes_back_as_it_was,
        clock_bounds_come_back,
        horizons_and_expunged_versions_come_back_in_their_order,
        a_value_of_16_mib_under_the_longest_key_comes_back,
        the_records_of_one_append_stay_together_and_in_order,
        an_append_of_nothing_is_taken,
        appends_from_many_tasks_all_come_back,
        an_append_whose_caller_goes_away_harms_no_other,
        an_append_before_the_replay_is_refused,
        an_append_after_closing_is_refused_and_leaves_nothing,
        appends_that_race_with_closing_come_back_if_they_were_acknowledged,
        closing_again_does_nothing,
        stats_count_the_records_of_this_life,
        a_compacted_log_replays_what_the_source_holds_and_what_came_since,
        a_compacted_log_keeps_its_highest_clock_bound_and_horizon,
        appends_during_compactions_all_come_back,
        a_compaction_that_the_source_gives_up_changes_nothing,
        one_compaction_runs_at_a_time,
        a_compaction_before_the_replay_or_after_closing_is_refused,
    }
}

#[tokio::test]
async fn a_log_that_failed_never_takes_an_append_again() {
    let log = MemoryLog::default();
    log.replay(Box::new(drop)).await.unwrap();
    let failed = LogError::Failed("EIO".into());
    log.fail(failed.clone());
    for _ in 0..3 {
        assert_eq!(log.append(&[bound(1)]).await, Err(failed.clone()));
    }
    log.close().await.unwrap();
    assert_eq!(log.append(&[bound(1)]).await, Err(failed));
    assert_eq!(life(&Twin(log)).await.records, []);
}

#[tokio::test]
async fn a_log_on_disk_counts_its_bytes_and_syncs_as_its_policy_says() {
    for policy in [FsyncPolicy::Always, FsyncPolicy::EverySec, FsyncPolicy::Never] {
        let files = Files::new(policy);
        let life = life(&files).await;
        assert_eq!(life.log.stats().bytes, files.length());
        for count in 1..=5 {
            life.log.append(&[write(count, "k", Some("v")), bound(count)]).await.unwrap();
            assert_eq!(life.log.stats().bytes, files.length());
            assert_eq!(life.log.stats().appended, 2 * count);
            if policy == FsyncPolicy::Always {
                assert_eq!(life.log.stats().syncs.count(), count);
            }
        }
        if policy == FsyncPolicy::Never {
            assert_eq!(life.log.stats().syncs.count(), 0);
        }
        let before = life.log.stats();
        life.log.close().await.unwrap();
        let after = life.log.stats();
        let forced_by_closing = u64::from(policy != FsyncPolicy::Always);
        assert!(
            after.syncs.count() >= before.syncs.count().max(forced_by_closing),
            "{policy:?}: {after:?}"
        );
        let written = |stats: LogStats| (stats.bytes, stats.appended);
        assert_eq!(written(after), written(before));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_removals_and_clock_bounds_on_files() {
    for policy in [FsyncPolicy::Always, FsyncPolicy::EverySec, FsyncPolicy::Never] {
        let files = Files::new(policy);
        let log_dir = files.dir.path().join("log");
        let Some(small) = SmallDisk::mount(&log_dir, 1 << 20) else { return };
        let options = AofOptions::new(&log_dir, "lally", NodeId::new(1));
        let log = Arc::new(FileAof::open(AofOptions { fsync: policy, ..options }).unwrap());
        let full_at = |full: bool| if full { small.take_all() } else { small.free() };
        a_full_disk_takes_removals_and_clock_bounds(log, full_at).await;
    }
}

#[tokio::test]
async fn a_full_disk_takes_removals_and_clock_bounds_in_memory() {
    let log = Arc::new(MemoryLog::default());
    let twin = Arc::clone(&log);
    let full_at = |full: bool| if full { twin.fill_disk() } else { twin.free_disk() };
    a_full_disk_takes_removals_and_clock_bounds(log, full_at).await;
}

async fn a_full_disk_takes_removals_and_clock_bounds(log: Arc<dyn OpLog>, full: impl Fn(bool)) {
    log.replay(Box::new(drop)).await.unwrap();
    let large = write(1, "large", Some(&"v".repeat(300_000)));
    log.append(&[write(1, "k", Some("v"))]).await.unwrap();
    for _ in 0..3 {
        full(true);
        let before = log.stats();
        for time in 2..100 {
            let refused = log.append(std::slice::from_ref(&large)).await;
            assert_eq!(refused, Err(LogError::DiskFull));
            // As a whole, whatever is in it.
            let refused = log.append(&[write(time, "k", None), large.clone()]).await;
            assert_eq!(refused, Err(LogError::DiskFull));
            log.append(&[write(time, "k", None)]).await.unwrap();
            log.append(&[bound(time), write(time, "other", None)]).await.unwrap();
        }
        assert_eq!(log.stats().appended, before.appended + 3 * 98);
        full(false);
        log.append(&[write(200, "k", Some("again"))]).await.unwrap();
    }
    log.close().await.unwrap();
}

async fn a_new_log_replays_nothing(disk: &dyn Disk) {
    let life = life(disk).await;
    assert_eq!(life.records, []);
    assert_eq!((life.replayed.records, life.replayed.cut_bytes), (0, 0));
}

async fn what_was_acknowledged_is_replayed_in_order_in_every_later_life(disk: &dyn Disk) {
    let mut expected = Vec::new();
    for number in 0..4 {
        let life = life(disk).await;
        assert_eq!(life.records, expected, "life {number}");
        assert_eq!(life.replayed.records, expected.len() as u64);
        assert_eq!(life.replayed.cut_bytes, 0);
        for append in 0..10 {
            let time = number * 100 + append;
            let name = format!("key-{}", append % 3);
            let records = [write(time, &name, Some("v")), write(time, "gone", None), bound(time)];
            life.log.append(&records).await.unwrap();
            expected.extend(records);
        }
        life.log.close().await.unwrap();
    }
    assert_eq!(life(disk).await.records, expected);
}

async fn a_log_that_is_dropped_without_being_closed_keeps_what_it_acknowledged(disk: &dyn Disk) {
    let mut expected = Vec::new();
    for time in 1..=5 {
        let life = life(disk).await;
        assert_eq!(life.records, expected);
        let record = write(time, "k", Some("v"));
        life.log.append(std::slice::from_ref(&record)).await.unwrap();
        expected.push(record);
    }
    assert_eq!(life(disk).await.records, expected);
}

async fn what_was_acknowledged_outlives_a_process_that_ends_at_once(disk: &dyn Disk) {
    let mut life_now = life(disk).await;
    for time in 1..=10 {
        let record = write(time, "k", Some("v"));
        life_now.log.append(std::slice::from_ref(&record)).await.unwrap();
        life_now.records.push(record);
        let next = life(disk.as_it_is_now().as_ref()).await;
        assert_eq!(next.records, life_now.records);
    }
}

async fn any_text_comes_back_as_it_was(disk: &dyn Disk) {
    let texts = ["", "\0", "\0\0\0\0", "a\nb\r\n", "🦀", "\"quoted\"", "\u{feff}", "LALLYLOG"];
    let mut expected = vec![write(1, "removed", None)];
    for (time, text) in (1..).zip(texts) {
        expected.push(write(time, "k", Some(text)));
        expected.push(write(time, &format!("{text}:"), Some(text)));
    }
    let versions = [(0, 0), (u64::MAX, u64::MAX), (1, u64::MAX), (u64::MAX, 0)];
    for (time, node) in versions {
        let version = Version::new(Timestamp::from_nanos(time), NodeId::new(node));
        let entry = Entry::live(version, Value::new(""));
        expected.push(LogRecord::Write(KeyedEntry::new(Key::new("k").unwrap(), entry)));
    }
    let life_now = life(disk).await;
    for record in &expected {
        life_now.log.append(std::slice::from_ref(record)).await.unwrap();
    }
    drop(life_now);
    assert_eq!(life(disk).await.records, expected);
}

async fn horizons_and_expunged_versions_come_back_in_their_order(disk: &dyn Disk) {
    let version = |time| Version::new(Timestamp::from_nanos(time), NodeId::new(1));
    let expunged =
        |time| LogRecord::Expunged { key: Key::new("k").unwrap(), version: version(time) };
    let horizon = |time| LogRecord::Horizon(Timestamp::from_nanos(time));
    let records = [write(5, "k", Some("v")), expunged(5), horizon(0), write(4, "k", None)];
    let log = life(disk).await.log;
    log.append(&records).await.unwrap();
    log.append(&[horizon(u64::MAX), expunged(u64::MAX)]).await.unwrap();
    log.close().await.unwrap();
    let expected: Vec<_> =
        records.into_iter().chain([horizon(u64::MAX), expunged(u64::MAX)]).collect();
    assert_eq!(life(disk).await.records, expected);
}

async fn clock_bounds_come_back(disk: &dyn Disk) {
    let expected = [0, 1, u64::from(u32::MAX), u64::MAX, 7].map(bound);
    let life_now = life(disk).await;
    life_now.log.append(&expected).await.unwrap();
    drop(life_now);
    assert_eq!(life(disk).await.records, expected);
}

async fn a_value_of_16_mib_under_the_longest_key_comes_back(disk: &dyn Disk) {
    let expected = [
        write(u64::MAX, &"k".repeat(1_024), Some(&"v".repeat(16 << 20))),
        write(2, "after", Some("it")),
    ];
    let life_now = life(disk).await;
    for record in &expected {
        life_now.log.append(std::slice::from_ref(record)).await.unwrap();
    }
    life_now.log.close().await.unwrap();
    // Not with `assert_eq`, which would print it.
    assert!(life(disk).await.records == expected);
}

async fn the_records_of_one_append_stay_together_and_in_order(disk: &dyn Disk) {
    let life_now = life(disk).await;
    let append = |task: u64| {
        let log = Arc::clone(&life_now.log);
        async move {
            for round in 0..20 {
                let records: Vec<_> = (0..=task)
                    .map(|at| write(round, &format!("{task}"), Some(&format!("{at}"))))
                    .collect();
                log.append(&records).await.unwrap();
            }
        }
    };
    in_parallel((0..12).map(append)).await;
    drop(life_now);
    let mut left = life(disk).await.records.into_iter();
    let mut appends = 0;
    while let Some(LogRecord::Write(first)) = left.next() {
        let task: u64 = first.key.as_str().parse().unwrap();
        let values: Vec<_> = std::iter::once(first)
            .chain((0..task).map(|_| match left.next() {
                Some(LogRecord::Write(next)) => next,
                other => panic!("{other:?} within the append of {task}"),
            }))
            .map(|write| {
                assert_eq!(write.key.as_str(), task.to_string());
                write.entry.value().unwrap().as_str().parse::<u64>().unwrap()
            })
            .collect();
        assert_eq!(values, (0..=task).collect::<Vec<_>>());
        appends += 1;
    }
    assert_eq!(appends, 12 * 20);
}

async fn an_append_of_nothing_is_taken(disk: &dyn Disk) {
    let life_now = life(disk).await;
    life_now.log.append(&[]).await.unwrap();
    life_now.log.append(&[bound(1)]).await.unwrap();
    life_now.log.append(&[]).await.unwrap();
    drop(life_now);
    assert_eq!(life(disk).await.records, [bound(1)]);
}

async fn appends_from_many_tasks_all_come_back(disk: &dyn Disk) {
    let life_now = life(disk).await;
    let append = |task: u64| {
        let log = Arc::clone(&life_now.log);
        async move {
            for time in 0..25 {
                let record = write(time, &format!("task-{task}"), Some("v"));
                log.append(&[record]).await.unwrap();
            }
        }
    };
    in_parallel((0..64).map(append)).await;
    assert_eq!(life_now.log.stats().appended, 64 * 25);
    drop(life_now);
    let records = life(disk).await.records;
    assert_eq!(records.len(), 64 * 25);
    for task in 0..64 {
        let name = format!("task-{task}");
        // What one task appended one after the other has kept its order, too.
        let times = records.iter().filter_map(|record| match record {
            LogRecord::Write(write) if write.key.as_str() == name => {
                Some(write.entry.version.timestamp.as_nanos())
            }
            _ => None,
        });
        assert!(times.eq(0..25), "{name}");
    }
}

async fn an_append_whose_caller_goes_away_harms_no_other(disk: &dyn Disk) {
    let life_now = life(disk).await;
    let mut acknowledged = Vec::new();
    for time in 0..200 {
        let (left, kept) = ([write(time, "left", Some("v"))], write(time, "kept", Some("v")));
        // Asked once, then forgotten.
        let append = life_now.log.append(&left);
        drop(futures_util::FutureExt::now_or_never(append));
        life_now.log.append(std::slice::from_ref(&kept)).await.unwrap();
        acknowledged.push(kept);
    }
    life_now.log.close().await.unwrap();
    let mut records = life(disk).await.records;
    records.retain(|record| !matches!(record, LogRecord::Write(w) if w.key.as_str() == "left"));
    assert_eq!(records, acknowledged);
}

async fn an_append_before_the_replay_is_refused(disk: &dyn Disk) {
    let log = disk.open();
    assert!(log.append(&[bound(1)]).await.is_err());
    assert_eq!(log.stats().appended, 0);
    drop(log);
    assert_eq!(life(disk).await.records, []);
}

async fn an_append_after_closing_is_refused_and_leaves_nothing(disk: &dyn Disk) {
    let life_now = life(disk).await;
    life_now.log.append(&[bound(1)]).await.unwrap();
    life_now.log.close().await.unwrap();
    for _ in 0..3 {
        assert_eq!(life_now.log.append(&[bound(2)]).await, Err(LogError::Closed));
    }
    assert_eq!(life_now.log.stats().appended, 1);
    drop(life_now);
    assert_eq!(life(disk).await.records, [bound(1)]);
}

async fn appends_that_race_with_closing_come_back_if_they_were_acknowledged(disk: &dyn Disk) {
    for turn in 0..10 {
        let mut life_now = life(disk).await;
        let append = |task: u64| {
            let log = Arc::clone(&life_now.log);
            async move {
                let records = [bound(turn * 1_000 + task)];
                (records[0].clone(), log.append(&records).await)
            }
        };
        let closing = Arc::clone(&life_now.log);
        let mut tasks = JoinSet::new();
        for task in 0..100 {
            tasks.spawn(append(task));
        }
        closing.close().await.unwrap();
        let mut expected = std::mem::take(&mut life_now.records);
        for (record, outcome) in tasks.join_all().await {
            match outcome {
                Ok(()) => expected.push(record),
                Err(error) => assert_eq!(error, LogError::Closed),
            }
        }
        drop((life_now, closing));
        let found = life(disk).await.records;
        assert_eq!(found.len(), expected.len());
        assert!(expected.iter().all(|record| found.contains(record)));
    }
}

async fn closing_again_does_nothing(disk: &dyn Disk) {
    let life_now = life(disk).await;
    life_now.log.append(&[bound(1)]).await.unwrap();
    for _ in 0..3 {
        life_now.log.close().await.unwrap();
    }
    assert_eq!(life(disk).await.records, [bound(1)]);
}

async fn stats_count_the_records_of_this_life(disk: &dyn Disk) {
    for _ in 0..2 {
        let life_now = life(disk).await;
        assert_eq!(life_now.log.stats().appended, 0);
        life_now.log.append(&[bound(1), bound(2)]).await.unwrap();
        life_now.log.append(&[bound(3)]).await.unwrap();
        assert_eq!(life_now.log.stats().appended, 3);
    }
}

/// Entries to compact to, and what happens between the switch to a new part and their reading.
struct Source {
    entries: Vec<KeyedEntry>,
    meanwhile: Box<dyn FnOnce() -> BoxFuture<'static, Result<(), LogError>> + Send>,
}

impl Source {
    fn of(records: &[LogRecord]) -> Self {
        Self::with(records, || Box::pin(async { Ok(()) }))
    }

    fn with(
        records: &[LogRecord],
        meanwhile: impl FnOnce() -> BoxFuture<'static, Result<(), LogError>> + Send + 'static,
    ) -> Self {
        let entry = |record: &LogRecord| match record {
            LogRecord::Write(write) => write.clone(),
            other => panic!("{other:?} is no entry"),
        };
        let entries = records.iter().map(entry).collect();
        Self { entries, meanwhile: Box::new(meanwhile) }
    }
}

#[async_trait]
impl SnapshotSource for Source {
    async fn settle(&mut self) -> Result<Box<dyn SnapshotEntries>, LogError> {
        let nothing = || -> BoxFuture<'static, _> { Box::pin(async { Ok(()) }) };
        std::mem::replace(&mut self.meanwhile, Box::new(nothing))().await?;
        Ok(Box::new(Chunks(std::mem::take(&mut self.entries))))
    }
}

struct Chunks(Vec<KeyedEntry>);

impl SnapshotEntries for Chunks {
    fn next(&mut self) -> Option<Vec<KeyedEntry>> {
        let rest = self.0.split_off(self.0.len().min(3));
        let chunk = std::mem::replace(&mut self.0, rest);
        (!chunk.is_empty()).then_some(chunk)
    }
}

/// The records in an order of their own: that of a snapshot is not told.
fn sorted(mut records: Vec<LogRecord>) -> Vec<LogRecord> {
    records.sort_by_key(|record| format!("{record:?}"));
    records
}

async fn a_compacted_log_replays_what_the_source_holds_and_what_came_since(disk: &dyn Disk) {
    let mut log = life(disk).await.log;
    let mut since = Vec::new();
    for round in 1..=4 {
        for time in 0..50 {
            log.append(&[write(100 * round + time, "k", Some("v"))]).await.unwrap();
        }
        let held: Vec<_> =
            (0..20).map(|n| write(100 * round, &format!("held-{n}"), Some("v"))).collect();
        let meanwhile = write(100 * round + 98, "meanwhile", None);
        let (appending, record) = (Arc::clone(&log), meanwhile.clone());
        let source =
            Source::with(&held, || Box::pin(async move { appending.append(&[record]).await }));
        let compacted = log.compact(Box::new(source)).await.unwrap();
        assert_eq!(compacted.records, 20);
        let after = write(100 * round + 99, "after", Some("v"));
        log.append(std::slice::from_ref(&after)).await.unwrap();
        since = held;
        since.extend([meanwhile, after]);
        // What a process that ends now leaves, and what one that is closed does.
        assert_eq!(sorted(life(disk.as_it_is_now().as_ref()).await.records), sorted(since.clone()));
        if round % 2 == 0 {
            log.close().await.unwrap();
            let next = life(disk).await;
            assert_eq!(sorted(next.records), sorted(since.clone()));
            log = next.log;
        }
    }
    log.compact(Box::new(Source::of(&[]))).await.unwrap();
    log.close().await.unwrap();
    assert_eq!(life(disk).await.records, []);
    assert!(!since.is_empty());
}

async fn a_compacted_log_keeps_its_highest_clock_bound_and_horizon(disk: &dyn Disk) {
    let horizon = |time| LogRecord::Horizon(Timestamp::from_nanos(time));
    let mut log = life(disk).await.log;
    for round in 1..=3 {
        log.append(&[bound(10 * round), horizon(round), bound(10 * round - 5)]).await.unwrap();
        log.compact(Box::new(Source::of(&[]))).await.unwrap();
        if round == 2 {
            drop(log);
            log = life(disk).await.log;
        }
    }
    drop(log);
    let records = life(disk).await.records;
    let most = |find: fn(&LogRecord) -> Option<u64>| records.iter().filter_map(find).max();
    let bounds = most(|record| match record {
        LogRecord::ClockBound(at) => Some(at.as_nanos()),
        _ => None,
    });
    let horizons = most(|record| match record {
        LogRecord::Horizon(at) => Some(at.as_nanos()),
        _ => None,
    });
    assert_eq!((bounds, horizons), (Some(30), Some(3)));
}

async fn appends_during_compactions_all_come_back(disk: &dyn Disk) {
    let life_now = life(disk).await;
    // As a store would: held for reading before the append ends, and while it is logged.
    let held = Arc::new(tokio::sync::RwLock::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for task in 0..16 {
        let (log, held) = (Arc::clone(&life_now.log), Arc::clone(&held));
        tasks.spawn(async move {
            for time in 0..40 {
                let record = write(time, &format!("task-{task}"), Some("v"));
                let mut held = held.write().await;
                log.append(std::slice::from_ref(&record)).await.unwrap();
                held.push(record);
            }
        });
    }
    while held.read().await.len() < 16 * 40 {
        let source = Held(Arc::clone(&held));
        life_now.log.compact(Box::new(source)).await.unwrap();
    }
    tasks.join_all().await;
    life_now.log.close().await.unwrap();
    let expected = sorted(held.read().await.clone());
    let mut found = sorted(life(disk).await.records);
    // What came during the last compaction may be in both its parts.
    found.dedup();
    assert_eq!(found, expected);
}

/// What a test holds, as soon as nobody is about to add to it.
struct Held(Arc<tokio::sync::RwLock<Vec<LogRecord>>>);

#[async_trait]
impl SnapshotSource for Held {
    async fn settle(&mut self) -> Result<Box<dyn SnapshotEntries>, LogError> {
        Source::of(&self.0.read().await).settle().await
    }
}

async fn a_compaction_that_the_source_gives_up_changes_nothing(disk: &dyn Disk) {
    let log = life(disk).await.log;
    log.append(&[write(1, "k", Some("v")), bound(5)]).await.unwrap();
    let failed = LogError::Failed("too slow".into());
    let error = failed.clone();
    let source = Source::with(&[], || Box::pin(async { Err(error) }));
    assert_eq!(log.compact(Box::new(source)).await, Err(failed));
    log.append(&[write(2, "k", Some("v"))]).await.unwrap();
    log.close().await.unwrap();
    let expected = [write(1, "k", Some("v")), bound(5), write(2, "k", Some("v"))];
    assert_eq!(life(disk).await.records, expected);
}

async fn one_compaction_runs_at_a_time(disk: &dyn Disk) {
    let log = life(disk).await.log;
    log.append(&[write(1, "k", Some("v"))]).await.unwrap();
    let other = Arc::clone(&log);
    let source = Source::with(&[write(1, "k", Some("v"))], || {
        Box::pin(async move {
            let second = other.compact(Box::new(Source::of(&[]))).await;
            assert_eq!(second, Err(LogError::Overloaded));
            Ok(())
        })
    });
    log.compact(Box::new(source)).await.unwrap();
    log.compact(Box::new(Source::of(&[write(1, "k", Some("v"))]))).await.unwrap();
    log.close().await.unwrap();
    assert_eq!(life(disk).await.records, [write(1, "k", Some("v"))]);
}

async fn a_compaction_before_the_replay_or_after_closing_is_refused(disk: &dyn Disk) {
    let log = disk.open();
    assert!(log.compact(Box::new(Source::of(&[]))).await.is_err());
    drop(log);
    let log = life(disk).await.log;
    log.append(&[bound(1)]).await.unwrap();
    log.close().await.unwrap();
    assert_eq!(log.compact(Box::new(Source::of(&[]))).await, Err(LogError::Closed));
    drop(log);
    assert_eq!(life(disk).await.records, [bound(1)]);
}

/// What outlives a log.
trait Disk: Send + Sync {
    /// The log of the next life, not replayed yet.
    fn open(&self) -> Arc<dyn OpLog>;

    /// What would be left if the process ended now.
    fn as_it_is_now(&self) -> Box<dyn Disk>;
}

struct Files {
    dir: TempDir,
    policy: FsyncPolicy,
}

impl Files {
    fn new(policy: FsyncPolicy) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), policy }
    }

    fn length(&self) -> u64 {
        let files = fs::read_dir(self.dir.path()).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    }
}

impl Disk for Files {
    fn open(&self) -> Arc<dyn OpLog> {
        let options = AofOptions::new(self.dir.path(), "lally", NodeId::new(1));
        Arc::new(FileAof::open(AofOptions { fsync: self.policy, ..options }).unwrap())
    }

    fn as_it_is_now(&self) -> Box<dyn Disk> {
        let copy = Self::new(self.policy);
        for file in fs::read_dir(self.dir.path()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), copy.dir.path().join(file.file_name())).unwrap();
        }
        Box::new(copy)
    }
}

#[derive(Default)]
struct Twin(MemoryLog);

impl Disk for Twin {
    fn open(&self) -> Arc<dyn OpLog> {
        Arc::new(self.0.reopen())
    }

    fn as_it_is_now(&self) -> Box<dyn Disk> {
        Box::new(Self(self.0.reopen()))
    }
}

/// One life of a log, replayed.
struct Life {
    log: Arc<dyn OpLog>,
    records: Vec<LogRecord>,
    replayed: Replayed,
}

async fn life(disk: &dyn Disk) -> Life {
    let log = disk.open();
    let records = Arc::new(Mutex::new(Vec::new()));
    let visited = Arc::clone(&records);
    let visitor = move |record| visited.lock().unwrap().push(record);
    let replayed = log.replay(Box::new(visitor)).await.unwrap();
    let records = std::mem::take(&mut *records.lock().unwrap());
    Life { log, records, replayed }
}

/// Runs tasks of their own, so that they meet on several threads.
async fn in_parallel(tasks: impl Iterator<Item = impl Future<Output = ()> + Send + 'static>) {
    tasks.collect::<JoinSet<_>>().join_all().await;
}

fn write(time: u64, name: &str, text: Option<&str>) -> LogRecord {
    let version = Version::new(Timestamp::from_nanos(time), NodeId::new(1));
    let value = text.map(Value::new);
    let entry = value.map_or_else(|| Entry::tombstone(version), |v| Entry::live(version, v));
    LogRecord::Write(KeyedEntry::new(Key::new(name).unwrap(), entry))
}

fn bound(time: u64) -> LogRecord {
    LogRecord::ClockBound(Timestamp::from_nanos(time))
}
