//! What of a node takes its settings anew: the limits of requests, and those of HTTP.
//!
//! Which keys these are is written down in `adapters/config/changes.rs` and, for users, in
//! `docs/configuration.md`.

use std::sync::Arc;

use crate::adapters::config::Config;
use crate::adapters::http::{HttpOptions, LiveOptions};
use crate::app::{Live, RequestLimits};
use crate::domain::MemoryLimit;

use super::reload::{Prepared, Reloadable};
use super::run::DRAIN;

/// Quorums, timeout, and what values may take.
pub(super) struct Requests(pub(super) Arc<Live>);

impl Reloadable for Requests {
    fn prepare(&self, config: &Config) -> Result<Prepared, Vec<String>> {
        let (live, limits) = (Arc::clone(&self.0), request_limits(config));
        Ok(Prepared::of_keys(move || live.limit(limits)))
    }
}

/// How many requests and connections, and what their bodies may take.
pub(super) struct Http(pub(super) LiveOptions);

impl Reloadable for Http {
    fn prepare(&self, config: &Config) -> Result<Prepared, Vec<String>> {
        let (live, options) = (self.0.clone(), http_options(config));
        Ok(Prepared::of_keys(move || live.change(&options)))
    }
}

pub(super) fn request_limits(config: &Config) -> RequestLimits {
    RequestLimits {
        read_quorum: config.read_quorum,
        write_quorum: config.write_quorum,
        request_timeout: config.request_timeout,
        max_value_bytes: config.max_value_bytes,
        max_memory: config.max_memory.map_or(MemoryLimit::NONE, MemoryLimit::bytes),
    }
}

pub(super) fn http_options(config: &Config) -> HttpOptions {
    HttpOptions {
        max_body_bytes: config.max_body_bytes,
        max_in_flight: config.max_in_flight,
        max_connections: config.max_connections,
        header_read_timeout: config.header_read_timeout,
        keep_alive_timeout: config.keep_alive_timeout,
        body_read_timeout: config.body_read_timeout,
        max_pending_bytes: config.limits.max_pending_bytes,
        max_headers: config.limits.max_headers,
        max_header_bytes: config.limits.max_header_bytes,
        write_timeout: config.limits.write_timeout,
        slow_log_threshold: config.slow_log_threshold,
        drain: DRAIN,
    }
}
