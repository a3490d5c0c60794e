//! `WebhookHook`: the hook that passes changes on.
//!
//! Only what clients of this node change is passed on, so that of all nodes with the same webhook one
//! posts a change: the coordinator of its write.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::http::Uri;
use tokio_rustls::rustls::ClientConfig;

use crate::domain::Timestamp;
use crate::ports::{Clock, DeliveryStats, Effect, Hook, OpKind, Operation, Origin};

use super::super::key_filter::KeyFilter;
use super::backlog::{Backlog, Limits, MemoryBacklog};
use super::connection::Target;
use super::event::Source;
use super::outbox::{Outbox, OutboxError};
use super::sender::{Delivery, Sender, Shared, count};
use super::signature::Secret;

/// A webhook.
#[derive(Debug, Clone)]
pub struct WebhookOptions {
    /// By which it is told from others.
    pub name: String,
    /// In every change.
    pub cluster: String,
    /// Where changes are posted.
    pub url: Uri,
    /// Signs them.
    pub secret: Secret,
    /// For `https`, which it is then.
    pub trust: Option<Arc<ClientConfig>>,
    /// Changes of which keys.
    pub keys: KeyFilter,
    /// Changes of which kinds.
    pub kinds: Vec<OpKind>,
    /// Whether values are sent along.
    pub values: bool,
    /// For one attempt.
    pub timeout: Duration,
    /// Requests at a time, at least one.
    pub parallel: usize,
    /// How long a change is tried.
    pub give_up_after: Duration,
    /// What may wait, in bytes.
    pub max_queue_bytes: u64,
    /// What may wait, in changes.
    pub max_queue_changes: usize,
    /// Where changes wait; in memory if there is no such directory.
    pub outbox: Option<PathBuf>,
}

/// Passes changes on. Its thread ends when it is stopped or dropped.
pub struct WebhookHook {
    name: String,
    source: Source,
    keys: KeyFilter,
    kinds: Vec<OpKind>,
    resumes_from: Option<Timestamp>,
    shared: Arc<Shared>,
}

impl WebhookHook {
    /// Opens the outbox, if there is to be one, and starts the thread that delivers.
    ///
    /// # Errors
    /// [`OutboxError`], also if there is no thread.
    pub fn start(options: WebhookOptions, clock: Arc<dyn Clock>) -> Result<Self, OutboxError> {
        let limits = Limits { bytes: options.max_queue_bytes, changes: options.max_queue_changes };
        let (backlog, resumes_from) = match &options.outbox {
            Some(dir) => {
                let outbox = Outbox::open(dir, limits, clock.now())?;
                let from = outbox.resumes_from();
                (Backlog::Disk(Box::new(outbox)), Some(from))
            }
            None => (Backlog::Memory(MemoryBacklog::new(limits)), None),
        };
        let shared = Arc::new(Shared::new(backlog));
        let delivery = Delivery {
            name: options.name.clone(),
            target: Target::new(&options.url, options.trust),
            secret: options.secret,
            clock,
            timeout: options.timeout,
            parallel: options.parallel,
            give_up_after: options.give_up_after,
        };
        start_thread(Sender::new(delivery, Arc::clone(&shared)))
            .map_err(|error| OutboxError { path: options.outbox.unwrap_or_default(), error })?;
        Ok(Self {
            name: options.name.clone(),
            source: Source {
                webhook: options.name,
                cluster: options.cluster,
                values: options.values,
            },
            keys: options.keys,
            kinds: options.kinds,
            resumes_from,
            shared,
        })
    }
}

/// A runtime of its own: whatever a receiver does, it takes nothing from those that serve.
fn start_thread(sender: Sender) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("webhook".to_owned());
    let _detached = thread.spawn(move || {
        runtime.block_on(sender.run());
        // A resolver that is not answered is not waited for.
        runtime.shutdown_background();
    })?;
    Ok(())
}

impl Hook for WebhookHook {
    fn name(&self) -> &'static str {
        "webhook"
    }

    fn watches(&self, kind: OpKind, origin: Origin) -> bool {
        self.kinds.contains(&kind) && matches!(origin, Origin::Client | Origin::Replay)
    }

    fn after(&self, operation: &Operation, _: Effect) {
        if !self.keys.includes(operation.key.as_str()) {
            return;
        }
        let Some(event) = self.source.event(operation) else { return };
        let again = operation.origin == Origin::Replay;
        let kept = self.shared.with_backlog(|backlog| backlog.put(event, again));
        if let Err(reason) = kept {
            let dropped = count(&self.shared.counts.dropped);
            if dropped.is_power_of_two() {
                let webhook = self.name.as_str();
                tracing::warn!(webhook, %reason, dropped, "a change was dropped: its receiver will not hear of it");
            }
            return;
        }
        self.shared.wake.notify_one();
    }

    fn resumes_from(&self) -> Option<Timestamp> {
        self.resumes_from
    }

    fn stop(&self, within: Duration) {
        let left = self.shared.wait_idle(within);
        self.shared.stop.cancel();
        let webhook = self.name.as_str();
        if left > 0 && self.resumes_from.is_some() {
            tracing::info!(webhook, left, "changes wait in the outbox for the next start");
        } else if left > 0 {
            tracing::warn!(
                webhook,
                left,
                "changes are lost: the receiver did not take them in time"
            );
        }
    }

    fn deliveries(&self) -> Option<DeliveryStats> {
        let (counts, waits) = (&self.shared.counts, &self.shared.waits);
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Some(DeliveryStats {
            name: self.name.clone(),
            delivered: load(&counts.delivered),
            failures: load(&counts.failures),
            refused: load(&counts.refused),
            given_up: load(&counts.given_up),
            dropped: load(&counts.dropped),
            damaged: load(&waits.damaged),
            queued: load(&waits.changes),
            queued_bytes: load(&waits.bytes),
        })
    }
}

impl Drop for WebhookHook {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}
