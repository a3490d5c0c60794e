//! Backups of a log on disk: what is in them, whatever happens to the log meanwhile, and that nothing
//! passes for one that is not all of it.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use lally::adapters::file_aof::{FileAof, install_log};
use lally::adapters::memory::MemoryLog;
use lally::domain::{NodeId, Timestamp, Version};
use lally::ports::{BackupStream, LogError, LogRecord, OpLog, SnapshotEntries, SnapshotSource};
use tokio::task::JoinSet;

use super::logs_on_disk::{Held, entry, key, open, options, valued, write};

#[tokio::test]
async fn a_backup_holds_every_record_in_its_order_and_can_be_installed_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).await.unwrap();
    let expunged = Version::new(Timestamp::from_nanos(3), NodeId::new(1));
    let records = [
        vec![LogRecord::ClockBound(Timestamp::from_nanos(9)), write(1, 1)],
        vec![write(2, 2), LogRecord::Horizon(Timestamp::from_nanos(2))],
        vec![LogRecord::Expunged { key: key(2), version: expunged }, write(5, 2)],
        vec![LogRecord::Horizon(Timestamp::ZERO), write(4, 3)],
    ];
    assert_eq!(restored(&taken(&log).await).await.unwrap(), []);
    for (count, append) in records.iter().enumerate() {
        log.append(append).await.unwrap();
        let expected = records[..=count].concat();
        assert_eq!(restored(&taken(&log).await).await.unwrap(), expected);
    }
    // The log itself is as it was.
    log.close().await.unwrap();
    assert_eq!(open(dir.path()).await.unwrap().1, records.concat());
}

