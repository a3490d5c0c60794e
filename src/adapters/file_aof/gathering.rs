//! `Gathering`: how long a batch waits before it is forced, with the policy `always`.
//!
//! Clients that were answered together write again together, a moment later. A sync that begins
//! before they have done so is one more than needed, and those that come too late wait for two. So
//! the thread waits for as many appends as the last batch answered and as were queued by then: for a
//! short time only, and not again for a while if they did not come.
//!
//! Group commit with a delay is old; `PostgreSQL` has it as `commit_delay` and `commit_siblings`. This
//! one needs no settings: it follows what clients do.

use std::time::{Duration, Instant};

/// How long a batch waits at least if not all have come: clients on the same machine need that long.
const WAIT_LEAST: Duration = Duration::from_micros(1_500);

/// How long at most. Half of a sync otherwise: what is saved is a sync.
const WAIT_MOST: Duration = Duration::from_millis(20);

/// After a wait in vain, so many batches do not wait; then twice as many, and so on, up to the last.
const WITHOUT_FIRST: u32 = 32;
const WITHOUT_LAST: u32 = 4_096;

/// Decides whether a batch waits for more.
pub(super) struct Gathering {
    /// The appends that the next batch may expect, and how long it may wait for them.
    expected: usize,
    patience: Duration,
    /// Until when it does, once it does.
    until: Option<Instant>,
    /// So many batches do not wait, and so many after the next wait in vain.
    without: u32,
    without_next: u32,
}

impl Default for Gathering {
    fn default() -> Self {
        Self {
            expected: 0,
            patience: WAIT_LEAST,
            until: None,
            without: 0,
            without_next: WITHOUT_FIRST,
        }
    }
}

impl Gathering {
    /// A batch of so many appends is answered, its sync took so long, and so many are queued.
    pub(super) fn record(&mut self, answered: usize, sync: Duration, queued: usize) {
        self.expected = answered + queued;
        self.patience = (sync / 2).clamp(WAIT_LEAST, WAIT_MOST);
        self.until = None;
    }

    /// How long the batch that is next, with so many appends in it now, still waits; `None`: it is to
    /// be written.
    pub(super) fn left(&mut self, queued: usize, now: Instant) -> Option<Duration> {
        if queued >= self.expected {
            if self.until.is_some() {
                // They came while they were waited for.
                self.without_next = WITHOUT_FIRST;
            }
            self.end();
            return None;
        }
        if self.until.is_none() && self.without > 0 {
            self.without -= 1;
            self.end();
            return None;
        }
        let until = *self.until.get_or_insert(now + self.patience);
        let left = until.saturating_duration_since(now);
        if left.is_zero() {
            self.without = self.without_next;
            self.without_next = (2 * self.without_next).min(WITHOUT_LAST);
            self.end();
            return None;
        }
        Some(left)
    }

    /// Whether a batch waits that has fewer appends than it waits for.
    pub(super) const fn waits_for_more(&self, queued: usize) -> bool {
        self.until.is_some() && queued < self.expected
    }

    /// Nobody is waited for any more, until the next batch is answered.
    pub(super) const fn end(&mut self) {
        (self.expected, self.until) = (0, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNC: Duration = Duration::from_millis(10);

    fn after(gathering: &mut Gathering, queued: usize, began: Instant, ms: u64) -> Option<u128> {
        let left = gathering.left(queued, began + Duration::from_millis(ms));
        left.map(|left| left.as_millis())
    }

    #[test]
    fn a_batch_waits_for_those_that_were_answered_and_no_longer_than_half_a_sync() {
        let (mut gathering, began) = (Gathering::default(), Instant::now());
        // The first one has nobody to wait for.
        assert_eq!(after(&mut gathering, 1, began, 0), None);
        gathering.record(3, SYNC, 2);
        assert_eq!(after(&mut gathering, 2, began, 0), Some(5));
        assert!(gathering.waits_for_more(4) && !gathering.waits_for_more(5));
        assert_eq!(after(&mut gathering, 4, began, 3), Some(2));
        assert_eq!(after(&mut gathering, 5, began, 4), None);
        gathering.record(5, SYNC, 0);
        assert_eq!(after(&mut gathering, 4, began, 0), Some(5));
        assert_eq!(after(&mut gathering, 4, began, 5), None);
        assert!(!gathering.waits_for_more(0));
    }

    #[test]
    fn one_client_alone_never_waits() {
        let (mut gathering, began) = (Gathering::default(), Instant::now());
        for ms in 0..100 {
            gathering.record(1, SYNC, 0);
            assert_eq!(after(&mut gathering, 1, began, ms), None);
        }
    }

    #[test]
    fn who_is_waited_for_in_vain_is_waited_for_ever_more_seldom() {
        let (mut gathering, began) = (Gathering::default(), Instant::now());
        let mut pauses = Vec::new();
        let mut since = 0;
        for ms in 0..40_000 {
            // Two were answered, of whom one comes back.
            gathering.record(2, SYNC, 0);
            if after(&mut gathering, 1, began, ms).is_some() {
                assert_eq!(after(&mut gathering, 1, began, ms + 5), None);
                pauses.push(since);
                since = 0;
            } else {
                since += 1;
            }
        }
        assert_eq!(pauses[..9], [0, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096]);
        assert!(pauses[9..].iter().all(|pause| *pause == 4_096));
    }

    #[test]
    fn who_comes_again_is_waited_for_again() {
        let (mut gathering, began) = (Gathering::default(), Instant::now());
        for without in [32, 32, 32] {
            gathering.record(2, SYNC, 0);
            assert_eq!(after(&mut gathering, 1, began, 0), Some(5));
            assert_eq!(after(&mut gathering, 1, began, 5), None);
            for _ in 0..without {
                gathering.record(2, SYNC, 0);
                assert_eq!(after(&mut gathering, 1, began, 0), None);
            }
            gathering.record(2, SYNC, 0);
            assert_eq!(after(&mut gathering, 1, began, 0), Some(5));
            assert_eq!(after(&mut gathering, 2, began, 1), None);
        }
    }

    #[test]
    fn patience_is_bounded_both_ways() {
        let began = Instant::now();
        for (sync, patience) in [
            (Duration::ZERO, WAIT_LEAST),
            (Duration::from_millis(12), Duration::from_millis(6)),
            (Duration::from_secs(60), WAIT_MOST),
        ] {
            let mut gathering = Gathering::default();
            gathering.record(2, sync, 0);
            assert_eq!(gathering.left(1, began), Some(patience));
        }
    }
}
