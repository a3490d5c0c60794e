//! Histories that never happened: each check accepts the right one and rejects one that is wrong in
//! what it is there for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lally::domain::{Content, Digest, Entry, Key, NodeId, Timestamp, Value, Version};
use lally::ports::{Answer, ClientError, Consistency, Phases, Verdict};

use super::checks;
use super::history::{Destroyed, Evidence, FinalState, Newcomer, Op, OpKind, Outcome};
use super::world::Seen;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn key() -> Key {
    Key::new("k").unwrap()
}

const fn version(at: u64, site: u8) -> Version {
    Version::new(Timestamp::from_nanos(at), node(site))
}

const fn node(site: u8) -> NodeId {
    NodeId::new(100 + site as u64)
}

fn live(at: u64, site: u8, value: &str) -> Entry {
    Entry::live(version(at, site), Value::new(value))
}

/// An operation through a site, successful with this answer, that began at a time and took 5 ms.
fn op(kind: OpKind, site: u8, began: u64, shown: Option<(u64, &str)>) -> Op {
    let answer = Answer {
        verdict: Verdict::Success,
        value: shown.map(|(_, value)| Value::new(value)),
        timestamp: shown.map(|(at, _)| Timestamp::from_nanos(at)),
        required: 2,
        achieved: 2,
        phases: Phases::default(),
    };
    Op {
        client: 0,
        site,
        node: node(site),
        kind,
        key: key(),
        quorum: None,
        consistency: Consistency::Default,
        timeout: ms(1_000),
        invoked: ms(began),
        returned: ms(began + 5),
        outcome: Outcome::Answered(answer),
    }
}

fn add(at: u64, site: u8, began: u64, value: &str) -> Op {
    op(OpKind::Add(value.into()), site, began, Some((at, value)))
}

fn get(began: u64, shown: Option<(u64, &str)>) -> Op {
    op(OpKind::Get, 2, began, shown)
}

/// Two writes through two of three sites and a read of the second, held by all in the end.
fn right() -> Evidence {
    let mut evidence = Evidence {
        ops: vec![add(10, 0, 10, "a"), add(20, 1, 20, "b"), get(30, Some((20, "b")))],
        replicas: vec![(ms(0), BTreeSet::from([0, 1, 2]))],
        ..Evidence::default()
    };
    see(&mut evidence, &live(10, 0, "a"), 11);
    see(&mut evidence, &live(20, 1, "b"), 21);
    all_hold(&mut evidence, &live(20, 1, "b"));
    evidence
}

fn see(evidence: &mut Evidence, entry: &Entry, at: u64) {
    let seen = Seen { content: entry.content.clone(), first: ms(at), conflict: None };
    evidence.seen.insert((key(), entry.version), seen);
}

fn all_hold(evidence: &mut Evidence, entry: &Entry) {
    let entries = BTreeMap::from([(key(), entry.clone())]);
    let state = |site| FinalState {
        site,
        digest: Digest::from_u64(7),
        entries: entries.clone(),
        logged: entries.clone(),
        horizon: Timestamp::ZERO,
        forgotten: BTreeMap::new(),
    };
    evidence.finals = (0..3).map(state).collect();
}

/// A removal through site 2 after everything else, seen and held by all.
fn removed() -> Evidence {
    let mut evidence = right();
    let tombstone = Entry::tombstone(version(40, 2));
    evidence.ops.push(op(OpKind::Remove, 2, 40, None));
    see(&mut evidence, &tombstone, 42);
    all_hold(&mut evidence, &tombstone);
    evidence
}

/// The names of the checks that a history does not pass.
fn rejected_by(evidence: &Evidence) -> Vec<&'static str> {
    let rejecting = checks::ALL.iter().filter(|(_, check)| !check(evidence).is_empty());
    rejecting.map(|(name, _)| *name).collect()
}

#[test]
fn right_histories_pass_all_checks() {
    assert_eq!(rejected_by(&right()), Vec::<&str>::new());
    assert_eq!(rejected_by(&removed()), Vec::<&str>::new());
}

