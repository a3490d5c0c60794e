//! The slow log: a line for each request on data that takes long, with what it waited for.
//!
//! Of a key it has the length, and a hash by which lines of one key are told to belong together; the
//! key itself and values never. Ten lines a second at most: when everything is slow, lines are the
//! last thing that a node should be busy with. The rest are counted, here and in the metrics.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::domain::{Key, LineBudget};
use crate::ports::Phases;

use super::errors::Code;
use super::identity::Identity;
use super::metrics::{Call, Outcome};

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
#[derive(Debug)]
pub(super) struct SlowLog {
    since: Instant,
    budget: Mutex<LineBudget>,
}

impl Default for SlowLog {
    fn default() -> Self {
        Self { since: Instant::now(), budget: Mutex::default() }
    }
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
        let now = (began + took).saturating_duration_since(self.since);
        let admitted = self.budget.lock().unwrap_or_else(PoisonError::into_inner).admit(now);
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
            trace_id = identity.trace_id().as_deref(),
            suppressed,
            "slow request"
        );
    }
}

/// The same on all nodes, as in what they compare (docs/protocol.md).
fn hash(key: &Key) -> String {
    format!("{:016x}", xxh3_64(key.as_str().as_bytes()))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
