//! Every checker objects to a history in which its promise is broken, and to none that is right.

use std::time::Duration;

use super::checkers::{
    check, differences, inventions, lost_writes, overlong, resurrections, stale_reads,
    versions_that_shrink,
};
use super::history::{Call, End, Held, History, Operation, Quorum, Trouble};

const TIMEOUT: Duration = Duration::from_secs(1);

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// An acknowledged operation with a majority on the key `k`, within the second `time`.
fn firm(call: Call, time: u64, value: Option<&str>, version: Option<&str>) -> Operation {
    let text = |text: &str| text.to_owned();
    Operation {
        process: 0,
        node: 0,
        call,
        quorum: Quorum::Majority,
        key: "k".into(),
        value: value.filter(|_| call == Call::Add).map(text),
        began: at(time),
        ended: at(time) + Duration::from_millis(10),
        end: End::Ok { value: value.map(text), version: version.map(text) },
    }
}

fn add(time: u64, value: &str, version: &str) -> Operation {
    firm(Call::Add, time, Some(value), Some(version))
}

fn get(time: u64, found: Option<(&str, &str)>) -> Operation {
    firm(Call::Get, time, found.map(|(value, _)| value), found.map(|(_, version)| version))
}

fn remove(time: u64, version: Option<&str>) -> Operation {
    firm(Call::Remove, time, None, version)
}

fn with(operation: Operation, quorum: Quorum, end: End) -> Operation {
    Operation { quorum, end, ..operation }
}

fn loose(operation: Operation) -> Operation {
    Operation { quorum: Quorum::One, ..operation }
}

fn held(found: Option<(&str, &str)>) -> Held {
    let kept = found.map(|(value, version)| (value.to_owned(), version.to_owned()));
    Held { digest: format!("{found:?}"), keys: [("k".to_owned(), kept)].into() }
}

fn history(operations: Vec<Operation>, found: Option<(&str, &str)>) -> History {
    History { operations, troubles: Vec::new(), held: vec![held(found); 5] }
}

fn wiped(node: usize, time: u64) -> Trouble {
    Trouble {
        what: "wipe".into(),
        began: at(time),
        ended: at(time + 1),
        silent: vec![node],
        wiped: Some(node),
    }
}

#[test]
fn a_right_history_meets_no_objection() {
    let right = history(
        vec![
            add(1, "a", "1"),
            get(2, Some(("a", "1"))),
            remove(3, Some("3")),
            get(4, None),
            remove(5, None),
            add(6, "b", "6"),
            with(add(7, "c", "7"), Quorum::Majority, End::Info("partial".into())),
            with(add(8, "d", "8"), Quorum::Majority, End::Fail("overloaded".into())),
        ],
        Some(("c", "7")),
    );
    for (promise, objections) in check(&right, TIMEOUT) {
        assert!(objections.is_empty(), "{promise}: {objections:?}");
    }
}

#[test]
fn a_lost_write_is_noticed_unless_its_only_node_was_wiped() {
    assert_eq!(lost_writes(&history(vec![add(1, "a", "1")], None)).len(), 5);
    let older = vec![add(1, "a", "1"), add(2, "b", "2")];
    assert_eq!(lost_writes(&history(older, Some(("a", "1")))).len(), 5);
    // A removal that came before explains nothing; one without an answer does.
    assert!(!lost_writes(&history(vec![remove(1, None), add(2, "a", "2")], None)).is_empty());
    let unknown = with(remove(3, None), Quorum::Majority, End::Info("no answer".into()));
    assert!(lost_writes(&history(vec![add(2, "a", "2"), unknown], None)).is_empty());
    let refused = with(remove(3, None), Quorum::Majority, End::Fail("overloaded".into()));
    assert!(!lost_writes(&history(vec![add(2, "a", "2"), refused], None)).is_empty());
    for (node, lost) in [(0, 0), (1, 5)] {
        let mut one = history(vec![loose(add(1, "a", "1"))], None);
        one.troubles.push(wiped(node, 2));
        assert_eq!(lost_writes(&one).len(), lost, "node {node} wiped");
        one.operations[0].quorum = Quorum::Majority;
        assert_eq!(lost_writes(&one).len(), 5);
    }
    let mut earlier = history(vec![loose(add(5, "a", "1"))], None);
    earlier.troubles.push(wiped(0, 2));
    assert_eq!(lost_writes(&earlier).len(), 5);
}

#[test]
fn a_write_that_one_node_lacks_is_lost_and_a_difference() {
    let mut history = history(vec![add(1, "a", "1")], Some(("a", "1")));
    history.held[3] = held(None);
    assert_eq!(lost_writes(&history).len(), 1);
    assert_eq!(differences(&history).len(), 3, "the digest, and the key from either side");
    assert!(!differences(&History::default()).is_empty());
}

