//! `HookChain`: hooks, kept at arm's length from the operations they watch.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::domain::{Key, KeyedEntry};
use crate::ports::{ClientError, Effect, Hook, OpKind, Operation, Origin};

/// Operations that wait for one hook; more are dropped and counted.
const QUEUE_LENGTH: usize = 8_192;

/// How long all `before` calls of one operation may take together.
const VETO_TIMEOUT: Duration = Duration::from_millis(100);

/// Calls of `before` at a time. One that hangs keeps its thread of the runtime's pool, which the node
/// needs for its files, too.
const VETO_CALLS: usize = 64;

/// The hooks of a node, in the order of their configuration.
pub(crate) struct HookChain {
    queues: Vec<SyncSender<(Operation, Effect)>>,
    vetoers: Vec<Arc<dyn Hook>>,
    /// Of calls of `before` at a time.
    places: Arc<Semaphore>,
    counts: Arc<HookCounts>,
}

#[derive(Debug, Default)]
struct HookCounts {
    drops: AtomicU64,
    panics: AtomicU64,
}

impl HookChain {
    /// Starts a thread per hook. The threads end when the chain is dropped and they have worked
    /// off their queues; a hook that never returns keeps only its own thread.
    pub(crate) fn start(hooks: Vec<Arc<dyn Hook>>) -> Self {
        let counts = Arc::new(HookCounts::default());
        let vetoers = hooks.iter().filter(|hook| hook.may_veto()).cloned().collect();
        let queues = hooks.into_iter().filter_map(|hook| start_thread(hook, &counts)).collect();
        let places = Arc::new(Semaphore::new(VETO_CALLS));
        Self { queues, vetoers, places, counts }
    }

