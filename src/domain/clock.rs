//! The hybrid logical clock: timestamps that never repeat, never go back and stay near wall time.
//!
//! After Kulkarni et al., "Logical physical clocks" (2014), with the logical part folded into the
//! nanoseconds: a stamp is `max(wall, last + 1)`, and every version seen moves `last`.
//!
//! Two protections are added:
//!
//! * A version further ahead of wall time than the drift bound is refused, or one bad clock would
//!   make keys unchangeable for everybody until the rest of the world has caught up.
//! * The clock hands out stamps only below an upper bound that has been made durable before. After
//!   a restart it begins at that bound, so it does not go back even if wall time does. The bound
//!   lies [`RESERVATION_NS`] ahead, less than the default drift bound, so peers accept the stamps of
//!   a node that restarted at once.
//!
//! Caveat: this is a value, not a shared clock. The caller holds the lock and brings the wall time.

use super::Timestamp;

/// How far ahead of the stamp that needs it the durable upper bound is placed, in nanoseconds.
///
/// Half the default drift bound: as far as peers certainly tolerate, and still only four log
/// records a second on a node that writes without pause.
pub const RESERVATION_NS: u64 = 250_000_000;

/// How far at least: on a node whose wall went back it is what paces the log records.
const MIN_RESERVATION_NS: u64 = 1_000_000;

/// A source of increasing timestamps.
#[derive(Debug, Clone)]
pub struct HybridClock {
    /// The largest timestamp stamped or seen.
    last: Timestamp,
    /// Stamps up to here are covered by a durable bound.
    reserved: Timestamp,
    max_drift_ns: u64,
}

impl HybridClock {
    /// A clock that has seen nothing, with this bound for what it accepts from others.
    pub const fn new(max_drift_ns: u64) -> Self {
        Self { last: Timestamp::ZERO, reserved: Timestamp::ZERO, max_drift_ns }
    }

    /// The next stamp at this wall time: larger than all stamps and versions before.
    ///
    /// # Errors
    /// [`ReservationNeeded`] when the stamp would pass the durable bound. The clock has not moved:
    /// make the bound named there durable, [`reserve`](Self::reserve) it, and ask again.
    pub fn stamp(&mut self, wall: Timestamp) -> Result<Timestamp, ReservationNeeded> {
        let next = wall.max(self.last.plus_nanos(1));
        if next > self.reserved {
            // From wall time, not from the stamp: after a restart the clock begins at the last
            // bound, and bounds that built on bounds would run ahead of the wall with every restart.
            let up_to = wall.plus_nanos(RESERVATION_NS).max(next.plus_nanos(MIN_RESERVATION_NS));
            return Err(ReservationNeeded { up_to });
        }
        self.last = next;
        Ok(next)
    }

    /// Allows stamps up to `up_to`, which the caller has made durable.
    pub fn reserve(&mut self, up_to: Timestamp) {
        self.reserved = self.reserved.max(up_to);
    }

    /// Moves past a version that came from another node.
    ///
    /// # Errors
    /// [`ClockDrift`] when the version lies too far ahead of `wall`. The clock has not moved and
    /// the version must not enter this node.
    pub fn observe(&mut self, wall: Timestamp, seen: Timestamp) -> Result<(), ClockDrift> {
        self.check(wall, seen)?;
        self.last = self.last.max(seen);
        Ok(())
    }

    /// Whether a version could be observed, without moving.
    ///
    /// A version not beyond what this clock has already reached passes whatever the wall says: it
    /// is no further ahead than this node's own stamps are.
    ///
    /// # Errors
    /// [`ClockDrift`] when the version lies too far ahead of `wall`.
    pub fn check(&self, wall: Timestamp, seen: Timestamp) -> Result<(), ClockDrift> {
        let ahead_ns = seen.nanos_after(wall);
        if ahead_ns > self.max_drift_ns && seen > self.last {
            return Err(ClockDrift { ahead_ns, max_drift_ns: self.max_drift_ns });
        }
        Ok(())
    }

    /// Moves past what this node's own log says, however far ahead: it was accepted once.
    pub fn restore(&mut self, seen: Timestamp) {
        self.last = self.last.max(seen);
    }
}

/// The next stamp lies beyond the durable bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timestamps up to {} must be reserved first", up_to.as_nanos())]
pub struct ReservationNeeded {
    /// The bound to make durable.
    pub up_to: Timestamp,
}

