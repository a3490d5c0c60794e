//! Entries over gRPC on a link that is slow: whoever waits sees that something comes.
//!
//! The link is a pipe of this process that carries little at a time, and time is paused.

use std::time::Duration;

use lally::adapters::grpc::{Dial, GrpcOptions, GrpcPeers, ServerOptions, serve_connections};
use lally::domain::{BucketSet, NodeId};
use lally::ports::{Peer, PeerTransport, Store};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::networks::{BLUE, keyed};
use super::replica::FakeReplica;

/// What passes at a time, and how often: 64 KiB per second.
const AT_A_TIME: usize = 8 * 1_024;
const EVERY: Duration = Duration::from_millis(125);

/// How long nothing may come: the timeout of one call to a peer.
const SILENCE: Duration = Duration::from_secs(2);

const MIB: usize = 1 << 20;

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let mut bytes = vec![0; AT_A_TIME];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        tokio::time::sleep(EVERY).await;
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// Two ends, and what carries bytes between them.
fn slow_link(tasks: &TaskTracker) -> (DuplexStream, DuplexStream) {
    let (ours, near) = duplex(AT_A_TIME);
    let (far, theirs) = duplex(AT_A_TIME);
    let ((near_reads, near_writes), (far_reads, far_writes)) = (split(near), split(far));
    tasks.spawn(carry(near_reads, far_writes));
    tasks.spawn(carry(far_reads, near_writes));
    (ours, theirs)
}

/// A node behind a slow link, and the way to it.
fn behind_a_slow_link(replica: &Arc<FakeReplica>, tasks: &TaskTracker) -> Arc<GrpcPeers> {
    let (sender, accepted) = mpsc::channel::<io::Result<DuplexStream>>(8);
    let options = ServerOptions::new(BLUE, replica.me.id);
    let stop = CancellationToken::new();
    let incoming = ReceiverStream::new(accepted);
    tasks.spawn(serve_connections(incoming, Arc::clone(replica) as _, options, stop));
    let links = tasks.clone();
    GrpcPeers::new(GrpcOptions::new(BLUE, NodeId::new(1), 1).dialling(Dial::with(move |_| {
        let (sender, (ours, theirs)) = (sender.clone(), slow_link(&links));
        async move {
            sender.send(Ok(theirs)).await.map_err(io::Error::other)?;
            Ok(ours)
        }
    })))
}

#[tokio::test(start_paused = true)]
async fn a_large_value_is_pulled_over_a_slow_link_without_a_long_silence() {
    let (replica, tasks) = (FakeReplica::new(2, BLUE), TaskTracker::new());
    let peer = Peer { id: replica.me.id, addr: "node-2:1".into() };
    let value = "v".repeat(MIB);
    for name in ["a", "b"] {
        replica.store.merge(keyed(name, 1, Some(&value)));
    }
    let transport = behind_a_slow_link(&replica, &tasks);
    let began = Instant::now();
    let mut stream = transport.pull(&peer, BucketSet::all()).await.unwrap();
    let mut entries = 0;
    while let Some(chunk) = timeout(SILENCE, stream.next()).await.expect("nothing comes") {
        entries += chunk.unwrap().entries.len();
    }
    assert_eq!(entries, 2);
    let took = began.elapsed();
    assert!(took > SILENCE * 10 && took < SILENCE * 20, "{took:?}: not a slow link");
}

#[tokio::test(start_paused = true)]
async fn a_large_value_is_pushed_over_a_slow_link_without_being_taken_for_dead() {
    let (replica, tasks) = (FakeReplica::new(2, BLUE), TaskTracker::new());
    let peer = Peer { id: replica.me.id, addr: "node-2:1".into() };
    let transport = behind_a_slow_link(&replica, &tasks);
    let (write, began) = (keyed("k", 1, Some(&"v".repeat(2 * MIB))), Instant::now());
    // Longer than the transport believes in a connection that does not answer.
    assert_eq!(transport.push(&peer, vec![write.clone()], Duration::from_secs(66)).await, Ok(()));
    assert!(began.elapsed() > Duration::from_secs(30), "{:?}: not a slow link", began.elapsed());
    assert_eq!(replica.store.get(&write.key), Some(write.entry));
}
