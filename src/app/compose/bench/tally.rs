//! How many requests ended how, and how long they took.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::ports::OpKind;

use super::connection::Reply;

/// Kinds of errors that are told apart.
const KINDS: usize = 20;

/// Significant digits of times.
const DIGITS: u8 = 3;

/// Counts, and times in microseconds; what was refused or broke off has no time.
#[derive(Debug)]
pub(super) struct Tally {
    times: [Histogram<u64>; 3],
    pub(super) partial: u64,
    pub(super) errors: BTreeMap<String, u64>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self { times: [(); 3].map(|()| histogram()), partial: 0, errors: BTreeMap::new() }
    }

    pub(super) fn record(&mut self, call: OpKind, reply: Reply, took: Duration) {
        match reply {
            Reply::Success => {}
            Reply::Partial => self.partial += 1,
            Reply::Error(error) => return self.count_error(error, 1),
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(times) = self.times.get_mut(call as usize) {
            // The histogram grows as it needs to.
            times.record(micros.max(1)).ok();
        }
    }

    /// Adds another one.
    pub(super) fn add(&mut self, other: &Self) {
        for (times, others) in self.times.iter_mut().zip(&other.times) {
            merge(times, others);
        }
        self.partial += other.partial;
        for (error, times) in &other.errors {
            self.count_error(error.clone(), *times);
        }
    }

    /// The times of one call.
    pub(super) fn of(&self, call: OpKind) -> &Histogram<u64> {
        let [get, add, remove] = &self.times;
        match call {
            OpKind::Get => get,
            OpKind::Add => add,
            OpKind::Remove => remove,
        }
    }

    /// The times of all calls.
    pub(super) fn all(&self) -> Histogram<u64> {
        let mut all = histogram();
        self.times.iter().for_each(|times| merge(&mut all, times));
        all
    }

    /// Requests that were carried out, fully or partially.
    pub(super) fn answered(&self) -> u64 {
        self.times.iter().map(Histogram::len).sum()
    }

    /// Requests that were not.
    pub(super) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Requests that ended, in whatever way.
    pub(super) fn all_ended(&self) -> u64 {
        self.answered() + self.failed()
    }

    fn count_error(&mut self, error: String, times: u64) {
        let is_known = self.errors.contains_key(&error) || self.errors.len() < KINDS;
        let kind = if is_known { error } else { "others".to_owned() };
        *self.errors.entry(kind).or_default() += times;
    }
}

fn histogram() -> Histogram<u64> {
    let mut histogram =
        Histogram::new(DIGITS).unwrap_or_else(|_| unreachable!("three digits can be had"));
    histogram.auto(true);
    histogram
}

fn merge(into: &mut Histogram<u64>, from: &Histogram<u64>) {
    // It grows as it needs to.
    into.add(from).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn requests_are_counted_by_call_and_errors_by_kind() {
        let mut tally = Tally::new();
        for ms in 1..=100 {
            tally.record(OpKind::Add, Reply::Success, ms * MS);
        }
        tally.record(OpKind::Get, Reply::Partial, 500 * MS);
        tally.record(OpKind::Get, Reply::Error("503 overloaded".into()), MS);
        let mut sum = Tally::new();
        sum.add(&tally);
        sum.add(&tally);
        assert_eq!((sum.answered(), sum.partial, sum.failed()), (202, 2, 2));
        assert_eq!(sum.errors.get("503 overloaded"), Some(&2));
        let median = sum.of(OpKind::Add).value_at_quantile(0.5);
        assert!(median.abs_diff(50_000) < 100, "{median}");
        assert!(sum.all().max().abs_diff(500_000) < 1_000);
    }

    #[test]
    fn no_more_kinds_of_errors_are_kept_than_somebody_reads() {
        let mut tally = Tally::new();
        for n in 0..1_000 {
            tally.record(OpKind::Get, Reply::Error(format!("error {n}")), MS);
        }
        assert_eq!((tally.errors.len(), tally.failed()), (KINDS + 1, 1_000));
    }
}
