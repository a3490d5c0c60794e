//! `Marks`: what all clock bounds and horizons of a log come to.
//!
//! Clock bounds only rise, and horizons do until one of zero takes them back: a snapshot needs the
//! last of each alone.

use crate::domain::Timestamp;
use crate::ports::LogRecord;

/// The highest clock bound and the highest horizon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Marks {
    clock_bound: Option<Timestamp>,
    horizon: Option<Timestamp>,
    /// Whether horizons before these records were taken back.
    takes_back: bool,
}

impl Marks {
    /// Takes a record in.
    pub(super) fn raise(&mut self, record: &LogRecord) {
        match record {
            LogRecord::ClockBound(bound) => self.clock_bound = self.clock_bound.max(Some(*bound)),
            LogRecord::Horizon(Timestamp::ZERO) => (self.horizon, self.takes_back) = (None, true),
            LogRecord::Horizon(horizon) => self.horizon = self.horizon.max(Some(*horizon)),
            LogRecord::Write(_) | LogRecord::Expunged { .. } => {}
        }
    }

    /// Takes in what later records come to.
    pub(super) fn raise_to(&mut self, other: Self) {
        self.clock_bound = self.clock_bound.max(other.clock_bound);
        if other.takes_back {
            (self.horizon, self.takes_back) = (None, true);
        }
        self.horizon = self.horizon.max(other.horizon);
    }

    /// The highest horizon since the last that was taken back.
    pub(super) const fn horizon(self) -> Option<Timestamp> {
        self.horizon
    }

    /// The records that say the same.
    pub(super) fn records(self) -> impl Iterator<Item = LogRecord> {
        let bound = self.clock_bound.map(LogRecord::ClockBound);
        bound.into_iter().chain(self.horizon.map(LogRecord::Horizon))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Key, NodeId, Version};

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    #[test]
    fn the_highest_of_each_is_kept() {
        let key = Key::new("k").unwrap();
        let expunged = LogRecord::Expunged { key, version: Version::new(at(9), NodeId::new(1)) };
        let mut marks = Marks::default();
        assert_eq!(marks.records().count(), 0);
        for record in [
            LogRecord::ClockBound(at(5)),
            LogRecord::Horizon(at(3)),
            LogRecord::ClockBound(at(4)),
            expunged,
            LogRecord::Horizon(at(2)),
        ] {
            marks.raise(&record);
        }
        let expected = [LogRecord::ClockBound(at(5)), LogRecord::Horizon(at(3))];
        assert!(marks.records().eq(expected.clone()));
        let mut other = Marks::default();
        other.raise(&LogRecord::Horizon(at(7)));
        marks.raise_to(other);
        marks.raise_to(Marks::default());
        let [bound, _] = expected;
        assert!(marks.records().eq([bound.clone(), LogRecord::Horizon(at(7))]));
        let mut back = Marks::default();
        back.raise(&LogRecord::Horizon(at(0)));
        marks.raise_to(back);
        assert!(marks.records().eq([bound.clone()]));
        back.raise(&LogRecord::Horizon(at(2)));
        marks.raise(&LogRecord::Horizon(at(9)));
        marks.raise_to(back);
        assert!(marks.records().eq([bound, LogRecord::Horizon(at(2))]));
    }
}
