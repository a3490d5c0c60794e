//! Keeps all connections at work until the goal is reached, on time if there is a rate.
//!
//! With a rate, requests have numbers, and the n-th is due n intervals after the beginning. A free
//! connection takes the next number, waits until it is due, and asks. If none was free when a request
//! was due, its time counts from then on: a node that stalls cannot hide that by keeping the next
//! requests from being sent (coordinated omission: Tene, "How not to measure latency", 2013). What is due
//! and not answered when the time is over is counted as such.

use std::io::{self, Write};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until};

use crate::adapters::config::{BenchPlan, Extent};
use crate::adapters::http::Remote;

use super::super::command::interrupted;
use super::connection::{Connection, Reply};
use super::tally::Tally;
use super::workload::Workload;

/// How often progress is told, and the length of a step of the series.
const STEP: Duration = Duration::from_secs(1);

/// How long a connection that broke off is left alone.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What is to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// Every key is written, as fast as it goes.
    Fill,
    /// Load that is not counted.
    Warmup(Duration),
    /// Load that is.
    Measure(Extent),
}

impl Goal {
    const fn name(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Warmup(_) => "warm-up",
            Self::Measure(_) => "load",
        }
    }
}

/// What was measured.
#[derive(Debug)]
pub(super) struct Measured {
    /// What rates are counted over: answers that come after that change none.
    pub(super) took: Duration,
    pub(super) tally: Tally,
    pub(super) series: Vec<Step>,
    /// Requests that were due, or under way, and not answered.
    pub(super) unanswered: u64,
    pub(super) is_interrupted: bool,
}

/// A second of it, or what there was of the last one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Step {
    /// When it ended.
    pub(super) at: Duration,
    pub(super) per_second: f64,
    pub(super) errors: u64,
    pub(super) median_us: u64,
    pub(super) p99_us: u64,
}