#[tokio::test]
async fn what_is_appended_after_it_began_is_not_in_it_however_slowly_it_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).await.unwrap();
    let before: Vec<_> = (1..=200).map(|time| large(time, time)).collect();
    log.append(&before).await.unwrap();
    let mut stream = log.backup().await.unwrap();
    assert!(stream.expected_bytes() > 200 * 10_000);
    let mut bytes = stream.next().await.unwrap().unwrap().to_vec();
    for time in 201..=300 {
        log.append(&[large(time, time)]).await.unwrap();
    }
    // Compacted, and the files that are being read are gone.
    let held = (1..=300).map(|time| entry(&large(time, time))).collect();
    log.compact(Box::new(Held(Some(held)))).await.unwrap();
    log.append(&[write(301, 301)]).await.unwrap();
    bytes.extend(rest(stream).await.unwrap());
    assert_eq!(restored(&bytes).await.unwrap(), before);
    assert_eq!(restored(&taken(&log).await).await.unwrap().len(), 301);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_beside_appends_and_compactions_is_a_prefix_with_all_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(open(dir.path()).await.unwrap().0);
    let stop = Arc::new(AtomicBool::new(false));
    // What was acknowledged, in the order of the log: each key is written once.
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    let (to, done, all) = (Arc::clone(&log), Arc::clone(&stop), Arc::clone(&acknowledged));
    // So that there is something new to write for every backup, and not ever more to read.
    let allowed = Arc::new(AtomicU64::new(0));
    let up_to = Arc::clone(&allowed);
    tasks.spawn(async move {
        for time in 1.. {
            while up_to.load(Ordering::Relaxed) < time {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                tokio::task::yield_now().await;
            }
            to.append(&[write(time, time)]).await.unwrap();
            all.lock().unwrap().push(time);
            tokio::task::yield_now().await;
        }
    });
    let (to, done, all) = (Arc::clone(&log), Arc::clone(&stop), Arc::clone(&acknowledged));
    tasks.spawn(async move {
        while !done.load(Ordering::Relaxed) {
            let source = Settles(Arc::clone(&all));
            match to.compact(Box::new(source)).await {
                Ok(_) | Err(LogError::Overloaded) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    let mut taken = 0;
    for _ in 0..30 {
        allowed.fetch_add(50, Ordering::Relaxed);
        let least = acknowledged.lock().unwrap().len() as u64;
        let backup = match log.backup().await {
            Ok(stream) => rest(stream).await.unwrap(),
            // It changes very often here.
            Err(LogError::Overloaded) => continue,
            Err(error) => panic!("{error}"),
        };
        let most = acknowledged.lock().unwrap().len() as u64 + 1;
        let mut times: Vec<_> = restored(&backup).await.unwrap().iter().map(time).collect();
        times.sort_unstable();
        times.dedup();
        let newest = times.last().copied().unwrap_or_default();
        assert!(times.iter().copied().eq(1..=newest), "not a prefix: {times:?}");
        assert!((least..=most).contains(&newest), "{least} {newest} {most}");
        taken += 1;
    }
    assert!(taken >= 5, "{taken}");
    stop.store(true, Ordering::Relaxed);
    tasks.join_all().await;
}

#[tokio::test]
async fn a_backup_that_is_cut_off_or_changed_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).await.unwrap();
    log.append(&[write(1, 1), write(2, 2), write(3, 1)]).await.unwrap();
    let intact = taken(&log).await;
    let corrupt = async |bytes: &[u8]| match restored(bytes).await {
        Err(LogError::Corrupt { file, .. }) => {
            assert_eq!(Path::new(&file).extension().unwrap(), "snap", "{file}");
        }
        Err(other) => panic!("{other}"),
        Ok(records) => panic!("{records:?}"),
    };
    for length in 0..intact.len() {
        corrupt(&intact[..length]).await;
    }
    for bit in 0..intact.len() * 8 {
        let mut damaged = intact.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        corrupt(&damaged).await;
    }
    corrupt(&[intact.as_slice(), &[0]].concat()).await;
    corrupt(&[intact.as_slice(), intact.as_slice()].concat()).await;
    assert_eq!(restored(&intact).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_log_that_does_not_read_back_is_not_backed_up_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).await.unwrap();
    for time in 1..=3 {
        log.append(&[write(time, time)]).await.unwrap();
    }
    let segment = dir.path().join("0000000000000001.log");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // In place, as a disk would.
    fs::write(&segment, &bytes).unwrap();
    let ended = rest(log.backup().await.unwrap()).await.unwrap_err();
    assert!(ended.to_string().contains("POST /admin/compact"), "{ended}");
    log.append(&[write(4, 4)]).await.unwrap();
    let held = (1..=4).map(|time| entry(&write(time, time))).collect();
    log.compact(Box::new(Held(Some(held)))).await.unwrap();
    assert_eq!(restored(&taken(&log).await).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_backup_before_the_replay_or_after_closing_is_refused_and_so_is_one_of_memory() {
    let dir = tempfile::tempdir().unwrap();
    let unread = FileAof::open(options(dir.path())).unwrap();
    assert!(matches!(unread.backup().await.err(), Some(LogError::Failed(_))));
    let (log, _) = open(dir.path()).await.unwrap();
    log.close().await.unwrap();
    assert_eq!(log.backup().await.err(), Some(LogError::Closed));
    let memory = MemoryLog::default();
    memory.replay(Box::new(drop)).await.unwrap();
    assert_eq!(memory.backup().await.err(), Some(LogError::NoBackups));
}

/// All bytes of a backup.
async fn taken(log: &FileAof) -> Vec<u8> {
    rest(log.backup().await.unwrap()).await.unwrap()
}

async fn rest(mut stream: Box<dyn BackupStream>) -> Result<Vec<u8>, LogError> {
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// What a node that starts on these bytes replays.
async fn restored(bytes: &[u8]) -> Result<Vec<LogRecord>, LogError> {
    let (backup, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(backup.path().join("0000000000000001.snap"), bytes).unwrap();
    install_log(backup.path(), &options(dir.path()))?;
    Ok(open(dir.path()).await?.1)
}

/// Holds what is acknowledged when the log has gone on.
struct Settles(Arc<Mutex<Vec<u64>>>);

#[async_trait]
impl SnapshotSource for Settles {
    async fn settle(&mut self) -> Result<Box<dyn SnapshotEntries>, LogError> {
        // One append at a time: the one that may be in the log already is the next.
        let next = self.0.lock().unwrap().len() + 1;
        let settled = async {
            while self.0.lock().unwrap().len() < next {
                tokio::task::yield_now().await;
            }
        };
        // The last one has ended before the log is closed.
        tokio::time::timeout(std::time::Duration::from_secs(1), settled).await.ok();
        let times = self.0.lock().unwrap().clone();
        let held = times.into_iter().map(|time| entry(&write(time, time))).collect();
        Ok(Box::new(Held(Some(held))))
    }
}

fn large(time: u64, name: u64) -> LogRecord {
    valued(time, name, &"v".repeat(10_000))
}

fn time(record: &LogRecord) -> u64 {
    entry(record).entry.version.timestamp.as_nanos()
}
