//! Removed keys are forgotten once everybody has them removed, and stay away.

use std::time::Duration;

use lally::adapters::memory::MemoryNetwork;
use lally::domain::{Entry, KeyedEntry, Liveness, MemberState};
use lally::ports::{Origin, Store, WriteReply};

use super::nodes::{Disk, Running, equal, eventually, named, three_on};

const GRACE: Duration = Duration::from_secs(60);
const MAX_ABSENCE: Duration = Duration::from_secs(600);

async fn three(network: &MemoryNetwork) -> ([Disk; 3], [Running; 3]) {
    let disk = |id| Disk::forgetful(id, GRACE, MAX_ABSENCE);
    three_on(network, [disk(1), disk(2), disk(3)]).await
}

fn tombstones(nodes: &[&Running]) -> Vec<u64> {
    nodes.iter().map(|node| node.store.stats().tombstones).collect()
}

/// Waits until nobody remembers a removed key, and all hold the same.
async fn forgotten(nodes: &[&Running]) {
    for _ in 0..30 {
        tokio::time::sleep(GRACE / 6).await;
        if tombstones(nodes).iter().all(|count| *count == 0) {
            return equal(nodes).await;
        }
    }
    panic!("tombstones are kept: {:?}", tombstones(nodes));
}

/// Has a peer deliver an entry of long ago.
async fn deliver(node: &Running, write: KeyedEntry) -> WriteReply {
    let replies = node.node.replica_api().apply(vec![write], Origin::Replica.into()).await;
    replies.into_iter().next().unwrap().unwrap()
}

fn copy(node: &Running, key: &str) -> KeyedEntry {
    KeyedEntry::new(named(key), node.store.get(&named(key)).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_removed_key_is_forgotten_by_all_after_the_grace_and_does_not_come_back() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    one.add("kept", "v", "all").await.unwrap();
    let old = copy(&two, "k");
    two.remove("k", "all").await.unwrap();
    tokio::time::sleep(GRACE / 2).await;
    assert_eq!(tombstones(&[&one, &two, &three]), [1, 1, 1], "within the grace");
    forgotten(&[&one, &two, &three]).await;
    for node in [&one, &two, &three] {
        assert!(matches!(deliver(node, old.clone()).await, WriteReply::Superseded { .. }));
        assert_eq!((node.own("k"), node.own("kept").as_deref()), (None, Some("v")));
    }
    // Neither does it after a restart, whose log begins before.
    three.crash(&network);
    let three = disks[2].start(&network, &[]).await;
    three.ready().await;
    assert_eq!(tombstones(&[&three]), [0]);
    assert!(matches!(deliver(&three, old).await, WriteReply::Superseded { .. }));
    equal(&[&one, &two, &three]).await;
    assert!(three.quarantine.kept().is_empty());
    // It is a key like any other.
    two.add("k", "w", "all").await.unwrap();
    assert_eq!(three.own("k").as_deref(), Some("w"));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forgotten_while_a_member_is_away_that_may_come_back() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    for node in [&one, &two] {
        node.believe(&three, Liveness::Down);
    }
    three.crash(&network);
    let down = || one.states().contains(&MemberState::Down);
    eventually("it is known to be down", down).await;
    one.remove("k", "1").await.unwrap();
    tokio::time::sleep(MAX_ABSENCE / 2).await;
    assert_eq!(tombstones(&[&one, &two]), [1, 1]);
    let three = disks[2].start(&network, &[]).await;
    three.ready().await;
    forgotten(&[&one, &two, &three]).await;
    assert_eq!(three.own("k"), None);
    assert!(three.quarantine.kept().is_empty(), "it was told of the removal in time");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_was_away_for_too_long_brings_no_removed_key_back() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    one.add("kept", "v", "all").await.unwrap();
    let ghost = copy(&three, "k");
    for node in [&one, &two] {
        node.believe(&three, Liveness::Down);
    }
    three.crash(&network);
    let down = || one.states().contains(&MemberState::Down);
    eventually("it is known to be down", down).await;
    one.remove("k", "1").await.unwrap();
    one.add("later", "v", "1").await.unwrap();
    tokio::time::sleep(MAX_ABSENCE).await;
    forgotten(&[&one, &two]).await;
    let back = disks[2].start(&network, &[]).await;
    let gone = || back.own("k").is_none() && back.own("later").is_some();
    eventually("the removed key is gone", gone).await;
    back.ready().await;
    equal(&[&one, &two, &back]).await;
    assert_eq!(back.quarantine.kept(), [ghost]);
    for node in [&one, &two, &back] {
        assert_eq!((node.own("k"), node.own("kept").as_deref()), (None, Some("v")));
        eventually("all count", || node.states() == [MemberState::Alive; 2]).await;
    }
    // And so it stays when the node starts once more.
    back.crash(&network);
    let back = disks[2].start(&network, &[]).await;
    back.ready().await;
    equal(&[&one, &two, &back]).await;
    assert_eq!(back.own("k"), None);
    assert!(back.quarantine.kept().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_member_restored_from_a_copy_of_before_a_removal_brings_no_removed_key_back() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    let ghost = copy(&three, "k");
    let backup = disks[2].backup().await;
    one.remove("k", "all").await.unwrap();
    forgotten(&[&one, &two, &three]).await;
    three.crash(&network);
    let three = backup.start(&network, &[]).await;
    eventually("the removed key is gone", || three.own("k").is_none()).await;
    three.ready().await;
    equal(&[&one, &two, &three]).await;
    assert_eq!(three.quarantine.kept(), [ghost]);
    assert_eq!((one.own("k"), two.own("k")), (None, None));
}

/// What it had overwritten while cut off is gone with the rest, but not what the others hold.
#[tokio::test(start_paused = true)]
async fn the_older_version_that_the_others_hold_survives_a_restart_of_a_member_that_returned() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    for key in ["changed", "removed"] {
        one.add(key, "theirs", "all").await.unwrap();
    }
    one.add("tombstone", "v", "all").await.unwrap();
    for disk in &disks[..2] {
        network.cut_off(&disk.addr);
    }
    three.add("changed", "ghost", "1").await.unwrap();
    three.remove("removed", "1").await.unwrap();
    let missed = || three.client().cluster().members.iter().all(|member| member.hints == 2);
    eventually("the others missed both", missed).await;
    for node in [&one, &two] {
        node.believe(&three, Liveness::Down);
    }
    three.crash(&network);
    network.heal();
    tokio::time::sleep(Duration::from_secs(5)).await;
    one.remove("tombstone", "1").await.unwrap();
    tokio::time::sleep(MAX_ABSENCE).await;
    forgotten(&[&one, &two]).await;
    for ghosts in [2, 0] {
        let back = disks[2].start(&network, &[]).await;
        let theirs = || ["changed", "removed"].map(|key| back.own(key));
        eventually("it has what they have", || {
            theirs().iter().all(|value| value.as_deref() == Some("theirs"))
        })
        .await;
        back.ready().await;
        equal(&[&one, &two, &back]).await;
        assert_eq!(back.quarantine.kept().len(), ghosts);
        back.crash(&network);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_alone_forgets_by_itself() {
    let network = MemoryNetwork::new();
    let disk = Disk::forgetful(1, GRACE, MAX_ABSENCE);
    let one = disk.start(&network, &[]).await;
    one.ready().await;
    one.add("k", "v", "1").await.unwrap();
    one.remove("k", "1").await.unwrap();
    assert!(one.store.get(&named("k")).as_ref().is_some_and(Entry::is_tombstone));
    forgotten(&[&one]).await;
    assert_eq!(one.store.get(&named("k")), None);
}