/// Applies the load of the plan until the goal is reached, or an interrupt comes.
pub(super) async fn apply(plan: &BenchPlan, nodes: &[Remote], goal: Goal) -> Measured {
    let plan = Arc::new(plan.clone());
    let value = Workload::value(&plan);
    let nodes = nodes.iter().cycle().take(plan.connections);
    let connected = join_all(nodes.map(|node| Connection::to(node.clone()))).await;
    let pace = Arc::new(Pace::of(&plan, goal));
    let mut connections = JoinSet::new();
    // What a warm-up asks is not what is measured.
    let first = if matches!(goal, Goal::Warmup(_)) { 1 << 32 } else { 0 };
    for (number, connection) in (first..).zip(connected) {
        let workload = Workload::new(&plan, &value, number);
        connections.spawn(drive(Arc::clone(&pace), connection, workload));
    }
    let mut result = Measured {
        took: Duration::ZERO,
        tally: Tally::new(),
        series: Vec::new(),
        unanswered: 0,
        is_interrupted: false,
    };
    let mut ticks = interval_at(pace.began + STEP, STEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut interrupt = pin!(interrupted());
    loop {
        tokio::select! {
            ended = connections.join_next() => if ended.is_none() { break },
            _ = ticks.tick() => result.take_step(&pace, goal),
            () = &mut interrupt, if !result.is_interrupted => {
                result.is_interrupted = true;
                connections.abort_all();
            }
        }
    }
    result.take_step(&pace, goal);
    result.unanswered = pace.begun(result.took).saturating_sub(result.tally.all_ended());
    if let (Goal::Measure(Extent::Time(time)), false) = (goal, result.is_interrupted) {
        result.took = time;
    }
    result
}

impl Measured {
    /// Takes what was counted since the last time, and tells progress.
    fn take_step(&mut self, pace: &Pace, goal: Goal) {
        let at = pace.began.elapsed();
        let passed = at.saturating_sub(self.took);
        self.took = at;
        let counted = std::mem::replace(&mut *pace.counted(), Tally::new());
        let (times, errors) = (counted.all(), counted.failed());
        self.tally.add(&counted);
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 in a second")]
        let per_second = times.len() as f64 / passed.as_secs_f64().max(f64::EPSILON);
        let (median_us, p99_us) = (times.value_at_quantile(0.5), times.value_at_quantile(0.99));
        // The rest of a second is too short to say anything about a second.
        if passed >= STEP / 2 || self.series.is_empty() {
            self.series.push(Step { at, per_second, errors, median_us, p99_us });
            let seconds = at.as_secs_f64();
            let p99 = Duration::from_micros(p99_us);
            // A terminal that is gone is no reason to stop.
            writeln!(
                io::stderr(),
                "{}: {seconds:.0} s, {per_second:.0} requests/s, p99 {p99:.1?}, {errors} errors",
                goal.name()
            )
            .ok();
        }
    }
}

/// What comes when, shared by all connections.
struct Pace {
    goal: Goal,
    /// Keys to be filled.
    keys: u64,
    /// Between two requests, if there is a rate.
    every: Option<Duration>,
    began: Instant,
    next: AtomicU64,
    counted: Mutex<Tally>,
}

impl Pace {
    fn of(plan: &BenchPlan, goal: Goal) -> Self {
        let every = plan.rate.map(|rate| Duration::from_secs(1) / rate);
        Self {
            goal,
            keys: plan.keys,
            every: every.filter(|_| goal != Goal::Fill),
            began: Instant::now(),
            next: AtomicU64::new(0),
            counted: Mutex::new(Tally::new()),
        }
    }

    /// When the request with this number is due, after the beginning; at once without a rate.
    fn due(&self, number: u64) -> Option<Duration> {
        let nanos = self.every?.as_nanos().saturating_mul(number.into());
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Whether the request with this number is still to be sent now, so long after the beginning.
    fn is_wanted(&self, number: u64, now: Duration) -> bool {
        match self.goal {
            Goal::Fill => number < self.keys,
            Goal::Measure(Extent::Requests(count)) => number < count,
            Goal::Warmup(time) | Goal::Measure(Extent::Time(time)) => {
                now < time && self.due(number).is_none_or(|due| due < time)
            }
        }
    }

    /// The next request, if one is still wanted so long after the beginning.
    fn take(&self, now: Duration) -> Option<u64> {
        let next = |number| self.is_wanted(number, now).then_some(number + 1);
        self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()
    }

    /// Requests that were due by then, or taken where there is no rate.
    fn begun(&self, now: Duration) -> u64 {
        let taken = self.next.load(Ordering::Relaxed);
        let Some(every) = self.every else { return taken };
        let due = |now: Duration| {
            let due = now.as_nanos().div_ceil(every.as_nanos().max(1));
            u64::try_from(due).unwrap_or(u64::MAX)
        };
        match self.goal {
            Goal::Measure(Extent::Time(time)) => due(now.min(time)),
            _ => taken.min(due(now)),
        }
    }

    fn counted(&self) -> MutexGuard<'_, Tally> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The life of one connection.
async fn drive(pace: Arc<Pace>, mut connection: Connection, mut workload: Workload) {
    loop {
        let free = Instant::now();
        let Some(number) = pace.take(free - pace.began) else { return };
        let due = pace.due(number).map(|due| pace.began + due);
        if let Some(due) = due.filter(|due| *due > free) {
            sleep_until(due).await;
        }
        let (call, body) =
            if pace.goal == Goal::Fill { workload.fill(number) } else { workload.draw() };
        // Whoever was free in time is late by its own timer only, which is not the node's fault.
        let from = due.filter(|due| *due < free).unwrap_or_else(Instant::now);
        let reply = connection.ask(call, body).await;
        let took = from.elapsed();
        let is_error = matches!(reply, Reply::Error(_));
        pace.counted().record(call, reply, took);
        if is_error && connection.is_broken() {
            sleep(AGAIN_AFTER).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pace(goal: Goal, every: Option<Duration>) -> Pace {
        Pace {
            goal,
            keys: 3,
            every,
            began: Instant::now(),
            next: AtomicU64::new(0),
            counted: Mutex::new(Tally::new()),
        }
    }

    #[test]
    fn a_time_ends_what_is_sent_and_a_number_what_is_asked() {
        let time = Goal::Measure(Extent::Time(100 * MS));
        for every in [None, Some(10 * MS)] {
            let pace = pace(time, every);
            assert!(pace.is_wanted(9, 99 * MS) && !pace.is_wanted(9, 100 * MS));
        }
        assert!(!pace(time, Some(10 * MS)).is_wanted(10, 50 * MS));
        let requests = pace(Goal::Measure(Extent::Requests(5)), None);
        assert!(requests.is_wanted(4, 999 * MS) && !requests.is_wanted(5, MS));
        let fill = pace(Goal::Fill, None);
        assert!(fill.is_wanted(2, 999 * MS) && !fill.is_wanted(3, MS));
    }

    #[test]
    fn what_was_due_is_counted_whether_it_was_sent_or_not() {
        let time = pace(Goal::Measure(Extent::Time(100 * MS)), Some(10 * MS));
        time.next.store(4, Ordering::Relaxed);
        assert_eq!((time.begun(50 * MS), time.begun(200 * MS)), (5, 10));
        assert_eq!((time.due(0), time.due(7)), (Some(Duration::ZERO), Some(70 * MS)));
        let requests = pace(Goal::Measure(Extent::Requests(100)), Some(10 * MS));
        requests.next.store(4, Ordering::Relaxed);
        // One of the four is not due yet.
        assert_eq!((requests.begun(30 * MS), requests.begun(90 * MS)), (3, 4));
    }
}
