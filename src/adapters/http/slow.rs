//! The slow log: a line for each request on data that takes long, with what it waited for.
//!
//! Of a key it has the length, and a hash by which lines of one key are told to belong together; the
//! key itself and values never. Ten lines a second at most: when everything is slow, lines are the
//! last thing that a node should be busy with. The rest are counted, here and in the metrics.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::domain::Key;
use crate::ports::Phases;

use super::errors::Code;
use super::identity::Identity;
use super::metrics::{Call, Outcome};

/// Lines in a window.
const LINES: u32 = 10;

const WINDOW: Duration = Duration::from_secs(1);

/// What is found out about a request while it is worked on.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Once it is read.
    pub(super) key: Option<Key>,
    /// How long its body was waited for.
    pub(super) body: Duration,
    /// What it waited for behind the port, if it was carried out.
    pub(super) phases: Phases,
}

/// Writes the lines.
#[derive(Debug, Default)]
pub(super) struct SlowLog(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl SlowLog {
    /// A request that began then took this long.
    pub(super) fn note(
        &self,
        (call, outcome): (Call, Outcome),
        (began, took): (Instant, Duration),
        identity: &Identity,
        found: &Findings,
    ) {
        let admitted = self.0.lock().unwrap_or_else(PoisonError::into_inner).admit(began + took);
        let Some(suppressed) = admitted else { return };
        let Findings { key, body, phases } = found;
        let elsewhere = *body + phases.hooks + phases.log.max(phases.peers);
        tracing::warn!(
            call = call.as_str(),
            status = outcome.status(),
            code = outcome.code().map(Code::as_str),
            key_bytes = key.as_ref().map(|key| key.as_str().len()),
            key_hash = key.as_ref().map(hash),
            total_ms = millis(took),
            body_ms = millis(*body),
            hooks_ms = millis(phases.hooks),
            log_ms = millis(phases.log),
            peers_ms = millis(phases.peers),
            here_ms = millis(took.saturating_sub(elsewhere)),
            request_id = identity.id(),
            trace_id = identity.trace_id(),
            suppressed,
            "slow request"
        );
    }
}

impl Window {
    /// Whether there is a line for what ended now: how many had none since the last.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
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

/// The same on all nodes, as in what they compare (docs/protocol.md).
fn hash(key: &Key) -> String {
    format!("{:016x}", xxh3_64(key.as_str().as_bytes()))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_ten_lines_and_the_next_one_says_how_many_are_missing() {
        let (mut window, begin) = (Window::default(), Instant::now());
        for _ in 0..LINES {
            assert_eq!(window.admit(begin), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(window.admit(begin + WINDOW / 2), None);
        }
        assert_eq!(window.admit(begin + WINDOW), Some(7));
        // One that began earlier and is told later.
        assert_eq!(window.admit(begin), Some(0));
    }
}
