//! What must be true of a history and of what the nodes hold in the end. Each checker is a plain
//! function that returns what it objects to; each has a test that it objects to a fabricated history.
//!
//! Where the README promises less, a checker asks for less, and says so here:
//! - A write with a quorum of one is on one node when it is acknowledged. If that node loses its
//!   disk, the write may be gone; nothing is asked of such writes.
//! - A node that is paused, not running or unplugged from its clients cannot answer them in time.
//!   Requests to it meanwhile are not held to the timeout; requests to all others are.
//! - A removal of an absent key is answered without a version. What such a removal may have removed
//!   is decided by real time: not what was certainly written after it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::history::{Call, End, History, Operation, Version};

/// What an answer may take beyond its timeout.
const GRACE: Duration = Duration::from_millis(250);
/// For the machine, not for the product: two cores run five nodes of a debug build, their clients
/// and perhaps a compiler; a client is woken late, and so is a timer.
const LOADED_MACHINE: Duration = Duration::from_millis(750);

/// All checkers, by what they hold the cluster to.
pub fn check(history: &History, timeout: Duration) -> Vec<(&'static str, Vec<String>)> {
    vec![
        ("no acknowledged write is lost", lost_writes(history)),
        ("no removed key comes back", resurrections(history)),
        ("no value is invented", inventions(history)),
        ("all nodes hold the same in the end", differences(history)),
        ("majority reads see majority writes", stale_reads(history)),
        ("versions of successive majority writes grow", versions_that_shrink(history)),
        ("no request outlives its timeout", overlong(history, timeout)),
    ]
}

/// Acknowledged values that a node does not hold in the end, nor anything newer.
pub fn lost_writes(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for (key, operations) in history.by_key() {
        let adds = operations.iter().filter(|o| o.call == Call::Add && counts(history, o));
        for add in adds {
            let Some(written) = add.version() else {
                found.push(format!("an acknowledged write without a version: {add:?}"));
                continue;
            };
            for (node, held) in history.held.iter().enumerate() {
                let kept = match held.keys.get(key).and_then(Option::as_ref) {
                    Some((_, version)) => version >= written,
                    None => operations.iter().any(|o| may_have_removed(o, add, Duration::MAX)),
                };
                if !kept {
                    let has = held.keys.get(key);
                    found.push(format!("node {node} lost {add:?}, and has {has:?}"));
                }
            }
        }
    }
    found
}

/// Values that a node holds in the end although they were removed.
pub fn resurrections(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for (key, operations) in history.by_key() {
        let removals = operations.iter().filter(|o| o.call == Call::Remove && counts(history, o));
        for removal in removals {
            for (node, held) in history.held.iter().enumerate() {
                if let Some(Some((value, version))) = held.keys.get(key)
                    && was_removed(&operations, value, version, removal)
                {
                    found.push(format!("node {node} holds {value:?} {version} after {removal:?}"));
                }
            }
        }
    }
    found
}

/// Values that nobody wrote to this key (or wrote later, or was told that nothing was done), and
/// versions above the one that their write was acknowledged with.
///
/// A lower one is right: a write that meets something newer is stamped again.
pub fn inventions(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for (key, operations) in history.by_key() {
        let writes: BTreeMap<&str, &Operation> =
            operations.iter().filter_map(|o| Some((o.value.as_deref()?, *o))).collect();
        let fits = |value: &str, version: Option<&Version>, until: Duration| {
            writes.get(value).is_some_and(|write| {
                let acknowledged = write.version();
                let above = version.zip(acknowledged).is_some_and(|(seen, known)| seen > known);
                !write.failed() && write.began <= until && !above
            })
        };
        for seen in operations.iter().filter(|o| o.call != Call::Add) {
            if let End::Ok { value: Some(value), version } = &seen.end {
                // The version of a removal is its own.
                let version = version.as_ref().filter(|_| seen.call == Call::Get);
                if !fits(value, version, seen.ended) {
                    found.push(format!("{seen:?}: written by {:?}", writes.get(value.as_str())));
                }
            }
        }
        for (node, held) in history.held.iter().enumerate() {
            if let Some(Some((value, version))) = held.keys.get(key)
                && !fits(value, Some(version), Duration::MAX)
            {
                let write = writes.get(value.as_str());
                found.push(format!("node {node} holds {value:?} {version}: written by {write:?}"));
            }
        }
    }
    found
}

