//! `SlowCalls`: lines about what this node does for its peers, where that takes long or fails.
//!
//! The node that a client asked tells how long it waited for others; here is what they waited for. The
//! two lines have the trace in common, if the client sent one.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::{LineBudget, TraceContext};
use crate::ports::{ApplyError, Caller, WriteReply};

use super::apply::Took;

/// Writes the lines.
#[derive(Debug)]
pub(crate) struct SlowCalls {
    /// What takes longer has a line; `None`: nothing has.
    threshold: Option<Duration>,
    since: Instant,
    budget: Mutex<LineBudget>,
}

impl SlowCalls {
    pub(crate) fn beyond(threshold: Option<Duration>) -> Self {
        Self { threshold, since: Instant::now(), budget: Mutex::default() }
    }

    /// Writes were taken together, and took that long once it was their turn.
    pub(crate) fn note_writes(
        &self,
        caller: Caller,
        traces: &[(usize, TraceContext)],
        took: Took,
        replies: &[Result<WriteReply, ApplyError>],
    ) {
        if self.is_slow(caller.waited + took.log + took.store) {
            // A line for each that has a trace, or one for all.
            let of_each = traces.iter().map(|(_, trace)| Some(*trace));
            for trace in of_each.chain(traces.is_empty().then_some(None)) {
                self.tell(("write", replies.len()), caller, trace, took);
            }
        }
        for (place, trace) in traces {
            if let Some(Err(error)) = replies.get(*place)
                && let Some(suppressed) = self.admit()
            {
                tracing::warn!(
                    peer = caller.node.map(|node| node.to_string()).as_deref(),
                    trace_id = trace.trace_id().as_str(),
                    %error,
                    suppressed,
                    "write for a peer not taken"
                );
            }
        }
    }

    /// A read was answered; that itself takes no time.
    pub(crate) fn note_read(&self, caller: Caller, trace: Option<TraceContext>) {
        if self.is_slow(caller.waited) {
            self.tell(("read", 1), caller, trace, Took::default());
        }
    }

    fn is_slow(&self, total: Duration) -> bool {
        self.threshold.is_some_and(|threshold| total > threshold)
    }

    fn tell(
        &self,
        (call, together): (&str, usize),
        caller: Caller,
        trace: Option<TraceContext>,
        took: Took,
    ) {
        let Some(suppressed) = self.admit() else { return };
        tracing::warn!(
            call,
            peer = caller.node.map(|node| node.to_string()).as_deref(),
            together,
            total_ms = millis(caller.waited + took.log + took.store),
            queued_ms = millis(caller.waited),
            log_ms = millis(took.log),
            store_ms = millis(took.store),
            trace_id = trace.map(TraceContext::trace_id).as_deref(),
            suppressed,
            "slow call of a peer"
        );
    }

    fn admit(&self) -> Option<u64> {
        let now = self.since.elapsed();
        self.budget.lock().unwrap_or_else(PoisonError::into_inner).admit(now)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::sync::Arc;

    use super::*;
    use crate::app::fixture::{Fixture, NOW, TestNode, key, live};
    use crate::domain::{KeyedEntry, NodeId};
    use crate::ports::{Asked, Origin};

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn trace() -> TraceContext {
        TraceContext::parse(&format!("00-{TRACE}-00f067aa0ba902b7-01")).unwrap()
    }

    fn caller(waited: u64) -> Caller {
        Caller { node: Some(NodeId::new(2)), waited: Duration::from_millis(waited) }
    }

    /// Has a node write these at those times, the last of them as a part of the trace.
    async fn write(node: &TestNode, names: &[&str], at: u64, waited: u64, has_trace: bool) {
        let writes: Vec<_> =
            names.iter().map(|name| KeyedEntry::new(key(name), live(at, "secret"))).collect();
        let last = writes.len() - 1;
        let traces = if has_trace { vec![(last, trace())] } else { Vec::new() };
        let asked = Asked { origin: Origin::Replica, caller: caller(waited), traces };
        drop(node.node.replica_api().apply(writes, asked).await);
    }

    /// The lines that are logged while this is carried out.
    async fn logged(work: impl Future<Output = ()>) -> Vec<String> {
        let mut file = tempfile::tempfile().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(Mutex::new(file.try_clone().unwrap()))
            .finish();
        let guard = tracing::subscriber::set_default(subscriber);
        work.await;
        drop(guard);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert!(!text.contains("secret"), "{text}");
        text.lines().map(ToOwned::to_owned).collect()
    }

    fn slow_disk(threshold: Option<Duration>) -> TestNode {
        let mut fixture = Fixture::with_peers([2]);
        fixture.log_delays.1 = Duration::from_millis(250);
        fixture.settings.slow_log_threshold = threshold;
        fixture.build()
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_takes_long_is_told_with_who_asked_its_phases_and_its_trace() {
        let node = slow_disk(Some(Duration::from_millis(250)));
        let lines = logged(async {
            write(&node, &["secret-a"], 1, 0, true).await;
            write(&node, &["secret-a", "secret-b"], 2, 50, true).await;
            write(&node, &["secret-a"], 3, 51, false).await;
        })
        .await;
        assert_eq!(lines.len(), 2, "{lines:?}");
        let common = r#" WARN lally::app::slow_calls: slow call of a peer call="write" peer="0000000000000002""#;
        let first = format!(
            r#"{common} together=2 total_ms=300 queued_ms=50 log_ms=250 store_ms=0 trace_id="{TRACE}" suppressed=0"#
        );
        let second = format!(
            "{common} together=1 total_ms=301 queued_ms=51 log_ms=250 store_ms=0 suppressed=0"
        );
        assert!(lines[0].ends_with(&first) && lines[1].ends_with(&second), "{lines:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_threshold_nothing_is_slow() {
        let node = slow_disk(None);
        let lines = logged(write(&node, &["a"], 1, 10_000, true)).await;
        assert_eq!(lines, Vec::<String>::new());
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_has_waited_long_is_told() {
        let node = Fixture::with_peers([2]).build();
        let api = Arc::clone(&node.node.replica_api());
        let lines = logged(async {
            for waited in [250, 251] {
                assert_eq!(api.read(&key("secret"), caller(waited), Some(trace())), Ok(None));
            }
        })
        .await;
        assert_eq!(lines.len(), 1, "{lines:?}");
        let told = format!(r#"queued_ms=251 log_ms=0 store_ms=0 trace_id="{TRACE}""#);
        assert!(lines[0].contains(&told) && lines[0].contains(r#"call="read""#), "{lines:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_with_a_trace_that_is_not_taken_is_told_with_it() {
        let node = Fixture::with_peers([2]).build();
        let lines = logged(async {
            write(&node, &["a"], NOW * 2, 0, true).await;
            write(&node, &["a"], NOW * 2, 0, false).await;
        })
        .await;
        let with_trace: Vec<_> = lines.iter().filter(|line| line.contains(TRACE)).collect();
        assert_eq!(with_trace.len(), 1, "{lines:?}");
        let told = "write for a peer not taken peer=\"0000000000000002\"";
        assert!(with_trace[0].contains(told), "{lines:?}");
    }
}
