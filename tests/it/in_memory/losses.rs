//! Members that lost something (a disk, their data, time), and clusters that were founded apart: none
//! of them counts for a quorum before it has what the others have.

use std::time::Duration;

use lally::adapters::memory::MemoryNetwork;
use lally::domain::{Liveness, MemberState, Value};
use lally::ports::{ClientError, Verdict};

use super::nodes::{Disk, EPOCH, Running, equal, eventually, named, three, with_quorum};

/// Time for many rounds of everything.
const LONG: Duration = Duration::from_secs(60);

async fn stays_not_ready(node: &Running) {
    tokio::time::sleep(LONG).await;
    assert!(node.client().readiness().is_err());
    assert!(matches!(node.add("k", "v", "1").await, Err(ClientError::NotReady(_))));
}

#[tokio::test(start_paused = true)]
async fn a_founder_that_lost_its_disk_joins_the_cluster_it_founded() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    let founder = one.client().cluster().node.member;
    one.crash(&network);
    for node in [&two, &three] {
        node.detector.report(&founder, Liveness::Down);
    }
    // With the command line of the first start, which had no seed.
    let reborn = disks[0].replaced_by(4).start(&network, &[]).await;
    let gets_it = || reborn.own("k").as_deref() == Some("v");
    eventually("it has the data", gets_it).await;
    reborn.ready().await;
    for node in [&two, &three] {
        let states = || {
            let mut states = node.states();
            states.sort();
            states == [MemberState::Alive, MemberState::Alive, MemberState::Left]
        };
        eventually("it counts in place of its old self", states).await;
    }
    equal(&[&reborn, &two, &three]).await;
    let answer = two.add("k", "w", "all").await.unwrap();
    assert_eq!((answer.verdict, answer.required), (Verdict::Success, 3));
}

#[tokio::test(start_paused = true)]
async fn of_two_founders_that_meet_one_joins_the_other_and_both_keep_their_data() {
    let network = MemoryNetwork::new();
    let (first, second) = (Disk::new(1), Disk::new(2));
    let one = first.start(&network, &[]).await;
    let two = second.start(&network, &[]).await;
    one.ready().await;
    two.ready().await;
    one.add("of-one", "v", "1").await.unwrap();
    two.add("of-two", "v", "1").await.unwrap();
    // The second is told of the first.
    two.crash(&network);
    let two = second.start(&network, &[&first]).await;
    eventually("they are one", || {
        one.states() == [MemberState::Alive] && two.states() == [MemberState::Alive]
    })
    .await;
    for node in [&one, &two] {
        node.ready().await;
        assert_eq!((node.own("of-one").is_some(), node.own("of-two").is_some()), (true, true));
    }
}

#[tokio::test(start_paused = true)]
async fn newcomers_do_not_found_a_second_cluster_while_the_first_is_away() {
    let network = MemoryNetwork::new();
    let disks = [Disk::new(9), Disk::new(2), Disk::new(3)];
    let seeds: Vec<&Disk> = disks.iter().collect();
    let one = disks[0].start(&network, &[]).await;
    one.ready().await;
    one.add("k", "v", "1").await.unwrap();
    one.crash(&network);
    let two = disks[1].start(&network, &seeds).await;
    let three = disks[2].start(&network, &seeds).await;
    stays_not_ready(&two).await;
    assert!(three.client().readiness().is_err());
    let one = disks[0].start(&network, &[]).await;
    for node in [&one, &two, &three] {
        node.ready().await;
    }
    equal(&[&one, &two, &three]).await;
    assert_eq!(three.own("k").as_deref(), Some("v"));
}

