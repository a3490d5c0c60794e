//! The limits of the HTTP API: every size and every wait has one.
//!
//! Some of them can be changed while the server runs ([`LiveOptions`]); they are asked anew for each
//! request, at the cost of a load from memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Limits of the HTTP API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpOptions {
    /// Longest body of a request, in bytes; a longer one gets 413. Twice the longest value leaves
    /// room for what JSON escapes.
    pub max_body_bytes: usize,
    /// Requests worked on at a time; one more gets 503 before its body is read. Too low, and a
    /// burst is refused that the node could have served; too high, and an overload is a queue.
    pub max_in_flight: usize,
    /// Bytes of bodies that did not come with their heads, until their requests are answered; one
    /// that would take more gets 503. Not less than `max_body_bytes`, or the longest is never taken.
    pub max_pending_bytes: usize,
    /// Open connections; one more is closed at once.
    pub max_connections: usize,
    /// Header lines per request.
    pub max_headers: usize,
    /// Bytes of a request's head, and of what is buffered of its body; at least 8 KiB.
    pub max_header_bytes: usize,
    /// How long a new connection may take to send the head of its first request.
    pub header_read_timeout: Duration,
    /// How long a connection may take from one response to the end of the head of the next
    /// request. Clients keep connections in pools, and one that is closed just when it is taken
    /// out costs them an error, so this is long.
    pub keep_alive_timeout: Duration,
    /// How long the body of a request may take to arrive; a slower one gets 408.
    pub body_read_timeout: Duration,
    /// Requests on data that take longer are logged, with what they waited for; `None`: none is.
    pub slow_log_threshold: Option<Duration>,
    /// How long a client may take nothing of its answer before the connection is closed: it would
    /// be held in memory for as long as the client likes.
    pub write_timeout: Duration,
    /// How long a stop waits for running requests.
    pub drain: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            max_body_bytes: 2 * 1_024 * 1_024,
            max_in_flight: 1_024,
            max_pending_bytes: 256 * 1_024 * 1_024,
            max_connections: 4_096,
            max_headers: 64,
            max_header_bytes: 16 * 1_024,
            header_read_timeout: Duration::from_secs(5),
            keep_alive_timeout: Duration::from_secs(60),
            body_read_timeout: Duration::from_secs(10),
            slow_log_threshold: Some(Duration::from_millis(250)),
            write_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}

/// [`HttpOptions`] of a server that runs. Clones are the same options.
#[derive(Debug, Clone)]
pub struct LiveOptions(Arc<Live>);

#[derive(Debug)]
struct Live {
    /// What the server was set up with; of that, what is not below never changes.
    initial: HttpOptions,
    max_body_bytes: AtomicUsize,
    max_in_flight: AtomicUsize,
    max_pending_bytes: AtomicUsize,
    max_connections: AtomicUsize,
    body_read_timeout_ms: AtomicU64,
}

impl From<HttpOptions> for LiveOptions {
    fn from(initial: HttpOptions) -> Self {
        let live = Self(Arc::new(Live {
            initial,
            max_body_bytes: AtomicUsize::default(),
            max_in_flight: AtomicUsize::default(),
            max_pending_bytes: AtomicUsize::default(),
            max_connections: AtomicUsize::default(),
            body_read_timeout_ms: AtomicU64::default(),
        }));
        live.change(&initial);
        live
    }
}

impl LiveOptions {
    /// Takes over `max_body_bytes`, `max_in_flight`, `max_pending_bytes`, `max_connections` and `body_read_timeout` (to the
    /// millisecond) from these options, for requests and connections from now on. What has begun goes
    /// on, also if there is more of it than the new limits allow.
    pub fn change(&self, to: &HttpOptions) {
        let timeout_ms = u64::try_from(to.body_read_timeout.as_millis()).unwrap_or(u64::MAX);
        self.0.max_body_bytes.store(to.max_body_bytes, Ordering::Relaxed);
        self.0.max_in_flight.store(to.max_in_flight, Ordering::Relaxed);
        self.0.max_pending_bytes.store(to.max_pending_bytes, Ordering::Relaxed);
        self.0.max_connections.store(to.max_connections, Ordering::Relaxed);
        self.0.body_read_timeout_ms.store(timeout_ms, Ordering::Relaxed);
    }

    pub(super) fn initial(&self) -> &HttpOptions {
        &self.0.initial
    }

    pub(super) fn max_body_bytes(&self) -> usize {
        self.0.max_body_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn max_in_flight(&self) -> usize {
        self.0.max_in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn max_pending_bytes(&self) -> usize {
        self.0.max_pending_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn max_connections(&self) -> usize {
        self.0.max_connections.load(Ordering::Relaxed)
    }

    pub(super) fn body_read_timeout(&self) -> Duration {
        Duration::from_millis(self.0.body_read_timeout_ms.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_holds_for_every_clone_and_nothing_else_changes() {
        let options = HttpOptions::default();
        let live = LiveOptions::from(options);
        assert_eq!(live.max_in_flight(), options.max_in_flight);
        let changed = HttpOptions {
            max_body_bytes: 1,
            max_in_flight: 2,
            max_pending_bytes: 5,
            max_connections: 3,
            body_read_timeout: Duration::from_millis(4),
            ..options
        };
        live.clone().change(&changed);
        assert_eq!(
            (live.max_body_bytes(), live.max_in_flight(), live.max_connections()),
            (1, 2, 3)
        );
        assert_eq!(live.max_pending_bytes(), 5);
        assert_eq!(live.body_read_timeout(), Duration::from_millis(4));
        assert_eq!(live.initial(), &options);
    }
}
