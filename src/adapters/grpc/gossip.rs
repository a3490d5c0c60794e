//! Packets of the failure detector on their way to one address.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::handshake::Handshake;
use super::peers::client;
use super::wire::GossipPacket;

/// Packets that wait for one address; more are dropped.
pub(super) const GOSSIP_QUEUE: usize = 64;

/// A stream that ended is not opened again before this time has passed.
const GOSSIP_RETRY: Duration = Duration::from_millis(200);

/// Sends packets to one address, on one stream for as long as it holds.
pub(super) async fn send_gossip(
    channel: Channel,
    handshake: Handshake,
    mut packets: mpsc::Receiver<GossipPacket>,
) {
    while let Some(first) = packets.recv().await {
        let (sender, stream) = mpsc::channel(GOSSIP_QUEUE);
        let request = handshake.request(ReceiverStream::new(stream), None);
        let mut client = client(channel.clone());
        let feeding = async {
            let mut next = Some(first);
            while let Some(packet) = next {
                if sender.send(packet).await.is_err() {
                    return;
                }
                next = packets.recv().await;
            }
        };
        tokio::select! {
            () = feeding => {}
            _ended = client.gossip(request) => tokio::time::sleep(GOSSIP_RETRY).await,
        }
    }
}
