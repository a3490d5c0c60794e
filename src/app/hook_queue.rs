//! `HookQueue`: what waits for one hook, and the thread on which it is told.
//!
//! Bounded twice, since values differ: by the number of operations, and by the bytes of what they
//! carry. What does not fit is dropped, and whoever puts it in is told so and never waits.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use crate::ports::{Effect, Hook, OpKind, Operation, Origin};

/// Operations that wait for one hook; more are dropped and counted.
pub(super) const QUEUE_LENGTH: usize = 8_192;

/// What their keys and values may take together.
const QUEUE_BYTES: usize = 64 << 20;

/// How often a queue that is full is looked at while the node stops.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// How often hooks did not do what they were called for.
#[derive(Debug, Default)]
pub(super) struct HookCounts {
    pub(super) drops: AtomicU64,
    pub(super) panics: AtomicU64,
}

/// The operations for which a hook is called afterwards, found out once.
#[derive(Debug, Clone, Copy)]
struct Interests(u32);

impl Interests {
    fn of(hook: &dyn Hook) -> Self {
        let pairs = OpKind::ALL.into_iter().flat_map(|kind| Origin::ALL.map(|from| (kind, from)));
        let watched = pairs.filter(|(kind, origin)| hook.watches(*kind, *origin));
        Self(watched.fold(0, |bits, (kind, origin)| bits | Self::bit(kind, origin)))
    }

    const fn bit(kind: OpKind, origin: Origin) -> u32 {
        // Room for eight origins.
        1 << (kind as u32 * 8 + origin as u32)
    }

    const fn include(self, kind: OpKind, origin: Origin) -> bool {
        self.0 & Self::bit(kind, origin) != 0
    }
}

enum Call {
    After(Operation, Effect),
    /// The last one: how long the hook may take, and who waits for that.
    Stop(Duration, oneshot::Sender<()>),
}

/// The queue of one hook.
pub(super) struct HookQueue {
    name: &'static str,
    sender: SyncSender<Call>,
    interests: Interests,
    bytes: Arc<AtomicUsize>,
}

impl HookQueue {
    /// Starts the thread of a hook. It ends when the queue is dropped, or stopped, and worked off; a
    /// hook that never returns keeps only its own thread. `None` if the hook watches nothing, or there
    /// is no thread for it.
    pub(super) fn start(hook: Arc<dyn Hook>, counts: &Arc<HookCounts>) -> Option<Self> {
        let interests = Interests::of(hook.as_ref());
        if interests.0 == 0 {
            return None;
        }
        let (sender, receiver) = sync_channel(QUEUE_LENGTH);
        let (name, counts, bytes) = (hook.name(), Arc::clone(counts), Arc::default());
        let waiting = Arc::clone(&bytes);
        let thread = std::thread::Builder::new().name(format!("hook-{name}"));
        match thread.spawn(move || run(hook.as_ref(), &receiver, &counts, &waiting)) {
            Ok(_detached) => Some(Self { name, sender, interests, bytes }),
            Err(error) => {
                tracing::error!(hook = name, %error, "hook not started: no thread for it");
                None
            }
        }
    }

    /// Whether the hook is to be told of operations like this.
    pub(super) const fn wants(&self, kind: OpKind, origin: Origin) -> bool {
        self.interests.include(kind, origin)
    }

    /// Whether there was room.
    pub(super) fn put(&self, operation: &Operation, effect: Effect) -> bool {
        let weight = weight(operation);
        if self.bytes.fetch_add(weight, Ordering::Relaxed) + weight <= QUEUE_BYTES
            && self.sender.try_send(Call::After(operation.clone(), effect)).is_ok()
        {
            return true;
        }
        self.bytes.fetch_sub(weight, Ordering::Relaxed);
        false
    }

    /// Has the hook finish what it has, until the deadline.
    pub(super) async fn stop(&self, deadline: Instant) {
        let ending = async {
            let (done, ended) = oneshot::channel();
            let mut stop = Call::Stop(deadline.saturating_duration_since(Instant::now()), done);
            // Full only for as long as the hook takes for its next operation.
            while let Err(refused) = self.sender.try_send(stop) {
                let std::sync::mpsc::TrySendError::Full(again) = refused else { return };
                stop = again;
                sleep(BETWEEN_LOOKS).await;
            }
            ended.await.ok();
        };
        if timeout_at(deadline, ending).await.is_err() {
            tracing::warn!(hook = self.name, "stopping although the hook has not finished");
        }
    }
}

/// What an operation keeps in memory while it waits.
fn weight(operation: &Operation) -> usize {
    let value = operation.value.as_ref().map_or(0, |value| value.as_str().len());
    operation.key.as_str().len() + value
}

fn run(hook: &dyn Hook, queue: &Receiver<Call>, counts: &HookCounts, bytes: &AtomicUsize) {
    while let Ok(call) = queue.recv() {
        let panicked = match call {
            Call::After(operation, effect) => {
                bytes.fetch_sub(weight(&operation), Ordering::Relaxed);
                catch_unwind(AssertUnwindSafe(|| hook.after(&operation, effect))).is_err()
            }
            Call::Stop(within, done) => {
                let panicked = catch_unwind(AssertUnwindSafe(|| hook.stop(within))).is_err();
                done.send(()).ok();
                panicked
            }
        };
        if panicked {
            counts.panics.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Key, Value};
    use std::sync::Mutex;

    /// Takes nothing before the gate opens.
    struct Shut(Mutex<Receiver<()>>);

    impl Hook for Shut {
        fn name(&self) -> &'static str {
            "shut"
        }

        fn after(&self, _: &Operation, _: Effect) {
            self.0.lock().unwrap().recv().ok();
        }
    }

    #[test]
    fn a_queue_is_full_of_bytes_before_it_is_full_of_operations() {
        let (open, gate) = sync_channel(1);
        let hook = Arc::new(Shut(Mutex::new(gate)));
        let queue = HookQueue::start(hook, &Arc::default()).unwrap();
        let operation = Operation {
            key: Key::new("k").unwrap(),
            kind: OpKind::Add,
            origin: Origin::Client,
            value: Some(Value::new(&"v".repeat(QUEUE_BYTES / 4 - 1))),
            version: None,
        };
        let taken = (0..8).filter(|_| queue.put(&operation, Effect::Applied)).count();
        // One more if the hook had begun with the first.
        assert!((4..=5).contains(&taken), "{taken}");
        drop(open);
    }
}
