//! Clocks that are wrong: seen, and kept from doing harm.

use lally::adapters::memory::MemoryNetwork;
use lally::ports::{ClientError, Verdict};

use super::nodes::{Running, eventually, three};

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
