//! `HookChain`: hooks, kept at arm's length from the operations they watch.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::domain::{Key, KeyedEntry, Timestamp};
use crate::ports::{ClientError, DeliveryStats, Effect, Hook, OpKind, Operation, Origin};

use super::hook_queue::{HookCounts, HookQueue};

/// How long all `before` calls of one operation may take together.
const VETO_TIMEOUT: Duration = Duration::from_millis(100);

/// Calls of `before` at a time. One that hangs keeps its thread of the runtime's pool, which the node
/// needs for its files, too.
const VETO_CALLS: usize = 64;

/// The hooks of a node, in the order of their configuration.
pub(crate) struct HookChain {
    queues: Vec<HookQueue>,
    /// Those that refuse at once, which are asked first, and those that may take their time.
    rules: Vec<Arc<dyn Hook>>,
    vetoers: Vec<Arc<dyn Hook>>,
    /// Of calls of `before` at a time.
    places: Arc<Semaphore>,
    counts: Arc<HookCounts>,
    hooks: Vec<Arc<dyn Hook>>,
}

impl HookChain {
    /// Starts a thread for each hook that watches anything. The threads end when the chain is dropped
    /// and they have worked off their queues.
    pub(crate) fn start(hooks: Vec<Arc<dyn Hook>>) -> Self {
        let counts = Arc::new(HookCounts::default());
        let may_veto = hooks.iter().filter(|hook| hook.may_veto()).cloned();
        let (rules, vetoers) = may_veto.partition(|hook| hook.answers_at_once());
        let queues =
            hooks.iter().filter_map(|hook| HookQueue::start(Arc::clone(hook), &counts)).collect();
        let places = Arc::new(Semaphore::new(VETO_CALLS));
        Self { queues, rules, vetoers, places, counts, hooks }
    }

    /// Whether nobody watches, so that an operation need not even be described.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// Whether nobody refuses anything.
    pub(crate) fn asks_nobody(&self) -> bool {
        self.rules.is_empty() && self.vetoers.is_empty()
    }

    /// Asks the hooks that may refuse.
    pub(crate) async fn before(&self, operation: Operation) -> Result<(), ClientError> {
        ask_all(&self.rules, &operation, &self.counts)?;
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
        let kind = kind_of(write);
        if self.queues.iter().any(|queue| queue.wants(kind, origin)) {
            self.after(&described(write, origin), Effect::Applied);
        }
    }

    /// Tells the hooks of a client's read.
    pub(crate) fn after_read(&self, key: &Key, found: bool) {
        let (kind, origin) = (OpKind::Get, Origin::Client);
        if self.queues.iter().any(|queue| queue.wants(kind, origin)) {
            let operation =
                Operation { key: key.clone(), kind, origin, value: None, version: None };
            self.after(&operation, if found { Effect::Found } else { Effect::NotFound });
        }
    }

    /// The hooks that want to be told once more of what stands in the log, and from where on.
    pub(crate) fn resumption(&self) -> Option<Resumption> {
        let hooks = self.hooks.iter();
        let wanted = hooks.filter_map(|hook| Some((hook.resumes_from()?, Arc::clone(hook))));
        let hooks: Vec<_> = wanted.collect();
        let from = hooks.iter().map(|(from, _)| *from).min()?;
        Some(Resumption { hooks: hooks.into(), from, counts: Arc::clone(&self.counts) })
    }

    /// Has every hook finish what it still has to do. Takes this long at most.
    pub(crate) async fn close(&self, within: Duration) {
        let deadline = Instant::now() + within;
        join_all(self.queues.iter().map(|queue| queue.stop(deadline))).await;
    }

