//! How many log lines of one kind there may be: when everything is slow, lines are the last thing that
//! a node should be busy with.

use std::time::Duration;

/// Lines in a window.
const LINES: u32 = 10;

const WINDOW: Duration = Duration::from_secs(1);

/// Ten lines a second; the rest are counted.
#[derive(Debug, Default)]
pub struct LineBudget {
    began: Option<Duration>,
    lines: u32,
    suppressed: u64,
}

impl LineBudget {
    /// Whether there is a line now, by a clock that begins anywhere: how many had none since the last.
    pub fn admit(&mut self, now: Duration) -> Option<u64> {
        if self.began.is_none_or(|began| now.saturating_sub(began) >= WINDOW) {
            (self.began, self.lines) = (Some(now), 0);
        }
        if self.lines >= LINES {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_ten_lines_and_the_next_one_says_how_many_are_missing() {
        let (mut budget, begin) = (LineBudget::default(), Duration::from_secs(3));
        for _ in 0..LINES {
            assert_eq!(budget.admit(begin), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(budget.admit(begin + WINDOW / 2), None);
        }
        assert_eq!(budget.admit(begin + WINDOW), Some(7));
        // One that began earlier and is told later.
        assert_eq!(budget.admit(begin), Some(0));
    }
}
