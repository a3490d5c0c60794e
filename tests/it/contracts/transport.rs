//! The contract of the `PeerTransport` port, over gRPC on loopback and its in-memory twin.
//!
//! At the other end is a `FakeReplica`. Time over the twin is paused: what waits for a timeout
//! there costs nothing. Over gRPC it is real, so timeouts that must pass are short, and those that
//! must not are long.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{BoxFuture, join, join_all};
use lally::domain::{
    Bucket, BucketSet, ClockDrift, DigestLevel, Group, KeyedEntry, NodeId, Phase, Summary,
    Timestamp, TraceContext, Value,
};
use lally::ports::{
    ApplyError, Certification, EntryChunk, LogError, MAX_FETCHED, NotWhole, Origin, Peer, PeerCall,
    PeerError, PeerTransport, ProtocolRange, Refusal, Store, WriteReply,
};
use tokio::time::Instant;

use super::networks::{
    AT_ONCE, BLUE, LONG, Loopback, Network, SHORT, Switch, eventually, key, keyed, next,
};
use super::replica::{FakeReplica, Seen, WALL_TIME, member, statement};
use super::suite::contract;

/// "Within a few seconds", for calls without a timeout.
const FEW_SECONDS: Duration = Duration::from_secs(5);

/// How much later than its timeout a call may return, on a machine that is busy.
const SLACK: Duration = Duration::from_secs(2);

contract! {
    async over {
        grpc: #[tokio::test] => &Loopback::default();
        memory: #[tokio::test(start_paused = true)] => &Switch::default();
    }
    holds {
        a_write_arrives_as_it_was_sent_and_its_reply_comes_back,
        a_read_brings_the_copy_as_it_is_held,
        the_trace_of_a_call_comes_along,
        digests_arrive_as_they_are,
        the_time_of_a_peer_arrives_as_it_is,
        a_pull_brings_exactly_the_entries_of_its_buckets_by_bucket,
        a_pull_that_breaks_off_says_so_and_ends,
        summaries_are_of_exactly_the_entries_of_their_buckets_by_bucket,
        a_fetch_brings_the_entries_of_its_keys_that_are_held,
        a_push_is_applied_as_it_was_sent,
        a_rejection_arrives_with_its_reason,
        a_fence_arrives_as_it_was_sent_and_so_does_its_refusal,
        an_announcement_arrives_and_so_does_its_answer,
        a_refused_announcement_says_why,
        a_packet_arrives_as_it_was_sent,
        a_request_for_another_node_is_refused_and_not_served,
        another_cluster_is_refused_by_both_names_and_not_served,
        a_closed_port_is_unreachable_at_once,
        an_address_that_is_none_is_unreachable_at_once,
        a_peer_that_never_answers_is_timed_out_in_time,
        a_peer_that_hangs_is_timed_out_in_time,
        a_peer_that_went_away_is_unreachable_at_once_and_reached_again_when_it_is_back,
        a_peer_that_moved_is_reached_where_it_is_now,
        a_peer_is_reached_once_it_has_its_address_back_from_another,
        a_write_under_way_when_the_peer_goes_away_is_not_called_unseen,
        dropping_the_future_of_a_write_does_not_take_it_back,
        a_released_peer_finishes_what_is_under_way_and_is_reached_by_the_next_call,
        a_thousand_calls_at_once_each_get_their_own_answer,
        many_large_values_travel_at_once_in_every_way,
        the_largest_value_travels_in_every_way,
        a_read_overtakes_a_write_that_hangs,
        closing_lets_a_write_under_way_finish,
        closing_waits_no_longer_than_the_timeout_of_what_is_under_way,
        there_is_no_round_trip_without_a_call,
    }
}

async fn a_write_arrives_as_it_was_sent_and_its_reply_comes_back(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    let model = FakeReplica::new(0, BLUE);
    let mut sent = Vec::new();
    for write in every_kind_of_entry() {
        let reply = transport.write(&peer, write.clone(), LONG.into()).await;
        sent.push((write.clone(), Origin::Replica));
        let expected = model.apply_one(write, Origin::Replica);
        assert!(reply == expected.map_err(|_| PeerError::TimedOut), "{:?}", sent.last());
    }
    assert!(replica.applied() == sent);
}

