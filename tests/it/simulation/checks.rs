//! The checks: what must hold of every history, whatever went wrong in it. Each says what it found,
//! in words; nothing is what a right history has. Beside each is a history that it must reject.

use std::collections::BTreeMap;

use lally::domain::{Content, Entry, Key, NodeId, Version};
use lally::ports::Consistency;

use super::history::{Evidence, FinalState, LATENESS, Op, OpKind, Outcome};
use super::registers::keys_are_registers;

/// A check, by name.
pub type Check = (&'static str, fn(&Evidence) -> Vec<String>);

/// All checks.
pub const ALL: [Check; 14] = [
    ("all hold the same", replicas_are_equal),
    ("what the store holds, the log holds", stores_are_logged),
    ("no acknowledged write is missing", acknowledged_writes_are_present),
    ("what is held is the newest there is", the_newest_is_held),
    ("what was forgotten stays away", the_forgotten_stays_away),
    ("what is taken out is in quarantine", what_is_taken_out_is_in_quarantine),
    ("nothing is invented", nothing_is_invented),
    ("what was refused was not done", the_refused_is_not_done),
    ("reads see acknowledged writes", reads_see_acknowledged_writes),
    ("confirmed reads do not go back", confirmed_reads_do_not_go_back),
    ("each key is a register", keys_are_registers),
    ("versions follow the order of writes", versions_follow_the_order_of_writes),
    ("a newcomer has what was acknowledged", newcomers_have_what_was_acknowledged),
    ("no bound is broken", bounds_hold),
];

/// Equal digests, and the same entries.
pub fn replicas_are_equal(evidence: &Evidence) -> Vec<String> {
    let pairs = evidence.finals.windows(2);
    let differing = pairs.filter(|pair| match pair {
        [one, other] => one.digest != other.digest || one.entries != other.entries,
        _ => false,
    });
    differing
        .map(|pair| {
            let keys: Vec<_> = keys(pair).into_iter().filter(|key| differs(pair, key)).collect();
            format!("sites {:?} differ in {keys:?}", sites(pair))
        })
        .collect()
}

fn sites(states: &[FinalState]) -> Vec<u8> {
    states.iter().map(|state| state.site).collect()
}

fn keys(states: &[FinalState]) -> Vec<&Key> {
    let mut keys: Vec<_> = states.iter().flat_map(|state| state.entries.keys()).collect();
    keys.sort();
    keys.dedup();
    keys
}

fn differs(states: &[FinalState], key: &Key) -> bool {
    states.windows(2).any(|pair| pair[0].entries.get(key) != pair[1].entries.get(key))
}

/// A restart of every node would change nothing.
pub fn stores_are_logged(evidence: &Evidence) -> Vec<String> {
    let unlogged = evidence.finals.iter().filter(|state| state.entries != state.logged);
    unlogged
        .map(|state| format!("site {}: its log does not say what it holds", state.site))
        .collect()
}

/// Every acknowledged write is held, or something newer; but for what was lost with every disk that
/// held it.
pub fn acknowledged_writes_are_present(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    for (op, version) in acknowledged_writes(evidence) {
        for state in &evidence.finals {
            let held = state.entries.get(&op.key).map(|entry| entry.version);
            let forgotten =
                || held.is_none() && evidence.is_forgotten(&op.key, version, state.horizon);
            if held < Some(version) && !forgotten() {
                found.push(format!("site {} holds {held:?} after {op:?}", state.site));
            }
        }
    }
    found
}

/// Nothing that is on a disk is newer than what is held; so no removed key is back.
pub fn the_newest_is_held(evidence: &Evidence) -> Vec<String> {
    let mut newest: BTreeMap<&Key, &Entry> = BTreeMap::new();
    for (key, entry) in evidence.finals.iter().flat_map(|state| &state.logged) {
        let known = newest.entry(key).or_insert(entry);
        if entry.supersedes(known) {
            *known = entry;
        }
    }
    let mut found = Vec::new();
    for state in &evidence.finals {
        for (key, newest) in &newest {
            let shown = state.entries.get(*key).and_then(Entry::value);
            if shown != newest.value() {
                let site = state.site;
                found.push(format!("site {site} shows {shown:?} for {key:?}, not {newest:?}"));
            }
        }
    }
    found
}

/// No member holds a key longer that another one has forgotten as removed.
pub fn the_forgotten_stays_away(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    // Who lost the removal may take the key over from a member that was away.
    let states = evidence.finals.iter().filter(|_| !evidence.reckless);
    let forgotten = states.flat_map(|state| state.forgotten.iter().map(move |f| (state.site, f)));
    for (by, (key, removal)) in forgotten {
        for state in &evidence.finals {
            let back = state.entries.get(key).filter(|entry| entry.version < *removal);
            let site = state.site;
            found.extend(back.map(|back| {
                format!("{key:?}, forgotten by site {by}, is back at {site}: {back:?}")
            }));
        }
    }
    found
}

/// What a node takes out, since it was removed and forgotten, people can look at.
pub fn what_is_taken_out_is_in_quarantine(evidence: &Evidence) -> Vec<String> {
    let is_value = |ghost: &&(Key, Version)| {
        evidence.seen.get(*ghost).is_some_and(|seen| seen.content != Content::Tombstone)
    };
    let gone = evidence.expunged.iter().filter(is_value);
    let gone = gone.filter(|ghost| !evidence.quarantined.contains(*ghost));
    gone.map(|(key, version)| format!("{version:?} of {key:?} is gone")).collect()
}

/// Every value was written by somebody, to that key; every version was stamped once, by the node it
/// names, for one entry.
pub fn nothing_is_invented(evidence: &Evidence) -> Vec<String> {
    let written: BTreeMap<&str, &Op> = evidence
        .ops
        .iter()
        .filter_map(|op| match &op.kind {
            OpKind::Add(value) => Some((value.as_str(), op)),
            OpKind::Get | OpKind::Remove => None,
        })
        .collect();
    let was_written = |key: &Key, value: &str| written.get(value).is_some_and(|op| op.key == *key);
    let mut found = Vec::new();
    for op in &evidence.ops {
        let value = op.answer().and_then(|answer| answer.value.as_ref());
        if value.is_some_and(|value| !was_written(&op.key, value.as_str())) {
            found.push(format!("nobody wrote what came of {op:?}"));
        }
    }
    let mut stamped: BTreeMap<Version, &Key> = BTreeMap::new();
    for ((key, version), seen) in &evidence.seen {
        if let Some(other) = stamped.insert(*version, key) {
            found.push(format!("{version:?} was stamped for {key:?} and {other:?}"));
        }
        if let Some(other) = &seen.conflict {
            found.push(format!("{version:?} of {key:?} is {:?} and {other:?}", seen.content));
        }
        if let Content::Live(value) = &seen.content
            && !was_written(key, value.as_str())
        {
            found.push(format!("nobody wrote {value:?} to {key:?}"));
        }
    }
    for state in &evidence.finals {
        for (key, entry) in &state.entries {
            let seen = evidence.seen.get(&(key.clone(), entry.version));
            if seen.is_none_or(|seen| seen.content != entry.content) {
                found.push(format!("site {} holds {key:?} = {entry:?} from nowhere", state.site));
            }
        }
    }
    found
}

/// The value of a refused write is nowhere.
pub fn the_refused_is_not_done(evidence: &Evidence) -> Vec<String> {
    let refused = evidence.ops.iter().filter(|op| matches!(op.outcome, Outcome::Refused(_)));
    let done = refused.filter(|op| match &op.kind {
        OpKind::Add(refused) => evidence
            .seen
            .values()
            .any(|seen| matches!(&seen.content, Content::Live(value) if value.as_str() == refused)),
        OpKind::Get | OpKind::Remove => false,
    });
    done.map(|op| format!("it happened all the same: {op:?}")).collect()
}

/// A read that begins after a write was acknowledged sees it or a later one, if their quorums
/// overlap among all replicas that counted meanwhile.
pub fn reads_see_acknowledged_writes(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    for (write, version) in kept_writes(evidence) {
        for read in &evidence.ops {
            let Some(answer) = read.success().filter(|_| read.kind == OpKind::Get) else {
                continue;
            };
            if read.key != write.key || read.invoked <= write.returned {
                continue;
            }
            // In this order: the second question costs more, and is hardly ever asked.
            let unseen = !is_seen(evidence, read, answer.timestamp, version);
            if unseen && overlap(evidence, write, read) {
                found.push(format!("{read:?}\n    did not see {version:?}\n    of {write:?}"));
            }
        }
    }
    found
}

/// A confirmed read that begins after another one was answered shows the same or something later, also
/// of writes that nobody acknowledged.
pub fn confirmed_reads_do_not_go_back(evidence: &Evidence) -> Vec<String> {
    let confirmed = |op: &&Op| {
        op.consistency == Consistency::Confirmed && op.kind == OpKind::Get && op.success().is_some()
    };
    let reads: Vec<_> = evidence.ops.iter().filter(confirmed).collect();
    let mut found = Vec::new();
    for first in &reads {
        let Some(seen) = first.success().and_then(|answer| answer.timestamp) else { continue };
        for second in &reads {
            let shown = second.success().and_then(|answer| answer.timestamp);
            let went_back = first.key == second.key
                && second.invoked > first.returned
                && !is_seen(evidence, second, shown, Version::new(seen, NodeId::new(0)));
            // A version may have been lost with its disks after it was read.
            let mut lost = evidence.destroyed.iter().chain(&evidence.cut);
            let lost = lost.any(|lost| lost.key == first.key);
            if went_back && !lost && overlap(evidence, first, second) {
                found.push(format!("{second:?}\n    shows less than\n    {first:?}"));
            }
        }
    }
    found
}

/// Whether a read shows this version, a later one, or that a later removal has happened.
fn is_seen(
    evidence: &Evidence,
    read: &Op,
    shown: Option<lally::domain::Timestamp>,
    version: Version,
) -> bool {
    match shown {
        Some(shown) => shown >= version.timestamp,
        None => evidence.seen.range((read.key.clone(), version)..).any(|((key, _), seen)| {
            *key == read.key && seen.content == Content::Tombstone && seen.first <= read.returned
        }),
    }
}

/// A write that begins after another one of its key was acknowledged has a later version, if their
/// quorums overlap or one node stamped both.
pub fn versions_follow_the_order_of_writes(evidence: &Evidence) -> Vec<String> {
    let writes: Vec<_> = kept_writes(evidence).collect();
    let mut found = Vec::new();
    for (first, before) in &writes {
        for (second, after) in &writes {
            let swapped =
                first.key == second.key && second.invoked > first.returned && after <= before;
            if swapped && (first.node == second.node || overlap(evidence, first, second)) {
                found.push(format!("{second:?}\n    got {after:?}, {before:?}\n    had {first:?}"));
            }
        }
    }
    found
}

/// A node that began empty counts only once it has what a majority acknowledged before it began.
pub fn newcomers_have_what_was_acknowledged(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    for newcomer in &evidence.newcomers {
        for (write, version) in kept_writes(evidence) {
            let held = newcomer.held.get(&write.key);
            let forgotten =
                || held.is_none() && evidence.is_forgotten(&write.key, version, newcomer.horizon);
            let lacks = held < Some(&version) && !forgotten();
            let before = write.returned < newcomer.started;
            let required = write.success().map_or(0, |answer| answer.required as usize);
            let replicas = evidence.replicas_between(write.invoked, newcomer.counted);
            if lacks && before && !evidence.reckless && 2 * required > replicas {
                found.push(format!("{newcomer:?}\n    lacks {version:?}\n    of {write:?}"));
            }
        }
    }
    found
}

/// No request takes longer than its timeout and a little more, unless its node stood still; and nothing
/// was found beyond its bound while it ran: hints, calls under way and their timeouts, versions ahead of
/// the clock.
pub fn bounds_hold(evidence: &Evidence) -> Vec<String> {
    let late = |op: &&Op| {
        let frozen = evidence.frozen_between(op.site, op.invoked, op.returned);
        op.returned > op.invoked + op.timeout + LATENESS + frozen
    };
    let late = evidence.ops.iter().filter(late).map(|op| format!("late: {op:?}"));
    late.chain(evidence.overruns.iter().cloned()).collect()
}

/// The writes that were acknowledged and neither lost with their disks nor given up with the only
/// members that had them, with their versions.
fn acknowledged_writes(evidence: &Evidence) -> impl Iterator<Item = (&Op, Version)> {
    let acknowledged = |op| Some((op, evidence.acknowledged(op)?));
    let all = evidence.ops.iter().filter_map(acknowledged);
    all.filter(|(op, version)| {
        !evidence.is_destroyed(&op.key, *version) && !evidence.is_given_up(op, *version)
    })
}

/// Those that whoever acknowledged them still has: a power cut may take the last of them from a
/// member, which counts all the same.
fn kept_writes(evidence: &Evidence) -> impl Iterator<Item = (&Op, Version)> {
    acknowledged_writes(evidence).filter(|(op, version)| !evidence.is_cut(&op.key, *version))
}

/// Whether the quorums of two successful operations have a replica in common, which still has what
/// it acknowledged: when several members lost their data at a time, none need have.
fn overlap(evidence: &Evidence, first: &Op, second: &Op) -> bool {
    if evidence.reckless {
        return false;
    }
    let required = |op: &Op| op.success().map_or(0, |answer| answer.required as usize);
    let replicas = evidence.replicas_between(first.invoked, second.returned);
    required(first) + required(second) > replicas
}