/// A version from further in the future than this node accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the version lies {} ms ahead of this node's clock, more than the {} ms allowed; check the clocks of both nodes (NTP)",
    ahead_ns / 1_000_000,
    max_drift_ns / 1_000_000
)]
pub struct ClockDrift {
    /// How far ahead of the wall clock, in nanoseconds.
    pub ahead_ns: u64,
    /// The bound it broke, in nanoseconds.
    pub max_drift_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DRIFT: u64 = 500_000_000;

    fn t(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    fn stamp(clock: &mut HybridClock, wall: Timestamp) -> Timestamp {
        match clock.stamp(wall) {
            Ok(stamp) => stamp,
            Err(needed) => {
                clock.reserve(needed.up_to);
                clock.stamp(wall).unwrap()
            }
        }
    }

    #[test]
    fn stamps_follow_the_wall_and_never_repeat_when_it_stands_still_or_goes_back() {
        let mut clock = HybridClock::new(DRIFT);
        assert_eq!(stamp(&mut clock, t(100)), t(100));
        assert_eq!(stamp(&mut clock, t(100)), t(101));
        assert_eq!(stamp(&mut clock, t(50)), t(102));
        assert_eq!(stamp(&mut clock, t(200)), t(200));
    }

    #[test]
    fn a_seen_version_is_passed_by_the_next_stamp() {
        let mut clock = HybridClock::new(DRIFT);
        clock.observe(t(100), t(400)).unwrap();
        assert_eq!(stamp(&mut clock, t(100)), t(401));
    }

    #[test]
    fn a_version_from_too_far_ahead_is_refused_and_does_not_move_the_clock() {
        let mut clock = HybridClock::new(DRIFT);
        assert!(clock.observe(t(100), t(100 + DRIFT)).is_ok());
        let mut clock = HybridClock::new(DRIFT);
        let refused = clock.observe(t(100), t(101 + DRIFT)).unwrap_err();
        assert_eq!(refused, ClockDrift { ahead_ns: DRIFT + 1, max_drift_ns: DRIFT });
        assert_eq!(stamp(&mut clock, t(100)), t(100));
    }

    #[test]
    fn a_node_whose_wall_went_back_still_accepts_what_is_not_beyond_its_own_stamps() {
        let mut clock = HybridClock::new(DRIFT);
        clock.restore(t(10 * DRIFT));
        assert!(clock.check(t(1), t(10 * DRIFT)).is_ok());
        assert!(clock.check(t(1), t(10 * DRIFT + 1)).is_err());
    }

    #[test]
    fn no_stamp_is_given_beyond_the_durable_bound() {
        let mut clock = HybridClock::new(DRIFT);
        let needed = clock.stamp(t(100)).unwrap_err();
        assert_eq!(needed.up_to, t(100 + RESERVATION_NS));
        clock.reserve(needed.up_to);
        assert_eq!(clock.stamp(needed.up_to), Ok(needed.up_to));
        assert!(clock.stamp(needed.up_to).is_err());
    }

    #[test]
    fn a_restarted_clock_begins_after_the_durable_bound_although_the_wall_went_back() {
        let mut before = HybridClock::new(DRIFT);
        let bound = before.stamp(t(1_000)).unwrap_err().up_to;
        let mut after = HybridClock::new(DRIFT);
        after.restore(bound);
        assert!(stamp(&mut after, t(10)) > bound);
    }

    #[test]
    fn restarts_in_quick_succession_do_not_push_the_clock_ahead() {
        let mut bound = Timestamp::ZERO;
        for restart in 0..100 {
            let wall = t(1_000_000_000 + restart);
            let mut clock = HybridClock::new(DRIFT);
            clock.restore(bound);
            bound = clock.stamp(wall).unwrap_err().up_to;
            assert!(bound.nanos_after(wall) <= RESERVATION_NS + 100 * MIN_RESERVATION_NS);
        }
    }

    #[test]
    fn the_bound_lies_within_what_peers_tolerate() {
        const { assert!(RESERVATION_NS < DRIFT) };
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn stamps_increase_whatever_the_wall_does_and_others_say(
            steps in proptest::collection::vec((0u64..2_000, proptest::option::of(0u64..2_000)), 1..50)
        ) {
            let mut clock = HybridClock::new(500);
            let mut last = Timestamp::ZERO;
            for (wall, seen) in steps {
                if let Some(seen) = seen
                    && clock.observe(t(wall), t(seen)).is_ok()
                {
                    last = last.max(t(seen));
                }
                let next = stamp(&mut clock, t(wall));
                prop_assert!(next > last || (last == Timestamp::ZERO && next == last.max(t(wall))));
                last = next;
            }
        }
    }
}
