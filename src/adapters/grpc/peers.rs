//! `GrpcPeers`: the peers of this node, over gRPC.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::domain::{
    BucketSet, Digest, DigestLevel, Entry, Key, KeyedEntry, NodeId, Summary, Timestamp,
};
use crate::ports::{
    Announcement, Certification, EntryStream, Peer, PeerCall, PeerError, PeerStats, PeerTransport,
    WriteReply,
};

use super::convert::{
    announcement_from_wire, announcement_to_wire, certification_to_wire, copy_from_wire,
    digests_from_wire, keyed_to_wire, keys_to_wire, level_to_wire, reply_from_wire,
};
use super::dial::Dial;
use super::fragments::{MAX_MESSAGE_BYTES, pack};
use super::gossip::{GOSSIP_QUEUE, send_gossip};
use super::handshake::{Handshake, error};
use super::link::Link;
use super::pulled::Pulled;
use super::wire::peer_client::PeerClient;
use super::wire::{
    DigestReply, DigestRequest, GossipPacket, LevelDigestsRequest, PullRequest, request,
};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that is silent for this long is asked whether it lives, and has this long to say so.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a pull may take to begin.
const PULL_TIMEOUT: Duration = Duration::from_secs(2);

/// How this node presents itself to its peers.
#[derive(Debug, Clone)]
pub struct GrpcOptions {
    cluster: String,
    me: NodeId,
    random_seed: u64,
    dial: Option<Dial>,
}

impl GrpcOptions {
    /// A node of this cluster and id; the seed is that of the jitter of its backoff.
    pub fn new(cluster: &str, me: NodeId, random_seed: u64) -> Self {
        Self { cluster: cluster.to_owned(), me, random_seed, dial: None }
    }

    /// With connections of this kind instead of the system's TCP.
    #[must_use]
    pub fn dialling(self, dial: Dial) -> Self {
        Self { dial: Some(dial), ..self }
    }
}