#[test]
fn replicas_that_differ_are_rejected() {
    let mut by_digest = right();
    by_digest.finals[1].digest = Digest::from_u64(8);
    assert_eq!(rejected_by(&by_digest), ["all hold the same"]);
    let mut by_entry = right();
    by_entry.finals[1].entries.clear();
    by_entry.finals[1].logged.clear();
    assert!(rejected_by(&by_entry).contains(&"all hold the same"));
}

#[test]
fn a_store_that_its_log_does_not_bring_back_is_rejected() {
    let mut evidence = right();
    evidence.finals[2].logged = BTreeMap::from([(key(), live(10, 0, "a"))]);
    assert_eq!(rejected_by(&evidence), ["what the store holds, the log holds"]);
}

#[test]
fn a_missing_acknowledged_write_is_rejected_unless_it_was_lost_with_every_disk_it_was_on() {
    let mut evidence = right();
    all_hold(&mut evidence, &live(10, 0, "a"));
    evidence.ops.truncate(2);
    assert_eq!(rejected_by(&evidence), ["no acknowledged write is missing"]);
    let lost = |above, up_to| Destroyed { key: key(), above: Some(above), up_to };
    let mut other_versions = evidence.clone();
    other_versions.destroyed = vec![lost(version(1, 0), version(19, 0))];
    assert_eq!(rejected_by(&other_versions), ["no acknowledged write is missing"]);
    evidence.destroyed = vec![lost(version(10, 0), version(20, 1))];
    assert_eq!(rejected_by(&evidence), Vec::<&str>::new());
}

#[test]
fn a_removal_that_is_missing_is_rejected_although_its_version_was_not_told() {
    let mut evidence = removed();
    all_hold(&mut evidence, &live(20, 1, "b"));
    assert_eq!(rejected_by(&evidence), ["no acknowledged write is missing"]);
}

#[test]
fn a_removed_key_that_is_back_is_rejected() {
    let mut evidence = removed();
    for state in &mut evidence.finals {
        state.entries = BTreeMap::from([(key(), live(20, 1, "b"))]);
    }
    assert!(rejected_by(&evidence).contains(&"what is held is the newest there is"));
}

#[test]
fn what_nobody_wrote_is_rejected() {
    let mut read = right();
    read.ops[2] = get(30, Some((20, "x")));
    assert_eq!(rejected_by(&read), ["nothing is invented"]);
    let mut held = right();
    all_hold(&mut held, &live(30, 0, "b"));
    assert_eq!(rejected_by(&held), ["nothing is invented"]);
    let mut logged = right();
    see(&mut logged, &live(5, 0, "x"), 6);
    assert_eq!(rejected_by(&logged), ["nothing is invented"]);
}

#[test]
fn a_version_with_two_contents_or_two_keys_is_rejected() {
    let mut contents = right();
    contents.seen.get_mut(&(key(), version(10, 0))).unwrap().conflict = Some(Content::Tombstone);
    assert_eq!(rejected_by(&contents), ["nothing is invented"]);
    let mut keys = right();
    let seen = Seen { content: Content::Tombstone, first: ms(50), conflict: None };
    keys.seen.insert((Key::new("other").unwrap(), version(10, 0)), seen);
    assert_eq!(rejected_by(&keys), ["nothing is invented"]);
}

#[test]
fn a_refused_write_that_happened_is_rejected() {
    let mut evidence = right();
    evidence.ops[0].outcome = Outcome::Refused(ClientError::ShuttingDown);
    assert_eq!(rejected_by(&evidence), ["what was refused was not done"]);
}