async fn a_read_brings_the_copy_as_it_is_held(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    let mut keys = Vec::new();
    for write in every_kind_of_entry() {
        keys.push(write.key.clone());
        let before = transport.read(&peer, write.key.clone(), LONG.into()).await;
        assert!(before == Ok(replica.store.get(&write.key)), "{:?}", write.key);
        replica.store.merge(write.clone());
        let copy = transport.read(&peer, write.key.clone(), LONG.into()).await;
        assert!(copy == Ok(replica.store.get(&write.key)), "{:?}", write.key);
    }
    let asked = replica.seen().reads;
    assert!(asked.iter().step_by(2).eq(&keys));
}

async fn the_trace_of_a_call_comes_along(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    let trace = |flags| {
        let span = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
        TraceContext::parse(&span).unwrap()
    };
    let of = |flags| PeerCall { timeout: LONG, trace: Some(trace(flags)) };
    transport.write(&peer, keyed("k", 1, None), LONG.into()).await.unwrap();
    transport.read(&peer, key("k"), LONG.into()).await.unwrap();
    assert_eq!(replica.seen().traces, []);
    transport.write(&peer, keyed("k", 2, Some("v")), of("01")).await.unwrap();
    transport.read(&peer, key("k"), of("00")).await.unwrap();
    assert_eq!(replica.seen().traces, [trace("01"), trace("00")]);
}

async fn digests_arrive_as_they_are(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    for write in std::iter::once(keyed("k", 1, None)).chain(many_entries(2_000)) {
        replica.store.merge(write);
    }
    assert_eq!(transport.digest(&peer, LONG).await, Ok(replica.store.digest()));
    let some = DigestLevel::BucketsOf(vec![Group::new(0), Group::new(7), Group::new(255)]);
    for level in [DigestLevel::Groups, some, DigestLevel::BucketsOf(Vec::new())] {
        let digests = transport.level_digests(&peer, level.clone(), LONG).await;
        assert!(digests == Ok(level.of(&replica.store.bucket_digests())), "{level:?}");
    }
}

async fn the_time_of_a_peer_arrives_as_it_is(network: &dyn Network) {
    let (peer, _replica) = serve_one(network);
    let transport = network.transport(BLUE);
    assert_eq!(transport.wall_time(&peer, LONG).await, Ok(Some(WALL_TIME)));
}

async fn a_pull_brings_exactly_the_entries_of_its_buckets_by_bucket(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    for write in many_entries(2_500).chain(every_kind_of_entry()) {
        replica.store.merge(write);
    }
    let mut some = BucketSet::none();
    for number in (0..=u16::MAX).step_by(3) {
        some.insert(Bucket::new(number));
    }
    for asked in [BucketSet::all(), some, BucketSet::none()] {
        let mut stream = transport.pull(&peer, asked.clone()).await.unwrap();
        let (mut found, mut complete) = (Vec::new(), None);
        while let Some(chunk) = next(stream.as_mut()).await {
            let EntryChunk { entries, complete_through } = chunk.unwrap();
            let bucket = |write: &KeyedEntry| Some(Bucket::of(&write.key));
            let late = entries.iter().any(|write| bucket(write) <= complete);
            assert!(!late, "an entry of a bucket that was said to be complete");
            found.extend(entries);
            complete = complete.max(complete_through);
        }
        let expected: Vec<_> = replica
            .store
            .keys_in(&asked)
            .into_iter()
            .map(|key| KeyedEntry::new(key.clone(), replica.store.get(&key).unwrap()))
            .collect();
        assert!(found == expected, "{} for {}", found.len(), expected.len());
        assert_eq!(complete, Some(Bucket::LAST));
        assert_eq!(replica.seen().pulled.pop(), Some(asked));
    }
}

async fn a_pull_that_breaks_off_says_so_and_ends(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    let chunk = EntryChunk {
        entries: vec![keyed("k", 1, Some("v"))],
        complete_through: Some(Bucket::new(3)),
    };
    let broken = Err(PeerError::Rejected("stopping".into()));
    replica.stream.lock().unwrap().extend([Ok(chunk.clone()), broken]);
    let mut stream = transport.pull(&peer, BucketSet::all()).await.unwrap();
    assert_eq!(next(stream.as_mut()).await, Some(Ok(chunk)));
    assert!(matches!(next(stream.as_mut()).await, Some(Err(_))));
    assert_eq!(next(stream.as_mut()).await, None);
    assert_eq!(next(stream.as_mut()).await, None);
}

