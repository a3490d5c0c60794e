//! Peers over gRPC that break the protocol, on either side of the wire.
//!
//! The messages are generated from `proto/` here once more, so that a test can send what the
//! adapter never would. Whatever comes: nothing panics, nothing hangs, nothing is believed, and the
//! next honest call is served.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use lally::adapters::grpc::{GrpcOptions, GrpcPeers};
use lally::domain::{BUCKETS, BucketSet, DigestLevel, GROUPS, Group, NodeId, Phase};
use lally::ports::{Origin, Peer, PeerError, PeerTransport, Store, WriteReply};
use tokio::net::{TcpListener as AsyncListener, TcpStream as AsyncStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataValue;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status, Streaming};

use super::networks::{AT_ONCE, BLUE, LONG, Loopback, Network, eventually, key, keyed, next};
use super::replica::{FakeReplica, Seen, member, statement};

#[allow(
    dead_code,
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
mod wire {
    tonic::include_proto!("lally.v1");
}

use wire::peer_client::PeerClient;
use wire::{reply, request};

#[tokio::test]
async fn an_answer_to_something_else_is_a_breach_of_the_protocol() {
    let copy = || Some(reply::Kind::Copy(wire::Copy { entry: None }));
    let applied = || Some(reply::Kind::Applied(wire::Applied { previous: None }));
    let no_utf8 =
        wire::Entry { value: Some(Bytes::from_static(b"\xff")), ..wire::Entry::default() };
    let odd_removal = wire::Applied { previous: Some(no_utf8.clone()) };
    let to_a_write = [None, copy(), Some(reply::Kind::Applied(odd_removal))];
    let to_a_read = [None, applied(), Some(reply::Kind::Copy(wire::Copy { entry: Some(no_utf8) }))];
    for (answer, to_read) in
        to_a_write.map(|answer| (answer, false)).into_iter().chain(to_a_read.map(|a| (a, true)))
    {
        let described = format!("{answer:?}");
        let liar = Liar::answering(move |id| vec![replies([(id, answer.clone())])]);
        let (peer, transport) = liar.serve();
        let outcome = if to_read {
            transport.read(&peer, key("k"), LONG.into()).await.map(drop)
        } else {
            transport.write(&peer, keyed("k", 1, None), LONG.into()).await.map(drop)
        };
        assert!(matches!(outcome, Err(PeerError::Protocol(_))), "{described}: {outcome:?}");
    }
}

#[tokio::test]
async fn answers_to_nobody_and_answers_twice_reach_nobody() {
    let applied = || Some(reply::Kind::Applied(wire::Applied { previous: None }));
    let rejected = || Some(reply::Kind::Rejected("too late".into()));
    let liar = Liar::answering(move |id| {
        let nobody = [(0, rejected()), (u64::MAX, rejected()), (id + 1_000, rejected())];
        vec![replies([]), replies(nobody), replies([(id, applied()), (id, rejected())])]
    });
    let (peer, transport) = liar.serve();
    for time in 0..50 {
        let reply = transport.write(&peer, keyed("k", time, None), LONG.into()).await;
        assert_eq!(reply, Ok(WriteReply::Applied { previous: None }));
    }
}