#[tokio::test(start_paused = true)]
async fn a_wiped_member_waits_for_a_majority_of_those_that_may_have_what_it_acknowledged() {
    let network = MemoryNetwork::new();
    let (mut disks, [one, two, three]) = three(&network).await;
    // Only one and three have it: two of three, a majority.
    network.cut_off(&disks[1].addr);
    let answer = one.add("k", "v", "majority").await.unwrap();
    assert_eq!(answer.verdict, Verdict::Success);
    assert_eq!(two.own("k"), None);
    three.crash(&network);
    one.crash(&network);
    network.heal();
    let three = disks[2].start_fresh(&network, &[]).await;
    stays_not_ready(&three).await;
    let one = disks[0].start(&network, &[]).await;
    three.ready().await;
    assert_eq!(three.own("k").as_deref(), Some("v"));
    equal(&[&one, &two, &three]).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_restored_from_an_older_copy_of_its_disk_joins_again() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    let copy = disks[2].backup().await;
    three.crash(&network);
    let three = disks[2].start(&network, &[]).await;
    three.ready().await;
    one.add("k", "v", "all").await.unwrap();
    three.crash(&network);
    let three = disks[2].start(&network, &[]).await;
    three.ready().await;
    three.crash(&network);
    let three = copy.start(&network, &[]).await;
    eventually("it has what came after the copy", || three.own("k").is_some()).await;
    three.ready().await;
    eventually("it counts", || one.states() == [MemberState::Alive; 2]).await;
    equal(&[&one, &two, &three]).await;
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_with_a_slow_clock_is_not_whole_without_what_it_had_to_refuse() {
    let network = MemoryNetwork::new();
    let (first, mut second) = (Disk::new(1), Disk::new(2));
    let one = first.start(&network, &[]).await;
    one.ready().await;
    one.add("k", "v", "1").await.unwrap();
    second.wall = EPOCH - 3_600_000_000_000;
    let two = second.start(&network, &[&first]).await;
    stays_not_ready(&two).await;
    assert_eq!(two.own("k"), None);
    assert!(two.client().stats().drift_refusals > 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_delivers_first_what_others_missed() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    network.cut_off(&disks[0].addr);
    one.add("k", "v", "1").await.unwrap();
    let missed = || one.client().cluster().members.iter().all(|member| member.hints == 1);
    eventually("both missed it", missed).await;
    network.heal();
    one.leave(&network).await;
    for node in [&two, &three] {
        assert_eq!(node.own("k").as_deref(), Some("v"));
    }
}

/// Who was heard of as joining may have become whole since, and counted for writes that those who
/// still take it for joining missed.
#[tokio::test(start_paused = true)]
async fn a_member_that_some_only_know_as_joining_counts_among_those_that_are_missing() {
    const HOUR: u64 = 3_600_000_000_000;
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    let (fourth, mut fifth) = (Disk::new(4), Disk::new(5));
    let four = fourth.start(&network, &[&disks[0]]).await;
    four.ready().await;
    one.add("before", "v", "all").await.unwrap();
    // The fifth joins, in everybody's eyes, and cannot become whole as long as its clock is slow.
    fifth.wall = EPOCH - HOUR;
    let five = fifth.start(&network, &[&disks[0]]).await;
    let joins = |node: &Running| node.states().contains(&MemberState::Joining);
    eventually("all know that it joins", || [&one, &two, &three, &four].into_iter().all(joins))
        .await;
    for disk in &disks[1..] {
        network.cut_off(&disk.addr);
    }
    five.clock.set_ahead(i64::try_from(HOUR).unwrap());
    five.ready().await;
    eventually("the first knows that it is whole", || !joins(&one)).await;
    let answer = one.add("k", "v", "majority").await.unwrap();
    assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Success, 3, 3));
    assert!(joins(&two) && joins(&three));
    // The fourth was one of the three, and loses its disk while the other two are away.
    for node in [&two, &three] {
        node.believe(&four, Liveness::Down);
    }
    for node in [one, four, five] {
        node.crash(&network);
    }
    network.heal();
    let reborn = fourth.replaced_by(6).start(&network, &[&disks[1]]).await;
    tokio::time::sleep(LONG).await;
    for node in [&two, &three] {
        assert_eq!((node.own("before").as_deref(), node.own("k")), (Some("v"), None));
        let answer = node.client().get(named("k"), with_quorum("majority")).await.unwrap();
        assert_eq!(answer.verdict, Verdict::Partial, "a majority without the write: {answer:?}");
    }
    assert!(reborn.client().readiness().is_err());

    let one = disks[0].start(&network, &[]).await;
    reborn.ready().await;
    equal(&[&one, &two, &three, &reborn]).await;
    for node in [&two, &three, &reborn] {
        let answer = node.client().get(named("k"), with_quorum("majority")).await.unwrap();
        let value = answer.value.as_ref().map(Value::as_str);
        assert_eq!((answer.verdict, value), (Verdict::Success, Some("v")));
    }
}

