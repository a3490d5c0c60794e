//! `MemoryNetwork`: nodes of one process, and the ways between them.
//!
//! Calls are function calls; what can go wrong on a network can be made to: a node that is cut off
//! (calls to and from it hang until their timeout, as with an unplugged cable), one that is gone
//! (calls fail at once, as with a closed port), and a slow way for streams of entries. A stream is
//! subject to what happens to its ends while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use crate::domain::{
    BucketSet, Digest, DigestLevel, Entry, Key, KeyedEntry, NodeId, Summary, Timestamp,
};
use crate::ports::{
    Announcement, ApplyError, Asked, Caller, Certification, EntryChunk, EntryStream, Origin, Peer,
    PeerCall, PeerError, PeerStats, PeerTransport, Refusal, ReplicaApi, WriteReply,
};

/// A stream that does not begin within this time has timed out.
const PULL_TIMEOUT: Duration = Duration::from_secs(2);

/// The nodes of one process by address. A clone is the same network.
#[derive(Clone, Default)]
pub struct MemoryNetwork(Arc<Mutex<Topology>>);

#[derive(Default)]
struct Topology {
    nodes: BTreeMap<String, Attached>,
    cut_off: BTreeSet<String>,
    /// How long each chunk of a stream takes.
    chunk_time: Duration,
}

#[derive(Clone)]
struct Attached {
    id: NodeId,
    cluster: String,
    replica: Arc<dyn ReplicaApi>,
}

impl MemoryNetwork {
    /// A network without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets others reach a node at this address.
    pub fn attach(&self, addr: &str, id: NodeId, cluster: &str, replica: Arc<dyn ReplicaApi>) {
        let node = Attached { id, cluster: cluster.to_owned(), replica };
        self.topology().nodes.insert(addr.to_owned(), node);
    }

    /// From now on nothing listens at this address.
    pub fn detach(&self, addr: &str) {
        self.topology().nodes.remove(addr);
    }

    /// From now on calls to and from this address hang.
    pub fn cut_off(&self, addr: &str) {
        self.topology().cut_off.insert(addr.to_owned());
    }

    /// Everybody reaches everybody again.
    pub fn heal(&self) {
        self.topology().cut_off.clear();
    }

    /// From now on each chunk of a stream of entries takes this long.
    pub fn slow_streams(&self, chunk_time: Duration) {
        self.topology().chunk_time = chunk_time;
    }

    /// The network as the node at this address uses it, in the cluster of this name.
    pub fn transport(&self, addr: &str, cluster: &str) -> Arc<dyn PeerTransport> {
        let (from, cluster) = (addr.to_owned(), cluster.to_owned());
        Arc::new(MemoryTransport { network: self.clone(), from, cluster })
    }

    fn topology(&self) -> MutexGuard<'_, Topology> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The network, seen from one node.
#[derive(Clone)]
struct MemoryTransport {
    network: MemoryNetwork,
    from: String,
    cluster: String,
}

impl MemoryTransport {
    /// Who is at an address, once the way there is open.
    async fn reach(&self, addr: &str, timeout: Duration) -> Result<Attached, PeerError> {
        if self.is_cut(addr) {
            tokio::time::sleep(timeout).await;
            return Err(PeerError::TimedOut);
        }
        let node = self.network.topology().nodes.get(addr).cloned();
        node.ok_or_else(|| PeerError::Unreachable(format!("nothing listens at {addr}")))
    }

    /// The expected peer, which must be of this cluster.
    async fn reach_peer(
        &self,
        peer: &Peer,
        timeout: Duration,
    ) -> Result<Arc<dyn ReplicaApi>, PeerError> {
        let node = self.reach(&peer.addr, timeout).await?;
        if node.cluster != self.cluster {
            let (ours, theirs) = (node.cluster, self.cluster.clone());
            return Err(Refusal::WrongCluster { ours, theirs }.into());
        }
        if node.id != peer.id {
            return Err(Refusal::WrongNode { expected: peer.id, found: node.id }.into());
        }
        Ok(node.replica)
    }