#[test]
fn a_read_that_misses_an_acknowledged_write_is_rejected_if_their_quorums_overlap() {
    for shown in [Some((10, "a")), None] {
        let mut evidence = right();
        evidence.ops[2] = get(30, shown);
        assert_eq!(rejected_by(&evidence), ["reads see acknowledged writes"]);
        // Before the writes had returned it may miss them.
        evidence.ops[2].invoked = ms(12);
        assert_eq!(rejected_by(&evidence), Vec::<&str>::new());
        // Among five replicas two and two need not overlap.
        evidence.ops[2].invoked = ms(30);
        evidence.replicas.push((ms(32), BTreeSet::from([0, 1, 2, 3, 4])));
        assert_eq!(rejected_by(&evidence), Vec::<&str>::new());
    }
}

/// Nobody acknowledged the write that one of them saw.
#[test]
fn a_confirmed_read_that_goes_back_is_rejected() {
    for shown in [Some((20, "b")), None] {
        let mut evidence = right();
        evidence.ops[1].outcome = Outcome::Unknown;
        let mut back = get(40, Some((10, "a")));
        evidence.ops[2] = get(30, shown);
        for read in [&mut evidence.ops[2], &mut back] {
            read.consistency = Consistency::Confirmed;
        }
        evidence.ops.push(back);
        let rejected = rejected_by(&evidence);
        assert_eq!(rejected.contains(&"confirmed reads do not go back"), shown.is_some());
        evidence.ops[3].consistency = Consistency::Default;
        assert!(!rejected_by(&evidence).contains(&"confirmed reads do not go back"));
    }
}

#[test]
fn a_read_of_nothing_is_right_only_after_a_removal() {
    let mut evidence = removed();
    evidence.ops.push(get(50, None));
    assert_eq!(rejected_by(&evidence), Vec::<&str>::new());
    evidence.seen.get_mut(&(key(), version(40, 2))).unwrap().first = ms(60);
    assert!(rejected_by(&evidence).contains(&"reads see acknowledged writes"));
}

#[test]
fn a_later_write_with_an_earlier_version_is_rejected() {
    let mut evidence = right();
    evidence.ops[1] = add(5, 1, 20, "b");
    evidence.seen.remove(&(key(), version(20, 1)));
    see(&mut evidence, &live(5, 1, "b"), 21);
    evidence.ops.truncate(2);
    all_hold(&mut evidence, &live(10, 0, "a"));
    assert_eq!(rejected_by(&evidence), ["versions follow the order of writes"]);
}

#[test]
fn a_newcomer_that_counts_without_what_a_majority_acknowledged_is_rejected() {
    let mut evidence = right();
    let held = BTreeMap::from([(key(), version(10, 0))]);
    let newcomer =
        Newcomer { site: 2, started: ms(26), counted: ms(40), held, horizon: Timestamp::ZERO };
    evidence.newcomers = vec![newcomer];
    assert_eq!(rejected_by(&evidence), ["a newcomer has what was acknowledged"]);
    evidence.newcomers[0].started = ms(24);
    assert_eq!(rejected_by(&evidence), Vec::<&str>::new());
}

/// All have removed the key, and forgotten that.
fn forgotten() -> Evidence {
    let mut evidence = removed();
    for state in &mut evidence.finals {
        state.entries.clear();
        state.logged.clear();
        state.horizon = Timestamp::from_nanos(40);
        state.forgotten = BTreeMap::from([(key(), version(40, 2))]);
    }
    evidence
}

#[test]
fn a_key_that_was_removed_and_forgotten_may_be_nowhere_but_one_that_was_not_may_not() {
    assert_eq!(rejected_by(&forgotten()), Vec::<&str>::new());
    let mut too_early = forgotten();
    for state in &mut too_early.finals {
        state.horizon = Timestamp::from_nanos(39);
    }
    assert_eq!(rejected_by(&too_early), ["no acknowledged write is missing"]);
    let mut added_since = forgotten();
    added_since.ops.push(add(50, 0, 50, "c"));
    see(&mut added_since, &live(50, 0, "c"), 51);
    assert_eq!(rejected_by(&added_since), ["no acknowledged write is missing"]);
}