async fn summaries_are_of_exactly_the_entries_of_their_buckets_by_bucket(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    for write in many_entries(2_500).chain(every_kind_of_entry()) {
        replica.store.merge(write);
    }
    let mut some = BucketSet::none();
    for number in (0..=u16::MAX).step_by(3) {
        some.insert(Bucket::new(number));
    }
    for asked in [BucketSet::all(), some, BucketSet::none()] {
        let mut stream = transport.summaries(&peer, asked.clone()).await.unwrap();
        let (mut found, mut complete) = (Vec::new(), None);
        while let Some(chunk) = next(stream.as_mut()).await {
            let EntryChunk { entries, complete_through } = chunk.unwrap();
            assert!(entries.iter().all(|told| Some(Bucket::of(&told.key)) > complete));
            found.extend(entries);
            complete = complete.max(complete_through);
        }
        let keys = replica.store.keys_in(&asked).into_iter();
        let expected: Vec<_> =
            keys.map(|key| Summary::of(key.clone(), &replica.store.get(&key).unwrap())).collect();
        assert!(found == expected, "{} for {}", found.len(), expected.len());
        assert_eq!(complete, Some(Bucket::LAST));
        assert_eq!(replica.seen().summed_up.pop(), Some(asked));
    }
}

async fn a_fetch_brings_the_entries_of_its_keys_that_are_held(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    for write in every_kind_of_entry() {
        replica.store.merge(write);
    }
    let mut held = replica.store.keys_in(&BucketSet::all());
    held.sort();
    let most: Vec<_> = (0..MAX_FETCHED.0).map(|n| key(&format!("absent-{n:050}"))).collect();
    for (asked, held) in [(Vec::new(), Vec::new()), (held.clone(), held), (most, Vec::new())] {
        let mut stream = transport.fetch(&peer, asked.clone()).await.unwrap();
        let (mut found, mut complete) = (Vec::new(), None);
        while let Some(chunk) = next(stream.as_mut()).await {
            let EntryChunk { entries, complete_through } = chunk.unwrap();
            found.extend(entries);
            complete = complete.max(complete_through);
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        let held = held.into_iter();
        let expected: Vec<_> = held
            .map(|key| KeyedEntry::new(key.clone(), replica.store.get(&key).unwrap()))
            .collect();
        assert!(found == expected, "{} for {}", found.len(), expected.len());
        assert_eq!(complete, Some(Bucket::LAST));
        assert_eq!(replica.seen().fetched.pop(), Some(asked));
    }
}

async fn a_push_is_applied_as_it_was_sent(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    // Older than what the peer holds: that is no failure.
    replica.store.merge(keyed("k", 9, Some("newer")));
    let writes: Vec<_> = std::iter::once(keyed("k", 1, Some("older")))
        .chain(many_entries(2_500))
        .chain(every_kind_of_entry())
        .collect();
    let tiny: Vec<_> = (0..20_000).map(|n| keyed(&format!("{n}"), 1, None)).collect();
    for writes in [writes, tiny, Vec::new()] {
        let sent: Vec<_> = writes.iter().map(|write| (write.clone(), Origin::Sync)).collect();
        transport.push(&peer, writes, LONG).await.unwrap();
        let applied = std::mem::take(&mut replica.seen.lock().unwrap().applied);
        assert!(applied == sent, "{} of {}", applied.len(), sent.len());
    }
}

async fn a_rejection_arrives_with_its_reason(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    for why in [ApplyError::Log(LogError::DiskFull), ApplyError::NotReady("replaying \"ä\"")] {
        *replica.rejects.lock().unwrap() = Some(why.clone());
        let rejected = Err(PeerError::Rejected(why.to_string()));
        assert_eq!(transport.write(&peer, keyed("k", 1, None), LONG.into()).await, rejected);
        let pushed = transport.push(&peer, many_entries(100).collect(), LONG).await;
        assert_eq!(pushed.map(|()| WriteReply::Applied { previous: None }), rejected);
    }
    // Refused for its clock, an entry does not hold up the others of a push.
    let drift = ApplyError::ClockDrift(ClockDrift { ahead_ns: 2, max_drift_ns: 1 });
    *replica.rejects.lock().unwrap() = Some(drift.clone());
    let rejected = Err(PeerError::Rejected(drift.to_string()));
    assert_eq!(transport.write(&peer, keyed("k", 1, None), LONG.into()).await, rejected);
    assert_eq!(transport.push(&peer, many_entries(100).collect(), LONG).await, Ok(()));
    replica.not_whole.store(true, Ordering::Relaxed);
    let rejected = Err(PeerError::Rejected(NotWhole.to_string()));
    assert_eq!(transport.read(&peer, key("k"), LONG.into()).await, rejected);
    *replica.rejects.lock().unwrap() = None;
    assert!(transport.write(&peer, keyed("k", 1, None), LONG.into()).await.is_ok());
}

async fn a_fence_arrives_as_it_was_sent_and_so_does_its_refusal(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    let taken = certification(u64::MAX);
    assert_eq!(transport.fence(&peer, taken, LONG).await, Ok(()));
    let refused = transport.fence(&peer, certification(0), LONG).await;
    let reason = "an entry has arrived late since the comparison".to_owned();
    assert_eq!(refused, Err(PeerError::Rejected(reason)));
    assert_eq!(replica.seen.lock().unwrap().fenced, [taken]);
}

fn certification(generation: u64) -> Certification {
    let horizon = Timestamp::from_nanos(1_234_567_890_123_456_789);
    Certification { horizon, generation, age: Duration::from_nanos(987_654_321_987) }
}

async fn an_announcement_arrives_and_so_does_its_answer(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    for phase in [Phase::Joining, Phase::Whole, Phase::Left] {
        let mut ours = statement(BLUE, member(5, phase));
        ours.protocol = ProtocolRange { min: 1, max: u32::MAX };
        let theirs = transport.announce(&peer.addr, ours.clone(), LONG).await;
        assert_eq!(theirs, Ok(statement(BLUE, replica.me.clone())));
        assert_eq!(replica.seen().announced.pop(), Some(ours));
    }
}

async fn a_refused_announcement_says_why(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    let range = |min, max| ProtocolRange { min, max };
    for refusal in [
        Refusal::WrongCluster { ours: BLUE.into(), theirs: "grün".into() },
        Refusal::WrongProtocol { ours: range(2, 3), theirs: range(1, 1) },
        Refusal::WrongNode { expected: NodeId::new(u64::MAX), found: NodeId::new(0) },
        Refusal::Myself,
        Refusal::SameIdentity { addr: "[::1]:1".into() },
        Refusal::SameAddress { addr: "näme:1".into() },
    ] {
        *replica.refuses.lock().unwrap() = Some(refusal.clone());
        let ours = statement(BLUE, member(5, Phase::Whole));
        let refused = transport.announce(&peer.addr, ours, LONG).await;
        assert_eq!(refused, Err(PeerError::Refused(refusal)));
    }
}

async fn a_packet_arrives_as_it_was_sent(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    let every_byte: Vec<u8> = (0..=u8::MAX).cycle().take(1_400).collect();
    for packet in [vec![0], every_byte, Vec::new()] {
        // A packet may be lost: it is sent until it has come.
        eventually("the packet came", async || {
            transport.gossip(&peer.addr, packet.clone());
            replica.seen().packets.contains(&packet)
        })
        .await;
    }
    // Nobody there, nowhere to be: nothing happens.
    for addr in [network.closed(), network.silent(), "🦀".into(), String::new()] {
        for _ in 0..1_000 {
            transport.gossip(&addr, vec![1]);
        }
    }
}

async fn a_request_for_another_node_is_refused_and_not_served(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    let (expected, found) = (NodeId::new(u64::MAX), peer.id);
    let other = Peer { id: expected, ..peer };
    let refused = Err(PeerError::Refused(Refusal::WrongNode { expected, found }));
    for (call, outcome) in every_call(transport.as_ref(), &other, LONG).await {
        // An announcement is for whoever is there.
        let expected = if call == "announce" { Ok(()) } else { refused.clone() };
        assert_eq!(outcome, expected, "{call}");
    }
    let seen = Seen { announced: Vec::new(), ..replica.seen() };
    assert_eq!(seen, Seen::default());
}

async fn another_cluster_is_refused_by_both_names_and_not_served(network: &dyn Network) {
    let replica = FakeReplica::new(2, "grün");
    let peer = Peer { id: replica.me.id, addr: network.serve(&replica) };
    let transport = network.transport(BLUE);
    let refusal = Refusal::WrongCluster { ours: "grün".into(), theirs: BLUE.into() };
    for (call, outcome) in every_call(transport.as_ref(), &peer, LONG).await {
        assert_eq!(outcome, Err(PeerError::Refused(refusal.clone())), "{call}");
    }
    let green = network.transport("grün");
    eventually("a packet of its own cluster came", async || {
        transport.gossip(&peer.addr, b"blue".into());
        green.gossip(&peer.addr, b"green".into());
        !replica.seen().packets.is_empty()
    })
    .await;
    let mut seen = replica.seen();
    seen.packets.retain(|packet| packet != b"green");
    assert_eq!(seen, Seen::default());
}

async fn a_closed_port_is_unreachable_at_once(network: &dyn Network) {
    let peer = Peer { id: NodeId::new(2), addr: network.closed() };
    let transport = network.transport(BLUE);
    for _ in 0..3 {
        let began = Instant::now();
        for (call, outcome) in every_call(transport.as_ref(), &peer, LONG).await {
            assert!(matches!(outcome, Err(PeerError::Unreachable(_))), "{call}: {outcome:?}");
        }
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    }
}

async fn an_address_that_is_none_is_unreachable_at_once(network: &dyn Network) {
    let transport = network.transport(BLUE);
    for addr in ["", ":", "127.0.0.1:99999", "[::1", "a b:1", "\0:1", "\n", "🦀:1"] {
        let peer = Peer { id: NodeId::new(2), addr: addr.into() };
        let began = Instant::now();
        for (call, outcome) in every_call(transport.as_ref(), &peer, LONG).await {
            assert!(
                matches!(outcome, Err(PeerError::Unreachable(_))),
                "{addr:?}: {call}: {outcome:?}"
            );
        }
        assert!(began.elapsed() < AT_ONCE, "{addr:?}: {:?}", began.elapsed());
    }
}

async fn a_peer_that_never_answers_is_timed_out_in_time(network: &dyn Network) {
    let peer = Peer { id: NodeId::new(2), addr: network.silent() };
    let transport = network.transport(BLUE);
    for (call, outcome) in every_call(transport.as_ref(), &peer, SHORT).await {
        assert_eq!(outcome, Err(PeerError::TimedOut), "{call}");
    }
}

async fn a_peer_that_hangs_is_timed_out_in_time(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    replica.hang();
    for (call, outcome) in every_call(transport.as_ref(), &peer, SHORT).await {
        let waits = ["write", "announce", "push", "fence"].contains(&call);
        let expected = if waits { Err(PeerError::TimedOut) } else { Ok(()) };
        assert_eq!(outcome, expected, "{call}");
    }
    // Looking for the entries may take its time.
    let mut stream = transport.pull(&peer, BucketSet::all()).await.unwrap();
    assert!(tokio::time::timeout(SHORT, stream.next()).await.is_err());
    replica.go_on();
    assert!(matches!(next(stream.as_mut()).await, Some(Ok(_))));
    all_reach(transport.as_ref(), &peer).await;
}

async fn a_peer_that_went_away_is_unreachable_at_once_and_reached_again_when_it_is_back(
    network: &dyn Network,
) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    for _ in 0..2 {
        all_reach(transport.as_ref(), &peer).await;
        network.stop(&peer.addr).await;
        // The first calls may still be on their way when the connections break.
        eventually("every call fails at once", async || {
            let began = Instant::now();
            let outcomes = every_call(transport.as_ref(), &peer, LONG).await;
            assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
            assert!(outcomes.iter().all(|(_, outcome)| outcome.is_err()), "{outcomes:?}");
            let unreachable = |outcome| matches!(outcome, Err(PeerError::Unreachable(_)));
            outcomes.into_iter().all(|(_, outcome)| unreachable(outcome))
        })
        .await;
        network.serve_at(&peer.addr, &replica);
    }
    all_reach(transport.as_ref(), &peer).await;
}

