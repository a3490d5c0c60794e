//! The server: what others ask of this node, over gRPC.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::codegen::BoxStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use crate::domain::NodeId;
use crate::ports::{ApplyError, ConnectionStats, EntryChunk, EntryStream, Origin, ReplicaApi};

use super::connections::{Counts, accepted, upgraded};
use super::convert::{
    announcement_from_wire, announcement_to_wire, buckets_from_wire, certification_from_wire,
    chunk_from_wire, chunk_to_wire, keys_from_wire, level_from_wire, summaries_to_wire,
};
use super::data::Answers;
use super::dial::{Connection, Upgrade};
use super::fragments::{Fragmented, MAX_MESSAGE_BYTES, Reassembly};
use super::handshake::{Handshake, caller, refused};
use super::streams::send_chunks;
use super::wire::peer_server::{Peer, PeerServer};
use super::wire::{
    Announcement, Chunk, DigestReply, DigestRequest, FenceReply, FenceRequest, FetchRequest,
    GossipEnd, GossipPacket, LevelDigestsReply, LevelDigestsRequest, PullRequest, PushReply,
    ReplyBatch, RequestBatch, SummaryChunk,
};

/// Streams that this end resets for what a client does wrong before its connection is dropped
/// (RUSTSEC-2024-0332). (Tonic removes the default of the HTTP/2 library.)
const MAX_RESETS: usize = 1_024;

/// Streams that a client has reset before this end got to them: one more and its connection is
/// dropped, against rapid resets (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 20;

/// Bytes of the head of a call, decoded; ours has a few hundred. It bounds CONTINUATION frames too
/// (CVE-2024-27316).
const MAX_HEADER_BYTES: u32 = 16 * 1_024;

const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long open calls may take to end once the server is asked to stop.
const DRAIN: Duration = Duration::from_secs(1);

/// Largest packet of the failure detector.
const MAX_PACKET_BYTES: usize = 64 * 1_024;

/// How this node presents itself to whoever calls.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    cluster: String,
    me: NodeId,
    max_connections: usize,
    max_streams: u32,
    upgrade: Option<Upgrade>,
    counts: Arc<Counts>,
}

impl ServerOptions {
    /// A node of this cluster and id, with the limits that are the default.
    pub fn new(cluster: &str, me: NodeId) -> Self {
        Self {
            cluster: cluster.to_owned(),
            me,
            max_connections: 1_024,
            max_streams: 256,
            upgrade: None,
            counts: Arc::default(),
        }
    }

    /// With at most so many open connections, and calls at a time on each.
    #[must_use]
    pub fn limited(self, max_connections: usize, max_streams: u32) -> Self {
        Self { max_connections, max_streams, ..self }
    }

    /// With connections that become this before they are spoken over, if it is there.
    #[must_use]
    pub fn upgraded_by(self, upgrade: Option<Upgrade>) -> Self {
        Self { upgrade, ..self }
    }

    /// Tells how many connections there are and were, of a server with these options that accepts them
    /// itself.
    pub fn meter(&self) -> impl Fn() -> ConnectionStats + Send + Sync + use<> {
        let counts = Arc::clone(&self.counts);
        move || counts.stats()
    }
}

/// Answers peers until `stop`, and then for at most a second more. Writes that were taken are
/// carried out in any case.
///
/// # Errors
/// What the system says when it does not accept connections.
pub async fn serve(
    listener: std::net::TcpListener,
    replica: Arc<dyn ReplicaApi>,
    options: ServerOptions,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (max, counts) = (options.max_connections, Arc::clone(&options.counts));
    if let Some(upgrade) = options.upgrade.clone() {
        let incoming = Box::pin(upgraded(listener, max, counts, upgrade));
        serve_connections(incoming, replica, options, stop).await
    } else {
        let incoming = accepted(listener, max, counts);
        serve_connections(incoming, replica, options, stop).await
    }
}

/// Like [`serve`], for connections that come from elsewhere, where their number is bounded.
///
/// # Errors
/// What `incoming` says last.
pub async fn serve_connections<C, E>(
    incoming: impl Stream<Item = Result<C, E>>,
    replica: Arc<dyn ReplicaApi>,
    options: ServerOptions,
    stop: CancellationToken,
) -> io::Result<()>
where
    C: Connected + Connection,
    E: std::error::Error + Send + Sync + 'static,
{
    let handshake = Handshake { cluster: options.cluster, me: options.me };
    let tasks = TaskTracker::new();
    let service =
        PeerServer::new(Service { replica, handshake, tasks: tasks.clone(), stop: stop.clone() })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let serving = Server::builder()
        .max_concurrent_streams(options.max_streams)
        .http2_max_local_error_reset_streams(Some(MAX_RESETS))
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let cut_off = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    let outcome = tokio::select! {
        served = serving => served.map_err(io::Error::other),
        () = cut_off => Ok(()),
    };
    tasks.close();
    tasks.wait().await;
    outcome
}

struct Service {
    replica: Arc<dyn ReplicaApi>,
    handshake: Handshake,
    /// Applies, which must not be cut off, and the streams they answer to.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Service {
    /// The answer that brings what a stream brings, once that has begun.
    fn streamed<T: Send + 'static, M: Fragmented + 'static>(
        &self,
        beginning: impl Future<Output = Box<dyn EntryStream<T>>> + Send + 'static,
        to_wire: fn(&EntryChunk<T>) -> M,
    ) -> Response<ReceiverStream<Result<M, Status>>> {
        let (chunks, stream) = mpsc::channel(1);
        let stop = self.stop.clone();
        let sending = async move { send_chunks(beginning.await, chunks, to_wire).await };
        self.tasks.spawn(async move {
            stop.run_until_cancelled_owned(sending).await;
        });
        Response::new(ReceiverStream::new(stream))
    }
}

