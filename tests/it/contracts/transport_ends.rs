//! What ends a stream of calls, and what must not end with it.
//!
//! The connection is a pipe of this process, so that a test sees when it is closed.

use std::io;
use std::sync::Arc;

use futures_util::future::join;
use lally::adapters::grpc::{Dial, GrpcOptions, GrpcPeers, ServerOptions, serve_connections};
use lally::domain::NodeId;
use lally::ports::{Peer, PeerTransport, WriteReply};
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::networks::{BLUE, LONG, keyed};
use super::replica::{DEADLINE, FakeReplica};

const PIPE_BYTES: usize = 1 << 16;

/// A node, the way to it, and the connections in between, each of which is a task until it is closed.
struct Ends {
    replica: Arc<FakeReplica>,
    peer: Peer,
    transport: Arc<GrpcPeers>,
    connections: TaskTracker,
    server: TaskTracker,
    stop: CancellationToken,
}

fn ends() -> Ends {
    let (replica, connections, server) =
        (FakeReplica::new(2, BLUE), TaskTracker::new(), TaskTracker::new());
    let (sender, accepted) = mpsc::channel::<io::Result<DuplexStream>>(8);
    let (options, stop) = (ServerOptions::new(BLUE, replica.me.id), CancellationToken::new());
    let incoming = ReceiverStream::new(accepted);
    let api = Arc::clone(&replica) as _;
    server.spawn(serve_connections(incoming, api, options, stop.clone()));
    let carrying = connections.clone();
    let dial = Dial::with(move |_| {
        let ((ours, mut near), (mut far, theirs)) = (duplex(PIPE_BYTES), duplex(PIPE_BYTES));
        carrying.spawn(async move { copy_bidirectional(&mut near, &mut far).await });
        let sender = sender.clone();
        async move {
            sender.send(Ok(theirs)).await.map_err(io::Error::other)?;
            Ok(ours)
        }
    });
    let transport = GrpcPeers::new(GrpcOptions::new(BLUE, NodeId::new(1), 1).dialling(dial));
    let peer = Peer { id: replica.me.id, addr: "node-2:1".into() };
    Ends { replica, peer, transport, connections, server, stop }
}

/// With one connection, over which something was written, and no more to come.
async fn connected() -> Ends {
    let ends = ends();
    let reply = ends.transport.write(&ends.peer, keyed("k", 1, Some("v")), LONG.into()).await;
    assert_eq!(reply, Ok(WriteReply::Applied { previous: None }));
    ends.connections.close();
    assert_eq!(ends.connections.len(), 1);
    ends
}

async fn soon(what: &str, done: impl Future<Output = ()>) {
    tokio::time::timeout(DEADLINE, done).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_write_that_was_taken_is_answered_although_the_server_stops() {
    let ends = ends();
    ends.replica.hang();
    let writing = ends.transport.write(&ends.peer, keyed("k", 1, Some("v")), LONG.into());
    let stopping = async {
        ends.replica.begun(1).await;
        ends.stop.cancel();
        ends.replica.go_on();
    };
    let (reply, ()) = join(writing, stopping).await;
    assert_eq!(reply, Ok(WriteReply::Applied { previous: None }));
    ends.server.close();
    soon("the server does not stop", ends.server.wait()).await;
}

#[tokio::test]
async fn the_connection_to_a_peer_that_is_released_is_closed() {
    let ends = connected().await;
    ends.transport.release(&ends.peer);
    soon("the connection is open", ends.connections.wait()).await;
}

#[tokio::test]
async fn a_transport_that_is_closed_leaves_no_connection() {
    let ends = connected().await;
    soon("it does not close", ends.transport.close()).await;
    soon("the connection is open", ends.connections.wait()).await;
}
