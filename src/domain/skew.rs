//! How far the clocks of others are off this node's, and whether this one's must be the wrong one.
//!
//! A peer that is asked for its wall time answers some time between the question and the answer, so
//! half the round trip is what the estimate may be wrong by (Cristian, "Probabilistic clock
//! synchronization", 1989). From the estimates of all members that answer, and this node's own clock
//! as one more, the median is the time that at least half of them agree with or lie beyond; where
//! that is certainly further away than versions may lie ahead, this node's clock is the one to be
//! mended. Of two nodes that disagree neither can know which is wrong, and neither is taken for it;
//! but for one whose time has not come to where the other has forgotten removed keys already: what it
//! stamps is taken for one of those, and would be lost.

use super::{NodeId, Timestamp};

/// What one peer's clock was found to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockSample {
    /// Whose.
    pub peer: NodeId,
    /// Its time less this node's, in nanoseconds: negative if it is behind.
    pub offset_ns: i64,
    /// What the offset may be wrong by, at most.
    pub error_ns: u64,
}

impl ClockSample {
    /// From this node's wall time when it asked and when it was answered, and the time of the peer.
    pub fn measure(peer: NodeId, asked: Timestamp, theirs: Timestamp, answered: Timestamp) -> Self {
        let round_trip = answered.nanos_after(asked);
        let middle = asked.plus_nanos(round_trip / 2);
        let magnitude = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
        let offset_ns = if theirs >= middle {
            magnitude(theirs.nanos_after(middle))
        } else {
            -magnitude(middle.nanos_after(theirs))
        };
        Self { peer, offset_ns, error_ns: round_trip.div_ceil(2) }
    }

    /// The part of the offset that is certain.
    fn certain_ns(&self) -> i64 {
        let error = i64::try_from(self.error_ns).unwrap_or(i64::MAX);
        self.offset_ns.signum() * self.offset_ns.saturating_abs().saturating_sub(error).max(0)
    }
}

/// This node's clock is too far off most members'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the clock of this node is {} ms {} those of most members, more than the {} ms allowed (max_clock_drift); no writes are taken until it is right: check NTP",
    offset_ns.unsigned_abs() / 1_000_000,
    if *offset_ns > 0 { "behind" } else { "ahead of" },
    max_drift_ns / 1_000_000
)]
pub struct ClockSkew {
    /// The time of most members less this node's, in nanoseconds.
    pub offset_ns: i64,
    /// The bound.
    pub max_drift_ns: u64,
}

impl ClockSkew {
    /// Decides from one sample of each member that answers.
    ///
    /// # Errors
    /// `ClockSkew` when more than half of them and this node are certainly further off than allowed,
    /// all to the same side.
    pub fn check(samples: &[ClockSample], max_drift_ns: u64) -> Result<(), Self> {
        let offset_ns = median(samples.iter().map(ClockSample::certain_ns));
        if offset_ns.unsigned_abs() > max_drift_ns {
            return Err(Self { offset_ns, max_drift_ns });
        }
        Ok(())
    }
}

/// This node's time is behind a horizon that others have reached and it has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the clock of this node is {} ms behind the horizon, up to which other members have forgotten what was removed: they would take its writes for that, so none are taken until the clock is right or the node has joined again: check NTP",
    behind_ns / 1_000_000
)]
pub struct BehindHorizon {
    /// The horizon less this node's time, in nanoseconds.
    pub behind_ns: u64,
}

impl BehindHorizon {
    /// Decides from this node's time, the furthest horizon of the others, if it is beyond its own, and
    /// the samples of the members that answer.
    ///
    /// # Errors
    /// `BehindHorizon` when the horizon lies further ahead than allowed. Not if most members agree
    /// with this node's clock, at least one among them: then it is the horizon that is wrong.
    pub fn check(
        wall: Timestamp,
        horizon: Timestamp,
        samples: &[ClockSample],
        max_drift_ns: u64,
    ) -> Result<(), Self> {
        let behind_ns = horizon.nanos_after(wall);
        let agrees = |sample: &&ClockSample| sample.certain_ns().unsigned_abs() <= max_drift_ns;
        let agree = samples.iter().filter(agrees).count();
        let most_agree = agree > 0 && (agree + 1) * 2 > samples.len() + 1;
        if behind_ns > max_drift_ns && !most_agree { Err(Self { behind_ns }) } else { Ok(()) }
    }
}

