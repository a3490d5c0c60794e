//! `Swim`: the driver around the protocol.
//!
//! One task owns the protocol's state. Packets that come in wait in a bounded queue, which may drop
//! them; what the node asks for (whom to watch, what to state) is kept apart, since nobody would ask
//! again. What falls due waits in a heap; what goes out is handed to the transport, which may drop
//! it too. After each step the members' states are compared with those before it: that is what is
//! reported, since the protocol itself announces suspicion to nobody.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use foca::{
    AccumulatingRuntime, Config, Foca, NoCustomBroadcast, PeriodicParams, PostcardCodec, State,
    Timer,
};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::{Liveness, Member, NodeId};
use crate::ports::{FailureDetector, LivenessChange, PeerTransport};

use super::identity::{SwimIdentity, cluster_hash};
use super::orders::{OpenOrders, Orders, Watch};

/// Packets that wait for the task; more are dropped, as on a busy network.
const PACKET_QUEUE: usize = 1_024;

/// Changes that wait to be taken.
const CHANGE_QUEUE: usize = 1_024;

/// How often a member is probed, and how long a direct answer may take.
const PROBE_EVERY: Duration = Duration::from_millis(800);
const PROBE_ANSWER: Duration = Duration::from_millis(400);

/// How long a suspect has to speak up.
const SUSPECT_TO_DOWN: Duration = Duration::from_secs(2);

/// How long suspicion may last, whoever raised it: then it is judged here. (The protocol judges what
/// it suspected itself, unless it was declared down and began anew meanwhile.)
const SUSPECT_AT_MOST: Duration = Duration::from_secs(4);

/// How often members believed down are told otherwise, should they live: after a partition both
/// sides believe that of each other.
const ANNOUNCE_TO_DOWN_EVERY: Duration = Duration::from_secs(2);

/// The size the protocol's constants are computed for.
const EXPECTED_MEMBERS: NonZeroU32 = NonZeroU32::MIN.saturating_add(15);

type Protocol = Foca<SwimIdentity, PostcardCodec, StdRng, NoCustomBroadcast>;

/// How to start a detector.
#[derive(Debug, Clone)]
pub struct SwimOptions {
    me: Member,
    cluster: String,
    random_seed: u64,
}

impl SwimOptions {
    /// The detector of this member, in the cluster of this name.
    pub fn new(me: Member, cluster: &str, random_seed: u64) -> Self {
        Self { me, cluster: cluster.to_owned(), random_seed }
    }
}

/// A failure detector.
pub struct Swim {
    packets: mpsc::Sender<Vec<u8>>,
    orders: Arc<Orders>,
    changes: Mutex<mpsc::Receiver<LivenessChange>>,
    tasks: TaskTracker,
    /// Ends the task when the detector is dropped without having left.
    _ends_with: tokio_util::sync::DropGuard,
}

impl Swim {
    /// Starts probing whoever it is told to watch, over this transport.
    pub fn start(options: &SwimOptions, transport: Arc<dyn PeerTransport>) -> Arc<Self> {
        let (packets, incoming) = mpsc::channel(PACKET_QUEUE);
        let orders = Arc::new(Orders::default());
        let (reports, changes) = mpsc::channel(CHANGE_QUEUE);
        let cluster = cluster_hash(&options.cluster);
        let me = SwimIdentity::of(&options.me, cluster);
        let random = StdRng::seed_from_u64(options.random_seed);
        let driver = Driver {
            protocol: Foca::new(me, config(), random, PostcardCodec),
            effects: AccumulatingRuntime::new(),
            cluster,
            timers: BinaryHeap::new(),
            timer_count: 0,
            watched: BTreeMap::new(),
            suspects: Vec::new(),
            gone: BTreeMap::new(),
            reported: BTreeMap::new(),
            reports,
            transport,
        };
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let (end, given) = (stop.clone(), Arc::clone(&orders));
        tasks.spawn(async move {
            end.run_until_cancelled_owned(driver.run(incoming, &given)).await;
        });
        tasks.close();
        let changes = Mutex::new(changes);
        Arc::new(Self { packets, orders, changes, tasks, _ends_with: stop.drop_guard() })
    }
}

