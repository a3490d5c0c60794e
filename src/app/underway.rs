//! `Underway`: the changes that have begun but are perhaps not in the store yet.
//!
//! A compaction takes from the store what the log says so far, so it has to know that every change
//! logged before has arrived there. A new horizon has to know the same of every change that was checked
//! against the one before. Changes come in turns: each belongs to the turn in which it began, before
//! it was checked and logged, and a turn is over when the next one has begun and the last of its
//! changes has ended. (Epochs, as in reclamation schemes: Fraser, "Practical lock-freedom", 2004;
//! with one waiter at a time and two turns.)

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Mutex, Notify};

/// Counts the changes under way.
#[derive(Debug, Default)]
pub(crate) struct Underway {
    turn: AtomicUsize,
    /// Of the turns with even and odd numbers.
    inside: [AtomicUsize; 2],
    left: Notify,
    waiting: Mutex<()>,
}

/// A change under way, until dropped.
#[derive(Debug)]
pub(crate) struct Change<'a> {
    underway: &'a Underway,
    turn: usize,
}

impl Underway {
    /// A change begins. Before it is checked and logged: whoever waits for it has stored what the check
    /// has to see (all of this is sequentially consistent).
    pub(crate) fn begin(&self) -> Change<'_> {
        loop {
            let turn = self.turn.load(Ordering::SeqCst);
            self.inside_of(turn).fetch_add(1, Ordering::SeqCst);
            let change = Change { underway: self, turn };
            // Whoever waits may have looked between the two.
            if self.turn.load(Ordering::SeqCst) == turn {
                return change;
            }
        }
    }

    /// Waits until every change that began before has ended. Cancel safe.
    pub(crate) async fn settled(&self) {
        let _alone = self.waiting.lock().await;
        // Left over from a wait that was given up.
        let turn = self.turn.load(Ordering::SeqCst);
        self.ended(turn.wrapping_add(1)).await;
        self.turn.store(turn.wrapping_add(1), Ordering::SeqCst);
        self.ended(turn).await;
    }

    async fn ended(&self, turn: usize) {
        loop {
            let left = self.left.notified();
            if self.inside_of(turn).load(Ordering::SeqCst) == 0 {
                return;
            }
            left.await;
        }
    }

    const fn inside_of(&self, turn: usize) -> &AtomicUsize {
        let [even, odd] = &self.inside;
        if turn.is_multiple_of(2) { even } else { odd }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if self.underway.inside_of(self.turn).fetch_sub(1, Ordering::SeqCst) == 1 {
            self.underway.left.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::pin::pin;

    #[tokio::test]
    async fn what_began_before_is_waited_for_and_what_began_after_is_not() {
        let underway = Underway::default();
        for _ in 0..3 {
            assert_eq!(underway.settled().now_or_never(), Some(()));
            let before = [underway.begin(), underway.begin()];
            let mut settled = pin!(underway.settled());
            assert_eq!(settled.as_mut().now_or_never(), None);
            let after = underway.begin();
            for change in before {
                assert_eq!(settled.as_mut().now_or_never(), None);
                drop(change);
            }
            assert_eq!(settled.as_mut().now_or_never(), Some(()));
            drop(after);
        }
    }

    #[tokio::test]
    async fn a_wait_that_was_given_up_loses_no_change() {
        let underway = Underway::default();
        let first = underway.begin();
        assert_eq!(underway.settled().now_or_never(), None);
        let second = underway.begin();
        drop(second);
        assert_eq!(underway.settled().now_or_never(), None);
        drop(first);
        assert_eq!(underway.settled().now_or_never(), Some(()));
    }

    /// As the fence uses it: a bound is raised, and whoever saw the one before is waited for.
    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_saw_what_was_stored_before_the_wait_is_waited_for() {
        const ROUNDS: usize = 2_000;
        type Shared = (Underway, AtomicUsize, [AtomicUsize; 2]);
        let shared: std::sync::Arc<Shared> = std::sync::Arc::default();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..3 {
            let shared = std::sync::Arc::clone(&shared);
            tasks.spawn(async move {
                let (underway, bound, inside) = &*shared;
                loop {
                    let _change = underway.begin();
                    let seen = bound.load(Ordering::SeqCst);
                    inside[seen % 2].fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    inside[seen % 2].fetch_sub(1, Ordering::SeqCst);
                    if seen >= ROUNDS {
                        return;
                    }
                }
            });
        }
        let (underway, bound, inside) = &*shared;
        for next in 1..=ROUNDS {
            bound.store(next, Ordering::SeqCst);
            // Two at once, as a compaction and a new horizon may be.
            tokio::join!(underway.settled(), underway.settled());
            assert_eq!(inside[(next - 1) % 2].load(Ordering::SeqCst), 0, "{next}");
        }
        tasks.join_all().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_that_was_logged_is_missing_in_the_store_on_many_threads() {
        let shared = std::sync::Arc::new((Underway::default(), [const { AtomicUsize::new(0) }; 2]));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let shared = std::sync::Arc::clone(&shared);
            tasks.spawn(async move {
                let (underway, [logged, stored]) = &*shared;
                for _ in 0..5_000 {
                    let _change = underway.begin();
                    logged.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    stored.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let (underway, [logged, stored]) = &*shared;
        while stored.load(Ordering::SeqCst) < 4 * 5_000 {
            let before = logged.load(Ordering::SeqCst);
            underway.settled().await;
            assert!(stored.load(Ordering::SeqCst) >= before);
        }
        tasks.join_all().await;
    }
}
