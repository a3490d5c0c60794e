//! `Live`: what of a node can be changed while it runs, how often that was tried, and what is found out
//! outside of the node.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::domain::MAX_VALUE_BYTES;
use crate::ports::{ConnectionStats, LogLevel, NoLogLevel, ReloadStats};

use super::settings::RequestLimits;

type SetLogLevel = Box<dyn Fn(LogLevel) + Send + Sync>;
type MeterConnections = Box<dyn Fn() -> ConnectionStats + Send + Sync>;

/// What of a node can be changed while it runs.
pub struct Live {
    limits: ArcSwap<RequestLimits>,
    log_level: OnceLock<SetLogLevel>,
    peer_connections: OnceLock<MeterConnections>,
    applied: AtomicU64,
    refused: AtomicU64,
}

impl Live {
    pub(crate) fn new(limits: RequestLimits) -> Self {
        let limits = ArcSwap::from_pointee(bounded(limits));
        let (applied, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        let (log_level, peer_connections) = (OnceLock::new(), OnceLock::new());
        Self { limits, log_level, peer_connections, applied, refused }
    }

    /// How the log level is set when an operator asks for it. Only the first call has an effect: a node
    /// logs in one way.
    pub fn set_log_level_by(&self, set: impl Fn(LogLevel) + Send + Sync + 'static) {
        self.log_level.get_or_init(|| Box::new(set));
    }

    pub(crate) fn set_log_level(&self, level: LogLevel) -> Result<(), NoLogLevel> {
        self.log_level.get().map(|set| set(level)).ok_or(NoLogLevel)
    }

    /// How connections of peers are counted, by whoever accepts them. Only the first call has an effect.
    pub fn meter_peer_connections_by(
        &self,
        meter: impl Fn() -> ConnectionStats + Send + Sync + 'static,
    ) {
        self.peer_connections.get_or_init(|| Box::new(meter));
    }

    pub(crate) fn peer_connections(&self) -> ConnectionStats {
        self.peer_connections.get().map(|meter| meter()).unwrap_or_default()
    }

    /// From now on these limits hold. Requests that were admitted before go on under those that held
    /// then.
    pub fn limit(&self, to: RequestLimits) {
        self.limits.store(bounded(to).into());
    }

    /// A new configuration has taken effect.
    pub fn count_applied(&self) {
        self.applied.fetch_add(1, Ordering::Relaxed);
    }

    /// A new configuration was refused, and nothing has changed.
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The limits for one request: asked once, so that they are those of one moment.
    pub(crate) fn limits(&self) -> RequestLimits {
        **self.limits.load()
    }

    pub(crate) fn counts(&self) -> ReloadStats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ReloadStats { applied: count(&self.applied), refused: count(&self.refused) }
    }
}

fn bounded(limits: RequestLimits) -> RequestLimits {
    let max_value_bytes = limits.max_value_bytes.min(MAX_VALUE_BYTES);
    RequestLimits { max_value_bytes, ..limits }
}