#[test]
fn a_forgotten_key_that_is_back_is_rejected() {
    let mut evidence = forgotten();
    // Nobody acknowledged the removal.
    evidence.ops[3].outcome = Outcome::Unknown;
    for state in &mut evidence.finals {
        state.entries = BTreeMap::from([(key(), live(20, 1, "b"))]);
        state.logged = state.entries.clone();
    }
    assert_eq!(rejected_by(&evidence), ["what was forgotten stays away"]);
}

#[test]
fn a_value_that_is_taken_out_without_quarantine_is_rejected() {
    let mut evidence = forgotten();
    evidence.expunged = BTreeSet::from([(key(), version(20, 1)), (key(), version(40, 2))]);
    assert_eq!(rejected_by(&evidence), ["what is taken out is in quarantine"]);
    evidence.quarantined = BTreeSet::from([(key(), version(20, 1))]);
    assert_eq!(rejected_by(&evidence), Vec::<&str>::new());
}

/// The only node that had it was away for too long.
#[test]
fn a_write_that_is_given_up_is_rejected_if_a_majority_acknowledged_it() {
    let mut evidence = right();
    all_hold(&mut evidence, &live(10, 0, "a"));
    evidence.ops.truncate(2);
    evidence.expunged = BTreeSet::from([(key(), version(20, 1))]);
    evidence.quarantined = evidence.expunged.clone();
    assert_eq!(rejected_by(&evidence), ["no acknowledged write is missing"]);
    let Outcome::Answered(answer) = &mut evidence.ops[1].outcome else { panic!() };
    (answer.required, answer.achieved) = (1, 1);
    assert_eq!(rejected_by(&evidence), Vec::<&str>::new());
}

#[test]
fn a_copy_that_was_lost_with_the_power_may_be_unseen_but_not_lost() {
    let mut evidence = right();
    evidence.ops[2] = get(30, Some((10, "a")));
    evidence.cut = vec![Destroyed { key: key(), above: None, up_to: version(20, 1) }];
    assert_eq!(rejected_by(&evidence), Vec::<&str>::new());
    all_hold(&mut evidence, &live(10, 0, "a"));
    assert_eq!(rejected_by(&evidence), ["no acknowledged write is missing"]);
}

#[test]
fn a_key_that_is_no_register_is_rejected() {
    let confirmed = |began, shown| {
        let consistency = Consistency::Confirmed;
        Op { consistency, ..get(began, shown) }
    };
    let mut evidence = right();
    evidence.ops[2] = confirmed(30, Some((20, "b")));
    assert_eq!(rejected_by(&evidence), Vec::<&str>::new());
    // A write that began after another one had ended, and lost against it.
    let mut lost = right();
    lost.ops[1] = add(5, 1, 20, "b");
    lost.ops[2] = confirmed(30, Some((10, "a")));
    lost.seen.remove(&(key(), version(20, 1)));
    see(&mut lost, &live(5, 1, "b"), 21);
    all_hold(&mut lost, &live(10, 0, "a"));
    assert!(rejected_by(&lost).contains(&"each key is a register"));
    // By less than a majority it may.
    let Outcome::Answered(answer) = &mut lost.ops[1].outcome else { panic!() };
    (answer.required, answer.achieved) = (1, 1);
    assert!(!rejected_by(&lost).contains(&"each key is a register"));
}

#[test]
fn a_request_that_is_late_and_a_bound_that_was_broken_are_rejected() {
    let mut late = right();
    late.ops[2].returned = ms(30 + 1_251);
    assert_eq!(rejected_by(&late), ["no bound is broken"]);
    late.frozen = vec![(2, ms(100), ms(101))];
    assert_eq!(rejected_by(&late), Vec::<&str>::new(), "its node was frozen for so long");
    late.frozen = vec![(1, ms(100), ms(101))];
    assert_eq!(rejected_by(&late), ["no bound is broken"]);
    let mut overrun = right();
    overrun.overruns.push("too many hints".into());
    assert_eq!(rejected_by(&overrun), ["no bound is broken"]);
}