    /// Who this is, if others reach it too.
    fn caller(&self) -> Caller {
        let node = self.network.topology().nodes.get(&self.from).map(|node| node.id);
        Caller { node, waited: Duration::ZERO }
    }

    /// A stream that a peer sends.
    fn stream<T: Send + 'static>(
        &self,
        peer: &Peer,
        replica: Arc<dyn ReplicaApi>,
        entries: Entries<T>,
    ) -> Box<dyn EntryStream<T>> {
        Box::new(Pulled { way: self.clone(), addr: peer.addr.clone(), replica, entries })
    }

    fn is_cut(&self, addr: &str) -> bool {
        let topology = self.network.topology();
        [addr, &self.from].iter().any(|end| topology.cut_off.contains(*end))
    }
}

#[async_trait]
impl PeerTransport for MemoryTransport {
    async fn write(
        &self,
        peer: &Peer,
        write: KeyedEntry,
        call: PeerCall,
    ) -> Result<WriteReply, PeerError> {
        let replica = self.reach_peer(peer, call.timeout).await?;
        let traces = call.trace.map(|trace| (0, trace)).into_iter().collect();
        let asked = Asked { origin: Origin::Replica, caller: self.caller(), traces };
        let replies = apply(replica, vec![write], asked, call.timeout).await?;
        let reply = replies.into_iter().next().map(|reply| reply.map_err(rejected));
        let reply = reply.unwrap_or(Err(PeerError::TimedOut));
        if self.is_cut(&peer.addr) { Err(PeerError::TimedOut) } else { reply }
    }

    async fn read(
        &self,
        peer: &Peer,
        key: Key,
        call: PeerCall,
    ) -> Result<Option<Entry>, PeerError> {
        let replica = self.reach_peer(peer, call.timeout).await?;
        let copy = replica.read(&key, self.caller(), call.trace);
        copy.map_err(|refused| PeerError::Rejected(refused.to_string()))
    }

    async fn announce(
        &self,
        addr: &str,
        announcement: Announcement,
        timeout: Duration,
    ) -> Result<Announcement, PeerError> {
        let replica = self.reach(addr, timeout).await?.replica;
        let call = async move { replica.announce(announcement).await };
        Ok(serve(call, timeout).await??)
    }

    fn gossip(&self, addr: &str, packet: Vec<u8>) {
        if !self.is_cut(addr) {
            let node = self.network.topology().nodes.get(addr).cloned();
            if let Some(node) = node.filter(|node| node.cluster == self.cluster) {
                node.replica.gossip(&packet);
            }
        }
    }

    async fn digest(&self, peer: &Peer, timeout: Duration) -> Result<Digest, PeerError> {
        Ok(self.reach_peer(peer, timeout).await?.digest())
    }

    async fn wall_time(
        &self,
        peer: &Peer,
        timeout: Duration,
    ) -> Result<Option<Timestamp>, PeerError> {
        Ok(Some(self.reach_peer(peer, timeout).await?.wall_time()))
    }

    async fn level_digests(
        &self,
        peer: &Peer,
        level: DigestLevel,
        timeout: Duration,
    ) -> Result<Vec<u64>, PeerError> {
        Ok(self.reach_peer(peer, timeout).await?.level_digests(&level))
    }

    async fn pull(
        &self,
        peer: &Peer,
        buckets: BucketSet,
    ) -> Result<Box<dyn EntryStream>, PeerError> {
        let replica = self.reach_peer(peer, PULL_TIMEOUT).await?;
        let donor = Arc::clone(&replica);
        let beginning = async move { donor.pull(buckets).await };
        Ok(self.stream(peer, replica, Entries::Begin(Box::pin(beginning))))
    }

    async fn summaries(
        &self,
        peer: &Peer,
        buckets: BucketSet,
    ) -> Result<Box<dyn EntryStream<Summary>>, PeerError> {
        let replica = self.reach_peer(peer, PULL_TIMEOUT).await?;
        let donor = Arc::clone(&replica);
        let beginning = async move { donor.summaries(buckets).await };
        Ok(self.stream(peer, replica, Entries::Begin(Box::pin(beginning))))
    }