/// The way to all peers.
pub struct GrpcPeers {
    handshake: Handshake,
    dial: Option<Dial>,
    /// Read on every call, replaced when a peer appears or moves.
    links: ArcSwap<HashMap<NodeId, Arc<Link>>>,
    places: Mutex<Places>,
    /// Calls under way.
    calls: TaskTracker,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Places {
    by_addr: HashMap<String, Place>,
    random: StdRng,
}

/// The connections to one address. Each connects when it is first used, and again when it broke.
#[derive(Clone)]
struct Place {
    data: Channel,
    control: Channel,
    bulk: Channel,
    gossip: mpsc::Sender<GossipPacket>,
}

impl GrpcPeers {
    /// A transport that is connected to nobody yet.
    pub fn new(options: GrpcOptions) -> Arc<Self> {
        let random = StdRng::seed_from_u64(options.random_seed);
        Arc::new(Self {
            handshake: Handshake { cluster: options.cluster, me: options.me },
            dial: options.dial,
            links: ArcSwap::default(),
            places: Mutex::new(Places { by_addr: HashMap::new(), random }),
            calls: TaskTracker::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Counts a call in for as long as the token is held, unless this node is stopping.
    fn begin(&self) -> Result<TaskTrackerToken, PeerError> {
        // In this order: a call that `close` does not see has not begun.
        let call = self.calls.token();
        if self.calls.is_closed() { Err(stopping()) } else { Ok(call) }
    }

    fn link(&self, peer: &Peer) -> Result<Arc<Link>, PeerError> {
        if let Some(link) = self.links.load().get(&peer.id)
            && link.addr == peer.addr
            && !link.is_closed()
        {
            return Ok(Arc::clone(link));
        }
        self.open_link(peer)
    }

    /// A link to a peer that appeared or moved.
    fn open_link(&self, peer: &Peer) -> Result<Arc<Link>, PeerError> {
        let channel = self.place(&peer.addr)?.data;
        let mut places = self.places();
        let open = self.links.load();
        if let Some(link) = open.get(&peer.id).filter(|l| l.addr == peer.addr && !l.is_closed()) {
            return Ok(Arc::clone(link));
        }
        let mut random = StdRng::seed_from_u64(places.random.random());
        let jitter = move |time: Duration| time.mul_f64(random.random_range(0.5..1.0));
        let handshake = self.handshake.clone();
        let (link, task) = Link::new(&peer.addr, peer.id, channel, handshake, jitter);
        self.spawn(task);
        let link = Arc::new(link);
        let mut links = HashMap::clone(&open);
        // The link it replaces, if there is one, ends when its last caller lets go of it.
        links.insert(peer.id, Arc::clone(&link));
        self.links.store(Arc::new(links));
        drop(places);
        Ok(link)
    }

    fn place(&self, addr: &str) -> Result<Place, PeerError> {
        if self.calls.is_closed() {
            return Err(stopping());
        }
        let mut places = self.places();
        if let Some(place) = places.by_addr.get(addr) {
            return Ok(place.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{addr}"))
            .map_err(|error| PeerError::Unreachable(format!("{addr}: {error}")))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let (gossip, packets) = mpsc::channel(GOSSIP_QUEUE);
        let connect = || match &self.dial {
            Some(dial) => endpoint.connect_with_connector_lazy(dial.clone()),
            None => endpoint.connect_lazy(),
        };
        let control = connect();
        self.spawn(send_gossip(control.clone(), self.handshake.clone(), packets));
        let (data, bulk) = (connect(), connect());
        let place = Place { data, control, bulk, gossip };
        places.by_addr.insert(addr.to_owned(), place.clone());
        drop(places);
        Ok(place)
    }

    fn note_heard_of(&self, peer: NodeId) {
        if let Some(link) = self.links.load().get(&peer) {
            link.note_heard_of();
        }
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled_owned(work).await;
        });
    }

    async fn digest_reply(&self, peer: &Peer, timeout: Duration) -> Result<DigestReply, PeerError> {
        let _call = self.begin()?;
        let mut client = client(self.place(&peer.addr)?.control);
        let request = self.handshake.request(DigestRequest {}, Some(peer.id));
        let reply = within(timeout, client.digest(request)).await?;
        self.note_heard_of(peer.id);
        Ok(reply)
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl PeerTransport for GrpcPeers {
    async fn write(
        &self,
        peer: &Peer,
        write: KeyedEntry,
        call: PeerCall,
    ) -> Result<WriteReply, PeerError> {
        let _call = self.begin()?;
        let request = request::Kind::Write(keyed_to_wire(&write));
        let link = self.link(peer)?;
        link.counted(link.call(request, call).await.and_then(reply_from_wire))
    }

    async fn read(
        &self,
        peer: &Peer,
        key: Key,
        call: PeerCall,
    ) -> Result<Option<Entry>, PeerError> {
        let _call = self.begin()?;
        let request = request::Kind::Read(Bytes::copy_from_slice(key.as_str().as_bytes()));
        let link = self.link(peer)?;
        link.counted(link.call(request, call).await.and_then(copy_from_wire))
    }

    async fn announce(
        &self,
        addr: &str,
        announcement: Announcement,
        timeout: Duration,
    ) -> Result<Announcement, PeerError> {
        let _call = self.begin()?;
        let mut client = client(self.place(addr)?.control);
        let request = self.handshake.request(announcement_to_wire(&announcement), None);
        let theirs = within(timeout, client.announce(request)).await?;
        let theirs = announcement_from_wire(theirs)?;
        self.note_heard_of(theirs.sender.id);
        Ok(theirs)
    }

    fn gossip(&self, addr: &str, packet: Vec<u8>) {
        if let Ok(place) = self.place(addr) {
            // A full queue drops the packet: the detector copes, and old news are worth little.
            place.gossip.try_send(GossipPacket { packet: packet.into() }).ok();
        }
    }

    async fn digest(&self, peer: &Peer, timeout: Duration) -> Result<Digest, PeerError> {
        Ok(Digest::from_u64(self.digest_reply(peer, timeout).await?.digest))
    }

    async fn wall_time(
        &self,
        peer: &Peer,
        timeout: Duration,
    ) -> Result<Option<Timestamp>, PeerError> {
        Ok(self.digest_reply(peer, timeout).await?.wall_time.map(Timestamp::from_nanos))
    }

    async fn level_digests(
        &self,
        peer: &Peer,
        level: DigestLevel,
        timeout: Duration,
    ) -> Result<Vec<u64>, PeerError> {
        if level.is_empty() {
            return Ok(Vec::new());
        }
        let _call = self.begin()?;
        let mut client = client(self.place(&peer.addr)?.bulk);
        let request = LevelDigestsRequest { buckets_of: level_to_wire(&level) };
        let request = self.handshake.request(request, Some(peer.id));
        let reply = within(timeout, client.level_digests(request)).await?;
        Ok(digests_from_wire(reply.digests, &level)?)
    }

    async fn pull(
        &self,
        peer: &Peer,
        buckets: BucketSet,
    ) -> Result<Box<dyn EntryStream>, PeerError> {
        let _call = self.begin()?;
        let mut client = client(self.place(&peer.addr)?.bulk);
        let request = PullRequest { buckets: buckets.to_bytes().into() };
        let request = self.handshake.request(request, Some(peer.id));
        let messages = within(PULL_TIMEOUT, client.pull(request)).await?;
        Ok(Box::new(Pulled::entries(messages)))
    }

    async fn summaries(
        &self,
        peer: &Peer,
        buckets: BucketSet,
    ) -> Result<Box<dyn EntryStream<Summary>>, PeerError> {
        let _call = self.begin()?;
        let mut client = client(self.place(&peer.addr)?.bulk);
        let request = PullRequest { buckets: buckets.to_bytes().into() };
        let request = self.handshake.request(request, Some(peer.id));
        let messages = within(PULL_TIMEOUT, client.summaries(request)).await?;
        Ok(Box::new(Pulled::summaries(messages)))
    }

    async fn fetch(&self, peer: &Peer, keys: Vec<Key>) -> Result<Box<dyn EntryStream>, PeerError> {
        let _call = self.begin()?;
        let mut client = client(self.place(&peer.addr)?.bulk);
        let request = self.handshake.request(keys_to_wire(&keys), Some(peer.id));
        let messages = within(PULL_TIMEOUT, client.fetch(request)).await?;
        Ok(Box::new(Pulled::entries(messages)))
    }

    async fn push(
        &self,
        peer: &Peer,
        writes: Vec<KeyedEntry>,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        let _call = self.begin()?;
        let mut client = client(self.place(&peer.addr)?.bulk);
        let parts = pack(writes.iter().map(keyed_to_wire));
        let request = self.handshake.request(tokio_stream::iter(parts), Some(peer.id));
        within(timeout, client.push(request)).await.map(|_| ())
    }

    async fn fence(
        &self,
        peer: &Peer,
        certification: Certification,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        let _call = self.begin()?;
        let mut client = client(self.place(&peer.addr)?.control);
        let request = certification_to_wire(certification);
        let request = self.handshake.request(request, Some(peer.id));
        within(timeout, client.fence(request)).await.map(|_| ())
    }

    fn round_trip(&self, peer: NodeId) -> Option<Duration> {
        self.links.load().get(&peer)?.round_trip()
    }

    fn stats(&self, peer: NodeId) -> PeerStats {
        self.links.load().get(&peer).map(|link| link.stats()).unwrap_or_default()
    }

    fn release(&self, peer: &Peer) {
        let mut places = self.places();
        let mut links = HashMap::clone(&self.links.load());
        // Its task ends when its last caller lets go of it.
        links.remove(&peer.id);
        if links.values().all(|link| link.addr != peer.addr) {
            places.by_addr.remove(&peer.addr);
        }
        self.links.store(Arc::new(links));
    }

    async fn close(&self) {
        self.calls.close();
        // Also when the caller waits no longer.
        let stop = self.stop.clone().drop_guard();
        self.calls.wait().await;
        drop(stop);
        self.tasks.close();
        self.tasks.wait().await;
        self.links.store(Arc::default());
        self.places().by_addr.clear();
    }
}

fn stopping() -> PeerError {
    PeerError::Unreachable("this node is stopping".into())
}

pub(super) fn client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

async fn within<T>(
    timeout: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, PeerError> {
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(error(&status)),
        Err(_) => Err(PeerError::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// A link connects again and again for as long as it is held: only a released one lets its task
    /// end.
    #[tokio::test]
    async fn a_released_peer_is_called_no_more() {
        let peers = GrpcPeers::new(GrpcOptions::new("lally", NodeId::new(1), 1));
        // A port that is bound, and at which nobody listens.
        let nobody = tokio::net::TcpSocket::new_v4().unwrap();
        nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = nobody.local_addr().unwrap().to_string();
        let gone = Peer { id: NodeId::new(2), addr: addr.clone() };
        let newcomer = Peer { id: NodeId::new(3), addr };
        for peer in [&gone, &newcomer] {
            let outcome = peers.read(peer, Key::new("k").unwrap(), SOON.into()).await;
            assert!(matches!(outcome, Err(PeerError::Unreachable(_))), "{outcome:?}");
        }
        peers.release(&gone);
        assert_eq!(peers.places().by_addr.len(), 1, "somebody else is at its address");
        peers.release(&newcomer);
        assert_eq!(peers.places().by_addr.len(), 0);
        peers.tasks.close();
        tokio::time::timeout(SOON, peers.tasks.wait()).await.expect("somebody still calls");
    }
}
