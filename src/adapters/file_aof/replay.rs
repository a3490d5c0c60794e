//! `Fanout`: a replay on all cores. One thread reads, verifies and decodes; others take the records
//! in, each those of its share of the keys, so that records of one key keep their order.
//!
//! Records go over in batches, and few batches wait: a log that is read faster than it is taken in
//! takes no more memory for that.

use std::hash::BuildHasher;
use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rapidhash::fast::SeedableState;

use crate::domain::Key;
use crate::ports::{LogError, LogRecord, ReplayVisitor};

use super::format::max_encoded_bytes;

/// Threads that take records in. More would wait for the one that reads.
const MAX_THREADS: usize = 4;

/// When a batch goes over.
const BATCH_RECORDS: usize = 512;
const BATCH_BYTES: usize = 1 << 20;

/// Batches that wait for a thread.
const WAITING_BATCHES: usize = 4;

/// Hands the records of a replay to visitors.
pub(super) struct Fanout {
    /// For what is of no key; and for everything if it cannot be had more than once.
    visitor: Box<dyn ReplayVisitor>,
    shares: Vec<Share>,
    hasher: SeedableState<'static>,
}

/// A thread, and what it gets next.
struct Share {
    batch: Vec<LogRecord>,
    bytes: usize,
    batches: SyncSender<Vec<LogRecord>>,
    thread: JoinHandle<()>,
}

impl Fanout {
    /// Threads for this visitor, if it can be had more than once.
    pub(super) fn start(visitor: Box<dyn ReplayVisitor>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self::with_threads(visitor, cores.min(MAX_THREADS))
    }

    fn with_threads(visitor: Box<dyn ReplayVisitor>, threads: usize) -> Self {
        let shares = (0..threads).map_while(|_| Share::start(visitor.another()?));
        // With one core, or a system that gives no threads, whoever reads takes in.
        let shares = if threads > 1 { shares.collect() } else { Vec::new() };
        Self { visitor, shares, hasher: SeedableState::random() }
    }

    /// The next record.
    pub(super) fn visit(&mut self, record: LogRecord) {
        let share = match key_of(&record) {
            Some(key) => {
                // The remainder of a small number.
                let share = self.hasher.hash_one(key).checked_rem(self.shares.len() as u64);
                share.and_then(|share| self.shares.get_mut(usize::try_from(share).ok()?))
            }
            None => None,
        };
        match share {
            Some(share) => share.add(record),
            None => self.visitor.visit(record),
        }
    }

    /// Waits until everything is taken in.
    ///
    /// # Errors
    /// When a visitor has panicked.
    pub(super) fn finish(self) -> Result<(), LogError> {
        self.shares.into_iter().try_for_each(Share::finish)
    }
}

impl Share {
    /// `None` if there are no more threads to be had.
    fn start(visitor: Box<dyn ReplayVisitor>) -> Option<Self> {
        let (batches, incoming) = sync_channel(WAITING_BATCHES);
        let work = move || take_in(visitor, &incoming);
        let thread = std::thread::Builder::new().name("lally-replay".into()).spawn(work).ok()?;
        Some(Self { batch: Vec::new(), bytes: 0, batches, thread })
    }

    fn add(&mut self, record: LogRecord) {
        self.bytes += max_encoded_bytes(&record);
        self.batch.push(record);
        if self.batch.len() >= BATCH_RECORDS || self.bytes >= BATCH_BYTES {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        let next = Vec::with_capacity(BATCH_RECORDS);
        self.bytes = 0;
        // Fails if the thread has panicked, which the end of the replay tells.
        self.batches.send(std::mem::replace(&mut self.batch, next)).ok();
    }

    fn finish(mut self) -> Result<(), LogError> {
        self.hand_over();
        drop(self.batches);
        let panicked = |_| LogError::Failed("taking in what was read panicked".into());
        self.thread.join().map_err(panicked)
    }
}

fn take_in(mut visitor: Box<dyn ReplayVisitor>, incoming: &Receiver<Vec<LogRecord>>) {
    for batch in incoming {
        for record in batch {
            visitor.visit(record);
        }
    }
}

const fn key_of(record: &LogRecord) -> Option<&Key> {
    match record {
        LogRecord::Write(write) => Some(&write.key),
        LogRecord::Expunged { key, .. } => Some(key),
        LogRecord::ClockBound(_) | LogRecord::Horizon(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};
    use std::thread::ThreadId;

    use super::*;
    use crate::domain::{Entry, KeyedEntry, NodeId, Timestamp, Version};

    /// What was taken in, and where.
    #[derive(Clone, Default)]
    struct Seen {
        records: Arc<Mutex<Vec<(ThreadId, LogRecord)>>>,
        panics: bool,
    }

    impl ReplayVisitor for Seen {
        fn visit(&mut self, record: LogRecord) {
            assert!(!self.panics, "as told");
            self.records.lock().unwrap().push((std::thread::current().id(), record));
        }

        fn another(&self) -> Option<Box<dyn ReplayVisitor>> {
            Some(Box::new(self.clone()))
        }
    }

    fn version(time: u64) -> Version {
        Version::new(Timestamp::from_nanos(time), NodeId::new(1))
    }

    fn write(key: u64, time: u64) -> LogRecord {
        let key = Key::new(&key.to_string()).unwrap();
        match time % 3 {
            0 => LogRecord::Expunged { key, version: version(time) },
            _ => LogRecord::Write(KeyedEntry::new(key, Entry::tombstone(version(time)))),
        }
    }

    fn replay(threads: usize, records: &[LogRecord]) -> Vec<(ThreadId, LogRecord)> {
        let seen = Seen::default();
        let mut fanout = Fanout::with_threads(Box::new(seen.clone()), threads);
        for record in records {
            fanout.visit(record.clone());
        }
        fanout.finish().unwrap();
        Arc::into_inner(seen.records).unwrap().into_inner().unwrap()
    }

    #[test]
    fn every_record_is_taken_in_once_those_of_a_key_in_order_and_by_one_thread() {
        let mut records: Vec<_> = (0..5_000).map(|n| write(n % 97, n)).collect();
        records.insert(2_500, LogRecord::Horizon(Timestamp::from_nanos(5)));
        records.push(LogRecord::Horizon(Timestamp::ZERO));
        for threads in [1, 2, 4] {
            let seen = replay(threads, &records);
            assert_eq!(seen.len(), records.len());
            let mut by_key: HashMap<_, Vec<_>> = HashMap::new();
            for (thread, record) in &seen {
                by_key.entry(key_of(record)).or_default().push((thread, record));
            }
            for (key, seen) in by_key {
                assert!(seen.iter().all(|(thread, _)| *thread == seen[0].0), "{key:?}");
                let expected = records.iter().filter(|record| key_of(record) == key);
                assert!(seen.iter().map(|(_, record)| *record).eq(expected), "{key:?}");
            }
            let mut used: Vec<_> = seen.iter().map(|(thread, _)| *thread).collect();
            used.sort_unstable_by_key(|thread| format!("{thread:?}"));
            used.dedup();
            // This one takes in what is of no key.
            assert_eq!(used.len(), if threads == 1 { 1 } else { threads + 1 });
        }
    }

    #[test]
    fn a_visitor_that_panics_fails_the_replay_and_hangs_nobody() {
        let seen = Seen { panics: true, ..Seen::default() };
        let mut fanout = Fanout::with_threads(Box::new(seen), 2);
        for n in 0..100_000 {
            fanout.visit(write(n, n));
        }
        assert!(matches!(fanout.finish(), Err(LogError::Failed(_))));
    }
}
