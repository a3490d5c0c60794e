//! The limits of a node that hold from its start to its end. Those that can change meanwhile are in
//! `settings`.

use std::time::Duration;

use super::errors::Mistake;
use super::settings::{Reader, count, duration, size};

const KIB: u64 = 1_024;
const MIB: u64 = 1_024 * KIB;
const GIB: u64 = 1_024 * MIB;

/// The shortest and the longest of all timeouts, in milliseconds.
const MIN_TIMEOUT_MS: u64 = 10;
const MAX_TIMEOUT_MS: u64 = 3_600_000;

/// The limits of a node. docs/limits.md says what happens above each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of bodies that did not come with their heads.
    pub max_pending_bytes: usize,
    /// Header lines of a request.
    pub max_headers: usize,
    /// Bytes of the head of a request.
    pub max_header_bytes: usize,
    /// How long a client may take nothing of its answer.
    pub write_timeout: Duration,
    /// Bytes that wait for the log.
    pub max_log_queue: usize,
    /// Bytes of hints for one member.
    pub max_hints: usize,
    /// Open connections of peers.
    pub max_peer_connections: usize,
    /// Calls at a time on one of them.
    pub max_peer_streams: u32,
    /// How long one call to a peer may take.
    pub peer_timeout: Duration,
}

impl Limits {
    pub(super) fn read(from: &Reader<'_>) -> Result<Self, Mistake> {
        let timeout = |key| from.required(key, |v| duration(v, MIN_TIMEOUT_MS, MAX_TIMEOUT_MS));
        let many = |key, min, max| from.required(key, |v| count(v, min, max));
        Ok(Self {
            max_pending_bytes: from.required("max_pending_bytes", |v| size(v, MIB, 64 * GIB))?,
            max_headers: many("max_headers", 8, 1_024)?,
            // The HTTP library takes no less than 8 KiB.
            max_header_bytes: from.required("max_header_bytes", |v| size(v, 8 * KIB, MIB))?,
            write_timeout: timeout("write_timeout")?,
            max_log_queue: from.required("max_log_queue", |v| size(v, MIB, 64 * GIB))?,
            max_hints: from.required("max_hints", |v| size(v, 64 * KIB, 64 * GIB))?,
            max_peer_connections: many("max_peer_connections", 1, 1_000_000)?,
            max_peer_streams: from.required("max_peer_streams", |v| count(v, 16, 65_536))?,
            peer_timeout: from.required("peer_timeout", |v| duration(v, 100, 60_000))?,
        })
    }
}
