//! `Reserve`: the space behind the end of the file that values must not use.
//!
//! A disk that is full must not keep anybody from removing keys, and a removal has to be in the log
//! first. So the file has space allocated behind its end: values are written only where as much as
//! the reserve is left behind them, removals and clock bounds may use it up. Space is asked for in
//! steps, so that few writes ask; a disk with less than a step gets asked for just enough.
//!
//! Here is only the decision. Space behind the end is no part of the file's length, so a reader sees
//! nothing of it. Where the file system cannot do this, there is no reserve: everything is written
//! until the disk refuses it.

/// The reserve on disks that are not small: some forty thousand removals of keys of 30 bytes.
const MAX_RESERVE_BYTES: u64 = 4 << 20;

/// The part of a small disk that is reserved: one in this many bytes.
const SHARE_OF_DISK: u64 = 16;

/// The most that is asked for beyond what is needed now.
const MAX_STEP_BYTES: u64 = 1 << 20;

/// The space behind the end of the file, as far as the file system has promised it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reserve {
    /// 0: there is none.
    bytes: u64,
    /// Up to here in the file there is space, as far as known.
    allocated: u64,
    /// Whether the disk had not enough when it was asked last.
    is_short: bool,
}

/// Space to ask the file system for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ahead {
    /// Up to here there is space already.
    pub(super) from: u64,
    /// What is enough for now.
    pub(super) least: u64,
    /// What saves the next few writes from asking; not less.
    pub(super) wanted: u64,
}

/// What the file system says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// There is space up to here.
    Allocated(u64),
    /// There is not enough.
    Short,
    /// It cannot promise space.
    Unsupported,
}

impl Reserve {
    /// The reserve of a file of this length on a file system of this many bytes (if known), which
    /// has not been asked for space yet.
    pub(super) fn new(end: u64, disk_bytes: Option<u64>) -> Self {
        let share = disk_bytes.map_or(u64::MAX, |bytes| bytes / SHARE_OF_DISK);
        Self { bytes: share.min(MAX_RESERVE_BYTES), allocated: end, is_short: false }
    }

    /// What to ask for before `bytes` bytes are written behind `end`; `None`: nothing. A disk that
    /// is short is asked again for values only: it may take long to say no.
    pub(super) fn ahead_of(&self, end: u64, bytes: u64, holds_values: bool) -> Option<Ahead> {
        let least = end.saturating_add(bytes).saturating_add(self.bytes);
        if self.bytes == 0 || least <= self.allocated || (self.is_short && !holds_values) {
            return None;
        }
        let wanted = least.saturating_add(self.bytes.min(MAX_STEP_BYTES));
        Some(Ahead { from: self.allocated.max(end), least, wanted })
    }

    /// Takes in what the file system says. Whether values may be written now.
    pub(super) fn record(&mut self, answer: Answer) -> bool {
        match answer {
            Answer::Allocated(up_to) => self.allocated = self.allocated.max(up_to),
            Answer::Short => {}
            Answer::Unsupported => self.bytes = 0,
        }
        self.is_short = matches!(answer, Answer::Short);
        !self.is_short
    }

    /// The file was cut at `end`, and what was behind it may be gone. What to ask for again.
    pub(super) fn record_cut(&mut self, end: u64) -> Option<Ahead> {
        self.allocated = end;
        let lost = self.ahead_of(end, 0, true)?;
        Some(Ahead { wanted: lost.least, ..lost })
    }