#[tokio::test]
async fn a_stream_that_ends_or_breaks_leaves_its_calls_timed_out_at_once() {
    let part = |total_bytes, data: &[u8]| wire::ReplyBatch {
        replies: Vec::new(),
        fragment: Some(wire::Fragment { total_bytes, data: Bytes::copy_from_slice(data) }),
    };
    let endings = [
        vec![Err(Status::unavailable("gone"))],
        vec![Err(Status::internal("broken"))],
        vec![Ok(part(u64::MAX, b"x"))],
        vec![Ok(part(2, b"xyz"))],
        vec![Ok(part(3, b"\xff\xff\xff"))],
        vec![Ok(part(9, b"x")), Ok(replies([]))],
        vec![Ok(part(0, b""))],
        vec![Ok(part(4 << 20, &vec![0; 3 << 20]))],
        Vec::new(),
    ];
    for ending in endings {
        let described = format!("{:?}", ending.first().map(Result::is_ok));
        let liar = Liar::new(move |_| (ending.clone(), true));
        let (peer, transport) = liar.serve();
        let began = Instant::now();
        let outcome = transport.write(&peer, keyed("k", 1, None), LONG.into()).await;
        assert_eq!(outcome, Err(PeerError::TimedOut), "{described}");
        assert!(began.elapsed() < AT_ONCE, "{described}: {:?}", began.elapsed());
        // The stream is opened again after a while, and everything begins anew.
        eventually("another write is sent", async || {
            transport.write(&peer, keyed("k", 2, None), LONG.into()).await
                == Err(PeerError::TimedOut)
        })
        .await;
    }
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_its_calls_timed_out_at_once_and_is_made_again() {
    let honest = Honest::new();
    let relay = Relay::to(&honest.peer.addr);
    let peer = Peer { addr: relay.addr.clone(), ..honest.peer.clone() };
    let transport = &honest.transport;
    for time in 1..=3 {
        honest.replica.hang();
        let write = keyed("k", time, Some("v"));
        let ours = statement(BLUE, member(1, Phase::Whole));
        let calls = async {
            tokio::join!(
                transport.write(&peer, write.clone(), LONG.into()),
                transport.push(&peer, vec![keyed("pushed", time, None)], LONG),
                transport.announce(&peer.addr, ours, LONG),
            )
        };
        let breaking = async {
            honest.replica.begun(honest.replica.waited_for() + 3).await;
            relay.cut.send_replace(());
            Instant::now()
        };
        let (outcomes, broken) = futures_util::future::join(calls, breaking).await;
        assert!(broken.elapsed() < AT_ONCE, "{:?}", broken.elapsed());
        assert_eq!(outcomes.0, Err(PeerError::TimedOut));
        assert_eq!(outcomes.1, Err(PeerError::TimedOut));
        assert_eq!(outcomes.2, Err(PeerError::TimedOut));
        honest.replica.go_on();
        eventually("the write was carried out", async || {
            honest.replica.applied().contains(&(write.clone(), Origin::Replica))
        })
        .await;
        eventually("the peer is reached again", async || {
            let reply = transport.write(&peer, keyed("again", time, None), LONG.into()).await;
            reply.is_ok() && transport.digest(&peer, LONG).await.is_ok()
        })
        .await;
    }
}

#[tokio::test]
async fn an_answer_out_of_bounds_is_a_breach_of_the_protocol() {
    let liar = Liar::answering(|_| Vec::new());
    let (peer, transport) = liar.serve();
    let ours = || statement(BLUE, member(1, Phase::Whole));
    for answer in [
        wire::Announcement::default(),
        wire::Announcement { sender: Some(wire::Member::default()), ..Default::default() },
        wire::Announcement { sender: Some(odd_member(9, "h:1")), ..Default::default() },
        wire::Announcement { sender: Some(odd_member(2, "")), ..Default::default() },
        wire::Announcement { sender: Some(odd_member(2, &"h".repeat(513))), ..Default::default() },
        wire::Announcement {
            sender: Some(odd_member(2, "h:1")),
            members: vec![wire::Member::default()],
            ..Default::default()
        },
    ] {
        liar.says.lock().unwrap().announcement = answer.clone();
        let outcome = transport.announce(&peer.addr, ours(), LONG).await;
        assert!(matches!(outcome, Err(PeerError::Protocol(_))), "{answer:?}: {outcome:?}");
    }
    // Of the last of them the message itself is too large.
    let all = DigestLevel::BucketsOf((0..=u8::MAX).map(Group::new).collect());
    for (level, right) in [(DigestLevel::Groups, GROUPS), (all, BUCKETS)] {
        for count in [0, 1, right - 1, right + 1, 4 * BUCKETS] {
            liar.says.lock().unwrap().digests = vec![u64::MAX; count];
            let outcome = transport.level_digests(&peer, level.clone(), LONG).await;
            assert!(matches!(outcome, Err(PeerError::Protocol(_))), "{count}: {:?}", outcome.err());
        }
        liar.says.lock().unwrap().digests = vec![7; right];
        assert_eq!(transport.level_digests(&peer, level, LONG).await, Ok(vec![7; right]));
    }
}

#[tokio::test]
async fn a_pull_ends_with_the_first_chunk_that_breaks_the_protocol() {
    let good = wire::Chunk {
        entries: vec![wire::Entry { key: "k".into(), timestamp: 1, node: 1, value: None }],
        ..wire::Chunk::default()
    };
    let entry = |key: &[u8], value: &[u8]| wire::Chunk {
        entries: vec![wire::Entry {
            key: Bytes::copy_from_slice(key),
            value: Some(Bytes::copy_from_slice(value)),
            ..wire::Entry::default()
        }],
        ..wire::Chunk::default()
    };
    let part = |total_bytes, data: &'static [u8]| wire::Chunk {
        fragment: Some(wire::Fragment { total_bytes, data: Bytes::from_static(data) }),
        ..wire::Chunk::default()
    };
    let bad = [
        entry(b"", b"v"),
        entry(&[b'k'; 1_025], b"v"),
        entry(b"\xff", b"v"),
        entry(b"k", b"\xff"),
        wire::Chunk { complete_through: Some(65_536), ..wire::Chunk::default() },
        part(u64::MAX, b"x"),
        part(2, b"xyz"),
    ];
    let liar = Liar::answering(|_| Vec::new());
    let (peer, transport) = liar.serve();
    for bad in bad {
        let described = format!("{bad:?}");
        liar.says.lock().unwrap().chunks = vec![good.clone(), bad, good.clone(), good.clone()];
        let mut stream = transport.pull(&peer, BucketSet::all()).await.unwrap();
        let first = next(stream.as_mut()).await.unwrap().unwrap();
        assert_eq!(first.entries, [keyed_by("k", 1, 1)]);
        let second = next(stream.as_mut()).await;
        assert!(matches!(second, Some(Err(PeerError::Protocol(_)))), "{described}: {second:?}");
        assert_eq!(next(stream.as_mut()).await, None, "{described}");
        assert_eq!(next(stream.as_mut()).await, None, "{described}");
    }
}

