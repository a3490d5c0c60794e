//! What clients did with a server, and what may be left of it after a failure.
//!
//! Each client owns its keys, does one operation after the other, and stops at the first that is
//! not acknowledged. So whatever a server lost, it must hold what the first so many operations of each
//! client left: a prefix. And if an operation is left, everything is left that was acknowledged to
//! anyone before it was sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::server::{Outcome, Session, State};

const KEYS: usize = 100;

/// Counts up with every request and every answer of all clients.
pub type Order = AtomicU64;

/// Ends the load when dropped, also when a test fails: clients that are not told go on for ever.
pub struct Ending<'a>(pub &'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Operation {
    key: usize,
    state: State,
    sent: u64,
    acknowledged: Option<(u64, Instant)>,
}

impl Operation {
    /// When it was acknowledged, if that was until this moment: what is later is in doubt.
    fn acknowledged_by(&self, failed: Instant) -> Option<(u64, Instant)> {
        self.acknowledged.filter(|(_, at)| *at <= failed)
    }
}

/// One client, since the server was looked at last.
pub struct History {
    client: usize,
    /// What each key held then.
    base: Vec<State>,
    operations: Vec<Operation>,
    /// Operations before that.
    earlier: usize,
    /// What the last operation was refused with.
    pub refusal: Option<String>,
}

impl History {
    pub fn new(client: usize) -> Self {
        let base = vec![None; KEYS];
        Self { client, base, operations: Vec::new(), earlier: 0, refusal: None }
    }

    /// Writes and removes until it is over, or something is not acknowledged.
    pub fn write(&mut self, session: &mut dyn Session, order: &Order, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            let turn = self.earlier + self.operations.len();
            // No key is removed twice in a row: once every key was written, every operation changes
            // something. The values are of uneven lengths, so that the log is cut at uneven places.
            let state =
                (turn % 11 != 10).then(|| format!("{turn}:{}", "x".repeat(turn * 37 % 400)));
            if !self.put(session, order, turn % KEYS, state) {
                break;
            }
        }
    }

    fn put(&mut self, session: &mut dyn Session, order: &Order, key: usize, state: State) -> bool {
        let sent = order.fetch_add(1, Ordering::SeqCst);
        let outcome = session.put(&self.name(key), state.as_deref());
        let answered = (order.fetch_add(1, Ordering::SeqCst), Instant::now());
        let acknowledged = (outcome == Outcome::Acknowledged).then_some(answered);
        self.operations.push(Operation { key, state, sent, acknowledged });
        if let Outcome::Refused(refusal) = outcome {
            self.refusal = Some(refusal);
        }
        acknowledged.is_some()
    }

    fn name(&self, key: usize) -> String {
        format!("w{}-{key}", self.client)
    }

    /// What the server holds of this client's keys.
    pub fn look(&self, session: &mut dyn Session) -> Vec<State> {
        (0..KEYS).map(|key| session.get(&self.name(key))).collect()
    }

    /// Begins anew with what was found.
    pub fn begin_with(&mut self, found: Vec<State>) {
        self.base = found;
        self.earlier += self.operations.len();
        self.operations.clear();
        self.refusal = None;
    }

    pub fn acknowledged(&self) -> usize {
        self.operations.iter().filter(|operation| operation.acknowledged.is_some()).count()
    }

    /// The least and the largest number of operations that would leave this; or what is wrong with it.
    fn prefix(&self, found: &[State]) -> Result<(usize, usize), String> {
        let mut state: Vec<&State> = self.base.iter().collect();
        let mut differing = state.iter().zip(found).filter(|(a, b)| **a != *b).count();
        let mut range = (differing == 0).then_some((0, 0));
        for (done, Operation { key, state: next, .. }) in self.operations.iter().enumerate() {
            differing -= usize::from(*state[*key] != found[*key]);
            state[*key] = next;
            differing += usize::from(*next != found[*key]);
            if differing == 0 {
                range = Some((range.map_or(done + 1, |(least, _)| least), done + 1));
            }
        }
        range.ok_or_else(|| {
            let differing = state.iter().zip(found).enumerate().filter(|(_, (a, b))| **a != *b);
            let shown: Vec<_> = differing
                .take(5)
                .map(|(key, (sent, found))| {
                    format!("{}: sent last {}, found {}", self.name(key), brief(sent), brief(found))
                })
                .collect();
            format!("no number of operations leaves this: {}", shown.join("; "))
        })
    }
}

fn brief(state: &State) -> String {
    state.as_ref().map_or_else(|| "nothing".into(), |value| value.chars().take(12).collect())
}

/// What a failure cost.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Acknowledged operations that are not there.
    pub lost: usize,
    /// How long before the failure the oldest of them was acknowledged.
    pub oldest: Duration,
    /// And how long before the last that was acknowledged to anybody before the failure.
    pub span: Duration,
    /// What is not what a prefix of the operations leaves.
    pub disorder: Vec<String>,
}