    /// Whether the disk had not enough when it was asked last.
    pub(super) const fn is_short(&self) -> bool {
        self.is_short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;

    #[test]
    fn the_reserve_is_a_share_of_a_small_disk_and_bounded_on_a_large_one() {
        for (disk, reserve) in [
            (Some(0), 0),
            (Some(MIB), 64 * KIB),
            (Some(64 * MIB), 4 * MIB),
            (Some(u64::MAX), 4 * MIB),
            (None, 4 * MIB),
        ] {
            assert_eq!(Reserve::new(0, disk).bytes, reserve, "{disk:?}");
        }
    }

    #[test]
    fn a_new_file_asks_for_its_reserve_and_a_step_and_then_not_before_the_step_is_used() {
        let mut reserve = Reserve::new(100, None);
        let ahead = reserve.ahead_of(100, 0, false).unwrap();
        let least = 100 + 4 * MIB;
        assert_eq!(ahead, Ahead { from: 100, least, wanted: least + MIB });
        assert!(reserve.record(Answer::Allocated(ahead.wanted)));
        for holds_values in [false, true] {
            assert_eq!(reserve.ahead_of(100, MIB, holds_values), None);
            let next = reserve.ahead_of(100, MIB + 1, holds_values).unwrap();
            assert_eq!(
                next,
                Ahead { from: least + MIB, least: least + MIB + 1, wanted: least + 2 * MIB + 1 }
            );
        }
    }

    /// Every length of a file, every batch, every disk, in units of a small disk's share: what is
    /// written as a value always leaves the reserve behind it.
    #[test]
    fn values_never_use_the_reserve_and_removals_may() {
        let disk_bytes = 16 * 8;
        let reserve_bytes = 8;
        for free in 0..64 {
            for batches in 0..3_u32.pow(5) {
                let (mut reserve, mut end) = (Reserve::new(0, Some(disk_bytes)), 0);
                for turn in 0..5 {
                    let (bytes, holds_values) = match batches / 3_u32.pow(turn) % 3 {
                        0 => (1, false),
                        1 => (5, true),
                        _ => (13, true),
                    };
                    let mut values_fit = true;
                    if let Some(ahead) = reserve.ahead_of(end, bytes, holds_values) {
                        assert!(end <= ahead.from && ahead.from < ahead.least);
                        assert!(ahead.least < ahead.wanted);
                        let fits = [ahead.wanted, ahead.least].into_iter().find(|to| *to <= free);
                        let answer = fits.map_or(Answer::Short, Answer::Allocated);
                        values_fit = reserve.record(answer);
                        assert_eq!(values_fit, fits.is_some());
                        assert_eq!(reserve.is_short(), !values_fit);
                    }
                    if holds_values && values_fit {
                        end += bytes;
                        assert!(end + reserve_bytes <= free, "{free} {batches}");
                    } else if !holds_values {
                        // It may not fit either; but if not, not because of values.
                        end += bytes;
                    } else {
                        assert!(end + bytes + reserve_bytes > free, "{free} {batches}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_short_disk_is_asked_again_for_values_only() {
        let mut reserve = Reserve::new(0, None);
        assert!(!reserve.record(Answer::Short));
        assert_eq!(reserve.ahead_of(0, 10, false), None);
        let ahead = reserve.ahead_of(0, 10, true).unwrap();
        assert!(reserve.record(Answer::Allocated(ahead.least)));
        assert!(!reserve.is_short());
        assert_eq!(reserve.ahead_of(0, 10, true), None);
    }

    #[test]
    fn what_was_cut_is_asked_for_again_without_a_step() {
        let mut reserve = Reserve::new(0, None);
        assert!(reserve.record(Answer::Allocated(100 * MIB)));
        let again = Ahead { from: 50, least: 50 + 4 * MIB, wanted: 50 + 4 * MIB };
        assert_eq!(reserve.record_cut(50), Some(again));
        assert!(reserve.record(Answer::Allocated(again.least)));
        assert_eq!(reserve.ahead_of(50, 0, true), None);
    }

    #[test]
    fn where_space_cannot_be_promised_nothing_is_asked_for_and_everything_tried() {
        let mut reserve = Reserve::new(0, None);
        assert!(reserve.record(Answer::Unsupported));
        assert_eq!(reserve.ahead_of(0, u64::MAX, true), None);
        assert_eq!(reserve.record_cut(0), None);
    }

    #[test]
    fn the_end_of_numbers_is_no_overflow() {
        let reserve = Reserve::new(u64::MAX - 1, None);
        assert_eq!(reserve.ahead_of(u64::MAX - 1, u64::MAX, true).unwrap().wanted, u64::MAX);
    }
}