async fn a_peer_that_moved_is_reached_where_it_is_now(network: &dyn Network) {
    let transport = network.transport(BLUE);
    let houses = [FakeReplica::new(2, BLUE), FakeReplica::new(2, BLUE)];
    let addrs = [network.serve(&houses[0]), network.serve(&houses[1])];
    for time in 1..=6 {
        let at = usize::from(time % 3 == 0);
        let peer = Peer { id: NodeId::new(2), addr: addrs[at].clone() };
        let write = keyed("k", time, Some("v"));
        transport.write(&peer, write.clone(), LONG.into()).await.unwrap();
        assert_eq!(houses[at].applied().pop(), Some((write, Origin::Replica)));
    }
    assert_eq!((houses[0].applied().len(), houses[1].applied().len()), (4, 2));
}

async fn a_peer_is_reached_once_it_has_its_address_back_from_another(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    let squatter = FakeReplica::new(3, BLUE);
    for _ in 0..2 {
        all_reach(transport.as_ref(), &peer).await;
        network.stop(&peer.addr).await;
        network.serve_at(&peer.addr, &squatter);
        let refusal = Refusal::WrongNode { expected: peer.id, found: squatter.me.id };
        eventually("the other one refuses", async || {
            let reply = transport.write(&peer, keyed("k", 1, None), LONG.into()).await;
            reply == Err(PeerError::Refused(refusal.clone()))
        })
        .await;
        network.stop(&peer.addr).await;
        network.serve_at(&peer.addr, &replica);
    }
    all_reach(transport.as_ref(), &peer).await;
    assert_eq!(squatter.applied(), []);
}

