//! `Batch`: appends that are written together, and who waits for each.

use tokio::sync::oneshot;

use crate::ports::{LogError, LogRecord};

use super::marks::Marks;
use super::records::Records;
use super::reserve::Ahead;

/// Who waits for something, to be told how it went.
pub(super) type Done = oneshot::Sender<Result<(), LogError>>;

/// How something that is not done yet will have gone.
pub(super) type Pending = oneshot::Receiver<Result<(), LogError>>;

/// Appends that are written together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) records: Records,
    appends: Vec<Append>,
    /// The number of its first record.
    pub(super) first_sequence: u64,
    /// What its clock bounds and horizons come to.
    pub(super) marks: Marks,
    /// Space to ask for before it is written.
    pub(super) ahead: Option<Ahead>,
}

/// An append in a batch.
struct Append {
    records: usize,
    holds_values: bool,
    /// Who waits for it, unless that is who writes it.
    done: Option<Done>,
}

impl Batch {
    /// Adds an append; `done` is told how it went.
    pub(super) fn add(&mut self, records: &[LogRecord], done: Option<Done>) {
        for record in records {
            self.marks.raise(record);
            self.records.push(record);
        }
        self.appends.push(Append {
            records: records.len(),
            holds_values: records.iter().any(LogRecord::holds_value),
            done,
        });
    }

    /// Numbers its records for their place in the file.
    pub(super) fn number(&mut self, salt: u64) {
        self.records.number(self.first_sequence, salt);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.appends.is_empty()
    }

    /// How many appends are in it.
    pub(super) const fn appends(&self) -> usize {
        self.appends.len()
    }

    pub(super) fn holds_values(&self) -> bool {
        self.appends.iter().any(|append| append.holds_values)
    }

    /// Takes the appends that hold values out: whom to tell. To be numbered afterwards.
    pub(super) fn drop_values(&mut self) -> Vec<Done> {
        let (mut at, mut kept, mut dropped) = (0, Vec::new(), Vec::new());
        self.appends.retain_mut(|append| {
            let range = at..at + append.records;
            at = range.end;
            if append.holds_values {
                dropped.extend(append.done.take());
            } else {
                kept.push(range);
            }
            !append.holds_values
        });
        self.records.keep(kept.into_iter());
        dropped
    }

    /// Makes it a new one, with its buffers: whom to tell.
    pub(super) fn empty(&mut self) -> Vec<Done> {
        let waiting = self.appends.drain(..).filter_map(|append| append.done).collect();
        self.records.clear();
        self.marks = Marks::default();
        waiting
    }

    /// Whom to tell.
    pub(super) fn into_waiting(self) -> Vec<Done> {
        self.appends.into_iter().filter_map(|append| append.done).collect()
    }
}

/// Tells those who wait how it went.
pub(super) fn tell(waiting: Vec<Done>, outcome: &Result<(), LogError>) {
    for waiting in waiting {
        // Whoever does not wait any more does not need to know.
        waiting.send(outcome.clone()).ok();
    }
}