#[tokio::test]
async fn a_summary_that_makes_no_sense_ends_the_stream() {
    let summary = |key: &[u8]| wire::SummaryChunk {
        summaries: vec![wire::Summary {
            key: Bytes::copy_from_slice(key),
            ..wire::Summary::default()
        }],
        ..wire::SummaryChunk::default()
    };
    let bad = [
        summary(b""),
        summary(&[b'k'; 1_025]),
        summary(b"\xff"),
        wire::SummaryChunk { complete_through: Some(65_536), ..wire::SummaryChunk::default() },
    ];
    let liar = Liar::answering(|_| Vec::new());
    let (peer, transport) = liar.serve();
    for bad in bad {
        let described = format!("{bad:?}");
        liar.says.lock().unwrap().summaries = vec![summary(b"k"), bad, summary(b"k")];
        let mut stream = transport.summaries(&peer, BucketSet::all()).await.unwrap();
        assert_eq!(next(stream.as_mut()).await.unwrap().unwrap().entries[0].key, key("k"));
        let second = next(stream.as_mut()).await;
        assert!(matches!(second, Some(Err(PeerError::Protocol(_)))), "{described}: {second:?}");
        assert_eq!(next(stream.as_mut()).await, None, "{described}");
    }
}

#[tokio::test]
async fn what_is_no_grpc_at_all_is_an_error_in_time() {
    let says: [&[u8]; 5] = [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        &[0xff; 4_096],
        // The beginning of HTTP/2 (settings), then nonsense.
        b"\0\0\0\x04\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    for says in says {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                // Whether anybody still listens is their business.
                drop(connection.write_all(says));
                drop(connection.read(&mut [0; 64]));
            }
        });
        let peer = Peer { id: NodeId::new(2), addr };
        let transport = GrpcPeers::new(GrpcOptions::new(BLUE, NodeId::new(1), 1));
        let began = Instant::now();
        assert!(transport.write(&peer, keyed("k", 1, None), LONG.into()).await.is_err());
        assert!(transport.digest(&peer, LONG).await.is_err());
        assert!(transport.pull(&peer, BucketSet::all()).await.is_err());
        assert!(began.elapsed() < AT_ONCE, "{says:?}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_request_that_is_malformed_is_rejected_and_those_beside_it_are_served() {
    let honest = Honest::new();
    let write = |key: &[u8], value: &[u8]| {
        let (key, value) = (Bytes::copy_from_slice(key), Some(Bytes::copy_from_slice(value)));
        Some(request::Kind::Write(wire::Entry { key, value, timestamp: 1, node: 9 }))
    };
    let read = |key: &'static [u8]| Some(request::Kind::Read(Bytes::from_static(key)));
    let too_large = vec![b'v'; (16 << 20) + 1];
    let kinds = [
        write(b"good", b"v"),
        None,
        write(b"", b"v"),
        write(&[b'k'; 1_025], b"v"),
        write(b"\xff", b"v"),
        write(b"k", b"\xff"),
        read(b""),
        read(b"\xff"),
        read(b"absent"),
    ];
    // A trace that is none is passed over.
    let traces = [&[][..], b"x", &[0; 25], &[7; 26]].into_iter().cycle().map(Bytes::from_static);
    let numbered = (0..).zip(kinds).zip(traces);
    let requests = numbered.map(|((id, kind), trace)| wire::Request { id, kind, trace }).collect();
    let batch = wire::RequestBatch { requests, fragment: None };
    let replies = honest.data(vec![batch]).await.unwrap();
    let kind = |id: u64| replies.iter().find(|reply| reply.id == id).unwrap().kind.as_ref();
    assert!(matches!(kind(0), Some(reply::Kind::Applied(_))));
    for id in 1..=7 {
        assert!(matches!(kind(id), Some(reply::Kind::Rejected(_))), "{id}: {:?}", kind(id));
    }
    assert_eq!(kind(8), Some(&reply::Kind::Copy(wire::Copy { entry: None })));
    assert_eq!(honest.replica.applied().len(), 1);
    assert_eq!(honest.replica.seen().traces, []);
    let trace = Bytes::new();
    let requests = vec![wire::Request { id: 1, kind: write(b"k", &too_large), trace }];
    let large = in_parts(&wire::RequestBatch { requests, fragment: None });
    let replies = honest.data(large).await.unwrap();
    assert!(matches!(replies[0].kind, Some(reply::Kind::Rejected(_))));
    honest.still_serves().await;
}

