//! `SimTransport`: the `PeerTransport` of one life of a node, over the simulated network.
//!
//! A request that was sent goes on whatever becomes of its caller. A reply that is lost leaves the
//! caller waiting until its timeout; a request that is lost is told as unreachable, or not at all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use lally::domain::{
    BucketSet, Digest, DigestLevel, Entry, Key, KeyedEntry, NodeId, Summary, Timestamp,
};
use lally::ports::{
    Announcement, ApplyError, Caller, Certification, EntryStream, Origin, Peer, PeerCall,
    PeerError, PeerStats, PeerTransport, Refusal, ReplicaApi, WriteReply,
};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::network::{Leg, Network};
use super::streams::SimStream;
use super::world::{Detail, Site, spawn};

/// The longest that a node may wait for a reply: for a member that certifies itself.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Calls to one site that a node may have under way at a time. The clients of this world can cause
/// some three hundred, hints sixty-four.
const MAX_CALLS: usize = 500;

/// A stream that does not begin within this time has timed out.
const PULL_TIMEOUT: Duration = Duration::from_secs(2);

/// The network in the hands of one life of a node. When that is over nothing is sent any more, and
/// whoever waits for a reply waits for ever.
pub struct SimTransport {
    network: Network,
    from: Site,
    life: CancellationToken,
    /// Calls under way, by the site called.
    calls: Mutex<BTreeMap<Site, Arc<()>>>,
}

/// What the peer is to do; a duplicate has it done twice.
type Work<T> =
    Arc<dyn Fn(Arc<dyn ReplicaApi>) -> BoxFuture<'static, Result<T, PeerError>> + Send + Sync>;

/// A request to a site.
struct Call<T> {
    what: &'static str,
    to: Site,
    /// Who has to be there.
    expected: Option<NodeId>,
    work: Work<T>,
}

impl<T> Clone for Call<T> {
    fn clone(&self) -> Self {
        Self { work: Arc::clone(&self.work), ..*self }
    }
}

impl SimTransport {
    pub fn new(network: &Network, from: Site, life: &CancellationToken) -> Arc<Self> {
        let calls = Mutex::default();
        Arc::new(Self { network: network.clone(), from, life: life.clone(), calls })
    }

    /// One more call is under way to a site, for as long as this is kept.
    fn under_way(&self, to: Site) -> Arc<()> {
        let mut calls = self.calls.lock().unwrap();
        let call = Arc::clone(calls.entry(to).or_default());
        if Arc::strong_count(&call) > MAX_CALLS {
            self.network.world.overrun(format!("{} has more calls to {to} than it may", self.from));
        }
        call
    }

    async fn call<T: Send + 'static>(
        &self,
        call: Call<T>,
        detail: Detail,
        timeout: Duration,
    ) -> Result<T, PeerError> {
        if self.life.is_cancelled() {
            std::future::pending::<()>().await;
        }
        self.network.world.note(call.what, self.from, call.to, detail);
        self.network.world.thawed(self.from).await;
        if timeout > LONGEST_WAIT {
            let what = format!("site {} waits {timeout:?} for {}", self.from, call.what);
            self.network.world.overrun(what);
        }
        let _under_way = self.under_way(call.to);
        let (reply, answered) = oneshot::channel();
        let began = Instant::now();
        let expected = call.expected;
        spawn(carry(self.network.clone(), self.from, call, reply));
        let answer = async {
            match answered.await {
                Ok(answer) => answer,
                Err(_lost) => std::future::pending().await,
            }
        };
        let answer =
            tokio::time::timeout(timeout, answer).await.unwrap_or(Err(PeerError::TimedOut));
        self.network.world.thawed(self.from).await;
        if self.life.is_cancelled() {
            std::future::pending::<()>().await;
        }
        if let (Some(peer), true) = (expected, answer.is_ok()) {
            self.network.note_round_trip(self.from, peer, began.elapsed());
        }
        answer
    }

    /// What a peer streams, once that begins.
    async fn stream<T: Clone + Send + 'static>(
        &self,
        call: Call<Box<dyn EntryStream<T>>>,
    ) -> Result<Box<dyn EntryStream<T>>, PeerError> {
        let to = call.to;
        let entries = self.call(call, Detail::Nothing, PULL_TIMEOUT).await?;
        Ok(Box::new(SimStream::new(&self.network, to, self.from, entries)))
    }

    fn to_peer<T>(what: &'static str, peer: &Peer, work: Work<T>) -> Call<T> {
        let to = Network::site(&peer.addr).expect("an address of this network");
        Call { what, to, expected: Some(peer.id), work }
    }
}

