//! Joining with much to fetch: whoever gives it may die or hang in the middle, others join at the same
//! time, and writes go on.

use std::collections::BTreeMap;
use std::time::Duration;

use lally::adapters::memory::MemoryNetwork;
use lally::domain::{Liveness, MemberState};
use lally::ports::{ClientError, Verdict};

use super::nodes::{Disk, Running, equal, eventually, named, with_quorum};

/// Keys, each in a bucket of its own but for a few, and what they hold: 8 MB, some thirty chunks.
const KEYS: u64 = 2_000;
const VALUE_BYTES: usize = 4_096;

/// What a chunk takes: the whole data takes some three seconds, about as many as a member may be
/// silent.
const CHUNK_TIME: Duration = Duration::from_millis(100);

/// These disks as members of one cluster that hold the data, on a network that is slow from then on.
async fn loaded(network: &MemoryNetwork, disks: &[Disk]) -> Vec<Running> {
    let mut nodes: Vec<Running> = Vec::new();
    for disk in disks {
        let node = disk.start(network, &[&disks[0]]).await;
        node.ready().await;
        nodes.push(node);
    }
    for node in &nodes {
        let all = || node.states() == vec![MemberState::Alive; disks.len() - 1];
        eventually("everybody sees everybody", all).await;
    }
    let value = "v".repeat(VALUE_BYTES);
    for i in 0..KEYS {
        nodes[0].add(&format!("key-{i}"), &value, "all").await.unwrap();
    }
    network.slow_streams(CHUNK_TIME);
    nodes
}

fn keys(node: &Running) -> u64 {
    node.client().cluster().store.keys
}

async fn has_half(node: &Running) {
    eventually("it has half of the data", || keys(node) >= KEYS / 2).await;
    assert!(node.client().readiness().is_err() && keys(node) < KEYS);
}

/// Buckets in which a node looked for differences: as many as there are for all of the data, and once
/// more those that it did not have when it was interrupted.
fn asked_again(node: &Running) -> u64 {
    node.client().stats().comparison.differing_buckets.saturating_sub(KEYS)
}

