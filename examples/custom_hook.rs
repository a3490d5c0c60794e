//! A hook of the program's own: counts what clients do per prefix, and refuses one. What each part
//! of it promises is said in `docs/hooks.md`.
//!
//! ```sh
//! cargo run --example custom_hook
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use lally::adapters::clock::SystemClock;
use lally::adapters::memory::{
    MemoryBook, MemoryLog, MemoryNetwork, MemoryQuarantine, MemoryStore, TrustingDetector,
};
use lally::app::{Node, NodeParts, NodeSettings, claim_identity};
use lally::domain::{KeptData, Key, NodeId, Start, Value};
use lally::ports::{ClientError, Effect, Hook, OpKind, Operation, Origin, RequestOptions, Veto};

/// Counts operations by the part of the key before the first colon.
#[derive(Default)]
pub struct PrefixCounter {
    counts: Mutex<BTreeMap<String, u64>>,
    changed: Condvar,
    is_stopped: AtomicBool,
}

impl PrefixCounter {
    /// Waits until the prefix was seen this often; `after` runs on a thread of its own.
    fn wait_for(&self, prefix: &str, count: u64) -> bool {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let few = |counts: &mut BTreeMap<String, u64>| counts.get(prefix) != Some(&count);
        let waited = self.changed.wait_timeout_while(counts, Duration::from_secs(5), few);
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }
}

impl Hook for PrefixCounter {
    fn name(&self) -> &'static str {
        "prefix-counter"
    }

    fn may_veto(&self) -> bool {
        true
    }

    /// Comparing a prefix neither waits nor takes long, so it can be asked on the request's thread, where
    /// it is never passed over. Without this, a busy node may let an operation through.
    fn answers_at_once(&self) -> bool {
        true
    }

    fn before(&self, operation: &Operation) -> Result<(), Veto> {
        if operation.kind != OpKind::Get && operation.key.as_str().starts_with("frozen:") {
            return Err(Veto { reason: "keys under frozen: are read-only".into() });
        }
        Ok(())
    }

    /// What other nodes send is counted there, where its clients are.
    fn watches(&self, _: OpKind, origin: Origin) -> bool {
        origin == Origin::Client
    }

    fn after(&self, operation: &Operation, _: Effect) {
        let prefix = operation.key.as_str().split(':').next().unwrap_or_default();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(prefix.to_owned()).or_default() += 1;
        self.changed.notify_all();
    }

    /// The place to flush what was gathered, on the hook's own thread, behind the last operation.
    fn stop(&self, _within: Duration) {
        self.is_stopped.store(true, Ordering::SeqCst);
    }
}

/// One node with the hook above.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let hook = Arc::new(PrefixCounter::default());
    let book_file = MemoryBook::default();
    let (book, last_phase) = claim_identity(&book_file, "example", NodeId::new(1)).await?;
    let parts = NodeParts {
        store: Arc::new(MemoryStore::new()),
        log: Arc::new(MemoryLog::default()),
        transport: MemoryNetwork::new().transport("alone:1", "example"),
        detector: Arc::new(TrustingDetector::new()),
        book: Arc::new(book_file),
        quarantine: Arc::new(MemoryQuarantine::default()),
        clock: Arc::new(SystemClock),
        hooks: vec![Arc::clone(&hook) as _],
    };
    let settings = NodeSettings::new("example", "alone:1", "none");
    let start = Start::decide(last_phase, KeptData::All, false);
    let node = Node::new(parts, settings, &book, start);
    node.replay().await?;
    node.start();
    let client = node.client_api();
    while client.readiness().is_err() {
        tokio::task::yield_now().await;
    }

    let (value, options) = (Value::new("v"), RequestOptions::default());
    client.add(Key::new("user:1")?, value.clone(), options).await?;
    client.get(Key::new("user:1")?, options).await?;
    assert!(hook.wait_for("user", 2));

    let refused = client.add(Key::new("frozen:1")?, value, options).await;
    assert!(matches!(refused, Err(ClientError::Vetoed { hook: "prefix-counter", .. })));

    node.leave().await;
    node.close().await?;
    assert!(hook.is_stopped.load(Ordering::SeqCst));
    Ok(())
}