/// Nodes that differ from the first one in the end.
pub fn differences(history: &History) -> Vec<String> {
    let Some((first, others)) = history.held.split_first() else {
        return vec!["nothing is known of any node".into()];
    };
    let mut found = Vec::new();
    for (node, held) in others.iter().enumerate().map(|(i, held)| (i + 1, held)) {
        if held.digest != first.digest {
            found.push(format!("digest of node {node}: {}, not {}", held.digest, first.digest));
        }
        let keys = held.keys.keys().chain(first.keys.keys());
        for key in keys.filter(|key| held.keys.get(*key) != first.keys.get(*key)) {
            let (here, there) = (held.keys.get(key), first.keys.get(key));
            found.push(format!("{key:?}: {here:?} on node {node}, {there:?} on node 0"));
        }
    }
    found
}

/// Majority reads that miss a majority write which was acknowledged before they began.
pub fn stale_reads(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for operations in history.by_key().into_values() {
        let reads = operations.iter().filter(|o| o.call == Call::Get && o.is_firm());
        for read in reads {
            let before = || {
                operations.iter().filter(|o| o.is_write() && o.is_firm() && o.ended < read.began)
            };
            let missed = match &read.end {
                End::Ok { value: Some(value), version: Some(version) } => before().find(|write| {
                    write.version().is_some_and(|newer| newer > version)
                        || write.call == Call::Remove
                            && was_removed(&operations, value, version, write)
                }),
                _ => before()
                    .filter(|write| write.call == Call::Add)
                    .max_by_key(|add| add.version())
                    .filter(|add| !operations.iter().any(|o| may_have_removed(o, add, read.ended))),
            };
            if let Some(write) = missed {
                found.push(format!("{read:?} missed {write:?}"));
            }
        }
    }
    found
}

/// Majority writes whose version is not above that of one that was acknowledged before they began.
pub fn versions_that_shrink(history: &History) -> Vec<String> {
    let mut found = Vec::new();
    for operations in history.by_key().into_values() {
        let writes: Vec<_> = operations.iter().filter(|o| o.is_write() && o.is_firm()).collect();
        for later in &writes {
            let Some(version) = later.version() else { continue };
            let newest = writes
                .iter()
                .filter(|earlier| earlier.ended < later.began)
                .filter(|earlier| earlier.version().is_some())
                .max_by_key(|earlier| earlier.version());
            if let Some(earlier) = newest.filter(|earlier| earlier.version() >= Some(version)) {
                found.push(format!("{later:?} is not above {earlier:?}"));
            }
        }
    }
    found
}

/// Requests that took longer than their timeout, the promised grace, and what a busy machine costs.
pub fn overlong(history: &History, timeout: Duration) -> Vec<String> {
    history
        .operations
        .iter()
        .filter(|o| o.took() > timeout + GRACE + LOADED_MACHINE && !was_silent(history, o))
        .map(|o| format!("{:?}: {o:?}", o.took()))
        .collect()
}

/// The longest request to a node that could answer.
pub fn slowest(history: &History) -> Duration {
    let answered = history.operations.iter().filter(|o| !was_silent(history, o));
    answered.map(Operation::took).max().unwrap_or_default()
}

fn was_silent(history: &History, operation: &Operation) -> bool {
    history.troubles.iter().any(|trouble| {
        trouble.silent.contains(&operation.node)
            && operation.began <= trouble.ended
            && operation.ended >= trouble.began
    })
}

/// Whether an acknowledgement must be kept: with a majority always; with one node, if that did not
/// lose its disk afterwards.
fn counts(history: &History, operation: &Operation) -> bool {
    let lost = history
        .troubles
        .iter()
        .any(|trouble| trouble.wiped == Some(operation.node) && trouble.ended >= operation.ended);
    operation.is_firm() || operation.succeeded() && !lost
}

/// Whether this operation can be why the value of `add` was absent at a time.
fn may_have_removed(operation: &Operation, add: &Operation, at: Duration) -> bool {
    let newer = match operation.version() {
        Some(version) => Some(version) > add.version(),
        None => !(operation.is_firm() && add.is_firm() && operation.ended < add.began),
    };
    operation.call == Call::Remove && !operation.failed() && operation.began <= at && newer
}

/// Whether a removal was of this value: its version is newer, or, where it had none, its value was
/// certainly written before.
fn was_removed(
    operations: &[&Operation],
    value: &str,
    version: &Version,
    removal: &Operation,
) -> bool {
    match removal.version() {
        Some(removed) => version < removed,
        None => operations.iter().any(|o| {
            o.value.as_deref() == Some(value)
                && (o.is_firm() && removal.is_firm() && o.ended < removal.began)
        }),
    }
}