async fn a_write_under_way_when_the_peer_goes_away_is_not_called_unseen(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    replica.hang();
    let write = keyed("k", 1, Some("v"));
    let mut writing = pin!(transport.write(&peer, write.clone(), (3 * SHORT).into()));
    tokio::select! {
        outcome = &mut writing => panic!("{outcome:?}"),
        () = replica.begun(1) => {}
    }
    let outcome = async {
        let outcome = writing.await;
        replica.go_on();
        outcome
    };
    let (outcome, ()) = join(outcome, network.stop(&peer.addr)).await;
    assert_eq!(outcome, Err(PeerError::TimedOut));
    eventually("the write was carried out", async || {
        replica.applied() == [(write.clone(), Origin::Replica)]
    })
    .await;
}

async fn a_released_peer_finishes_what_is_under_way_and_is_reached_by_the_next_call(
    network: &dyn Network,
) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    all_reach(transport.as_ref(), &peer).await;
    replica.hang();
    let mut writing = pin!(transport.write(&peer, keyed("k", 1, Some("v")), LONG.into()));
    tokio::select! {
        outcome = &mut writing => panic!("{outcome:?}"),
        () = replica.begun(1) => {}
    }
    transport.release(&peer);
    replica.go_on();
    assert_eq!(writing.await, Ok(WriteReply::Applied { previous: None }));
    transport.release(&peer);
    all_reach(transport.as_ref(), &peer).await;
}

