//! The limits of the HTTP API: every size and every wait has one.

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
    /// Open connections; one more is closed at once.
    pub max_connections: usize,
    /// How long a new connection may take to send the head of its first request.
    pub header_read_timeout: Duration,
    /// How long a connection may take from one response to the end of the head of the next
    /// request. Clients keep connections in pools, and one that is closed just when it is taken
    /// out costs them an error, so this is long.
    pub keep_alive_timeout: Duration,
    /// How long the body of a request may take to arrive; a slower one gets 408.
    pub body_read_timeout: Duration,
    /// How long a stop waits for running requests.
    pub drain: Duration,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            max_body_bytes: 2 * 1_024 * 1_024,
            max_in_flight: 1_024,
            max_connections: 4_096,
            header_read_timeout: Duration::from_secs(5),
            keep_alive_timeout: Duration::from_secs(60),
            body_read_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(5),
        }
    }
}
