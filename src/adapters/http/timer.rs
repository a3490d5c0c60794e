//! `ReusedTimers`: the timeouts of idle connections, at next to no cost.
//!
//! The HTTP server sets a timer when it has answered and takes it back when the next request is
//! there: tens of thousands of times a second, for a timeout that hardly ever runs out. Here a timer
//! that is taken back stays set, and the next wait uses it as it is: it wakes too early, at most
//! once per timeout, and is then set to what is still left. So a request costs neither a new timer
//! nor a change of the runtime's timer wheel. (Kernels and proxies do the same with lazily moved
//! timers.)

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Sleep, Timer};
use tokio::time::Instant;

/// Timers that wait to be used again; more are given up.
const KEPT: usize = 1_024;

type Set = Pin<Box<tokio::time::Sleep>>;

/// Timers of one server. They belong to the runtime in which they are first used.
#[derive(Debug, Clone, Default)]
pub(super) struct ReusedTimers(Arc<Mutex<Vec<Set>>>);

impl ReusedTimers {
    fn until(&self, deadline: Instant) -> Wait {
        let kept = self.kept().pop();
        let timer = match kept {
            // One that is set to later would wake too late.
            Some(mut timer) if timer.deadline() > deadline => {
                timer.as_mut().reset(deadline);
                timer
            }
            Some(timer) => timer,
            None => Box::pin(tokio::time::sleep_until(deadline)),
        };
        Wait { deadline, timer: Some(timer), timers: self.clone() }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Set>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Timer for ReusedTimers {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(self.until(Instant::now() + duration))
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(self.until(deadline.into()))
    }

    fn now(&self) -> std::time::Instant {
        // The runtime's time, which tests may stop.
        Instant::now().into_std()
    }
}

/// The wait for a deadline. Cancel safe: dropped, it gives its timer back.
struct Wait {
    deadline: Instant,
    /// Set to the deadline or an earlier moment; there until the drop.
    timer: Option<Set>,
    timers: ReusedTimers,
}

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.deadline;
        let Some(timer) = &mut self.timer else { return Poll::Ready(()) };
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= deadline || Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut kept = self.timers.kept();
        if kept.len() < KEPT {
            kept.extend(self.timer.take());
        }
    }
}

impl Sleep for Wait {}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_was_used_before_wakes_at_the_new_deadline_and_not_before() {
        let timers = ReusedTimers::default();
        let first = timers.sleep(10 * SECOND).now_or_never();
        assert!(first.is_none());
        assert_eq!(timers.kept().len(), 1);
        for (after, lasts) in [(9, 10), (0, 10), (25, 1), (0, 60)] {
            tokio::time::advance(after * SECOND).await;
            let began = Instant::now();
            timers.sleep(lasts * SECOND).await;
            assert_eq!(began.elapsed(), lasts * SECOND);
            assert_eq!(timers.kept().len(), 1, "there is never a second one");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_at_the_same_time_have_timers_of_their_own() {
        let timers = ReusedTimers::default();
        let began = Instant::now();
        let (long, short) = (timers.sleep(5 * SECOND), timers.sleep(2 * SECOND));
        short.await;
        assert_eq!(began.elapsed(), 2 * SECOND);
        long.await;
        assert_eq!(began.elapsed(), 5 * SECOND);
        assert_eq!(timers.kept().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_timers_are_kept_than_is_of_use() {
        let timers = ReusedTimers::default();
        let waits: Vec<_> = (0..KEPT + 10).map(|_| timers.sleep(SECOND)).collect();
        drop(waits);
        assert_eq!(timers.kept().len(), KEPT);
    }
}