/// A crash, and a cable that is pulled out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Crashes,
    Hangs,
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_whose_seed_is_lost_in_the_middle_goes_on_with_another_where_it_was() {
    for end in [End::Crashes, End::Hangs] {
        let network = MemoryNetwork::new();
        let disks = [Disk::new(1), Disk::new(2)];
        let mut members = loaded(&network, &disks).await;
        let three = Disk::new(3).start(&network, &[&disks[0]]).await;
        has_half(&three).await;
        let (two, one) = (members.pop().unwrap(), members.pop().unwrap());
        two.believe(&one, Liveness::Down);
        if end == End::Crashes {
            one.crash(&network);
        } else {
            network.cut_off(&disks[0].addr);
        }
        three.ready().await;
        assert_eq!(three.digest(), two.digest(), "{end:?}");
        // Half of them, and what was under way.
        let again = asked_again(&three);
        assert!(again > 0 && again <= KEYS * 6 / 10, "{end:?}: {again} asked for again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_waits_for_the_only_one_with_the_data_and_goes_on_where_it_was() {
    let network = MemoryNetwork::new();
    let disks = [Disk::new(1)];
    let one = loaded(&network, &disks).await.pop().unwrap();
    let two = Disk::new(2).start(&network, &[&disks[0]]).await;
    has_half(&two).await;
    one.crash(&network);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(two.client().readiness().is_err(), "nobody has the rest");
    assert!(matches!(two.add("k", "v", "1").await, Err(ClientError::NotReady(_))));
    let one = disks[0].start(&network, &[]).await;
    two.ready().await;
    assert_eq!(two.digest(), one.digest());
    // By the newcomer, or by the one that is back and brings it what it lacks.
    let again = asked_again(&two) + one.client().stats().comparison.differing_buckets;
    assert!(again > 0 && again <= KEYS * 6 / 10, "{again} asked for again");
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_that_is_killed_in_the_middle_goes_on_where_it_was() {
    let network = MemoryNetwork::new();
    let (disks, second) = ([Disk::new(1)], Disk::new(2));
    let one = loaded(&network, &disks).await.pop().unwrap();
    let two = second.start(&network, &[&disks[0]]).await;
    has_half(&two).await;
    two.crash(&network);
    let two = second.start(&network, &[&disks[0]]).await;
    assert!(keys(&two) >= KEYS / 2 && two.client().readiness().is_err());
    two.ready().await;
    assert_eq!(two.digest(), one.digest());
    let buckets = two.client().stats().comparison.differing_buckets;
    assert!(buckets > 0 && buckets <= KEYS * 6 / 10, "{buckets} asked for again");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_not_whole_counts_for_no_quorum_and_gets_every_write() {
    let network = MemoryNetwork::new();
    let disks = [Disk::new(1), Disk::new(2)];
    let members = loaded(&network, &disks).await;
    let three = Disk::new(3).start(&network, &[&disks[0]]).await;
    has_half(&three).await;
    for (node, key) in members.iter().zip(["a", "b"]) {
        let answer = node.add(key, "v", "all").await.unwrap();
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Success, 2, 2));
        let answer = node.add(key, "w", "3").await.unwrap();
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Partial, 3, 2));
        let answer = node.client().get(named(key), with_quorum("3")).await.unwrap();
        assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Partial, 3, 2));
        assert_eq!(three.own(key).as_deref(), Some("w"));
    }
    for outcome in [
        three.add("a", "x", "1").await,
        three.remove("a", "1").await,
        three.client().get(named("a"), with_quorum("1")).await,
    ] {
        assert!(matches!(outcome, Err(ClientError::NotReady(_))), "{outcome:?}");
    }
    assert!(three.client().readiness().is_err(), "it still joins");
    three.ready().await;
    for node in &members {
        eventually("it counts", || node.states() == [MemberState::Alive; 2]).await;
        let answer = node.add("a", "y", "3").await.unwrap();
        assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_written_and_removed_while_a_node_joins_is_there_when_it_is_ready() {
    let network = MemoryNetwork::new();
    let disks = [Disk::new(1), Disk::new(2)];
    let members = loaded(&network, &disks).await;
    let three = Disk::new(3).start(&network, &[&disks[0]]).await;
    let mut acknowledged: BTreeMap<String, Option<String>> = BTreeMap::new();
    for i in 0.. {
        if three.client().readiness().is_ok() {
            break;
        }
        let node = &members[i % 2];
        // Of what is there already, all over the order in which it is fetched; and what is new.
        let (changed, removed, new) = (i * 7 % 2_000, i * 13 % 2_000, format!("new-{i}"));
        let (changed, removed) = (format!("key-{changed}"), format!("key-{removed}"));
        for key in [changed, new] {
            let answer = node.add(&key, &i.to_string(), "majority").await.unwrap();
            assert_eq!(answer.verdict, Verdict::Success);
            acknowledged.insert(key, Some(i.to_string()));
        }
        let answer = node.remove(&removed, "majority").await.unwrap();
        assert_eq!(answer.verdict, Verdict::Success);
        acknowledged.insert(removed, None);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(acknowledged.len() > 500, "{} while it joined", acknowledged.len());
    for (key, value) in acknowledged {
        assert_eq!(three.own(&key), value, "{key}");
    }
    equal(&[&members[0], &members[1], &three]).await;
}

#[tokio::test(start_paused = true)]
async fn two_nodes_that_join_at_once_both_have_everything_when_they_are_ready() {
    let network = MemoryNetwork::new();
    let disks = [Disk::new(1)];
    let one = loaded(&network, &disks).await.pop().unwrap();
    let two = Disk::new(2).start(&network, &[&disks[0]]).await;
    let three = Disk::new(3).start(&network, &[&disks[0]]).await;
    let mut written = 0;
    while two.client().readiness().is_err() || three.client().readiness().is_err() {
        let answer = one.add(&format!("new-{written}"), "v", "all").await.unwrap();
        assert_eq!(answer.verdict, Verdict::Success);
        written += 1;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for node in [&two, &three] {
        assert_eq!(keys(node), KEYS + written);
        assert!((0..written).all(|i| node.own(&format!("new-{i}")).is_some()));
    }
    for node in [&one, &two, &three] {
        eventually("all count", || node.states() == [MemberState::Alive; 2]).await;
    }
    equal(&[&one, &two, &three]).await;
    let answer = two.add("k", "v", "all").await.unwrap();
    assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Success, 3, 3));
}

/// The same, and the one that both fetch from dies: neither may take the other, which has half, for
/// one that has everything.
#[tokio::test(start_paused = true)]
async fn two_nodes_that_join_at_once_wait_for_the_one_with_the_data() {
    let network = MemoryNetwork::new();
    let disks = [Disk::new(1)];
    let one = loaded(&network, &disks).await.pop().unwrap();
    let two = Disk::new(2).start(&network, &[&disks[0]]).await;
    let three = Disk::new(3).start(&network, &[&disks[0]]).await;
    for node in [&two, &three] {
        eventually("it has some data", || keys(node) >= KEYS / 4).await;
    }
    one.crash(&network);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(two.client().readiness().is_err() && three.client().readiness().is_err());
    let one = disks[0].start(&network, &[]).await;
    for node in [&two, &three] {
        node.ready().await;
        assert_eq!(keys(node), KEYS);
    }
    equal(&[&one, &two, &three]).await;
}
