//! The contract of the `FailureDetector` port, over `Swim` on the in-memory network; its in-memory
//! twin, which believes what it is told, for the part that applies to it.
//!
//! Time is paused: seconds of silence cost nothing, and "within a few seconds" is exact.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lally::adapters::memory::{MemoryNetwork, TrustingDetector};
use lally::adapters::swim::{Swim, SwimOptions};
use lally::domain::{Liveness, Member, NodeId, Phase};
use lally::ports::{FailureDetector, LivenessChange};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, timeout};

use super::replica::FakeReplica;
use super::suite::contract;

/// The cluster of everybody here.
const CLUSTER: &str = "lally";

/// "Within a few seconds".
const FEW_SECONDS: Duration = Duration::from_secs(8);

/// Long enough for whatever may still come of something.
const A_WHILE: Duration = Duration::from_secs(60);

/// More than any queue holds.
const FLOOD: u64 = 5_000;

contract! {
    async over {
        swim: #[tokio::test(start_paused = true)] => Subject::swim();
        trusting: #[tokio::test(start_paused = true)] => Subject::trusting();
    }
    holds {
        a_member_that_is_watched_and_answers_is_alive,
        watching_twice_is_harmless,
        garbage_is_ignored,
        packets_by_the_thousand_do_not_make_it_wait_or_forget_whom_to_watch,
        there_are_no_changes_after_leaving,
        a_change_is_not_lost_when_waiting_for_it_is_given_up,
    }
}

async fn a_member_that_is_watched_and_answers_is_alive(subject: Subject) {
    subject.detector.watch(&subject.other);
    let change = next(&subject.detector).await;
    let Member { id, generation, ref grpc_addr, .. } = subject.other;
    let expected =
        LivenessChange { id, generation, grpc_addr: grpc_addr.clone(), liveness: Liveness::Alive };
    assert_eq!(change, expected);
}

async fn watching_twice_is_harmless(subject: Subject) {
    for _ in 0..3 {
        subject.detector.watch(&subject.other);
    }
    expect(&subject.detector, &subject.other, Liveness::Alive).await;
    subject.detector.watch(&subject.other);
    while let Ok(change) = timeout(A_WHILE, subject.detector.next_change()).await {
        assert_eq!(change.unwrap().liveness, Liveness::Alive);
    }
}

async fn garbage_is_ignored(subject: Subject) {
    let mut random = StdRng::seed_from_u64(1);
    for length in (0..200).chain([1_400, 65_536]) {
        for byte in [0, 1, 0x7f, 0xff] {
            subject.detector.receive(&vec![byte; length]);
        }
        let packet: Vec<u8> = (0..length).map(|_| random.random()).collect();
        subject.detector.receive(&packet);
        // Its turn to look at them.
        tokio::task::yield_now().await;
    }
    subject.detector.watch(&subject.other);
    expect(&subject.detector, &subject.other, Liveness::Alive).await;
}

/// Nothing here waits, so nothing is taken out of any queue before all is said.
async fn packets_by_the_thousand_do_not_make_it_wait_or_forget_whom_to_watch(subject: Subject) {
    for _ in 0..FLOOD {
        subject.detector.receive(b"garbage");
    }
    subject.detector.restate(&member(1, 2));
    subject.detector.watch(&subject.other);
    for _ in 0..FLOOD {
        subject.detector.receive(b"garbage");
    }
    expect(&subject.detector, &subject.other, Liveness::Alive).await;
}

async fn there_are_no_changes_after_leaving(subject: Subject) {
    subject.detector.watch(&subject.other);
    expect(&subject.detector, &subject.other, Liveness::Alive).await;
    timeout(FEW_SECONDS, subject.detector.leave()).await.expect("it does not leave");
    // What was seen before may still be told.
    let ending = async { while subject.detector.next_change().await.is_some() {} };
    timeout(FEW_SECONDS, ending).await.expect("the changes do not end");
    subject.detector.watch(&subject.other);
    subject.detector.receive(b"late");
    assert_eq!(subject.detector.next_change().await, None);
    timeout(FEW_SECONDS, subject.detector.leave()).await.expect("it does not leave twice");
}

async fn a_change_is_not_lost_when_waiting_for_it_is_given_up(subject: Subject) {
    for _ in 0..20 {
        let given_up = timeout(Duration::from_millis(1), subject.detector.next_change()).await;
        assert!(given_up.is_err(), "{given_up:?}");
    }
    subject.detector.watch(&subject.other);
    expect(&subject.detector, &subject.other, Liveness::Alive).await;
}

