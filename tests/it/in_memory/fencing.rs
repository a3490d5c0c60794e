//! The fence while things happen: two members propose at once, one does not take a proposal, a node
//! joins in the middle of one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use lally::adapters::memory::MemoryNetwork;
use lally::domain::{
    BucketSet, Digest, DigestLevel, Entry, Key, KeyedEntry, Liveness, MemberState, NodeId, Summary,
    Timestamp, TraceContext,
};
use lally::ports::{
    Announcement, ApplyError, Asked, Caller, Certification, Clock, EntryStream, NotCertified,
    NotWhole, Origin, Refusal, ReplicaApi, Store, WriteReply,
};

use super::nodes::{Disk, Running, equal, eventually, named, three_on};

const GRACE: Duration = Duration::from_secs(60);
/// Shortly before a removal may be forgotten.
const NEARLY_GRACE: Duration = Duration::from_secs(54);

const MAX_ABSENCE: Duration = Duration::from_secs(600);

/// How long a member may be behind the others before it joins again.
const BEHIND_FOR: Duration = Duration::from_secs(30);

async fn three(network: &MemoryNetwork) -> ([Disk; 3], [Running; 3]) {
    let disk = |id| Disk::forgetful(id, GRACE, MAX_ABSENCE);
    three_on(network, [disk(1), disk(2), disk(3)]).await
}

fn forgot(node: &Running) -> bool {
    node.store.stats().tombstones == 0
}

fn horizon(node: &Running) -> Option<Timestamp> {
    node.client().cluster().horizon
}

fn generation(node: &Running) -> u64 {
    node.client().cluster().node.member.generation
}

/// Stands before a node and sees who is to be fenced.
struct Gate {
    inner: Arc<dyn ReplicaApi>,
    asked: Mutex<Vec<Certification>>,
    /// Whether it keeps proposals from the node, and says no for it.
    refuses: AtomicBool,
    /// How long it keeps them first, in seconds.
    keeps: AtomicU64,
}

