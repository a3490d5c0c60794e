//! How nodes come into a cluster, go, and come back.

use lally::adapters::memory::MemoryNetwork;
use lally::domain::{KeptData, Liveness, MemberState};
use lally::ports::{ClientError, Verdict};

use super::nodes::{Disk, equal, eventually, three};

#[tokio::test(start_paused = true)]
async fn a_joining_node_gets_what_was_written_and_removed_before() {
    let network = MemoryNetwork::new();
    let (first, second) = (Disk::new(1), Disk::new(2));
    let one = first.start(&network, &[]).await;
    one.ready().await;
    for i in 0..2_000 {
        one.add(&format!("key-{i}"), "value", "1").await.unwrap();
    }
    one.remove("key-7", "1").await.unwrap();
    let two = second.start(&network, &[&first]).await;
    two.ready().await;
    assert_eq!(one.digest(), two.digest());
    assert_eq!((two.own("key-8").as_deref(), two.own("key-7")), (Some("value"), None));
}

#[tokio::test(start_paused = true)]
async fn what_was_got_by_joining_survives_a_crash() {
    let network = MemoryNetwork::new();
    let (first, second) = (Disk::new(1), Disk::new(2));
    let one = first.start(&network, &[]).await;
    one.ready().await;
    one.add("k", "v", "1").await.unwrap();
    let two = second.start(&network, &[&first]).await;
    two.ready().await;
    one.crash(&network);
    two.crash(&network);
    let two = second.start(&network, &[]).await;
    two.ready().await;
    assert_eq!(two.own("k").as_deref(), Some("v"));
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_is_not_ready_before_its_seed_is_and_then_joins() {
    let network = MemoryNetwork::new();
    let (first, second) = (Disk::new(1), Disk::new(2));
    let two = second.start(&network, &[&first]).await;
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    assert!(two.client().readiness().is_err());
    assert!(matches!(two.add("k", "v", "1").await, Err(ClientError::NotReady(_))));
    let one = first.start(&network, &[]).await;
    one.ready().await;
    one.add("k", "v", "1").await.unwrap();
    two.ready().await;
    equal(&[&one, &two]).await;
}

#[tokio::test(start_paused = true)]
async fn newcomers_that_only_know_each_other_found_one_cluster() {
    let network = MemoryNetwork::new();
    let disks = [Disk::new(1), Disk::new(2), Disk::new(3)];
    let seeds: Vec<&Disk> = disks.iter().collect();
    let mut nodes = Vec::new();
    for disk in &disks {
        nodes.push(disk.start(&network, &seeds).await);
    }
    for node in &nodes {
        node.ready().await;
        let alive = vec![MemberState::Alive; 2];
        eventually("everybody sees everybody", || node.states() == alive).await;
    }
    let answer = nodes[0].add("k", "v", "all").await.unwrap();
    assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 3));
}

#[tokio::test(start_paused = true)]
async fn a_node_of_another_cluster_is_refused_on_both_sides() {
    let network = MemoryNetwork::new();
    let (first, second) = (Disk::new(1), Disk::new(2));
    let one = first.start(&network, &[]).await;
    one.ready().await;
    let two = second.start_as(&network, "other", &[&first], KeptData::All).await;
    let told = || two.client().readiness().is_err_and(|why| why.contains("wrong cluster"));
    eventually("the newcomer says why", told).await;
    assert_eq!((one.states(), two.states()), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_graceful_stop_is_a_leave_and_quorums_shrink_until_the_return() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    three.leave(&network).await;
    let left = || one.states() == [MemberState::Alive, MemberState::Left];
    eventually("the others know", left).await;
    let answer = one.add("k", "v", "all").await.unwrap();
    assert_eq!((answer.verdict, answer.required), (Verdict::Success, 2));

    let three = disks[2].start(&network, &[]).await;
    three.ready().await;
    assert_eq!(three.own("k").as_deref(), Some("v"));
    eventually("it counts again", || one.states() == [MemberState::Alive; 2]).await;
    equal(&[&one, &two, &three]).await;
}

#[tokio::test(start_paused = true)]
async fn a_whole_cluster_comes_back_without_seeds_whoever_stopped_last() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    one.add("early", "v", "all").await.unwrap();
    one.leave(&network).await;
    two.add("late", "v", "all").await.unwrap();
    two.leave(&network).await;
    three.leave(&network).await;
    let one = disks[0].start(&network, &[]).await;
    let two = disks[1].start(&network, &[]).await;
    let three = disks[2].start(&network, &[]).await;
    for node in [&one, &two, &three] {
        node.ready().await;
    }
    equal(&[&one, &two, &three]).await;
    for node in [&one, &two, &three] {
        assert_eq!(node.own("late").as_deref(), Some("v"));
        eventually("all members", || node.states() == [MemberState::Alive; 2]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_crashed_member_serves_at_once_when_nobody_else_is_there() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    for node in [one, two, three] {
        node.crash(&network);
    }
    let one = disks[0].start(&network, &[]).await;
    one.ready().await;
    let answer = one.add("k", "w", "majority").await.unwrap();
    assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Partial, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_wiped_member_counts_again_only_once_it_has_the_data() {
    let network = MemoryNetwork::new();
    let (mut disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    three.crash(&network);
    let three = disks[2].start_fresh(&network, &[]).await;
    three.ready().await;
    assert_eq!(three.own("k").as_deref(), Some("v"));
    eventually("two others", || one.states() == [MemberState::Alive; 2]).await;
    equal(&[&one, &two, &three]).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lost_its_disk_replaces_its_old_self() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    for other in [&one, &two] {
        other.believe(&three, Liveness::Down);
    }
    three.crash(&network);
    let four = disks[2].replaced_by(4).start(&network, &[&disks[0]]).await;
    four.ready().await;
    let states = || {
        let mut states = one.states();
        states.sort();
        states == [MemberState::Alive, MemberState::Alive, MemberState::Left]
    };
    eventually("the old self has left", states).await;
    equal(&[&one, &two, &four]).await;
}
