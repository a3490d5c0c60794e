//! How replicas become equal after faults.

use std::time::Duration;

use lally::adapters::memory::MemoryNetwork;
use lally::domain::{Entry, KeyedEntry, Liveness, NodeId, Timestamp, Value, Version};
use lally::ports::{Origin, Verdict};
use tokio::time::Instant;

use super::nodes::{EPOCH, equal, eventually, named, three};

#[tokio::test(start_paused = true)]
async fn a_write_through_any_node_reaches_every_node() {
    let network = MemoryNetwork::new();
    let (_disks, nodes) = three(&network).await;
    for (i, node) in nodes.iter().enumerate() {
        node.add(&format!("k{i}"), "v", "1").await.unwrap();
    }
    equal(&[&nodes[0], &nodes[1], &nodes[2]]).await;
    assert_eq!(nodes[0].own("k2").as_deref(), Some("v"));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_was_down_gets_the_writes_and_removals_it_missed() {
    let network = MemoryNetwork::new();
    let (_disks, [one, two, three]) = three(&network).await;
    one.add("gone", "v", "all").await.unwrap();
    network.cut_off("node-3:1");
    one.believe(&three, Liveness::Down);
    two.believe(&three, Liveness::Down);
    eventually("it is down", || one.client().nodes().len() == 1).await;
    for i in 0..100 {
        let answer = one.add(&format!("k{i}"), "v", "2").await.unwrap();
        assert_eq!(answer.verdict, Verdict::Success);
    }
    two.remove("gone", "2").await.unwrap();
    assert_eq!(three.own("k1"), None);
    network.heal();
    one.believe(&three, Liveness::Alive);
    two.believe(&three, Liveness::Alive);
    equal(&[&one, &two, &three]).await;
    assert_eq!((three.own("k1").as_deref(), three.own("gone")), (Some("v"), None));
}

#[tokio::test(start_paused = true)]
async fn a_member_cut_off_unnoticed_gets_its_hints_when_the_network_heals() {
    let network = MemoryNetwork::new();
    let (_disks, [one, two, three]) = three(&network).await;
    network.cut_off("node-3:1");
    one.add("k", "v", "2").await.unwrap();
    let hinted = || one.client().cluster().members.iter().any(|member| member.hints == 1);
    eventually("the write became a hint", hinted).await;
    network.heal();
    equal(&[&one, &two, &three]).await;
    assert_eq!(three.own("k").as_deref(), Some("v"));
}

#[tokio::test(start_paused = true)]
async fn what_a_coordinator_did_not_deliver_before_it_crashed_is_found_by_comparison() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    network.cut_off("node-1:1");
    one.add("k", "v", "1").await.unwrap();
    one.crash(&network);
    network.heal();
    let one = disks[0].start(&network, &[]).await;
    one.ready().await;
    equal(&[&one, &two, &three]).await;
    assert_eq!(three.own("k").as_deref(), Some("v"));
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_only_one_member_logged_is_everywhere_once_it_is_back() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    network.cut_off("node-1:1");
    one.remove("k", "1").await.unwrap();
    one.crash(&network);
    network.heal();
    let began = Instant::now();
    let one = disks[0].start(&network, &[]).await;
    one.ready().await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!((two.own("k"), three.own("k")), (None, None));
    assert!(two.digest() == one.digest() && three.digest() == one.digest());
}

#[tokio::test(start_paused = true)]
async fn a_removed_key_stays_removed_after_the_member_that_missed_it_and_then_all_restart() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    three.crash(&network);
    one.remove("k", "2").await.unwrap();
    let three = disks[2].start(&network, &[]).await;
    three.ready().await;
    equal(&[&one, &two, &three]).await;
    assert_eq!(three.own("k"), None);
    for node in [one, two, three] {
        node.crash(&network);
    }
    let one = disks[0].start(&network, &[]).await;
    let two = disks[1].start(&network, &[]).await;
    let three = disks[2].start(&network, &[]).await;
    for node in [&one, &two, &three] {
        node.ready().await;
        assert_eq!(node.own("k"), None);
    }
    equal(&[&one, &two, &three]).await;
}

#[tokio::test(start_paused = true)]
async fn both_sides_of_a_partition_keep_serving_and_are_equal_after_it() {
    let network = MemoryNetwork::new();
    let (_disks, [one, two, three]) = three(&network).await;
    network.cut_off("node-3:1");
    for (node, others) in
        [(&one, [&three, &three]), (&two, [&three, &three]), (&three, [&one, &two])]
    {
        for other in others {
            node.believe(other, Liveness::Down);
        }
    }
    for i in 0..50 {
        one.add(&format!("left-{i}"), "v", "1").await.unwrap();
        three.add(&format!("right-{i}"), "v", "1").await.unwrap();
        two.add("both", "left", "1").await.unwrap();
        three.add("both", "right", "1").await.unwrap();
    }
    network.heal();
    for (node, others) in
        [(&one, [&three, &three]), (&two, [&three, &three]), (&three, [&one, &two])]
    {
        for other in others {
            node.believe(other, Liveness::Alive);
        }
    }
    equal(&[&one, &two, &three]).await;
    assert_eq!(one.own("right-1").as_deref(), Some("v"));
    assert_eq!(three.own("left-1").as_deref(), Some("v"));
}

#[tokio::test(start_paused = true)]
async fn idle_equal_members_say_that_they_are_in_sync() {
    let network = MemoryNetwork::new();
    let (_disks, nodes) = three(&network).await;
    nodes[0].add("k", "v", "all").await.unwrap();
    for node in &nodes {
        let in_sync = || node.client().cluster().members.iter().all(|member| member.in_sync);
        eventually("all in sync", in_sync).await;
    }
}

#[tokio::test(start_paused = true)]
async fn two_values_of_one_version_settle_on_the_same_everywhere() {
    let network = MemoryNetwork::new();
    let (_disks, [one, two, three]) = three(&network).await;
    // As two processes on copies of one data directory would stamp them.
    let version = Version::new(Timestamp::from_nanos(EPOCH), NodeId::new(7));
    for (node, text) in [(&one, "larger"), (&two, "by bytes"), (&three, "by bytes")] {
        let write = KeyedEntry::new(named("k"), Entry::live(version, Value::new(text)));
        let replies = node.node.replica_api().apply(vec![write], Origin::Replica.into()).await;
        assert!(replies.iter().all(Result::is_ok));
    }
    assert_ne!(one.digest(), two.digest());
    // No write told anybody: the regular comparisons have to meet.
    tokio::time::sleep(Duration::from_secs(180)).await;
    equal(&[&one, &two, &three]).await;
    for node in [&one, &two, &three] {
        assert_eq!(node.own("k").as_deref(), Some("larger"));
    }
}
