//! `PeerStats`: how the calls to a peer went, counted by whoever carries them out; and
//! `ConnectionStats`: the connections that peers open, counted by whoever accepts them.

use std::time::Duration;

use super::PeerError;

/// How the reads and writes that were sent to one peer went. Begins anew when the way to it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerStats {
    /// How long replies took, each from the moment at which its call was sent.
    pub replies: ReplyTimes,
    /// Calls that failed, by [`PeerError::REASONS`].
    pub failures: [u64; PeerError::REASONS.len()],
    /// Calls that wait to be sent.
    pub queued: u64,
}

impl PeerStats {
    /// A call failed.
    pub fn note_failure(&mut self, error: &PeerError) {
        if let Some(count) = self.failures.get_mut(error.place()) {
            *count += 1;
        }
    }
}

/// Connections of peers, or of whoever reaches their port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionStats {
    /// Open right now, those of which it is not known yet who they are among them.
    pub open: u64,
    /// Closed at once, there being too many.
    pub refused: u64,
    /// Closed before it was known who they are, in favour of one that came later.
    pub cut_short: u64,
}

/// How long replies took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplyTimes {
    /// How many took no longer than the bound of this place and longer than the one before; the last
    /// is of those that took longer than all bounds.
    pub counts: [u64; Self::BOUNDS.len() + 1],
    /// All of them together.
    pub total: Duration,
}

impl ReplyTimes {
    /// From a peer on the same machine to one at the end of its timeout.
    pub const BOUNDS: [Duration; 11] = [
        Duration::from_micros(100),
        Duration::from_micros(250),
        Duration::from_micros(500),
        Duration::from_millis(1),
        Duration::from_micros(2_500),
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(50),
        Duration::from_millis(100),
        Duration::from_millis(500),
        Duration::from_secs(2),
    ];

    /// A reply took this long.
    pub fn record(&mut self, took: Duration) {
        let place = Self::BOUNDS.partition_point(|bound| *bound < took);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        self.total = self.total.saturating_add(took);
    }
}