#[test]
fn a_removed_key_that_comes_back_is_noticed() {
    let removed = vec![add(1, "a", "1"), remove(2, Some("2"))];
    assert_eq!(resurrections(&history(removed, Some(("a", "1")))).len(), 5);
    let nameless = vec![add(1, "a", "1"), remove(2, None)];
    assert_eq!(resurrections(&history(nameless, Some(("a", "1")))).len(), 5);
    let again = vec![remove(1, None), add(2, "a", "2")];
    assert!(resurrections(&history(again, Some(("a", "2")))).is_empty());
}

#[test]
fn an_invented_value_is_noticed() {
    let read = |found| history(vec![add(1, "a", "2"), get(2, Some(found))], Some(("a", "2")));
    assert_eq!(inventions(&read(("b", "2"))).len(), 1, "nobody wrote it");
    assert_eq!(inventions(&read(("a", "3"))).len(), 1, "not in this version");
    assert_eq!(inventions(&read(("a", "1"))).len(), 0, "stamped again later");
    let early = history(vec![get(1, Some(("a", "2"))), add(2, "a", "2")], Some(("a", "2")));
    assert_eq!(inventions(&early).len(), 1, "not yet written");
    let refused = with(add(1, "a", "1"), Quorum::Majority, End::Fail("overloaded".into()));
    assert_eq!(inventions(&history(vec![refused], Some(("a", "1")))).len(), 5, "nothing was done");
    let gone = firm(Call::Remove, 1, Some("b"), Some("1"));
    assert_eq!(inventions(&history(vec![gone], None)).len(), 1, "removed what nobody wrote");
}

#[test]
fn a_stale_read_is_noticed() {
    let stale = vec![add(1, "a", "1"), add(2, "b", "2"), get(3, Some(("a", "1")))];
    assert_eq!(stale_reads(&history(stale.clone(), None)).len(), 1);
    assert_eq!(stale_reads(&history(vec![add(1, "a", "1"), get(2, None)], None)).len(), 1);
    let removed = vec![add(1, "a", "1"), remove(2, Some("2")), get(3, Some(("a", "1")))];
    assert_eq!(stale_reads(&history(removed, None)).len(), 1);
    let nameless = vec![add(1, "a", "1"), remove(2, None), get(3, Some(("a", "1")))];
    assert_eq!(stale_reads(&history(nameless, None)).len(), 1);
    let older_removal = vec![remove(1, None), add(2, "a", "2"), get(3, None)];
    assert_eq!(stale_reads(&history(older_removal, None)).len(), 1);
    let later_removal = vec![add(2, "a", "2"), get(3, None), remove(4, Some("4"))];
    assert_eq!(stale_reads(&history(later_removal, None)).len(), 1);
    // One node is asked, or the write has no majority, or is under way: nothing is promised.
    let mut asks_one = stale.clone();
    asks_one[2] = loose(asks_one[2].clone());
    assert!(stale_reads(&history(asks_one, None)).is_empty());
    let mut written_to_one = stale.clone();
    written_to_one[1] = loose(written_to_one[1].clone());
    assert!(stale_reads(&history(written_to_one, None)).is_empty());
    let mut under_way = stale;
    under_way[1].ended = at(4);
    assert!(stale_reads(&history(under_way, None)).is_empty());
}

#[test]
fn a_version_that_does_not_grow_is_noticed() {
    for (second, objections) in [("1", 1), ("2", 1), ("3", 0)] {
        let writes = vec![add(1, "a", "2"), add(2, "b", second)];
        assert_eq!(versions_that_shrink(&history(writes, None)).len(), objections, "{second}");
    }
}

#[test]
fn a_request_that_outlives_its_timeout_is_noticed_unless_its_node_was_silent() {
    let mut slow = history(vec![add(1, "a", "1")], None);
    slow.operations[0].ended = at(1) + Duration::from_millis(1900);
    assert!(overlong(&slow, TIMEOUT).is_empty(), "within what a busy machine costs");
    slow.operations[0].ended = at(1) + Duration::from_millis(2100);
    assert_eq!(overlong(&slow, TIMEOUT).len(), 1);
    slow.troubles.push(wiped(1, 2));
    assert_eq!(overlong(&slow, TIMEOUT).len(), 1, "another node");
    slow.troubles.push(wiped(0, 5));
    assert_eq!(overlong(&slow, TIMEOUT).len(), 1, "another time");
    slow.troubles.push(wiped(0, 2));
    assert!(overlong(&slow, TIMEOUT).is_empty());
}