async fn dropping_the_future_of_a_write_does_not_take_it_back(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    for time in 1..=5 {
        replica.hang();
        let write = keyed("k", time, Some("v"));
        let begun = replica.begun(usize::try_from(time).unwrap());
        tokio::select! {
            outcome = transport.write(&peer, write.clone(), LONG.into()) => panic!("{outcome:?}"),
            () = begun => {}
        }
        replica.go_on();
        let last = Some((write, Origin::Replica));
        eventually("the write was carried out", async || replica.applied().pop() == last).await;
    }
}

async fn a_thousand_calls_at_once_each_get_their_own_answer(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    for number in 0..1_000 {
        // Every other write is too old.
        let text = format!("value-{number}");
        let time = if number % 2 == 0 { number } else { number + 10_000 };
        replica.store.merge(keyed(&format!("key-{number}"), time, Some(&text)));
    }
    replica.hang();
    let write = async |number: u64| {
        let write = keyed(&format!("key-{number}"), 5_000, Some("new"));
        let held = replica.store.get(&write.key).unwrap();
        let expected = if number.is_multiple_of(2) {
            WriteReply::Applied { previous: Some(held) }
        } else {
            WriteReply::Superseded { by: held.version }
        };
        assert_eq!(transport.write(&peer, write, LONG.into()).await, Ok(expected), "{number}");
    };
    let read = async |number: u64| {
        let copy = transport.read(&peer, key(&format!("other-{number}")), LONG.into()).await;
        assert_eq!(copy, Ok(None));
        let copy = transport.read(&peer, key(&format!("key-{}", number | 1)), LONG.into()).await;
        let value = Value::new(&format!("value-{}", number | 1));
        assert_eq!(copy.unwrap().unwrap().value(), Some(&value));
    };
    let calls = join(join_all((0..1_000).map(write)), join_all((0..1_000).map(read)));
    let opening = async {
        replica.begun(1).await;
        replica.go_on();
    };
    join(calls, opening).await;
    assert_eq!(replica.applied().len(), 1_000);
}