/// Brings a request to its site and the reply back. A reply that is not sent is a reply lost.
async fn carry<T: Send + 'static>(
    network: Network,
    from: Site,
    call: Call<T>,
    reply: oneshot::Sender<Result<T, PeerError>>,
) {
    let (world, noise, to) = (Arc::clone(&network.world), network.noise(), call.to);
    let sent_to = network.attached(to).map(|node| node.life);
    let lost = world.chance(noise.lost_requests);
    if network.travel(from, to).await == Leg::Cut || lost {
        world.note("lost request", from, to, Detail::Text(call.what.into()));
        // The connection is known to be broken, or not yet.
        if lost || world.chance(500) {
            reply.send(Err(PeerError::Unreachable("no way there".into()))).ok();
        }
        return;
    }
    let Some(node) = network.attached(to) else {
        reply.send(Err(PeerError::Unreachable("nothing listens".into()))).ok();
        return;
    };
    if let Some(expected) = call.expected.filter(|expected| *expected != node.id) {
        let refusal = Refusal::WrongNode { expected, found: node.id };
        reply.send(Err(refusal.into())).ok();
        return;
    }
    if sent_to != Some(node.life) {
        // It went down with the connection to the life before.
        reply.send(Err(PeerError::TimedOut)).ok();
        return;
    }
    if world.chance(noise.duplicates) {
        spawn(repeat(network.clone(), from, call.clone()));
    }
    let served = world.held(to, (call.work)(Arc::clone(&node.replica))).await;
    if network.attached(to).map(|now| now.life) != Some(node.life) {
        reply.send(Err(PeerError::TimedOut)).ok();
        return;
    }
    let lost = world.chance(noise.lost_replies);
    if network.travel(to, from).await == Leg::Cut || lost {
        world.note("lost reply", to, from, Detail::Text(call.what.into()));
        if world.chance(300) {
            reply.send(Err(PeerError::TimedOut)).ok();
        }
        return;
    }
    reply.send(served).ok();
}

/// A request that arrives once more.
async fn repeat<T: Send + 'static>(network: Network, from: Site, call: Call<T>) {
    tokio::time::sleep(network.world.millis(0..3_000)).await;
    let node = network
        .attached(call.to)
        .filter(|node| call.expected.is_none_or(|expected| expected == node.id));
    if let Some(node) = node {
        network.world.note("duplicate", from, call.to, Detail::Text(call.what.into()));
        drop(network.world.held(call.to, (call.work)(node.replica)).await);
    }
}

#[async_trait]
impl PeerTransport for SimTransport {
    async fn write(
        &self,
        peer: &Peer,
        write: KeyedEntry,
        call: PeerCall,
    ) -> Result<WriteReply, PeerError> {
        let detail = Detail::Entry(write.clone());
        let work: Work<WriteReply> = Arc::new(move |replica| {
            let writes = vec![write.clone()];
            Box::pin(async move {
                let replies = replica.apply(writes, Origin::Replica.into()).await;
                let reply = replies.into_iter().next().map(|reply| reply.map_err(rejected));
                reply.unwrap_or(Err(PeerError::TimedOut))
            })
        });
        self.call(Self::to_peer("write", peer, work), detail, call.timeout).await
    }

    async fn read(
        &self,
        peer: &Peer,
        key: Key,
        call: PeerCall,
    ) -> Result<Option<Entry>, PeerError> {
        let detail = Detail::Key(key.clone());
        let work: Work<Option<Entry>> = Arc::new(move |replica| {
            let copy = replica.read(&key, Caller::default(), call.trace);
            let copy = copy.map_err(|refused| PeerError::Rejected(refused.to_string()));
            Box::pin(std::future::ready(copy))
        });
        self.call(Self::to_peer("read", peer, work), detail, call.timeout).await
    }

    async fn announce(
        &self,
        addr: &str,
        announcement: Announcement,
        timeout: Duration,
    ) -> Result<Announcement, PeerError> {
        let Some(to) = Network::site(addr) else {
            return Err(PeerError::Unreachable("no such host".into()));
        };
        let me = &announcement.sender;
        let detail = Detail::Text(format!("{} {:?} {}", me.generation, me.phase, me.id));
        let work: Work<Announcement> = Arc::new(move |replica| {
            let announcement = announcement.clone();
            Box::pin(async move { Ok(replica.announce(announcement).await?) })
        });
        let call = Call { what: "announce", to, expected: None, work };
        self.call(call, detail, timeout).await
    }

    fn gossip(&self, addr: &str, packet: Vec<u8>) {
        let Some(to) = Network::site(addr) else { return };
        if self.life.is_cancelled() {
            return;
        }
        let (network, from) = (self.network.clone(), self.from);
        self.network.world.note_quietly(packet.len() as u64);
        let noise = network.noise();
        let copies = 1 + u64::from(network.world.chance(noise.duplicates));
        for _ in 0..copies {
            let (network, packet) = (network.clone(), packet.clone());
            spawn(async move {
                let lost = network.world.chance(noise.lost_requests);
                if network.travel(from, to).await == Leg::Arrived
                    && !lost
                    && let Some(node) = network.attached(to)
                {
                    node.replica.gossip(&packet);
                }
            });
        }
    }