#[async_trait]
impl FailureDetector for Swim {
    fn watch(&self, member: &Member) {
        self.orders.watch(member, Watch::Begin);
    }

    fn unwatch(&self, member: &Member) {
        self.orders.watch(member, Watch::End);
    }

    fn restate(&self, me: &Member) {
        self.orders.give(|open| open.restate = Some(me.clone()));
    }

    fn receive(&self, packet: &[u8]) {
        if self.packets.try_send(packet.to_vec()).is_err() {
            tracing::debug!("failure detector busy: packet dropped");
        }
    }

    async fn next_change(&self) -> Option<LivenessChange> {
        self.changes.lock().await.recv().await
    }

    async fn leave(&self) {
        self.orders.give(|open| open.leave = true);
        self.tasks.wait().await;
    }
}

fn config() -> Config {
    let every = |frequency| Some(PeriodicParams { frequency, num_members: NonZeroUsize::MIN });
    Config {
        probe_period: PROBE_EVERY,
        probe_rtt: PROBE_ANSWER,
        suspect_to_down_after: SUSPECT_TO_DOWN,
        periodic_announce_to_down_members: every(ANNOUNCE_TO_DOWN_EVERY),
        ..Config::new_lan(EXPECTED_MEMBERS)
    }
}

/// Something that falls due; the earliest first, of equal ones the first submitted.
struct Due {
    at: Instant,
    count: u64,
    timer: Timer<SwimIdentity>,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.count).cmp(&(other.at, other.count))
    }
}

/// The task's state.
struct Driver {
    protocol: Protocol,
    effects: AccumulatingRuntime<SwimIdentity>,
    cluster: u64,
    timers: BinaryHeap<Reverse<Due>>,
    timer_count: u64,
    /// Members announced to until they are heard of, and when nobody is up.
    watched: BTreeMap<NodeId, Member>,
    /// Who is suspected, and since when.
    suspects: Vec<(foca::Member<SwimIdentity>, Instant)>,
    /// Members that have left, and up to which generation: the protocol itself remembers them for a
    /// day and goes on calling them.
    gone: BTreeMap<NodeId, u64>,
    /// What was last reported of whom.
    reported: BTreeMap<NodeId, (u64, Liveness)>,
    reports: mpsc::Sender<LivenessChange>,
    transport: Arc<dyn PeerTransport>,
}

impl Driver {
    async fn run(mut self, mut packets: mpsc::Receiver<Vec<u8>>, orders: &Orders) {
        let mut announce = tokio::time::interval(ANNOUNCE_TO_DOWN_EVERY);
        loop {
            let due = self.timers.peek().map(|Reverse(due)| due.at);
            tokio::select! {
                // In this order: a flood of packets must not keep timers from firing.
                biased;
                () = orders.given.notified() => {
                    let orders = orders.take();
                    if orders.leave {
                        return self.leave();
                    }
                    self.obey(orders);
                }
                () = sleep_until(due) => self.fire(),
                _ = announce.tick() => {
                    self.announce_to_the_missing();
                    self.judge_suspects();
                }
                packet = packets.recv() => match packet {
                    None => return,
                    Some(packet) => self.receive(&packet),
                },
            }
            self.act();
            self.report();
        }
    }

    fn obey(&mut self, orders: OpenOrders) {
        if let Some(me) = orders.restate {
            let identity = SwimIdentity::of(&me, self.cluster);
            if let Err(error) = self.protocol.change_identity(identity, &mut self.effects) {
                tracing::debug!(%error, "failure detector kept its identity");
            }
        }
        for (member, watch) in orders.watch.into_values() {
            match watch {
                Watch::Begin => {
                    self.gone.remove(&member.id);
                    self.announce_to(SwimIdentity::of(&member, self.cluster));
                    self.watched.insert(member.id, member);
                }
                Watch::End => {
                    self.watched.remove(&member.id);
                    self.gone.insert(member.id, member.generation);
                }
            }
        }
    }

