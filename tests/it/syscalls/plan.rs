//! How one call of a traced run is singled out: which paths to watch, and which number to wait for.
//!
//! `strace` counts the calls of a name that concern the watched paths, each thread for itself, and
//! injures every thread's n-th. A plan is good if the target is the first that is injured, and best if
//! it is the only one.

use std::collections::{BTreeMap, BTreeSet};

use super::calls::Call;

/// What to tell `strace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub call: String,
    /// Relative to the data directory.
    pub paths: Vec<String>,
    pub when: usize,
    /// Calls of other threads that it would injure later.
    pub others: usize,
}

/// The plan for the call at this place of a run; `None` if it cannot be hit before any other.
pub fn plan(calls: &[Call], target: usize) -> Option<Plan> {
    let call = &calls[target];
    let own: Vec<_> = call.watched().iter().filter(|path| is_known_before(path)).collect();
    let of_name = calls.iter().filter(|other| other.name == call.name);
    let others: BTreeSet<_> =
        of_name.flat_map(Call::watched).filter(|path| is_known_before(path)).collect();
    let others: Vec<_> = others.into_iter().collect();
    let mut best: Option<Plan> = None;
    let singles = own.iter().map(|&own| vec![own]);
    let pairs = own.iter().flat_map(|&own| others.iter().map(move |&other| vec![own, other]));
    let triples = own.iter().flat_map(|&own| {
        let pairs = others
            .iter()
            .enumerate()
            .flat_map(|(i, &a)| others[i + 1..].iter().map(move |&b| [a, b]));
        pairs.map(move |[a, b]| vec![own, a, b])
    });
    for paths in singles.chain(pairs).chain(triples) {
        let paths: Vec<String> = paths.into_iter().cloned().collect();
        let when = number_of(calls, target, &paths);
        let hit = hits(calls, &call.name, &paths, when);
        if hit.first() != Some(&target) {
            continue;
        }
        let plan = Plan { call: call.name.clone(), paths, when, others: hit.len() - 1 };
        if plan.others == 0 {
            return Some(plan);
        }
        if best.as_ref().is_none_or(|best| plan.others < best.others) {
            best = Some(plan);
        }
    }
    best
}

/// Names with the time in them are not the same in the next run.
fn is_known_before(path: &str) -> bool {
    !path.contains(".bak-")
}

/// The number of the call at this place among its thread's.
fn number_of(calls: &[Call], target: usize, paths: &[String]) -> usize {
    let Call { thread, name, .. } = &calls[target];
    let before = calls[..=target].iter();
    before.filter(|c| c.thread == *thread && c.name == *name && c.concerns(paths)).count()
}

/// The places of all calls that would be injured.
fn hits(calls: &[Call], name: &str, paths: &[String], when: usize) -> Vec<usize> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    let counted = calls.iter().enumerate().filter(|(_, c)| c.name == name && c.concerns(paths));
    counted
        .filter_map(|(place, call)| {
            let count = counts.entry(call.thread).or_default();
            *count += 1;
            (*count == when).then_some(place)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(thread: u32, path: &str) -> Call {
        let (name, paths) = ("fsync".to_owned(), vec![path.to_owned()]);
        Call { thread, name, paths, is_injected: false, is_cut_off: false }
    }

    #[test]
    fn a_call_of_a_thread_that_is_alone_with_its_file_is_hit_alone() {
        let calls = [call(1, "."), call(2, "a"), call(1, "."), call(2, "a")];
        for (target, path, when) in [(0, ".", 1), (1, "a", 1), (2, ".", 2), (3, "a", 2)] {
            let paths = vec![path.to_owned()];
            let expected = Plan { call: "fsync".into(), paths, when, others: 0 };
            assert_eq!(plan(&calls, target), Some(expected));
        }
    }

    #[test]
    fn a_call_behind_another_threads_of_the_same_number_is_reached_over_other_files() {
        // Of the two on the directory the first would always be hit instead.
        let calls = [call(1, "."), call(2, "a"), call(2, ".")];
        let planned = plan(&calls, 2).unwrap();
        assert_eq!((planned.when, planned.others), (2, 0));
        assert_eq!(planned.paths, [".", "a"]);
    }

    #[test]
    fn a_file_that_is_renamed_is_watched_by_the_name_that_it_had() {
        let rename = |to: &str| Call {
            name: "rename".into(),
            paths: vec!["new".into(), to.into()],
            ..call(1, "")
        };
        let planned = plan(&[rename("log"), rename("snap")], 1).unwrap();
        assert_eq!((planned.paths, planned.when), (vec!["new".to_owned()], 2));
    }

    #[test]
    fn what_cannot_be_told_from_an_earlier_call_has_no_plan() {
        assert_eq!(plan(&[call(1, "."), call(2, ".")], 1), None);
        assert_eq!(plan(&[call(1, "log.bak-1")], 0), None);
    }
}