#[tokio::test(start_paused = true)]
async fn members_that_know_one_member_find_all_others() {
    let lan = Lan::default();
    let detectors = lan.start(5).await;
    for (number, detector) in (1..).zip(&detectors) {
        lan.leave(number, detector).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_falls_silent_is_down_within_seconds_and_alive_when_it_speaks_again() {
    let lan = Lan::default();
    let detectors = lan.start(3).await;
    for _ in 0..3 {
        lan.network.cut_off(&member(3, 1).grpc_addr);
        within_seconds(&detectors[..2], &member(3, 1), Liveness::Down).await;
        lan.network.heal();
        within_seconds(&detectors[..2], &member(3, 1), Liveness::Alive).await;
    }
}

#[tokio::test(start_paused = true)]
async fn both_sides_of_a_partition_are_down_for_each_other_until_it_heals() {
    let lan = Lan::default();
    let detectors = lan.start(2).await;
    lan.network.cut_off(&member(1, 1).grpc_addr);
    within_seconds(&detectors[..1], &member(2, 1), Liveness::Down).await;
    expect(&detectors[1], &member(1, 1), Liveness::Down).await;
    // However long it lasts.
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    lan.network.heal();
    within_seconds(&detectors[..1], &member(2, 1), Liveness::Alive).await;
    expect(&detectors[1], &member(1, 1), Liveness::Alive).await;
}

#[tokio::test(start_paused = true)]
async fn members_that_were_all_cut_off_from_each_other_find_back() {
    let lan = Lan::default();
    let detectors = lan.start(4).await;
    for id in 1..=4 {
        lan.network.cut_off(&member(id, 1).grpc_addr);
    }
    for (me, detector) in (1..).zip(&detectors) {
        let mut up: Vec<_> = (1..=4).filter(|id| *id != me).map(NodeId::new).collect();
        while !up.is_empty() {
            let change = next(detector).await;
            up.retain(|id| *id != change.id || change.liveness != Liveness::Down);
        }
    }
    lan.network.heal();
    for (me, detector) in (1..).zip(&detectors) {
        see_all(me, 4, detector).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_was_started_again_is_alive_in_its_new_generation() {
    let lan = Lan::default();
    let detectors = lan.start(3).await;
    for generation in 2..4 {
        let reborn = lan.swim(&member(3, generation), CLUSTER);
        reborn.watch(&member(1, 1));
        within_seconds(&detectors[..2], &member(3, generation), Liveness::Alive).await;
        // Held until the next one has taken its address.
        lan.keep(reborn);
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_states_itself_anew_is_alive_in_that_generation() {
    let lan = Lan::default();
    let detectors = lan.start(3).await;
    detectors[2].restate(&member(3, 7));
    within_seconds(&detectors[..2], &member(3, 7), Liveness::Alive).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_leaves_is_down_for_all_without_anybody_having_to_wait_for_it() {
    let lan = Lan::default();
    let detectors = lan.start(3).await;
    timeout(FEW_SECONDS, detectors[2].leave()).await.unwrap();
    within_seconds(&detectors[..2], &member(3, 1), Liveness::Down).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_not_there_yet_is_alive_once_it_is() {
    let lan = Lan::default();
    let early = lan.swim(&member(1, 1), CLUSTER);
    early.watch(&member(2, 1));
    tokio::time::sleep(A_WHILE).await;
    let late = lan.swim(&member(2, 1), CLUSTER);
    within_seconds(&[early], &member(2, 1), Liveness::Alive).await;
    expect(&late, &member(1, 1), Liveness::Alive).await;
}

#[tokio::test(start_paused = true)]
async fn packets_that_come_twice_and_in_another_order_mislead_nobody() {
    let lan = Lan::default();
    lan.weather(Weather { repeated: 0.5, held_back: 0.3, lost: 0.0 });
    let detectors = lan.start(3).await;
    let end = Instant::now() + Duration::from_secs(300);
    for detector in &detectors {
        while let Ok(change) = tokio::time::timeout_at(end, detector.next_change()).await {
            assert_ne!(change.unwrap().liveness, Liveness::Down);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn members_find_each_other_although_packets_are_lost() {
    let lan = Lan::default();
    lan.weather(Weather { lost: 0.3, repeated: 0.2, held_back: 0.2 });
    let detectors = lan.start(3).await;
    lan.network.cut_off(&member(3, 1).grpc_addr);
    expect(&detectors[0], &member(3, 1), Liveness::Down).await;
    lan.network.heal();
    expect(&detectors[0], &member(3, 1), Liveness::Alive).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_of_another_cluster_at_the_same_address_is_nobody() {
    let lan = Lan::default();
    let ours = lan.swim(&member(1, 1), CLUSTER);
    let foreign = lan.swim(&member(2, 1), "another");
    ours.watch(&member(2, 1));
    foreign.watch(&member(1, 1));
    for detector in [&ours, &foreign] {
        while let Ok(change) = timeout(A_WHILE, detector.next_change()).await {
            assert_ne!(change.unwrap().liveness, Liveness::Alive);
        }
    }
}

/// A detector under test, and a member that answers it.
struct Subject {
    detector: Arc<dyn FailureDetector>,
    other: Member,
    /// Where the other one lives.
    _lan: Lan,
}

impl Subject {
    fn swim() -> Self {
        let lan = Lan::default();
        let other = member(2, 1);
        let answering = lan.swim(&other, CLUSTER);
        let detector = lan.swim(&member(1, 1), CLUSTER);
        lan.keep(answering);
        Self { detector, other, _lan: lan }
    }

    fn trusting() -> Self {
        let detector = Arc::new(TrustingDetector::new());
        Self { detector, other: member(2, 1), _lan: Lan::default() }
    }
}

/// Detectors that hear each other over the in-memory network.
#[derive(Default)]
struct Lan {
    network: MemoryNetwork,
    weather: Arc<Mutex<Weather>>,
    kept: Mutex<Vec<Arc<dyn FailureDetector>>>,
}

/// What happens to packets, each with this probability.
#[derive(Debug, Clone, Copy, Default)]
struct Weather {
    lost: f64,
    repeated: f64,
    /// Until after the next one.
    held_back: f64,
}

impl Lan {
    fn weather(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }

    fn keep(&self, detector: Arc<dyn FailureDetector>) {
        self.kept.lock().unwrap().push(detector);
    }

    /// Starts the detector of this member, which takes its address.
    fn swim(&self, me: &Member, cluster: &str) -> Arc<dyn FailureDetector> {
        let transport = self.network.transport(&me.grpc_addr, CLUSTER);
        let options = SwimOptions::new(me.clone(), cluster, me.id.as_u64());
        let swim = Swim::start(&options, transport);
        let replica = FakeReplica::new(me.id.as_u64(), CLUSTER);
        let hears = self.ear(Arc::clone(&swim) as _, me.id.as_u64());
        assert!(replica.hears.set(hears).is_ok());
        self.network.attach(&me.grpc_addr, me.id, CLUSTER, replica);
        swim
    }

    /// What packets go through before a detector hears them.
    fn ear(&self, detector: Arc<dyn FailureDetector>, seed: u64) -> super::replica::Packets {
        let weather = Arc::clone(&self.weather);
        let late: Mutex<(StdRng, Option<Vec<u8>>)> =
            Mutex::new((StdRng::seed_from_u64(seed), None));
        Box::new(move |packet| {
            let weather = *weather.lock().unwrap();
            let (random, late) = &mut *late.lock().unwrap();
            if random.random_bool(weather.lost) {
                return;
            }
            if late.is_none() && random.random_bool(weather.held_back) {
                *late = Some(packet.to_vec());
                return;
            }
            detector.receive(packet);
            if random.random_bool(weather.repeated) {
                detector.receive(packet);
            }
            if let Some(late) = late.take() {
                detector.receive(&late);
            }
        })
    }

    /// As many members as this, all of which see each other. They were told of the first only.
    async fn start(&self, count: u64) -> Vec<Arc<dyn FailureDetector>> {
        let detectors: Vec<_> = (1..=count).map(|id| self.swim(&member(id, 1), CLUSTER)).collect();
        for detector in detectors.iter().skip(1) {
            detector.watch(&member(1, 1));
        }
        for (me, detector) in (1..).zip(&detectors) {
            see_all(me, count, detector).await;
        }
        detectors
    }

    async fn leave(&self, number: u64, detector: &Arc<dyn FailureDetector>) {
        timeout(FEW_SECONDS, detector.leave()).await.expect("it does not leave");
        self.network.detach(&member(number, 1).grpc_addr);
    }
}

fn member(id: u64, generation: u64) -> Member {
    Member {
        id: NodeId::new(id),
        generation,
        phase: Phase::Whole,
        grpc_addr: format!("node-{id}:1"),
        http_addr: "none:1".into(),
    }
}

async fn next(detector: &Arc<dyn FailureDetector>) -> LivenessChange {
    let change = timeout(A_WHILE, detector.next_change()).await;
    change.expect("nothing is reported").expect("the detector has ended")
}

/// Waits until this member has reported all others alive.
async fn see_all(me: u64, count: u64, detector: &Arc<dyn FailureDetector>) {
    let mut unseen: Vec<_> = (1..=count).filter(|id| *id != me).map(NodeId::new).collect();
    while !unseen.is_empty() {
        let change = next(detector).await;
        unseen.retain(|id| *id != change.id || change.liveness != Liveness::Alive);
    }
}

/// Waits until this is reported of a member in this generation.
async fn expect(detector: &Arc<dyn FailureDetector>, of: &Member, liveness: Liveness) {
    loop {
        let change = next(detector).await;
        if (change.id, change.generation, change.liveness) == (of.id, of.generation, liveness) {
            assert_eq!(change.grpc_addr, of.grpc_addr);
            return;
        }
    }
}

/// Waits until all of these have reported it, for no longer than a few seconds.
async fn within_seconds(detectors: &[Arc<dyn FailureDetector>], of: &Member, liveness: Liveness) {
    let began = Instant::now();
    for detector in detectors {
        expect(detector, of, liveness).await;
    }
    assert!(began.elapsed() < FEW_SECONDS, "{liveness:?} after {:?}", began.elapsed());
}