    /// Calls that were dropped, and calls that panicked.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (load(&self.counts.drops), load(&self.counts.panics))
    }

    /// What hooks have passed on.
    pub(crate) fn deliveries(&self) -> Vec<DeliveryStats> {
        self.hooks.iter().filter_map(|hook| hook.deliveries()).collect()
    }

    fn after(&self, operation: &Operation, effect: Effect) {
        for queue in &self.queues {
            if queue.wants(operation.kind, operation.origin) && !queue.put(operation, effect) {
                self.counts.drops.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Tells hooks of what a restart finds in the log.
#[derive(Clone)]
pub(crate) struct Resumption {
    hooks: Arc<[(Timestamp, Arc<dyn Hook>)]>,
    /// The earliest of theirs.
    from: Timestamp,
    counts: Arc<HookCounts>,
}

impl Resumption {
    /// Whether any hook is to hear of what was stamped then.
    pub(crate) fn includes(&self, stamp: Timestamp) -> bool {
        stamp > self.from
    }

    /// Tells of a write that this node stamped, on this thread.
    pub(crate) fn tell(&self, write: &KeyedEntry) {
        let operation = described(write, Origin::Replay);
        for (from, hook) in self.hooks.iter() {
            let wants = write.entry.version.timestamp > *from
                && hook.watches(operation.kind, operation.origin);
            let call = || hook.after(&operation, Effect::Applied);
            if wants && catch_unwind(AssertUnwindSafe(call)).is_err() {
                self.counts.panics.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

fn kind_of(write: &KeyedEntry) -> OpKind {
    if write.entry.is_tombstone() { OpKind::Remove } else { OpKind::Add }
}

fn described(write: &KeyedEntry, origin: Origin) -> Operation {
    Operation {
        key: write.key.clone(),
        kind: kind_of(write),
        origin,
        value: write.entry.value().cloned(),
        version: Some(write.entry.version),
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
    use crate::app::hook_queue::QUEUE_LENGTH;
    use crate::domain::{Entry, NodeId, Timestamp, Value, Version};
    use crate::ports::Veto;
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

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

    /// Refuses everything, and watches removals of clients only.
    struct Rule(Mutex<Vec<Operation>>);

    impl Hook for Rule {
        fn name(&self) -> &'static str {
            "rule"
        }

        fn may_veto(&self) -> bool {
            true
        }

        fn answers_at_once(&self) -> bool {
            true
        }

        fn before(&self, _: &Operation) -> Result<(), Veto> {
            Err(Veto { reason: "never".into() })
        }

        fn watches(&self, kind: OpKind, origin: Origin) -> bool {
            kind == OpKind::Remove && origin != Origin::Sync
        }

        fn after(&self, operation: &Operation, _: Effect) {
            self.0.lock().unwrap().push(operation.clone());
        }

        fn resumes_from(&self) -> Option<Timestamp> {
            Some(Timestamp::from_nanos(10))
        }
    }

    fn removal(at: u64) -> KeyedEntry {
        let version = Version::new(Timestamp::from_nanos(at), NodeId::new(1));
        KeyedEntry::new(Key::new("k").unwrap(), Entry::tombstone(version))
    }

    #[tokio::test]
    async fn a_rule_is_never_passed_over_however_many_gatekeepers_hang() {
        let chain = HookChain::start(vec![Arc::new(Rule(Mutex::default()))]);
        let _taken = Arc::clone(&chain.places).acquire_many_owned(64).await.unwrap();
        let refused = chain.before(operation()).await.unwrap_err();
        assert_eq!(refused.to_string(), "refused by the rule hook: never");
        assert_eq!(chain.counts(), (0, 0));
    }

    #[tokio::test]
    async fn a_hook_hears_of_what_it_watches_only_and_finishes_before_the_end() {
        let rule = Arc::new(Rule(Mutex::default()));
        let chain = HookChain::start(vec![Arc::clone(&rule) as _]);
        chain.after_write(&write("k"), Origin::Client);
        chain.after_read(&Key::new("k").unwrap(), true);
        chain.after_write(&removal(1), Origin::Sync);
        for at in 0..100 {
            chain.after_write(&removal(at), Origin::Client);
        }
        chain.close(Duration::from_secs(5)).await;
        assert_eq!(rule.0.lock().unwrap().len(), 100);
    }

    #[test]
    fn a_hook_that_keeps_what_it_is_told_hears_of_what_is_later_in_the_log() {
        let rule = Arc::new(Rule(Mutex::default()));
        let resumption = HookChain::start(vec![Arc::clone(&rule) as _]).resumption();
        let resumption = resumption.unwrap();
        assert!(!resumption.includes(Timestamp::from_nanos(10)));
        for at in [9, 10, 11] {
            resumption.tell(&removal(at));
        }
        resumption.tell(&write("not watched"));
        let heard = rule.0.lock().unwrap().clone();
        assert_eq!(heard.len(), 1);
        assert_eq!(heard[0].origin, Origin::Replay);
        assert!(HookChain::start(Vec::new()).resumption().is_none());
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
        let passed = runtime.block_on(join_all(many));
        assert!(passed.iter().all(Result::is_ok));
        assert_eq!(chain.places.available_permits(), 0);
        runtime.shutdown_background();
    }
}