/// Together they are larger than any message may be, requests and answers alike.
async fn many_large_values_travel_at_once_in_every_way(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    let text = "v".repeat(1 << 20);
    let large = |number: u64, time| keyed(&format!("large-{number}"), time, Some(&text));
    // All are under way before the first one is answered.
    replica.hang();
    let writes = join_all((0..40).map(|n| transport.write(&peer, large(n, 1), LONG.into())));
    let opening = async {
        replica.begun(1).await;
        replica.go_on();
    };
    let (replies, ()) = join(writes, opening).await;
    let applied = WriteReply::Applied { previous: None };
    assert!(replies.iter().all(|reply| *reply == Ok(applied.clone())), "{replies:?}");
    let key = |number| key(&format!("large-{number}"));
    let copies = join_all((0..40).map(|n| transport.read(&peer, key(n), LONG.into()))).await;
    for (number, copy) in (0..).zip(copies) {
        assert!(copy == Ok(Some(large(number, 1).entry)), "{number}: {copy:?}");
    }
    // Removals are answered with what they have removed.
    let removal = |number| KeyedEntry::new(key(number), keyed("k", 2, None).entry);
    let removals = join_all((0..40).map(|n| transport.write(&peer, removal(n), LONG.into()))).await;
    for (number, reply) in (0..).zip(removals) {
        let previous = Some(large(number, 1).entry);
        assert!(reply == Ok(WriteReply::Applied { previous }), "{number}: {reply:?}");
    }
    let pushed = transport.push(&peer, (0..40).map(|n| large(n, 3)).collect(), LONG).await;
    assert_eq!(pushed, Ok(()));
    let mut pulled = 0;
    let mut stream = transport.pull(&peer, BucketSet::all()).await.unwrap();
    while let Some(chunk) = next(stream.as_mut()).await {
        pulled += chunk.unwrap().entries.len();
    }
    assert_eq!(pulled, 40);
}

async fn the_largest_value_travels_in_every_way(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    let (name, text) = ("k".repeat(1_024), "v".repeat(16 << 20));
    let largest = |time| keyed(&name, time, Some(&text));
    let reply = transport.write(&peer, largest(1), LONG.into()).await;
    assert_eq!(reply, Ok(WriteReply::Applied { previous: None }));
    let reply = transport.write(&peer, largest(2), LONG.into()).await;
    assert!(reply == Ok(WriteReply::Applied { previous: Some(largest(1).entry) }));
    let copy = transport.read(&peer, key(&name), LONG.into()).await;
    assert!(copy == Ok(Some(largest(2).entry)));
    assert_eq!(transport.push(&peer, vec![largest(3)], LONG).await, Ok(()));
    let mut stream = transport.pull(&peer, BucketSet::all()).await.unwrap();
    let mut entries = Vec::new();
    while let Some(chunk) = next(stream.as_mut()).await {
        entries.extend(chunk.unwrap().entries);
    }
    assert!(entries == [largest(3)]);
    let origins: Vec<_> = replica.applied().into_iter().map(|(_, origin)| origin).collect();
    assert_eq!(origins, [Origin::Replica, Origin::Replica, Origin::Sync]);
}

async fn a_read_overtakes_a_write_that_hangs(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    for time in 1..=5 {
        replica.hang();
        // Asked at once, so that they travel together if they can.
        let writing = transport.write(&peer, keyed("k", time, None), LONG.into());
        let reading = async {
            let copy = transport.read(&peer, key("absent"), LONG.into()).await;
            replica.begun(usize::try_from(time).unwrap()).await;
            replica.go_on();
            copy
        };
        let (reply, copy) = join(writing, reading).await;
        assert!(matches!(reply, Ok(WriteReply::Applied { .. })), "{reply:?}");
        assert_eq!(copy, Ok(None));
    }
}

async fn closing_lets_a_write_under_way_finish(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    replica.hang();
    let writing = transport.write(&peer, keyed("k", 1, Some("v")), LONG.into());
    let closing = async {
        replica.begun(1).await;
        let opening = async { replica.go_on() };
        // The closing is asked first, and has to wait.
        join(transport.close(), opening).await;
    };
    let (reply, ()) = join(writing, closing).await;
    assert_eq!(reply, Ok(WriteReply::Applied { previous: None }));
}

async fn closing_waits_no_longer_than_the_timeout_of_what_is_under_way(network: &dyn Network) {
    let (peer, replica) = serve_one(network);
    let transport = network.transport(BLUE);
    replica.hang();
    let began = Instant::now();
    let writing = transport.write(&peer, keyed("k", 1, Some("v")), SHORT.into());
    let closing = async {
        replica.begun(1).await;
        transport.close().await;
        transport.close().await;
    };
    let (reply, ()) = join(writing, closing).await;
    assert_eq!(reply, Err(PeerError::TimedOut));
    assert!(began.elapsed() < SHORT + SLACK, "{:?}", began.elapsed());
}