/// The median of these and 0, which is this node's own; of the two in the middle of an even number
/// the one nearer to 0.
fn median(offsets: impl Iterator<Item = i64>) -> i64 {
    let mut all: Vec<i64> = offsets.chain([0]).collect();
    all.sort_unstable();
    let upper = all.len() / 2;
    let lower = (all.len() - 1) / 2;
    let middle = [lower, upper].map(|i| all.get(i).copied().unwrap_or(0));
    middle.into_iter().min_by_key(|offset| offset.unsigned_abs()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIFT: u64 = 500;

    fn sample(offset_ns: i64) -> ClockSample {
        ClockSample { peer: NodeId::new(2), offset_ns, error_ns: 0 }
    }

    fn t(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    /// Every number of up to five others that agree with this node, or do not.
    #[test]
    fn a_node_is_behind_a_horizon_unless_most_say_that_its_clock_is_right() {
        for behind_ns in [0, 1, 500, 501, u64::MAX - 1_000] {
            for agree in 0..=5usize {
                for differ in 0..=5usize {
                    let samples = [vec![sample(500); agree], vec![sample(501); differ]].concat();
                    let horizon = t(1_000 + behind_ns);
                    let checked = BehindHorizon::check(t(1_000), horizon, &samples, DRIFT);
                    let right = behind_ns <= 500 || (agree > 0 && agree + 1 > differ);
                    let expected = if right { Ok(()) } else { Err(BehindHorizon { behind_ns }) };
                    assert_eq!(checked, expected, "{agree} agree, {differ} do not");
                }
            }
        }
        assert_eq!(BehindHorizon::check(t(1_000), Timestamp::ZERO, &[], DRIFT), Ok(()));
    }

    /// Every combination of up to five others that agree, are on the edge, or are off to either
    /// side, against a count made independently.
    #[test]
    fn a_clock_is_wrong_exactly_if_most_are_off_to_the_same_side() {
        let offsets = [-501i64, -500, 0, 500, 501, i64::MAX, i64::MIN];
        for others in 0..=5u32 {
            for combination in 0..offsets.len().pow(others) {
                let samples: Vec<_> = (0..others)
                    .map(|i| sample(offsets[combination / offsets.len().pow(i) % offsets.len()]))
                    .collect();
                let (ahead, behind) = (
                    samples.iter().filter(|s| s.offset_ns > 500).count(),
                    samples.iter().filter(|s| s.offset_ns < -500).count(),
                );
                let all = samples.len() + 1;
                let wrong = 2 * ahead > all || 2 * behind > all;
                assert_eq!(ClockSkew::check(&samples, DRIFT).is_err(), wrong, "{samples:?}");
            }
        }
    }

    #[test]
    fn of_two_nodes_that_disagree_neither_is_taken_for_wrong() {
        assert_eq!(ClockSkew::check(&[sample(i64::MAX)], DRIFT), Ok(()));
        let two = [sample(900), sample(700)];
        let skew = ClockSkew { offset_ns: 700, max_drift_ns: DRIFT };
        assert_eq!(ClockSkew::check(&two, DRIFT), Err(skew));
    }

    #[test]
    fn an_offset_is_measured_against_the_middle_of_the_round_trip() {
        let measure = |theirs| ClockSample::measure(NodeId::new(2), t(1_000), t(theirs), t(1_201));
        for (theirs, offset_ns) in [(1_100, 0), (1_300, 200), (100, -1_000), (0, -1_100)] {
            let found = measure(theirs);
            assert_eq!((found.offset_ns, found.error_ns), (offset_ns, 101), "{theirs}");
        }
        // A clock that was set back between question and answer is no reason for a wrong sign.
        let back = ClockSample::measure(NodeId::new(2), t(1_000), t(1_000), t(500));
        assert_eq!((back.offset_ns, back.error_ns), (0, 0));
    }

    #[test]
    fn what_a_slow_answer_may_explain_is_not_held_against_this_node() {
        let slow = |offset_ns| ClockSample { error_ns: 300, ..sample(offset_ns) };
        assert_eq!(ClockSkew::check(&[slow(800), slow(-800), slow(800)], DRIFT), Ok(()));
        assert!(ClockSkew::check(&[slow(801), slow(801)], DRIFT).is_err());
        assert!(ClockSkew::check(&[slow(-801), slow(-801)], DRIFT).is_err());
    }

    #[test]
    fn the_message_says_by_how_much_to_which_side_and_what_to_do() {
        let skew = |offset_ns| ClockSkew { offset_ns, max_drift_ns: 500_000_000 }.to_string();
        let behind = skew(3_000_000_000);
        assert!(behind.contains("3000 ms behind those of most members"), "{behind}");
        assert!(behind.contains("500 ms allowed") && behind.contains("NTP"), "{behind}");
        assert!(skew(-600_000_000).contains("600 ms ahead of those"), "{}", skew(-600_000_000));
    }
}