    fn receive(&mut self, packet: &[u8]) {
        if let Err(error) = self.protocol.handle_data(packet, &mut self.effects) {
            tracing::debug!(%error, "failure detector ignored a packet");
        }
    }

    fn announce_to(&mut self, identity: SwimIdentity) {
        if let Err(error) = self.protocol.announce(identity, &mut self.effects) {
            tracing::debug!(%error, "failure detector could not announce");
        }
    }

    fn fire(&mut self) {
        while let Some(Reverse(due)) = self.timers.peek()
            && due.at <= Instant::now()
        {
            let Some(Reverse(due)) = self.timers.pop() else { return };
            if let Err(error) = self.protocol.handle_timer(due.timer, &mut self.effects) {
                tracing::debug!(%error, "failure detector ignored a timer");
            }
        }
    }

    /// An announcement may be lost. Once a member was seen, the protocol itself keeps looking for it,
    /// but only as long as another one is up: a node that was cut off from all has to begin anew.
    fn announce_to_the_missing(&mut self) {
        let alone = self.protocol.num_members() == 0;
        let seen = |id| self.reported.contains_key(id);
        let missing = self.watched.iter().filter(|(id, _)| alone || !seen(id));
        let missing: Vec<_> = missing.map(|(_, m)| SwimIdentity::of(m, self.cluster)).collect();
        for identity in missing {
            self.announce_to(identity);
        }
    }

    /// Declares suspects down that have not refuted it for too long. One that lives hears of it, and
    /// states itself anew; without this it could be suspected for ever, since the answers to probes
    /// refute nothing.
    fn judge_suspects(&mut self) {
        let (now, before) = (Instant::now(), std::mem::take(&mut self.suspects));
        let since = |suspect: &foca::Member<SwimIdentity>| {
            before.iter().find(|(known, _)| known == suspect).map_or(now, |(_, since)| *since)
        };
        let suspects =
            self.protocol.iter_membership_state().filter(|m| m.state() == State::Suspect);
        self.suspects = suspects.map(|suspect| (suspect.clone(), since(suspect))).collect();
        let overdue = self.suspects.iter().filter(|(_, since)| now - *since >= SUSPECT_AT_MOST);
        let down = overdue.map(|(suspect, _)| {
            foca::Member::new(suspect.id().clone(), suspect.incarnation(), State::Down)
        });
        if let Err(error) = self.protocol.apply_many(down, true, &mut self.effects) {
            tracing::debug!(%error, "failure detector could not judge a suspect");
        }
    }

    /// Carries out what the protocol asked for.
    fn act(&mut self) {
        while let Some((to, packet)) = self.effects.to_send() {
            let gone = self.gone.get(&to.node());
            if gone.is_none_or(|generation| to.generation > *generation) {
                self.transport.gossip(&to.grpc_addr, packet.to_vec());
            }
        }
        while let Some((after, timer)) = self.effects.to_schedule() {
            self.timer_count += 1;
            let due = Due { at: Instant::now() + after, count: self.timer_count, timer };
            self.timers.push(Reverse(due));
        }
        // States are read after every step instead.
        while self.effects.to_notify().is_some() {}
    }

    /// Says what has changed since the last time.
    fn report(&mut self) {
        for member in self.protocol.iter_membership_state() {
            let (identity, liveness) = (member.id(), liveness(member.state()));
            let now = (identity.generation, liveness);
            let foreign = identity.cluster() != self.cluster;
            let before = self.reported.get(&identity.node());
            let older = before.is_some_and(|(generation, _)| *generation > identity.generation);
            if foreign || older || before == Some(&now) {
                continue;
            }
            let change = LivenessChange {
                id: identity.node(),
                generation: identity.generation,
                grpc_addr: identity.grpc_addr.clone(),
                liveness,
            };
            // A full queue: it is found to be different again after the next step.
            if self.reports.try_send(change).is_ok() {
                self.reported.insert(identity.node(), now);
            }
        }
    }