impl Gate {
    /// A gate before this node, from now on.
    fn before(network: &MemoryNetwork, disk: &Disk, node: &Running) -> Arc<Self> {
        let gate = Arc::new(Self {
            inner: node.node.replica_api(),
            asked: Mutex::default(),
            refuses: AtomicBool::new(false),
            keeps: AtomicU64::new(0),
        });
        let id = node.client().cluster().node.member.id;
        network.attach(&disk.addr, id, "lally", Arc::clone(&gate) as _);
        gate
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

#[async_trait]
impl ReplicaApi for Gate {
    async fn apply(
        &self,
        writes: Vec<KeyedEntry>,
        asked: Asked,
    ) -> Vec<Result<WriteReply, ApplyError>> {
        self.inner.apply(writes, asked).await
    }

    fn read(
        &self,
        key: &Key,
        caller: Caller,
        trace: Option<TraceContext>,
    ) -> Result<Option<Entry>, NotWhole> {
        self.inner.read(key, caller, trace)
    }

    fn digest(&self) -> Digest {
        self.inner.digest()
    }

    fn wall_time(&self) -> Timestamp {
        self.inner.wall_time()
    }

    fn level_digests(&self, level: &DigestLevel) -> Vec<u64> {
        self.inner.level_digests(level)
    }

    async fn pull(&self, buckets: BucketSet) -> Box<dyn EntryStream> {
        self.inner.pull(buckets).await
    }

    async fn summaries(&self, buckets: BucketSet) -> Box<dyn EntryStream<Summary>> {
        self.inner.summaries(buckets).await
    }

    fn fetch(&self, keys: Vec<Key>) -> Box<dyn EntryStream> {
        self.inner.fetch(keys)
    }

    async fn announce(&self, announcement: Announcement) -> Result<Announcement, Refusal> {
        self.inner.announce(announcement).await
    }

    async fn fence(&self, certification: Certification) -> Result<(), NotCertified> {
        self.asked.lock().unwrap().push(certification);
        tokio::time::sleep(Duration::from_secs(self.keeps.load(Ordering::SeqCst))).await;
        if self.refuses.load(Ordering::SeqCst) {
            return Err(NotCertified::Disturbed);
        }
        self.inner.fence(certification).await
    }

    fn gossip(&self, packet: &[u8]) {
        self.inner.gossip(packet);
    }
}

/// Waits until nobody remembers a removed key, and all hold the same.
async fn forgotten(nodes: &[&Running]) {
    for _ in 0..30 {
        tokio::time::sleep(GRACE / 6).await;
        if nodes.iter().all(|node| forgot(node)) {
            return equal(nodes).await;
        }
    }
    panic!("tombstones are kept");
}

#[tokio::test(start_paused = true)]
async fn two_members_that_propose_at_once_do_no_harm() {
    let network = MemoryNetwork::new();
    let (disks, nodes) = three(&network).await;
    let [one, two, three] = &nodes;
    let gates: Vec<_> =
        disks.iter().zip(&nodes).map(|(disk, node)| Gate::before(&network, disk, node)).collect();
    for gate in &gates {
        // So that neither is done before the other begins.
        gate.keeps.store(3, Ordering::SeqCst);
    }
    one.add("kept", "v", "all").await.unwrap();
    for round in 0..4 {
        one.add("k", "v", "all").await.unwrap();
        let old = KeyedEntry::new(named("k"), three.store.get(&named("k")).unwrap());
        two.remove("k", "all").await.unwrap();
        let asked_before: Vec<_> = gates.iter().map(|gate| gate.asked()).collect();
        // The second does not know for sure that the first is up, so it proposes as well.
        for _ in 0..100 {
            two.believe(one, Liveness::Suspect);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        for (gate, before) in gates.iter().zip(asked_before) {
            assert!(gate.asked() > before, "round {round}: only one proposed");
        }
        for node in &nodes {
            assert!(forgot(node), "round {round}");
            let replies =
                node.node.replica_api().apply(vec![old.clone()], Origin::Replica.into()).await;
            assert!(matches!(replies[..], [Ok(WriteReply::Superseded { .. })]), "{replies:?}");
            assert_eq!((node.own("k"), node.own("kept").as_deref()), (None, Some("v")));
            assert_eq!((generation(node), node.quarantine.kept().len()), (1, 0));
        }
        equal(&[one, two, three]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_does_not_take_a_proposal_is_asked_again() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    let gate = Gate::before(&network, &disks[2], &three);
    one.add("k", "v", "all").await.unwrap();
    two.remove("k", "all").await.unwrap();
    tokio::time::sleep(NEARLY_GRACE).await;
    gate.refuses.store(true, Ordering::SeqCst);
    eventually("two of three forget", || forgot(&one) && forgot(&two)).await;
    assert!(!forgot(&three) && horizon(&three) < horizon(&one));
    let asked = gate.asked();
    gate.refuses.store(false, Ordering::SeqCst);
    eventually("the third forgets, too", || forgot(&three)).await;
    assert!(gate.asked() > asked);
    assert_eq!(
        (generation(&three), horizon(&three)),
        (1, horizon(&one)),
        "it has not joined again"
    );
    equal(&[&one, &two, &three]).await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_behind_for_half_a_minute_joins_again_and_loses_nothing() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    let gate = Gate::before(&network, &disks[2], &three);
    one.add("k", "v", "all").await.unwrap();
    two.remove("k", "all").await.unwrap();
    tokio::time::sleep(NEARLY_GRACE).await;
    gate.refuses.store(true, Ordering::SeqCst);
    eventually("the third is behind", || horizon(&one) > horizon(&three)).await;
    let horizon_of_two = horizon(&one);
    for i in 0..25 {
        for node in [&one, &two, &three] {
            let id = generation(node);
            node.add(&format!("meanwhile-{i}-{id}"), "v", "majority").await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(generation(&three), 1, "after {i} s");
    }
    eventually("it joins again", || generation(&three) == 2).await;
    three.ready().await;
    eventually("it counts", || one.states() == [MemberState::Alive; 2]).await;
    assert!(forgot(&three) && horizon(&three) >= horizon_of_two);
    equal(&[&one, &two, &three]).await;
    assert!((0..25).all(|i| three.own(&format!("meanwhile-{i}-1")).is_some()));
    assert!(three.quarantine.kept().is_empty());
    // Once is enough.
    gate.refuses.store(false, Ordering::SeqCst);
    tokio::time::sleep(BEHIND_FOR * 4).await;
    assert_eq!((generation(&one), generation(&two), generation(&three)), (1, 1, 2));
}

/// The proposal is taken by one, not answered by another, and the proposer waits for that.
#[tokio::test(start_paused = true)]
async fn a_node_that_joins_in_the_middle_of_a_proposal_brings_no_removed_key_back() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    let gate = Gate::before(&network, &disks[2], &three);
    one.add("kept", "v", "all").await.unwrap();
    one.add("k", "v", "all").await.unwrap();
    let old = KeyedEntry::new(named("k"), three.store.get(&named("k")).unwrap());
    two.remove("k", "all").await.unwrap();
    tokio::time::sleep(NEARLY_GRACE).await;
    gate.keeps.store(3_600, Ordering::SeqCst);
    eventually("the second has forgotten", || forgot(&two)).await;
    assert!(!forgot(&one) && !forgot(&three));
    let four = Disk::forgetful(4, GRACE, MAX_ABSENCE).start(&network, &[&disks[0]]).await;
    four.ready().await;
    gate.keeps.store(0, Ordering::SeqCst);
    for node in [&one, &two, &three, &four] {
        eventually("all count", || node.states() == [MemberState::Alive; 3]).await;
    }
    forgotten(&[&one, &two, &three, &four]).await;
    for node in [&one, &two, &three, &four] {
        let replies =
            node.node.replica_api().apply(vec![old.clone()], Origin::Replica.into()).await;
        assert!(matches!(replies[..], [Ok(WriteReply::Superseded { .. })]), "{replies:?}");
        assert_eq!((node.own("k"), node.own("kept").as_deref()), (None, Some("v")));
        assert!(node.quarantine.kept().is_empty());
    }
    assert_eq!(old.entry.version.node, NodeId::new(1));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forgotten_while_a_node_joins_and_then_by_it_as_well() {
    let network = MemoryNetwork::new();
    let (disks, [one, two, three]) = three(&network).await;
    let value = "v".repeat(300_000);
    for i in 0..40 {
        one.add(&format!("key-{i}"), &value, "all").await.unwrap();
    }
    one.add("k", "v", "all").await.unwrap();
    network.slow_streams(Duration::from_millis(1_900));
    // It joins for longer than the grace.
    let four = Disk::forgetful(4, GRACE, MAX_ABSENCE).start(&network, &[&disks[0]]).await;
    eventually("it joins", || one.states().contains(&MemberState::Joining)).await;
    two.remove("k", "all").await.unwrap();
    tokio::time::sleep(GRACE + Duration::from_secs(10)).await;
    assert!(four.client().readiness().is_err(), "it joins no more");
    assert!([&one, &two, &three].into_iter().all(|node| !forgot(node)));
    network.slow_streams(Duration::ZERO);
    four.ready().await;
    forgotten(&[&one, &two, &three, &four]).await;
    assert_eq!((four.own("k"), four.own("key-0").is_some()), (None, true));
}

/// Clocks of tests begin when their nodes do: has this one say what another says.
fn set_clock(node: &Running, other: &Running) {
    let ahead = other.clock.now().nanos_after(node.clock.now());
    node.clock.set_ahead(i64::try_from(ahead).unwrap());
}

/// A horizon says something of the cluster whose members were compared, and of no other.
#[tokio::test(start_paused = true)]
async fn a_horizon_of_a_node_founded_apart_costs_the_cluster_it_meets_nothing() {
    let network = MemoryNetwork::new();
    let (disks, nodes) = three(&network).await;
    let apart = Disk::forgetful(9, GRACE, MAX_ABSENCE);
    let lone = apart.start(&network, &[]).await;
    lone.ready().await;
    for name in ["a", "b", "c"] {
        nodes[0].add(name, "v", "all").await.unwrap();
    }
    lone.add("of-the-lone", "v", "1").await.unwrap();
    let reached = lone.node.replica_api().wall_time();
    tokio::time::sleep(GRACE).await;
    let (generation, age) = (generation(&lone), Duration::ZERO);
    let certification = Certification { horizon: reached, generation, age };
    lone.node.replica_api().fence(certification).await.unwrap();
    // A newcomer is told of both.
    let fifth = Disk::forgetful(5, GRACE, MAX_ABSENCE);
    let newcomer = fifth.start(&network, &[&disks[0], &apart]).await;
    set_clock(&newcomer, &nodes[0]);
    newcomer.ready().await;
    for node in nodes.iter().chain([&lone, &newcomer]) {
        eventually("they are five", || node.states() == [MemberState::Alive; 4]).await;
    }
    let together = async |lone: &Running| {
        equal(&[&nodes[0], &nodes[1], &nodes[2], lone, &newcomer]).await;
        for node in nodes.iter().chain([lone, &newcomer]) {
            for name in ["a", "b", "c", "of-the-lone"] {
                assert_eq!(node.own(name).as_deref(), Some("v"));
            }
            let me = node.client().cluster().node.member;
            assert_eq!((node.client().stats().quarantined, horizon(node)), (0, None), "{me:?}");
        }
    };
    together(&lone).await;
    // What the lone node was certified for is taken back for good.
    lone.crash(&network);
    let lone = apart.start(&network, &[]).await;
    set_clock(&lone, &nodes[0]);
    lone.ready().await;
    tokio::time::sleep(2 * BEHIND_FOR).await;
    together(&lone).await;
}

/// Likewise one that is stopped, or dies, and is then started with the address of the other cluster.
#[tokio::test(start_paused = true)]
async fn a_node_founded_apart_that_is_told_of_a_cluster_gives_its_horizon_up() {
    for dies in [false, true] {
        told_of_a_cluster(dies).await;
    }
}

async fn told_of_a_cluster(dies: bool) {
    let network = MemoryNetwork::new();
    let (disks, nodes) = three(&network).await;
    let apart = Disk::forgetful(9, GRACE, MAX_ABSENCE);
    let lone = apart.start(&network, &[]).await;
    lone.ready().await;
    nodes[0].add("a", "v", "all").await.unwrap();
    lone.add("of-the-lone", "v", "1").await.unwrap();
    let reached = lone.node.replica_api().wall_time();
    tokio::time::sleep(GRACE).await;
    let (generation, age) = (generation(&lone), Duration::ZERO);
    let certification = Certification { horizon: reached, generation, age };
    lone.node.replica_api().fence(certification).await.unwrap();
    if dies {
        lone.crash(&network);
    } else {
        lone.leave(&network).await;
    }
    let lone = apart.start(&network, &[&disks[0]]).await;
    lone.ready().await;
    tokio::time::sleep(2 * BEHIND_FOR).await;
    equal(&[&nodes[0], &nodes[1], &nodes[2], &lone]).await;
    for node in nodes.iter().chain([&lone]) {
        for name in ["a", "of-the-lone"] {
            assert_eq!(node.own(name).as_deref(), Some("v"));
        }
        assert_eq!((node.client().stats().quarantined, horizon(node)), (0, None));
    }
}
