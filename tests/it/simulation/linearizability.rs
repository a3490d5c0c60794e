//! Whether the operations on one key could have happened one after the other, each at some moment
//! between its invocation and its return: linearizability of a register, by version order.
//!
//! After Wing and Gong, "Testing and verifying concurrent objects" (1993), in the form of Lowe,
//! "Testing for linearizability" (2017): a search over the orders in which operations may take
//! effect, with a memory of the states that led nowhere. Which operations may be asked of (writes
//! with a majority, reads that are confirmed by one) is the caller's choice.

use std::collections::HashSet;
use std::time::Duration;

/// Most operations of one key at a time; the set of those that took effect is a bitmap.
pub const WINDOW: usize = 128;

/// An operation on a register.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub invoked: Duration,
    /// `None` if nobody knows whether it took effect, or when.
    pub returned: Option<Duration>,
    pub action: Action,
}

/// What an operation does. A state is what was written last; 0 is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Write(u64),
    Read(u64),
}

/// Whether there is an order in which all of these make sense.
///
/// # Panics
/// If there are more than 128 operations.
pub fn is_linearizable(steps: &[Step]) -> bool {
    assert!(steps.len() <= WINDOW, "{} operations of one key", steps.len());
    let certain = steps.iter().enumerate().filter(|(_, step)| step.returned.is_some());
    let certain = certain.fold(0u128, |set, (i, _)| set | 1 << i);
    let mut seen = HashSet::new();
    let mut open = vec![(0u128, 0u64)];
    while let Some((done, state)) = open.pop() {
        if done & certain == certain {
            return true;
        }
        if seen.insert((done, state)) {
            open.extend(next(steps, done, state));
        }
    }
    false
}

/// What may take effect next, and the states that lead there.
fn next(steps: &[Step], done: u128, state: u64) -> impl Iterator<Item = (u128, u64)> {
    let is_open = move |i: usize| done >> i & 1 == 0;
    // Whatever is invoked after another one returned comes after it.
    let open = steps.iter().enumerate().filter(move |(i, _)| is_open(*i));
    let first_return = open.clone().filter_map(|(_, step)| step.returned).min();
    open.filter(move |(_, step)| first_return.is_none_or(|returned| step.invoked <= returned))
        .filter_map(move |(i, step)| match step.action {
            Action::Write(written) => Some((done | 1 << i, written)),
            Action::Read(read) => (read == state).then_some((done | 1 << i, state)),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(invoked: u64, returned: u64, action: Action) -> Step {
        let returned = Some(Duration::from_millis(returned));
        Step { invoked: Duration::from_millis(invoked), returned, action }
    }

    #[test]
    fn a_read_sees_the_write_before_it() {
        let write = step(0, 1, Action::Write(7));
        assert!(is_linearizable(&[write.clone(), step(2, 3, Action::Read(7))]));
        assert!(!is_linearizable(&[write, step(2, 3, Action::Read(0))]));
    }

    #[test]
    fn a_read_beside_a_write_may_see_it_or_not() {
        let write = step(0, 9, Action::Write(7));
        assert!(is_linearizable(&[write.clone(), step(2, 3, Action::Read(7))]));
        assert!(is_linearizable(&[write, step(2, 3, Action::Read(0))]));
    }

    #[test]
    fn a_write_that_was_seen_is_not_unseen_by_a_later_read() {
        let write = step(0, 9, Action::Write(7));
        let (new, old) = (step(2, 3, Action::Read(7)), step(4, 5, Action::Read(0)));
        assert!(!is_linearizable(&[write.clone(), new.clone(), old]));
        assert!(is_linearizable(&[write, step(1, 3, Action::Read(0)), new]));
    }

    #[test]
    fn a_write_of_unknown_outcome_may_take_effect_at_any_time_or_never() {
        let unknown = Step { returned: None, ..step(0, 0, Action::Write(7)) };
        let sees = |values: &[u64]| {
            let reads =
                values.iter().zip(1..).map(|(v, i)| step(2 * i, 2 * i + 1, Action::Read(*v)));
            is_linearizable(&std::iter::once(unknown.clone()).chain(reads).collect::<Vec<_>>())
        };
        assert!(sees(&[0, 0]) && sees(&[0, 7]) && sees(&[7, 7]));
        assert!(!sees(&[7, 0]));
        assert!(!sees(&[8]));
    }

    #[test]
    fn writes_at_the_same_time_are_seen_in_one_order_by_all() {
        let writes = [step(0, 9, Action::Write(1)), step(0, 9, Action::Write(2))];
        let seen = |first, second| {
            let reads = [step(10, 11, Action::Read(first)), step(12, 13, Action::Read(second))];
            is_linearizable(&[&writes[..], &reads[..]].concat())
        };
        assert!(seen(1, 1) && seen(2, 2));
        assert!(!seen(1, 2));
    }

    #[test]
    fn many_operations_one_after_the_other_take_no_time() {
        let pairs = (0..60).flat_map(|i| {
            [step(4 * i, 4 * i + 1, Action::Write(i)), step(4 * i + 2, 4 * i + 3, Action::Read(i))]
        });
        assert!(is_linearizable(&pairs.collect::<Vec<_>>()));
    }
}