#[tokio::test]
async fn parts_that_do_not_fit_together_end_the_stream_and_nothing_else() {
    let honest = Honest::new();
    let part = |total_bytes, data: &[u8]| wire::RequestBatch {
        requests: Vec::new(),
        fragment: Some(wire::Fragment { total_bytes, data: Bytes::copy_from_slice(data) }),
    };
    let empty = wire::RequestBatch::default;
    for parts in [
        vec![part(u64::MAX, b"x")],
        vec![part((17 << 20) + 1, b"x")],
        vec![part(2, b"xyz")],
        vec![part(0, b"")],
        vec![part(9, b"x"), part(8, b"x")],
        vec![part(9, b"x"), empty()],
        vec![part(3, b"\xff\xff\xff")],
    ] {
        let refused = honest.data(parts.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{parts:?}: {refused}");
    }
    // Beyond the size of a message it is the layer below that gives up reading.
    let replies = honest.data(vec![part(3 << 20, &vec![0; 2 << 20])]).await;
    assert!(replies.as_ref().map_or(true, Vec::is_empty), "{replies:?}");
    honest.still_serves().await;
}

#[tokio::test]
async fn a_call_without_a_handshake_or_with_a_foreign_one_is_refused_and_not_served() {
    let honest = Honest::new();
    let none = || Request::new(());
    let foreign = || handshake("green", "1-1", Some("0000000000000002"));
    let too_new = || handshake(BLUE, "7-9", Some("0000000000000002"));
    let no_range = || handshake(BLUE, "one", Some("0000000000000002"));
    let no_id = || handshake(BLUE, "1-1", Some("two"));
    let another = || handshake(BLUE, "1-1", Some("0000000000000003"));
    let handshakes: [&dyn Fn() -> Request<()>; 6] =
        [&none, &foreign, &too_new, &no_range, &no_id, &another];
    for (number, shake) in handshakes.iter().enumerate() {
        let mut client = honest.client().await;
        let batch = || stream::iter([wire::RequestBatch::default()]);
        let chunk = wire::Chunk {
            entries: vec![wire::Entry { key: "k".into(), ..wire::Entry::default() }],
            ..wire::Chunk::default()
        };
        let pull = wire::PullRequest { buckets: vec![0xff; BucketSet::BYTES].into() };
        let packets = stream::iter([wire::GossipPacket { packet: "packet".into() }]);
        let outcomes = [
            client.data(with(shake(), batch())).await.map(drop),
            client.digest(with(shake(), wire::DigestRequest {})).await.map(drop),
            client
                .level_digests(with(shake(), wire::LevelDigestsRequest::default()))
                .await
                .map(drop),
            client.pull(with(shake(), pull.clone())).await.map(drop),
            client.summaries(with(shake(), pull)).await.map(drop),
            client.fetch(with(shake(), wire::FetchRequest::default())).await.map(drop),
            client.push(with(shake(), stream::iter([chunk]))).await.map(drop),
            client.gossip(with(shake(), packets)).await.map(drop),
        ];
        for (call, outcome) in outcomes.into_iter().enumerate() {
            let code = outcome.expect_err("served").code();
            let refused = [Code::FailedPrecondition, Code::InvalidArgument].contains(&code);
            assert!(refused, "handshake {number}, call {call}: {code:?}");
        }
    }
    assert_eq!(honest.replica.seen(), Seen::default());
    honest.still_serves().await;
}

#[tokio::test]
async fn a_malformed_announcement_pull_or_push_is_refused_and_changes_nothing() {
    let honest = Honest::new();
    let mut client = honest.client().await;
    let shake = || handshake(BLUE, "1-1", Some("0000000000000002"));
    let announcement = wire::Announcement { cluster: BLUE.into(), ..Default::default() };
    let refused = client.announce(with(shake(), announcement)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    for bytes in [0, 1, BucketSet::BYTES - 1, BucketSet::BYTES + 1] {
        let pull = wire::PullRequest { buckets: vec![0xff; bytes].into() };
        let refused = client.pull(with(shake(), pull.clone())).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let refused = client.summaries(with(shake(), pull)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    for keys in [vec![Bytes::new()], vec!["\u{e9}".as_bytes()[..1].to_vec().into()]] {
        let fetch = wire::FetchRequest { keys };
        let refused = client.fetch(with(shake(), fetch)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let too_many = wire::FetchRequest { keys: vec!["k".into(); 4_097] };
    let refused = client.fetch(with(shake(), too_many)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let entry = |key: &'static str| wire::Entry { key: key.into(), ..wire::Entry::default() };
    let chunk = wire::Chunk { entries: vec![entry("k"), entry("")], ..wire::Chunk::default() };
    let refused = client.push(with(shake(), stream::iter([chunk]))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let packet = wire::GossipPacket { packet: vec![0; 64 * 1_024 + 1].into() };
    let refused = client.gossip(with(shake(), stream::iter([packet]))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(honest.replica.seen(), Seen::default());
    honest.still_serves().await;
}

#[tokio::test]
async fn a_server_that_was_sent_anything_but_grpc_serves_the_next() {
    let honest = Honest::new();
    let garbage: [&[u8]; 4] = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 4_096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff",
    ];
    let mut open = Vec::new();
    for _ in 0..25 {
        for bytes in garbage {
            let mut connection = TcpStream::connect(&honest.peer.addr).unwrap();
            connection.write_all(bytes).unwrap();
            open.push(connection);
        }
    }
    honest.still_serves().await;
    drop(open);
    honest.still_serves().await;
}

#[tokio::test]
async fn a_peer_that_takes_connections_but_never_speaks_is_known_to_be_gone() {
    let network = Loopback::default();
    let peer = Peer { id: NodeId::new(2), addr: network.silent() };
    let transport = network.transport(BLUE);
    // No request was sent to somebody who never said who he is.
    let began = Instant::now();
    for time in 1..=100 {
        let write = transport.write(&peer, keyed("k", time, None), LONG.into()).await;
        assert!(matches!(write, Err(PeerError::Unreachable(_))), "{write:?}");
    }
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn after_calls_there_is_a_round_trip() {
    let honest = Honest::new();
    honest.transport.write(&honest.peer, keyed("k", 1, None), LONG.into()).await.unwrap();
    let round_trip = honest.transport.round_trip(honest.peer.id).unwrap();
    assert!((Duration::from_nanos(1)..AT_ONCE).contains(&round_trip), "{round_trip:?}");
}

#[tokio::test]
async fn a_closed_transport_reaches_nobody_and_says_so_at_once() {
    let honest = Honest::new();
    honest.still_serves().await;
    honest.transport.close().await;
    let began = Instant::now();
    let write = honest.transport.write(&honest.peer, keyed("k", 2, None), LONG.into()).await;
    assert!(matches!(write, Err(PeerError::Unreachable(_))), "{write:?}");
    let digest = honest.transport.digest(&honest.peer, LONG).await;
    assert!(matches!(digest, Err(PeerError::Unreachable(_))), "{digest:?}");
    honest.transport.gossip(&honest.peer.addr, vec![1]);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

/// An honest node, and two ways to it: the adapter, and whatever a test makes up.
struct Honest {
    replica: Arc<FakeReplica>,
    peer: Peer,
    transport: Arc<dyn PeerTransport>,
    /// Serves for as long as it is held.
    _network: Loopback,
}

impl Honest {
    fn new() -> Self {
        let (network, replica) = (Loopback::default(), FakeReplica::new(2, BLUE));
        let peer = Peer { id: replica.me.id, addr: network.serve(&replica) };
        let transport = network.transport(BLUE);
        Self { replica, peer, transport, _network: network }
    }

    async fn client(&self) -> PeerClient<Channel> {
        PeerClient::connect(format!("http://{}", self.peer.addr)).await.unwrap()
    }

    /// Sends these messages on one stream of the data plane; what came back until it ended.
    async fn data(&self, batches: Vec<wire::RequestBatch>) -> Result<Vec<wire::Reply>, Status> {
        let shake = handshake(BLUE, "1-1", Some("0000000000000002"));
        let mut client = self.client().await;
        let mut stream = client.data(with(shake, stream::iter(batches))).await?.into_inner();
        let mut replies = Vec::new();
        while let Some(batch) = stream.next().await {
            replies.extend(batch?.replies);
        }
        Ok(replies)
    }

    async fn still_serves(&self) {
        let (write, time) = (keyed("still serves", 1, Some("v")), Duration::from_secs(20));
        self.transport.write(&self.peer, write.clone(), time.into()).await.unwrap();
        assert_eq!(self.replica.applied().pop(), Some((write.clone(), Origin::Replica)));
        let copy = self.transport.read(&self.peer, write.key, time.into()).await;
        assert_eq!(copy, Ok(Some(write.entry)));
        let digest = self.transport.digest(&self.peer, time).await;
        assert_eq!(digest, Ok(self.replica.store.digest()));
    }
}

/// A way to an address whose connections can be cut.
struct Relay {
    addr: String,
    cut: watch::Sender<()>,
    tasks: TaskTracker,
}

impl Relay {
    fn to(addr: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let relay = Self {
            addr: listener.local_addr().unwrap().to_string(),
            cut: watch::Sender::new(()),
            tasks: TaskTracker::new(),
        };
        let listener = AsyncListener::from_std(listener).unwrap();
        let (to, cut, tasks) = (addr.to_owned(), relay.cut.clone(), relay.tasks.clone());
        relay.tasks.spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (to, mut cut) = (to.clone(), cut.subscribe());
                tasks.spawn(async move {
                    let mut far = AsyncStream::connect(to).await.unwrap();
                    tokio::select! {
                        _ended = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _cut = cut.changed() => {}
                    }
                });
            }
        });
        relay
    }
}

/// What the liar says on its data stream to the request of this number, and whether the stream
/// ends after that.
type Answer = dyn Fn(u64) -> (Vec<Result<wire::ReplyBatch, Status>>, bool) + Send + Sync;

/// A node that breaks the protocol.
#[derive(Clone)]
struct Liar {
    answer: Arc<Answer>,
    says: Arc<Mutex<Says>>,
    tasks: TaskTracker,
}

/// What the liar says on other calls.
#[derive(Default)]
struct Says {
    announcement: wire::Announcement,
    digests: Vec<u64>,
    chunks: Vec<wire::Chunk>,
    summaries: Vec<wire::SummaryChunk>,
}

impl Liar {
    fn new(
        answer: impl Fn(u64) -> (Vec<Result<wire::ReplyBatch, Status>>, bool) + Send + Sync + 'static,
    ) -> Self {
        Self { answer: Arc::new(answer), says: Arc::default(), tasks: TaskTracker::new() }
    }

    fn answering(answer: impl Fn(u64) -> Vec<wire::ReplyBatch> + Send + Sync + 'static) -> Self {
        Self::new(move |id| (answer(id).into_iter().map(Ok).collect(), false))
    }

    /// Serves, until the test ends; who it claims to be, and a way to it.
    fn serve(&self) -> (Peer, Arc<GrpcPeers>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = Peer { id: NodeId::new(2), addr: listener.local_addr().unwrap().to_string() };
        listener.set_nonblocking(true).unwrap();
        let incoming = TcpIncoming::from(AsyncListener::from_std(listener).unwrap());
        let service = wire::peer_server::PeerServer::new(self.clone());
        self.tasks.spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        (peer, GrpcPeers::new(GrpcOptions::new(BLUE, NodeId::new(1), 1)))
    }
}

#[async_trait]
impl wire::peer_server::Peer for Liar {
    async fn announce(
        &self,
        _request: Request<wire::Announcement>,
    ) -> Result<Response<wire::Announcement>, Status> {
        Ok(Response::new(self.says.lock().unwrap().announcement.clone()))
    }

    async fn gossip(
        &self,
        _request: Request<Streaming<wire::GossipPacket>>,
    ) -> Result<Response<wire::GossipEnd>, Status> {
        Ok(Response::new(wire::GossipEnd {}))
    }

    type DataStream = BoxStream<'static, Result<wire::ReplyBatch, Status>>;

    async fn data(
        &self,
        request: Request<Streaming<wire::RequestBatch>>,
    ) -> Result<Response<Self::DataStream>, Status> {
        let answer = Arc::clone(&self.answer);
        let ids = request.into_inner().flat_map(|batch| {
            let requests = batch.map(|batch| batch.requests).unwrap_or_default();
            stream::iter(requests.into_iter().map(|request| request.id))
        });
        let answers = ids.map(move |id| answer(id));
        let until_the_end =
            stream::unfold((answers.boxed(), false), |(mut answers, ended)| async move {
                let (says, ends) = if ended { None } else { answers.next().await }?;
                Some((stream::iter(says), (answers, ends)))
            });
        Ok(Response::new(until_the_end.flatten().boxed()))
    }

    async fn digest(
        &self,
        _request: Request<wire::DigestRequest>,
    ) -> Result<Response<wire::DigestReply>, Status> {
        Ok(Response::new(wire::DigestReply { digest: 0, wall_time: None }))
    }

    async fn level_digests(
        &self,
        _request: Request<wire::LevelDigestsRequest>,
    ) -> Result<Response<wire::LevelDigestsReply>, Status> {
        let digests = self.says.lock().unwrap().digests.clone();
        Ok(Response::new(wire::LevelDigestsReply { digests }))
    }

    type PullStream = BoxStream<'static, Result<wire::Chunk, Status>>;

    async fn pull(
        &self,
        _request: Request<wire::PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let chunks = self.says.lock().unwrap().chunks.clone();
        Ok(Response::new(stream::iter(chunks.into_iter().map(Ok)).boxed()))
    }

    type SummariesStream = BoxStream<'static, Result<wire::SummaryChunk, Status>>;

    async fn summaries(
        &self,
        _request: Request<wire::PullRequest>,
    ) -> Result<Response<Self::SummariesStream>, Status> {
        let chunks = self.says.lock().unwrap().summaries.clone();
        Ok(Response::new(stream::iter(chunks.into_iter().map(Ok)).boxed()))
    }

    type FetchStream = BoxStream<'static, Result<wire::Chunk, Status>>;

    async fn fetch(
        &self,
        _request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn fence(
        &self,
        _request: Request<wire::FenceRequest>,
    ) -> Result<Response<wire::FenceReply>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn push(
        &self,
        _request: Request<Streaming<wire::Chunk>>,
    ) -> Result<Response<wire::PushReply>, Status> {
        Ok(Response::new(wire::PushReply {}))
    }
}

fn replies(answers: impl IntoIterator<Item = (u64, Option<reply::Kind>)>) -> wire::ReplyBatch {
    let replies = answers.into_iter().map(|(id, kind)| wire::Reply { id, kind }).collect();
    wire::ReplyBatch { replies, fragment: None }
}

fn odd_member(phase: i32, addr: &str) -> wire::Member {
    let (grpc_addr, http_addr) = ("h:1".into(), addr.into());
    wire::Member { id: 1, generation: 1, phase, grpc_addr, http_addr }
}

/// A message in parts of half a MiB.
fn in_parts(batch: &wire::RequestBatch) -> Vec<wire::RequestBatch> {
    let whole = prost::Message::encode_to_vec(batch);
    let part = |data: &[u8]| wire::RequestBatch {
        requests: Vec::new(),
        fragment: Some(wire::Fragment {
            total_bytes: whole.len() as u64,
            data: Bytes::copy_from_slice(data),
        }),
    };
    whole.chunks(512 * 1_024).map(part).collect()
}

/// What a call says of its caller and of whom it expects.
fn handshake(cluster: &str, protocol: &str, node: Option<&str>) -> Request<()> {
    let mut request = Request::new(());
    let metadata = request.metadata_mut();
    metadata.insert_bin("lally-cluster-bin", MetadataValue::from_bytes(cluster.as_bytes()));
    metadata.insert("lally-protocol", protocol.parse().unwrap());
    if let Some(node) = node {
        metadata.insert("lally-node", node.parse().unwrap());
    }
    request
}

fn with<T>(handshake: Request<()>, message: T) -> Request<T> {
    handshake.map(|()| message)
}

fn keyed_by(name: &str, time: u64, node: u64) -> lally::domain::KeyedEntry {
    use lally::domain::{Entry, KeyedEntry, Timestamp, Version};
    let version = Version::new(Timestamp::from_nanos(time), NodeId::new(node));
    KeyedEntry::new(key(name), Entry::tombstone(version))
}