    async fn digest(&self, peer: &Peer, timeout: Duration) -> Result<Digest, PeerError> {
        let work: Work<Digest> =
            Arc::new(|replica| Box::pin(std::future::ready(Ok(replica.digest()))));
        self.call(Self::to_peer("digest", peer, work), Detail::Nothing, timeout).await
    }

    async fn wall_time(
        &self,
        peer: &Peer,
        timeout: Duration,
    ) -> Result<Option<Timestamp>, PeerError> {
        let work: Work<Option<Timestamp>> =
            Arc::new(|replica| Box::pin(std::future::ready(Ok(Some(replica.wall_time())))));
        self.call(Self::to_peer("wall_time", peer, work), Detail::Nothing, timeout).await
    }

    async fn level_digests(
        &self,
        peer: &Peer,
        level: DigestLevel,
        timeout: Duration,
    ) -> Result<Vec<u64>, PeerError> {
        let work: Work<Vec<u64>> = Arc::new(move |replica| {
            Box::pin(std::future::ready(Ok(replica.level_digests(&level))))
        });
        self.call(Self::to_peer("digests", peer, work), Detail::Nothing, timeout).await
    }

    async fn pull(
        &self,
        peer: &Peer,
        buckets: BucketSet,
    ) -> Result<Box<dyn EntryStream>, PeerError> {
        let work: Work<Box<dyn EntryStream>> = Arc::new(move |replica| {
            let buckets = buckets.clone();
            Box::pin(async move { Ok(replica.pull(buckets).await) })
        });
        self.stream(Self::to_peer("pull", peer, work)).await
    }

    async fn summaries(
        &self,
        peer: &Peer,
        buckets: BucketSet,
    ) -> Result<Box<dyn EntryStream<Summary>>, PeerError> {
        let work: Work<Box<dyn EntryStream<Summary>>> = Arc::new(move |replica| {
            let buckets = buckets.clone();
            Box::pin(async move { Ok(replica.summaries(buckets).await) })
        });
        self.stream(Self::to_peer("summaries", peer, work)).await
    }

    async fn fetch(&self, peer: &Peer, keys: Vec<Key>) -> Result<Box<dyn EntryStream>, PeerError> {
        let work: Work<Box<dyn EntryStream>> =
            Arc::new(move |replica| Box::pin(std::future::ready(Ok(replica.fetch(keys.clone())))));
        self.stream(Self::to_peer("fetch", peer, work)).await
    }

    async fn push(
        &self,
        peer: &Peer,
        writes: Vec<KeyedEntry>,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        let world = &self.network.world;
        let detail = Detail::Text(format!("{} entries", writes.len()));
        let (mut writes, mut broken) = (writes, false);
        if world.chance(self.network.noise().resets) {
            let kept = world.pick(0..writes.len() as u64 + 1);
            writes.truncate(usize::try_from(kept).unwrap());
            broken = true;
        }
        let work: Work<()> = Arc::new(move |replica| {
            let writes = writes.clone();
            Box::pin(async move {
                let replies = replica.apply(writes, Origin::Sync.into()).await;
                let failed = replies.into_iter().filter_map(Result::err);
                let mut failed = failed.filter(|e| !matches!(e, ApplyError::ClockDrift(_)));
                match failed.next() {
                    Some(error) => Err(rejected(error)),
                    None if broken => Err(PeerError::TimedOut),
                    None => Ok(()),
                }
            })
        });
        self.call(Self::to_peer("push", peer, work), detail, timeout).await
    }

    async fn fence(
        &self,
        peer: &Peer,
        certification: Certification,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        let detail = Detail::Text(format!("{}", certification.horizon.as_nanos()));
        let work: Work<()> = Arc::new(move |replica| {
            Box::pin(async move {
                let certified = replica.fence(certification).await;
                certified.map_err(|refused| PeerError::Rejected(refused.to_string()))
            })
        });
        self.call(Self::to_peer("fence", peer, work), detail, timeout).await
    }

    fn release(&self, _: &Peer) {}

    fn round_trip(&self, peer: NodeId) -> Option<Duration> {
        self.network.round_trip(self.from, peer)
    }

    fn stats(&self, _peer: NodeId) -> PeerStats {
        PeerStats::default()
    }

    async fn close(&self) {}
}

#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
fn rejected(error: ApplyError) -> PeerError {
    PeerError::Rejected(error.to_string())
}