/// Compares what was found with what was done before this moment, history by history.
pub fn judge(histories: &[History], found: &[Vec<State>], failed: Instant) -> Judgement {
    let mut judgement = Judgement::default();
    let all = histories.iter().flat_map(|history| &history.operations);
    let newest = all.filter_map(|one| one.acknowledged_by(failed)).map(|(_, at)| at).max();
    let mut ranges = BTreeMap::new();
    for (place, (history, found)) in histories.iter().zip(found).enumerate() {
        match history.prefix(found) {
            Err(why) => judgement.disorder.push(why),
            Ok((least, most)) => {
                ranges.insert(place, (least, most));
                let lost = history.operations[most..].iter();
                for (_, at) in lost.filter_map(|operation| operation.acknowledged_by(failed)) {
                    judgement.lost += 1;
                    judgement.oldest = judgement.oldest.max(failed.duration_since(at));
                    let span = newest.map_or(Duration::ZERO, |newest| newest.duration_since(at));
                    judgement.span = judgement.span.max(span);
                }
            }
        }
    }
    for (&place, &(least, _)) in &ranges {
        let Some(last) = least.checked_sub(1).map(|at| &histories[place].operations[at]) else {
            continue;
        };
        for (&other, &(_, most)) in &ranges {
            let gone = histories[other].operations.get(most);
            let gone = gone.and_then(|gone| gone.acknowledged_by(failed));
            if gone.is_some_and(|(answered, _)| answered < last.sent) {
                judgement.disorder.push(format!(
                    "operation {least} of client {place} is left, operation {} of client {other}, \
                     acknowledged before that was sent, is not",
                    most + 1
                ));
            }
        }
    }
    judgement
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acknowledges everything, or everything up to some operation.
    struct Mock(usize);

    impl Session for Mock {
        fn put(&mut self, _: &str, _: Option<&str>) -> Outcome {
            match self.0.checked_sub(1) {
                Some(left) => {
                    self.0 = left;
                    Outcome::Acknowledged
                }
                None => Outcome::Silence,
            }
        }

        fn get(&mut self, _: &str) -> State {
            None
        }

        fn compact(&mut self) -> Outcome {
            Outcome::Silence
        }
    }

    /// What a client's keys hold, from the first on.
    fn holds(values: &[Option<&str>]) -> Vec<State> {
        let values = values.iter().map(|value| value.map(str::to_owned));
        values.chain(std::iter::repeat(None)).take(KEYS).collect()
    }

    /// A client that wrote a, b, c into keys 0, 1, 0, the last without an answer.
    fn history(order: &Order) -> History {
        let mut history = History::new(0);
        let mut session = Mock(2);
        for (key, value) in [(0, "a"), (1, "b"), (0, "c")] {
            history.put(&mut session, order, key, Some(value.to_owned()));
        }
        history
    }

    fn judge_one(found: &[Option<&str>], later: Duration) -> Judgement {
        let history = history(&Order::new(0));
        let failed = history.operations[1].acknowledged.unwrap().1 + later;
        judge(&[history], &[holds(found)], failed)
    }

    #[test]
    fn what_was_not_answered_may_be_there_or_not() {
        for found in [[Some("a"), Some("b")], [Some("c"), Some("b")]] {
            assert_eq!(judge_one(&found, Duration::ZERO), Judgement::default());
        }
    }

    #[test]
    fn what_is_lost_is_counted_with_its_age() {
        let judgement = judge_one(&[Some("a")], Duration::from_secs(3));
        assert_eq!((judgement.lost, judgement.disorder.len()), (1, 0));
        assert_eq!(judgement.oldest, Duration::from_secs(3));
        assert_eq!(judgement.span, Duration::ZERO, "it is the last itself");
        let judgement = judge_one(&[], Duration::from_secs(3));
        assert_eq!((judgement.lost, judgement.disorder.len()), (2, 0));
        assert!(judgement.oldest >= Duration::from_secs(3));
        assert_eq!(judgement.oldest, judgement.span + Duration::from_secs(3));
    }

    #[test]
    fn what_was_acknowledged_later_is_in_doubt() {
        let history = history(&Order::new(0));
        let first = history.operations[0].acknowledged.unwrap().1;
        let failed = first.checked_sub(Duration::from_nanos(1)).unwrap();
        assert_eq!(judge(&[history], &[holds(&[])], failed), Judgement::default());
    }

    #[test]
    fn holes_and_inventions_are_no_prefix() {
        for found in [[None, Some("b")], [Some("c"), None], [Some("a"), Some("z")]] {
            let judgement = judge_one(&found, Duration::ZERO);
            assert_eq!(judgement.disorder.len(), 1, "{found:?}: {judgement:?}");
        }
    }

    #[test]
    fn what_was_acknowledged_to_one_before_another_began_is_not_lost_alone() {
        let order = Order::new(0);
        let (first, mut second) = (history(&order), History::new(1));
        second.put(&mut Mock(1), &order, 0, Some("later".to_owned()));
        let histories = [first, second];
        let found = |a: &[Option<&str>], b: &[Option<&str>]| [holds(a), holds(b)];
        let now = Instant::now();
        let judged = judge(&histories, &found(&[Some("a")], &[Some("later")]), now);
        assert_eq!((judged.lost, judged.disorder.len()), (1, 1), "{judged:?}");
        let judged = judge(&histories, &found(&[Some("a")], &[]), now);
        assert_eq!((judged.lost, judged.disorder.len()), (2, 0), "{judged:?}");
    }

    #[test]
    fn what_was_found_is_what_comes_next_begins_with() {
        let order = Order::new(0);
        let mut history = history(&order);
        history.begin_with(holds(&[Some("c"), Some("b")]));
        assert_eq!(history.prefix(&holds(&[Some("c"), Some("b")])), Ok((0, 0)));
        assert!(history.prefix(&holds(&[Some("a"), Some("b")])).is_err());
        history.put(&mut Mock(1), &order, 1, None);
        assert_eq!(history.prefix(&holds(&[Some("c")])), Ok((1, 1)));
    }

    #[test]
    fn clients_stop_when_they_get_no_answer() {
        let mut history = History::new(0);
        history.write(&mut Mock(250), &Order::new(0), &AtomicBool::new(false));
        assert_eq!((history.acknowledged(), history.operations.len()), (250, 251));
    }
}
