//! What an answer means, and when to try again: decisions without a clock.

use std::time::Duration;

/// The wait after the first failure; each further one doubles it.
const FIRST: Duration = Duration::from_millis(200);

/// The longest wait. It is also how late a receiver that is back may hear of what it missed.
const LONGEST: Duration = Duration::from_secs(30);

/// What a status means for a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The receiver has it.
    Delivered,
    /// The receiver will never take it: repeating it changes nothing.
    Refused,
    /// It may yet.
    Again,
}

/// Judges an answer. A redirection is not followed, since it may lead anywhere: it is a mistake that
/// somebody may correct meanwhile.
pub(super) const fn judge(status: u16) -> Verdict {
    match status {
        200..=299 => Verdict::Delivered,
        408 | 429 => Verdict::Again,
        400..=499 => Verdict::Refused,
        _ => Verdict::Again,
    }
}

/// How long to wait after this many failures in a row: twice as long each time up to a bound, less up
/// to a half by chance (`random` is 0 to 1), so that those that failed together do not return together.
pub(super) fn wait_after(failures: u32, random: f64) -> Duration {
    let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    let longest = FIRST.saturating_mul(doubled.max(1)).min(LONGEST);
    longest.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_for_good_are_not_repeated() {
        for status in [200, 201, 204, 299] {
            assert_eq!(judge(status), Verdict::Delivered, "{status}");
        }
        for status in [400, 401, 403, 404, 410, 413, 422, 499] {
            assert_eq!(judge(status), Verdict::Refused, "{status}");
        }
        for status in [100, 301, 302, 308, 408, 429, 500, 502, 503, 599] {
            assert_eq!(judge(status), Verdict::Again, "{status}");
        }
    }

    #[test]
    fn waits_double_up_to_a_bound_and_keep_half_of_it_at_least() {
        let ms = |failures| wait_after(failures, 0.0).as_millis();
        assert_eq!([ms(1), ms(2), ms(3), ms(8)], [200, 400, 800, 25_600]);
        for failures in [9, 31, 32, 33, u32::MAX] {
            assert_eq!(wait_after(failures, 0.0), LONGEST, "{failures}");
            assert_eq!(wait_after(failures, 1.0), LONGEST / 2, "{failures}");
        }
        assert_eq!(wait_after(0, 0.0), FIRST);
        assert_eq!(wait_after(1, f64::MAX), FIRST / 2);
    }
}
