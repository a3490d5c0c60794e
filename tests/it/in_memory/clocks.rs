//! Clocks that are wrong: seen, and kept from doing harm.

use std::time::Duration;

use lally::adapters::memory::MemoryNetwork;
use lally::domain::{MemberState, Timestamp};
use lally::ports::{Certification, ClientError, Verdict};

use super::nodes::{Disk, EPOCH, Running, equal, eventually, three};

/// An hour, in nanoseconds.
const HOUR: i64 = 3_600_000_000_000;

/// What this node found of the others' clocks.
fn offsets(node: &Running) -> Vec<Option<i64>> {
    node.client().cluster().members.iter().map(|member| member.clock_offset_ms).collect()
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_clock_is_off_most_others_takes_no_writes_until_it_is_right_again() {
    let network = MemoryNetwork::new();
    let (_disks, [one, two, three]) = three(&network).await;
    one.add("k", "v", "all").await.unwrap();
    for (ahead_ns, way) in [(-HOUR, "behind"), (HOUR, "ahead")] {
        three.clock.set_ahead(ahead_ns);
        let noticed = || three.client().readiness().is_err_and(|why| why.contains(way));
        eventually("it notices", noticed).await;
        for outcome in [three.add("k", "late", "1").await, three.remove("k", "1").await] {
            let Err(ClientError::NotReady(why)) = outcome else { panic!("{outcome:?}") };
            assert!(why.contains("3600000 ms") && why.contains(way), "{why}");
        }
        assert_eq!(three.own("k").as_deref(), Some("v"));
        // The others go on, and show whose clock it is.
        eventually("the others see it", || {
            let off = offsets(&one);
            off.first() == Some(&Some(0)) && off.get(1).copied().flatten().is_some_and(|ms| ms != 0)
        })
        .await;
        let answer = two.add("k", "v", "majority").await.unwrap();
        assert_eq!(answer.verdict, Verdict::Success);
        assert!(one.client().readiness().is_ok() && two.client().readiness().is_ok());

        three.clock.set_ahead(0);
        eventually("it is right again", || three.client().readiness().is_ok()).await;
        assert_eq!(three.add("other", "v", "all").await.unwrap().verdict, Verdict::Success);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_counted_by_who_stamped_it() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    // It stamps before it has found out.
    network.cut_off(&disks[2].addr);
    three.clock.set_ahead(HOUR);
    three.add("k", "of tomorrow", "1").await.unwrap();
    network.heal();
    let refusals = |node: &Running| -> Vec<u64> {
        node.client().cluster().members.iter().map(|member| member.clock_refusals).collect()
    };
    eventually("the first counts the third's", || refusals(&one)[1] > 0).await;
    assert_eq!((refusals(&one)[0], one.own("k")), (0, None));
    eventually("and so does the second", || refusals(&two)[1] > 0).await;
}

#[tokio::test(start_paused = true)]
async fn two_nodes_that_disagree_both_go_on() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    three.leave(&network).await;
    two.clock.set_ahead(HOUR);
    eventually("they see it", || offsets(&one)[0] == Some(3_600_000)).await;
    eventually("both of them", || offsets(&two)[0] == Some(-3_600_000)).await;
    assert!(one.client().readiness().is_ok() && two.client().readiness().is_ok());
    drop(disks);
}

/// With a quorum of one it would acknowledge what the others take for a key that was removed and
/// forgotten: it would lose it when it joins again.
#[tokio::test(start_paused = true)]
async fn a_node_that_has_not_come_to_the_others_horizon_acknowledges_nothing_before_it_is_past() {
    let network = MemoryNetwork::new();
    let (first, second) = (Disk::new(1), Disk::new(2));
    let one = first.start(&network, &[]).await;
    one.ready().await;
    let two = second.start(&network, &[&first]).await;
    two.ready().await;
    let sees_the_other = |node: &Running| node.states() == [MemberState::Alive];
    eventually("they are two", || sees_the_other(&one) && sees_the_other(&two)).await;
    one.add("k", "v", "all").await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    two.clock.set_ahead(-HOUR);
    eventually("they see it", || offsets(&two)[0] == Some(3_600_000)).await;
    // Of two that disagree both go on.
    two.add("before", "v", "all").await.unwrap();
    // For that came late.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let horizon = Timestamp::from_nanos(EPOCH + 20_000_000_000);
    let certification = Certification { horizon, generation: 1, age: Duration::ZERO };
    one.node.replica_api().fence(certification).await.unwrap();
    let refuses = || two.client().readiness().is_err_and(|why| why.contains("behind the horizon"));
    eventually("it says so", refuses).await;
    for outcome in [two.add("new", "v", "1").await, two.remove("k", "1").await] {
        let Err(ClientError::NotReady(why)) = outcome else { panic!("{outcome:?}") };
        assert!(why.contains("behind the horizon") && why.contains("NTP"), "{why}");
    }
    // It joins again, and goes on past the horizon.
    let generation = || two.client().cluster().node.member.generation;
    eventually("it joins again", || generation() == 2).await;
    two.ready().await;
    eventually("it counts", || sees_the_other(&one)).await;
    let answer = two.add("new", "v", "all").await.unwrap();
    assert_eq!((answer.verdict, answer.required), (Verdict::Success, 2));
    assert!(answer.timestamp > Some(horizon));
    equal(&[&one, &two]).await;
    assert!(two.quarantine.kept().is_empty());
    assert_eq!((one.own("before").as_deref(), one.own("new").as_deref()), (Some("v"), Some("v")));
}
