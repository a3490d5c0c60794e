//! `Restorer`: fills a node from its log.
//!
//! It works on several threads at the same time, each with keys of its own: merging needs no order
//! but that of one key, and of the clock only the end counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::domain::{KeyedEntry, NodeId, Timestamp};
use crate::ports::{LogRecord, Merged, ReplayVisitor, Store};

use super::fence::Horizon;
use super::hook_chain::Resumption;

/// Takes in the records of a replay.
#[derive(Clone)]
pub(crate) struct Restorer {
    store: Arc<dyn Store>,
    horizon: Arc<Horizon>,
    newest: Arc<Newest>,
    /// Hooks that are to hear of what this node stamped.
    resumption: Option<(NodeId, Resumption)>,
}

/// The latest time that stands in a log.
#[derive(Debug, Default)]
pub(crate) struct Newest(AtomicU64);

impl Newest {
    pub(crate) fn get(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn raise(&self, seen: Timestamp) {
        self.0.fetch_max(seen.as_nanos(), Ordering::Relaxed);
    }
}

impl Restorer {
    pub(crate) fn new(store: Arc<dyn Store>, horizon: Arc<Horizon>) -> Self {
        Self { store, horizon, newest: Arc::default(), resumption: None }
    }

    /// The same, telling hooks of what this node stamped.
    pub(crate) fn telling(self, me: NodeId, resumption: Option<Resumption>) -> Self {
        Self { resumption: resumption.map(|resumption| (me, resumption)), ..self }
    }

    fn merge(&self, write: KeyedEntry) {
        let version = write.entry.version;
        let told = self.resumption.as_ref().filter(|(me, resumption)| {
            version.node == *me && resumption.includes(version.timestamp)
        });
        let Some((_, resumption)) = told else {
            self.store.merge(write);
            return;
        };
        if matches!(self.store.merge(write.clone()), Merged::Applied { .. }) {
            resumption.tell(&write);
        }
    }

    /// What the clock has to start from when the replay has ended.
    pub(crate) const fn newest(&self) -> &Arc<Newest> {
        &self.newest
    }
}

impl ReplayVisitor for Restorer {
    fn visit(&mut self, record: LogRecord) {
        match record {
            LogRecord::Write(write) => {
                self.newest.raise(write.entry.version.timestamp);
                self.merge(write);
            }
            LogRecord::ClockBound(bound) => self.newest.raise(bound),
            LogRecord::Horizon(Timestamp::ZERO) => self.horizon.reset(),
            LogRecord::Horizon(reached) => {
                self.newest.raise(reached);
                self.horizon.raise(reached);
            }
            // At its place: what follows of this key may be older, and counts.
            LogRecord::Expunged { key, version } => {
                self.store.expunge(&key, version);
            }
        }
    }

    fn another(&self) -> Option<Box<dyn ReplayVisitor>> {
        Some(Box::new(self.clone()))
    }
}