    async fn fetch(&self, peer: &Peer, keys: Vec<Key>) -> Result<Box<dyn EntryStream>, PeerError> {
        let replica = self.reach_peer(peer, PULL_TIMEOUT).await?;
        let entries = replica.fetch(keys);
        Ok(self.stream(peer, replica, Entries::GoOn(entries)))
    }

    async fn push(
        &self,
        peer: &Peer,
        writes: Vec<KeyedEntry>,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        let replica = self.reach_peer(peer, timeout).await?;
        let replies = apply(replica, writes, Origin::Sync.into(), timeout).await?;
        let failed = replies.into_iter().filter_map(Result::err);
        let mut failed = failed.filter(|error| !matches!(error, ApplyError::ClockDrift(_)));
        failed.next().map_or(Ok(()), |error| Err(rejected(error)))
    }

    async fn fence(
        &self,
        peer: &Peer,
        certification: Certification,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        let replica = self.reach_peer(peer, timeout).await?;
        let certified = serve(async move { replica.fence(certification).await }, timeout).await?;
        certified.map_err(|refused| PeerError::Rejected(refused.to_string()))
    }

    fn round_trip(&self, _peer: NodeId) -> Option<Duration> {
        None
    }

    fn stats(&self, _peer: NodeId) -> PeerStats {
        PeerStats::default()
    }

    fn release(&self, _peer: &Peer) {}

    async fn close(&self) {}
}

/// The entries of a peer on their way.
struct Pulled<T> {
    way: MemoryTransport,
    addr: String,
    /// Who sends them: one that starts anew at the same address does not go on.
    replica: Arc<dyn ReplicaApi>,
    entries: Entries<T>,
}

/// The peer looks for its entries before the first one comes.
enum Entries<T> {
    Begin(BoxFuture<'static, Box<dyn EntryStream<T>>>),
    GoOn(Box<dyn EntryStream<T>>),
    End,
}

#[async_trait]
impl<T: Send + 'static> EntryStream<T> for Pulled<T> {
    async fn next(&mut self) -> Option<Result<EntryChunk<T>, PeerError>> {
        if let Entries::Begin(beginning) = &mut self.entries {
            let entries = beginning.as_mut().await;
            self.entries = Entries::GoOn(entries);
        }
        let Entries::GoOn(entries) = &mut self.entries else { return None };
        let chunk_time = self.way.network.topology().chunk_time;
        if chunk_time > Duration::ZERO {
            tokio::time::sleep(chunk_time).await;
        }
        if self.way.is_cut(&self.addr) {
            std::future::pending::<()>().await;
        }
        let at_the_end = self.way.network.topology().nodes.get(&self.addr).cloned();
        if !at_the_end.is_some_and(|node| Arc::ptr_eq(&node.replica, &self.replica)) {
            self.entries = Entries::End;
            return Some(Err(PeerError::TimedOut));
        }
        entries.next().await
    }
}

async fn apply(
    replica: Arc<dyn ReplicaApi>,
    writes: Vec<KeyedEntry>,
    asked: Asked,
    timeout: Duration,
) -> Result<Vec<Result<WriteReply, ApplyError>>, PeerError> {
    serve(async move { replica.apply(writes, asked).await }, timeout).await
}

/// Lets a replica do what it was asked in a task of its own, since that must not be cut off; the
/// caller waits no longer than the timeout.
async fn serve<T: Send + 'static>(
    call: impl Future<Output = T> + Send + 'static,
    timeout: Duration,
) -> Result<T, PeerError> {
    #[expect(clippy::disallowed_methods, reason = "belongs to the peer, not to the calling node")]
    let serving = tokio::spawn(call);
    match tokio::time::timeout(timeout, serving).await {
        Ok(Ok(served)) => Ok(served),
        Ok(Err(_)) | Err(_) => Err(PeerError::TimedOut),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
fn rejected(error: ApplyError) -> PeerError {
    PeerError::Rejected(error.to_string())
}