    /// Whether nobody watches, so that an operation need not even be described.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Asks the hooks that may refuse.
    pub(crate) async fn before(&self, operation: Operation) -> Result<(), ClientError> {
        if self.vetoers.is_empty() {
            return Ok(());
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.counts.drops.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        let (vetoers, counts) = (self.vetoers.clone(), Arc::clone(&self.counts));
        let asked = tokio::task::spawn_blocking(move || {
            let _place = place;
            ask_all(&vetoers, &operation, &counts)
        });
        if let Ok(Ok(verdict)) = tokio::time::timeout(VETO_TIMEOUT, asked).await {
            return verdict;
        }
        self.counts.drops.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Tells the hooks of a write that took effect on this node.
    pub(crate) fn after_write(&self, write: &KeyedEntry, origin: Origin) {
        if self.is_empty() {
            return;
        }
        let value = write.entry.value().cloned();
        let kind = if value.is_some() { OpKind::Add } else { OpKind::Remove };
        let version = Some(write.entry.version);
        let key = write.key.clone();
        self.after(&Operation { key, kind, origin, value, version }, Effect::Applied);
    }

    /// Tells the hooks of a client's read.
    pub(crate) fn after_read(&self, key: &Key, found: bool) {
        if self.is_empty() {
            return;
        }
        let (kind, origin) = (OpKind::Get, Origin::Client);
        let operation = Operation { key: key.clone(), kind, origin, value: None, version: None };
        self.after(&operation, if found { Effect::Found } else { Effect::NotFound });
    }

    /// Calls that were dropped, and calls that panicked.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.counts.drops), load(&self.counts.panics))
    }

    fn after(&self, operation: &Operation, effect: Effect) {
        for queue in &self.queues {
            if queue.try_send((operation.clone(), effect)).is_err() {
                self.counts.drops.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn start_thread(
    hook: Arc<dyn Hook>,
    counts: &Arc<HookCounts>,
) -> Option<SyncSender<(Operation, Effect)>> {
    let (sender, receiver) = sync_channel(QUEUE_LENGTH);
    let (name, counts) = (hook.name(), Arc::clone(counts));
    let thread = std::thread::Builder::new().name(format!("hook-{name}"));
    match thread.spawn(move || run(hook.as_ref(), &receiver, &counts)) {
        Ok(_detached) => Some(sender),
        Err(error) => {
            tracing::error!(hook = name, %error, "hook not started: no thread for it");
            None
        }
    }
}

fn run(hook: &dyn Hook, queue: &Receiver<(Operation, Effect)>, counts: &HookCounts) {
    while let Ok((operation, effect)) = queue.recv() {
        if catch_unwind(AssertUnwindSafe(|| hook.after(&operation, effect))).is_err() {
            counts.panics.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn ask_all(
    vetoers: &[Arc<dyn Hook>],
    operation: &Operation,
    counts: &HookCounts,
) -> Result<(), ClientError> {
    for hook in vetoers {
        match catch_unwind(AssertUnwindSafe(|| hook.before(operation))) {
            Ok(Ok(())) => {}
            Ok(Err(veto)) => {
                return Err(ClientError::Vetoed { hook: hook.name(), reason: veto.reason });
            }
            Err(_) => {
                counts.panics.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Entry, NodeId, Timestamp, Value, Version};
    use crate::ports::Veto;
    use std::sync::Mutex;

    fn write(text: &str) -> KeyedEntry {
        let version = Version::new(Timestamp::from_nanos(1), NodeId::new(1));
        KeyedEntry::new(Key::new(text).unwrap(), Entry::live(version, Value::new("v")))
    }

    fn operation() -> Operation {
        let (kind, origin) = (OpKind::Add, Origin::Client);
        Operation { key: Key::new("k").unwrap(), kind, origin, value: None, version: None }
    }

    /// Blocks in its first call until the gate opens; then reports keys.
    struct Gated {
        gate: Mutex<Receiver<()>>,
        seen: SyncSender<String>,
    }

    impl Hook for Gated {
        fn name(&self) -> &'static str {
            "gated"
        }

        fn after(&self, operation: &Operation, _: Effect) {
            if operation.key.as_str() == "first" {
                self.gate.lock().unwrap().recv().unwrap();
            }
            assert_ne!(operation.key.as_str(), "bad");
            self.seen.send(operation.key.to_string()).unwrap();
        }
    }

    #[test]
    fn a_stuck_hook_costs_its_own_calls_only_and_drops_are_counted() {
        let (open, gate) = sync_channel(1);
        let (seen, reports) = sync_channel(3 * QUEUE_LENGTH);
        let chain = HookChain::start(vec![Arc::new(Gated { gate: Mutex::new(gate), seen })]);
        chain.after_write(&write("first"), Origin::Client);
        for _ in 0..QUEUE_LENGTH + 10 {
            chain.after_write(&write("k"), Origin::Client);
        }
        let (drops, _) = chain.counts();
        // One more if the hook had not taken the first one out of its queue before.
        assert!((10..=11).contains(&drops), "{drops}");
        open.send(()).unwrap();
        drop(chain);
        assert_eq!(reports.iter().count() as u64, QUEUE_LENGTH as u64 + 11 - drops);
    }

    #[test]
    fn a_panicking_hook_goes_on_with_the_next_operation() {
        let (_open, gate) = sync_channel(1);
        let (seen, reports) = sync_channel(8);
        let chain = HookChain::start(vec![Arc::new(Gated { gate: Mutex::new(gate), seen })]);
        chain.after_write(&write("bad"), Origin::Client);
        chain.after_write(&write("good"), Origin::Client);
        assert_eq!(reports.recv().unwrap(), "good");
        assert_eq!(chain.counts(), (0, 1));
    }

    struct Gatekeeper(&'static str);

    impl Hook for Gatekeeper {
        fn name(&self) -> &'static str {
            "gatekeeper"
        }

        fn may_veto(&self) -> bool {
            true
        }

        fn before(&self, _: &Operation) -> Result<(), Veto> {
            match self.0 {
                "refuse" => Err(Veto { reason: "not today".into() }),
                // Without the panic hook, whose backtrace takes longer than a veto may.
                "panic" => std::panic::resume_unwind(Box::new("on purpose")),
                "hang" => loop {
                    std::thread::park();
                },
                _ => Ok(()),
            }
        }

        fn after(&self, _: &Operation, _: Effect) {}
    }

    #[tokio::test]
    async fn a_veto_reaches_the_client_with_its_reason() {
        let chain = HookChain::start(vec![Arc::new(Gatekeeper("refuse"))]);
        let refused = chain.before(operation()).await.unwrap_err();
        assert_eq!(refused.to_string(), "refused by the gatekeeper hook: not today");
    }

    #[tokio::test]
    async fn a_gatekeeper_that_panics_is_passed_over() {
        let chain = HookChain::start(vec![Arc::new(Gatekeeper("panic"))]);
        assert_eq!(chain.before(operation()).await, Ok(()));
        assert_eq!(chain.counts(), (0, 1));
    }

    #[test]
    fn a_gatekeeper_that_hangs_is_passed_over_in_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let chain = HookChain::start(vec![Arc::new(Gatekeeper("hang"))]);
        assert_eq!(runtime.block_on(chain.before(operation())), Ok(()));
        assert_eq!(chain.counts(), (1, 0));
        // However many hang: the threads of the pool are not used up.
        let many = (0..2 * VETO_CALLS).map(|_| chain.before(operation()));
        let passed = runtime.block_on(futures_util::future::join_all(many));
        assert!(passed.iter().all(Result::is_ok));
        assert_eq!(chain.places.available_permits(), 0);
        runtime.shutdown_background();
    }
}
