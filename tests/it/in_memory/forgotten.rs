//! Members that will not come back, and what happens when one does after all.

use lally::adapters::memory::MemoryNetwork;
use lally::domain::{CannotForget, FORGOTTEN_AHEAD, Forgotten, Liveness, MemberState, NodeId};
use lally::ports::{ForgetError, Verdict};

use super::nodes::{Disk, Running, equal, eventually, three};

fn id(node: &Running) -> NodeId {
    node.client().cluster().node.member.id
}

/// The third of three members is gone, and the others know.
async fn two_of_three(network: &MemoryNetwork) -> ([Disk; 3], [Running; 2], NodeId) {
    let (disks, [one, two, three]) = three(network).await;
    one.add("before", "v", "all").await.unwrap();
    let gone = id(&three);
    for other in [&one, &two] {
        other.believe(&three, Liveness::Down);
        let down = || other.states() == [MemberState::Alive, MemberState::Down];
        eventually("it is down", down).await;
    }
    three.crash(network);
    (disks, [one, two], gone)
}

async fn is_left(node: &Running) {
    let left = || node.states() == [MemberState::Alive, MemberState::Left];
    eventually("it has left", left).await;
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_member_counts_no_more_for_anybody_and_is_owed_nothing() {
    let network = MemoryNetwork::new();
    let (disks, [one, two], gone) = two_of_three(&network).await;
    let answer = one.add("k", "v", "all").await.unwrap();
    assert_eq!((answer.verdict, answer.required), (Verdict::Partial, 3));
    let hints =
        |node: &Running| node.client().cluster().members.iter().map(|m| m.hints).sum::<u64>();
    assert_eq!(hints(&one), 1);

    assert!(matches!(one.client().forget(gone).await, Ok(Forgotten::Now(_))));
    assert_eq!(hints(&one), 0);
    is_left(&two).await;
    for node in [&one, &two] {
        let answer = node.add("k", "w", "all").await.unwrap();
        assert_eq!((answer.verdict, answer.required), (Verdict::Success, 2));
        assert_eq!(node.client().forget(gone).await, Ok(Forgotten::Before));
    }
    // Both have it in their books.
    one.crash(&network);
    two.crash(&network);
    let one = disks[0].start(&network, &[]).await;
    let two = disks[1].start(&network, &[]).await;
    for node in [&one, &two] {
        node.ready().await;
        is_left(node).await;
    }
    let answer = one.add("k", "x", "all").await.unwrap();
    assert_eq!((answer.verdict, answer.required), (Verdict::Success, 2));
}

#[tokio::test(start_paused = true)]
async fn only_a_known_member_that_is_down_is_forgotten() {
    let network = MemoryNetwork::new();
    let (_disks, [one, two, three]) = three(&network).await;
    let unknown = NodeId::new(99);
    for (member, why) in [
        (unknown, CannotForget::Unknown(unknown)),
        (id(&one), CannotForget::ThisNode(id(&one))),
        (id(&two), CannotForget::NotDown(id(&two))),
    ] {
        assert_eq!(one.client().forget(member).await, Err(ForgetError::Refused(why)));
    }
    one.believe(&three, Liveness::Suspect);
    let suspect = || one.states() == [MemberState::Alive, MemberState::Suspect];
    eventually("it is suspect", suspect).await;
    let refused = one.client().forget(id(&three)).await;
    assert_eq!(refused, Err(CannotForget::NotDown(id(&three)).into()));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_member_that_comes_back_joins_again_and_gets_what_it_missed() {
    let network = MemoryNetwork::new();
    let (disks, [one, two], gone) = two_of_three(&network).await;
    one.client().forget(gone).await.unwrap();
    is_left(&two).await;
    one.add("k", "v", "all").await.unwrap();
    two.remove("before", "all").await.unwrap();
    let three = disks[2].start(&network, &[]).await;
    for node in [&one, &two] {
        eventually("it counts again", || node.states() == [MemberState::Alive; 2]).await;
    }
    // It stated itself above what it was forgotten with, so it has joined, not resumed.
    let record = three.client().cluster().node.member;
    assert!(record.generation > FORGOTTEN_AHEAD, "{record:?}");
    three.ready().await;
    assert_eq!((three.own("k").as_deref(), three.own("before")), (Some("v"), None));
    equal(&[&one, &two, &three]).await;
    let answer = two.add("k", "w", "all").await.unwrap();
    assert_eq!((answer.verdict, answer.required), (Verdict::Success, 3));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_was_forgotten_while_it_was_cut_off_is_told_and_joins_again() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    network.cut_off(&disks[2].addr);
    for other in [&one, &two] {
        other.believe(&three, Liveness::Down);
    }
    let down = || one.states() == [MemberState::Alive, MemberState::Down];
    eventually("it is down", down).await;
    one.client().forget(id(&three)).await.unwrap();
    is_left(&two).await;
    one.add("k", "v", "all").await.unwrap();
    assert_eq!(three.own("k"), None);
    // It took everybody for alive all the time, so nothing makes it ask.
    network.heal();
    one.believe(&three, Liveness::Alive);
    let stated_anew = || three.client().cluster().node.member.generation > FORGOTTEN_AHEAD;
    eventually("it has been told", stated_anew).await;
    three.ready().await;
    assert_eq!(three.own("k").as_deref(), Some("v"));
    for node in [&one, &two] {
        eventually("it counts again", || node.states() == [MemberState::Alive; 2]).await;
    }
    equal(&[&one, &two, &three]).await;
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_that_waits_for_the_dead_is_let_in_once_they_are_forgotten() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    for other in [&two, &three] {
        one.believe(other, Liveness::Down);
    }
    let dead = [id(&two), id(&three)];
    two.crash(&network);
    three.crash(&network);
    eventually("both are down", || one.states() == [MemberState::Down; 2]).await;
    let four = Disk::new(4).start(&network, &[&disks[0]]).await;
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert!(four.client().readiness().is_err(), "one of three is not half");
    for member in dead {
        one.client().forget(member).await.unwrap();
    }
    four.ready().await;
    let answer = four.add("k", "v", "all").await.unwrap();
    assert_eq!((answer.verdict, answer.required), (Verdict::Success, 2));
}