/// Two of the three that acknowledged a write lose it. The third has it still, so nobody is to go on
/// without that one: neither those who missed the write, nor the two.
#[tokio::test(start_paused = true)]
async fn members_that_join_again_make_no_majority_smaller() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    let (mut fourth, mut fifth) = (Disk::new(4), Disk::new(5));
    let four = fourth.start(&network, &[&disks[0]]).await;
    four.ready().await;
    let five = fifth.start(&network, &[&disks[0]]).await;
    five.ready().await;
    for node in [&one, &two, &three, &four] {
        eventually("they are five", || node.states() == [MemberState::Alive; 4]).await;
    }
    for disk in &disks[1..] {
        network.cut_off(&disk.addr);
    }
    let answer = one.add("k", "v", "majority").await.unwrap();
    assert_eq!((answer.verdict, answer.required, answer.achieved), (Verdict::Success, 3, 3));
    for node in [one, four, five] {
        node.crash(&network);
    }
    network.heal();
    let four = fourth.start_fresh(&network, &[]).await;
    let five = fifth.start_fresh(&network, &[]).await;
    tokio::time::sleep(LONG).await;
    for node in [&two, &three] {
        let answer = node.client().get(named("k"), with_quorum("majority")).await.unwrap();
        assert_eq!(answer.verdict, Verdict::Partial, "a majority without the write: {answer:?}");
    }
    assert!(four.client().readiness().is_err() && five.client().readiness().is_err());

    let one = disks[0].start(&network, &[]).await;
    four.ready().await;
    five.ready().await;
    equal(&[&one, &two, &three, &four, &five]).await;
    for node in [&two, &three, &four, &five] {
        let answer = node.client().get(named("k"), with_quorum("majority")).await.unwrap();
        let value = answer.value.as_ref().map(Value::as_str);
        assert_eq!((answer.verdict, value), (Verdict::Success, Some("v")));
    }
}

#[tokio::test(start_paused = true)]
async fn two_of_three_that_lost_their_data_get_what_the_third_has() {
    let network = MemoryNetwork::new();
    let (mut disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    two.crash(&network);
    three.crash(&network);
    let two = disks[1].start_fresh(&network, &[]).await;
    let three = disks[2].start_fresh(&network, &[]).await;
    two.ready().await;
    three.ready().await;
    equal(&[&one, &two, &three]).await;
    assert_eq!(three.own("k").as_deref(), Some("v"));
}

/// Whoever stands at a member's address has its place: nobody waits for the one that was there.
#[tokio::test(start_paused = true)]
async fn a_cluster_that_lost_everything_goes_on_empty() {
    let network = MemoryNetwork::new();
    let (mut disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    let lost = [&two, &three].map(|node| node.client().cluster().node.member);
    for node in [one, two, three] {
        node.crash(&network);
    }
    // One remembers the others; of those, the disks are new.
    let (fourth, fifth) = (disks[1].replaced_by(4), disks[2].replaced_by(5));
    let one = disks[0].start_fresh(&network, &[]).await;
    let two = fourth.start(&network, &[&disks[0]]).await;
    tokio::time::sleep(LONG).await;
    for node in [&one, &two] {
        assert!(node.client().readiness().is_err(), "the third may come back with the data");
    }
    let three = fifth.start(&network, &[&disks[0]]).await;
    for node in [&one, &two, &three] {
        node.ready().await;
        for member in &lost {
            node.detector.report(member, Liveness::Down);
        }
    }
    for node in [&one, &two, &three] {
        let alive = || node.states().iter().filter(|s| **s != MemberState::Left).count() == 2;
        eventually("the lost ones are counted no more", alive).await;
    }
    let answer = two.add("k", "w", "all").await.unwrap();
    assert_eq!((answer.verdict, answer.achieved), (Verdict::Success, 3));
    equal(&[&one, &two, &three]).await;
}