#[async_trait]
impl Peer for Service {
    async fn announce(
        &self,
        request: Request<Announcement>,
    ) -> Result<Response<Announcement>, Status> {
        // The port decides on cluster and protocol here: it knows what to say about them.
        let theirs = announcement_from_wire(request.into_inner())?;
        let ours = self.replica.announce(theirs).await.map_err(|refusal| refused(&refusal))?;
        Ok(Response::new(announcement_to_wire(&ours)))
    }

    async fn gossip(
        &self,
        request: Request<Streaming<GossipPacket>>,
    ) -> Result<Response<GossipEnd>, Status> {
        self.handshake.check(request.metadata())?;
        let mut packets = request.into_inner();
        let receiving = async {
            while let Some(packet) = packets.next().await {
                let packet = packet?.packet;
                if packet.len() > MAX_PACKET_BYTES {
                    return Err(Status::invalid_argument("a packet that is too large"));
                }
                self.replica.gossip(&packet);
            }
            Ok(Response::new(GossipEnd {}))
        };
        tokio::select! {
            ended = receiving => ended,
            () = self.stop.cancelled() => Ok(Response::new(GossipEnd {})),
        }
    }

    type DataStream = BoxStream<ReplyBatch>;

    async fn data(
        &self,
        request: Request<Streaming<RequestBatch>>,
    ) -> Result<Response<Self::DataStream>, Status> {
        self.handshake.check(request.metadata())?;
        let (replica, tasks) = (Arc::clone(&self.replica), self.tasks.clone());
        let from = (caller(request.metadata()), request.into_inner());
        let answers = Answers::new(replica, from, tasks, self.stop.clone());
        Ok(Response::new(Box::pin(answers.into_stream())))
    }

    async fn digest(
        &self,
        request: Request<DigestRequest>,
    ) -> Result<Response<DigestReply>, Status> {
        self.handshake.check(request.metadata())?;
        Ok(Response::new(DigestReply {
            digest: self.replica.digest().as_u64(),
            wall_time: Some(self.replica.wall_time().as_nanos()),
        }))
    }

    async fn level_digests(
        &self,
        request: Request<LevelDigestsRequest>,
    ) -> Result<Response<LevelDigestsReply>, Status> {
        self.handshake.check(request.metadata())?;
        let level = level_from_wire(&request.into_inner().buckets_of)?;
        Ok(Response::new(LevelDigestsReply { digests: self.replica.level_digests(&level) }))
    }

    type PullStream = ReceiverStream<Result<Chunk, Status>>;

    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        self.handshake.check(request.metadata())?;
        let buckets = buckets_from_wire(&request.into_inner().buckets)?;
        let replica = Arc::clone(&self.replica);
        // The answer begins at once: the entries come after a walk over all keys.
        Ok(self.streamed(async move { replica.pull(buckets).await }, chunk_to_wire))
    }

    type SummariesStream = ReceiverStream<Result<SummaryChunk, Status>>;

    async fn summaries(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::SummariesStream>, Status> {
        self.handshake.check(request.metadata())?;
        let buckets = buckets_from_wire(&request.into_inner().buckets)?;
        let replica = Arc::clone(&self.replica);
        Ok(self.streamed(async move { replica.summaries(buckets).await }, summaries_to_wire))
    }

    type FetchStream = ReceiverStream<Result<Chunk, Status>>;

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        self.handshake.check(request.metadata())?;
        let entries = self.replica.fetch(keys_from_wire(&request.into_inner())?);
        Ok(self.streamed(std::future::ready(entries), chunk_to_wire))
    }

    async fn fence(&self, request: Request<FenceRequest>) -> Result<Response<FenceReply>, Status> {
        self.handshake.check(request.metadata())?;
        let certification = certification_from_wire(request.into_inner());
        let replica = Arc::clone(&self.replica);
        // In a task of its own: the caller may go away between log and fence.
        let certifying = async move { replica.fence(certification).await };
        let certified = self.tasks.spawn(certifying).await;
        let certified = certified.map_err(|error| Status::internal(error.to_string()))?;
        certified.map_err(|refused| Status::aborted(refused.to_string()))?;
        Ok(Response::new(FenceReply {}))
    }

    async fn push(
        &self,
        request: Request<Streaming<Chunk>>,
    ) -> Result<Response<PushReply>, Status> {
        self.handshake.check(request.metadata())?;
        let mut chunks = request.into_inner();
        let mut reassembly = Reassembly::default();
        while let Some(part) = chunks.next().await {
            let Some(chunk) = reassembly.accept(part?).map_err(Status::invalid_argument)? else {
                continue;
            };
            let entries = chunk_from_wire(&chunk)?.entries;
            let replica = Arc::clone(&self.replica);
            // In a task of its own: the caller may go away halfway, an apply must not.
            let applying = async move { replica.apply(entries, Origin::Sync.into()).await };
            let replies = self.tasks.spawn(applying).await;
            for reply in replies.map_err(|error| Status::internal(error.to_string()))? {
                match reply {
                    // Counted and logged here; the caller's other entries need not wait for it.
                    Ok(_) | Err(ApplyError::ClockDrift(_)) => {}
                    Err(error) => return Err(Status::aborted(error.to_string())),
                }
            }
        }
        if !reassembly.is_empty() {
            return Err(Status::invalid_argument("a message was cut short"));
        }
        Ok(Response::new(PushReply {}))
    }
}