    fn leave(mut self) {
        if let Err(error) = self.protocol.leave_cluster(&mut self.effects) {
            tracing::debug!(%error, "failure detector could not say good-bye");
        }
        self.act();
    }
}

const fn liveness(state: State) -> Liveness {
    match state {
        State::Alive => Liveness::Alive,
        State::Suspect => Liveness::Suspect,
        State::Down => Liveness::Down,
    }
}

/// Waits for ever if nothing falls due.
async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Phase;
    use crate::ports::MockPeerTransport;
    use std::collections::HashMap;
    use std::sync::Mutex as StdMutex;

    /// Addresses that hear each other.
    #[derive(Clone, Default)]
    struct Ether(Arc<StdMutex<HashMap<String, Arc<Swim>>>>, Arc<StdMutex<Vec<String>>>);

    impl Ether {
        fn join(&self, member: &Member, cluster: &str) -> Arc<Swim> {
            let mut transport = MockPeerTransport::new();
            let (ether, from) = (self.clone(), member.grpc_addr.clone());
            transport.expect_gossip().returning(move |to, packet| {
                ether.1.lock().unwrap().push(to.to_owned());
                let nodes = ether.0.lock().unwrap();
                if let (Some(to), true) = (nodes.get(to), nodes.contains_key(&from)) {
                    to.receive(&packet);
                }
            });
            let options = SwimOptions::new(member.clone(), cluster, member.id.as_u64());
            let swim = Swim::start(&options, Arc::new(transport));
            self.plug_in(member, &swim);
            swim
        }

        fn plug_in(&self, member: &Member, swim: &Arc<Swim>) {
            self.0.lock().unwrap().insert(member.grpc_addr.clone(), Arc::clone(swim));
        }

        /// Nothing is sent there from now on, once what was asked for has been carried out.
        async fn quiet_at(&self, member: &Member, time: Duration) {
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.1.lock().unwrap().clear();
            tokio::time::sleep(time).await;
            assert!(!self.1.lock().unwrap().contains(&member.grpc_addr));
        }

        fn unplug(&self, member: &Member) {
            self.0.lock().unwrap().remove(&member.grpc_addr);
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

    /// Waits until this is reported.
    async fn expect(swim: &Swim, id: u64, generation: u64, liveness: Liveness) {
        let waiting = async {
            loop {
                let change = swim.next_change().await.unwrap();
                if (change.id, change.generation) == (NodeId::new(id), generation)
                    && change.liveness == liveness
                {
                    return;
                }
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
        assert!(waited.is_ok(), "{id} was not reported {liveness:?}");
    }

    async fn three(ether: &Ether) -> Vec<Arc<Swim>> {
        let swims: Vec<_> = (1..=3).map(|id| ether.join(&member(id, 1), "lally")).collect();
        swims[1].watch(&member(1, 1));
        swims[2].watch(&member(1, 1));
        for (i, swim) in swims.iter().enumerate() {
            for id in (1..=3).filter(|id| *id != i as u64 + 1) {
                let known = swim.clone();
                expect(&known, id, 1, Liveness::Alive).await;
            }
        }
        swims
    }

    #[tokio::test(start_paused = true)]
    async fn members_that_were_told_of_one_find_all() {
        three(&Ether::default()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_member_is_suspected_then_down_within_seconds_and_alive_when_it_is_back() {
        let ether = Ether::default();
        let swims = three(&ether).await;
        ether.unplug(&member(3, 1));
        let began = Instant::now();
        expect(&swims[0], 3, 1, Liveness::Suspect).await;
        expect(&swims[0], 3, 1, Liveness::Down).await;
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        ether.plug_in(&member(3, 1), &swims[2]);
        expect(&swims[0], 3, 1, Liveness::Alive).await;
    }

    /// The last that each of these reports of each other one, after this long.
    async fn beliefs(swims: &[Arc<Swim>], after: Duration) -> Vec<BTreeMap<NodeId, Liveness>> {
        tokio::time::sleep(after).await;
        let mut beliefs = Vec::new();
        for swim in swims {
            let mut last = BTreeMap::new();
            let hearing = async {
                while let Some(change) = swim.next_change().await {
                    last.insert(change.id, change.liveness);
                }
            };
            tokio::time::timeout(Duration::ZERO, hearing).await.ok();
            beliefs.push(last);
        }
        beliefs
    }

    /// One that comes back begins anew, and must not forget whom it had begun to suspect.
    #[tokio::test(start_paused = true)]
    async fn however_long_a_member_was_cut_off_nobody_stays_suspected() {
        for tenths in 23..=32 {
            let ether = Ether::default();
            let swims = three(&ether).await;
            ether.unplug(&member(3, 1));
            tokio::time::sleep(Duration::from_millis(100 * tenths)).await;
            ether.plug_in(&member(3, 1), &swims[2]);
            for (swim, last) in (1..).zip(beliefs(&swims, Duration::from_secs(15)).await) {
                let alive = last.values().all(|liveness| *liveness == Liveness::Alive);
                assert!(alive, "cut off for {tenths} tenths of a second, {swim} says {last:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_restarted_member_replaces_its_old_self() {
        let ether = Ether::default();
        let swims = three(&ether).await;
        let reborn = ether.join(&member(3, 2), "lally");
        reborn.watch(&member(1, 1));
        expect(&swims[0], 3, 2, Liveness::Alive).await;
        expect(&swims[1], 3, 2, Liveness::Alive).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_leaves_is_down_at_once() {
        let ether = Ether::default();
        let swims = three(&ether).await;
        swims[2].leave().await;
        let began = Instant::now();
        expect(&swims[0], 3, 1, Liveness::Down).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_that_is_gone_is_sent_nothing_until_it_is_watched_or_heard_of_again() {
        let ether = Ether::default();
        let swims = three(&ether).await;
        swims[2].leave().await;
        ether.unplug(&member(3, 1));
        for swim in &swims[..2] {
            expect(swim, 3, 1, Liveness::Down).await;
            swim.unwatch(&member(3, 1));
        }
        ether.quiet_at(&member(3, 1), Duration::from_secs(600)).await;
        // It comes back by itself, in a new generation.
        let reborn = ether.join(&member(3, 2), "lally");
        reborn.watch(&member(1, 1));
        expect(&swims[0], 3, 2, Liveness::Alive).await;
        expect(&reborn, 2, 1, Liveness::Alive).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_one_does_not_go_on_calling_those_that_left() {
        let ether = Ether::default();
        let one = ether.join(&member(1, 1), "lally");
        one.watch(&member(2, 1));
        one.unwatch(&member(2, 1));
        ether.quiet_at(&member(2, 1), Duration::from_secs(600)).await;
        let two = ether.join(&member(2, 1), "lally");
        one.watch(&member(2, 1));
        expect(&one, 2, 1, Liveness::Alive).await;
        expect(&two, 1, 1, Liveness::Alive).await;
    }

    #[tokio::test(start_paused = true)]
    async fn garbage_is_ignored() {
        let ether = Ether::default();
        let swims = three(&ether).await;
        for bytes in 0..200u8 {
            swims[0].receive(&vec![bytes; usize::from(bytes)]);
        }
        ether.unplug(&member(3, 1));
        expect(&swims[0], 3, 1, Liveness::Down).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_of_another_cluster_is_not_reported() {
        let ether = Ether::default();
        let one = ether.join(&member(1, 1), "blue");
        let two = ether.join(&member(2, 1), "green");
        two.watch(&member(1, 1));
        let heard = tokio::time::timeout(Duration::from_secs(30), one.next_change()).await;
        assert!(heard.is_err(), "{heard:?}");
    }
}