async fn there_is_no_round_trip_without_a_call(network: &dyn Network) {
    let (peer, _replica) = serve_one(network);
    assert_eq!(network.transport(BLUE).round_trip(peer.id), None);
}

fn serve_one(network: &dyn Network) -> (Peer, Arc<FakeReplica>) {
    let replica = FakeReplica::new(2, BLUE);
    (Peer { id: replica.me.id, addr: network.serve(&replica) }, replica)
}

/// Makes every call there is at once, and holds each to its timeout.
async fn every_call(
    transport: &dyn PeerTransport,
    peer: &Peer,
    timeout: Duration,
) -> Vec<(&'static str, Result<(), PeerError>)> {
    let write = keyed("k", 1, Some("v"));
    let (pushed, read) = (vec![write.clone()], write.key.clone());
    let ours = statement(BLUE, member(1, Phase::Whole));
    let calls: [(_, BoxFuture<'_, Result<(), PeerError>>); 11] = [
        ("write", Box::pin(async { transport.write(peer, write, timeout.into()).await.map(drop) })),
        ("read", Box::pin(async { transport.read(peer, read, timeout.into()).await.map(drop) })),
        (
            "announce",
            Box::pin(async { transport.announce(&peer.addr, ours, timeout).await.map(drop) }),
        ),
        ("wall_time", Box::pin(async { transport.wall_time(peer, timeout).await.map(drop) })),
        ("digest", Box::pin(async { transport.digest(peer, timeout).await.map(drop) })),
        (
            "level_digests",
            Box::pin(async {
                transport.level_digests(peer, DigestLevel::Groups, timeout).await.map(drop)
            }),
        ),
        ("pull", Box::pin(async { transport.pull(peer, BucketSet::all()).await.map(drop) })),
        (
            "summaries",
            Box::pin(async { transport.summaries(peer, BucketSet::all()).await.map(drop) }),
        ),
        ("fetch", Box::pin(async { transport.fetch(peer, vec![key("k")]).await.map(drop) })),
        ("push", Box::pin(transport.push(peer, pushed, timeout))),
        ("fence", Box::pin(transport.fence(peer, certification(1), timeout))),
    ];
    join_all(calls.into_iter().map(|(name, call)| async move {
        let streamed = ["pull", "summaries", "fetch"].contains(&name);
        let limit = if streamed { FEW_SECONDS } else { timeout };
        let outcome = tokio::time::timeout(limit + SLACK, call).await;
        (name, outcome.unwrap_or_else(|_| panic!("{name} did not return within {limit:?}")))
    }))
    .await
}

/// Waits until every call is answered.
async fn all_reach(transport: &dyn PeerTransport, peer: &Peer) {
    eventually("the peer is reached", async || {
        every_call(transport, peer, LONG).await.iter().all(|(_, outcome)| outcome.is_ok())
    })
    .await;
}

/// Removals, empty and odd texts, several versions of a key, values larger than a message.
fn every_kind_of_entry() -> impl Iterator<Item = KeyedEntry> {
    let large = "v".repeat(1 << 20);
    let odd = "\0\n\"🦀".repeat(100_000);
    let long_key = "k".repeat(1_024);
    let mut entries = vec![
        keyed("k", 2, Some("v")),
        keyed("k", 1, Some("older")),
        keyed("k", 3, None),
        keyed("k", 4, Some("")),
        keyed("k", 4, Some("the same version")),
        keyed("never held", 1, None),
        keyed(&long_key, 1, Some(&large)),
        keyed(&long_key, 2, Some(&odd)),
        keyed("\0\n🦀", u64::MAX, Some("\0\n🦀")),
        keyed("time zero", 0, Some("v")),
    ];
    entries.extend((0..3).map(|n| keyed(&format!("large-{n}"), 1, Some(&large))));
    entries.into_iter()
}

fn many_entries(count: u64) -> impl Iterator<Item = KeyedEntry> {
    (1..=count).map(|number| {
        let text = "v".repeat(usize::try_from(number % 300).unwrap());
        let removal = number % 5 == 0;
        keyed(&format!("key-{number}"), number, (!removal).then_some(text.as_str()))
    })
}
