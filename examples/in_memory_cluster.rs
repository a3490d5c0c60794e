//! Three whole nodes in one process, on a network, a log and a clock of the program's own choice:
//! for tests of what is built on Lally, without a port or a file.
//!
//! ```sh
//! cargo run --example in_memory_cluster
//! ```

use std::sync::Arc;
use std::time::Duration;

use lally::adapters::clock::SystemClock;
use lally::adapters::memory::{
    MemoryBook, MemoryLog, MemoryNetwork, MemoryQuarantine, MemoryStore, TrustingDetector,
};
use lally::app::{Node, NodeParts, NodeSettings, claim_identity};
use lally::domain::{KeptData, Key, NodeId, Start, Value};
use lally::ports::{RequestOptions, Verdict};

const CLUSTER: &str = "example";

/// A node at this address of the network, in the cluster of the node at `seed`.
async fn start_node(
    network: &MemoryNetwork,
    addr: &str,
    id: u64,
    seed: Option<&str>,
) -> Result<Node, Box<dyn std::error::Error>> {
    let book_file = MemoryBook::default();
    let (book, last_phase) = claim_identity(&book_file, CLUSTER, NodeId::new(id)).await?;
    let start = Start::decide(last_phase, KeptData::All, seed.is_some());
    let parts = NodeParts {
        store: Arc::new(MemoryStore::new()),
        log: Arc::new(MemoryLog::default()),
        transport: network.transport(addr, CLUSTER),
        detector: Arc::new(TrustingDetector::new()),
        book: Arc::new(book_file),
        quarantine: Arc::new(MemoryQuarantine::default()),
        clock: Arc::new(SystemClock),
        hooks: Vec::new(),
    };
    let mut settings = NodeSettings::new(CLUSTER, addr, "none");
    settings.seeds = seed.map(str::to_owned).into_iter().collect();
    let node = Node::new(parts, settings, &book, start);
    node.replay().await?;
    network.attach(addr, book.id, CLUSTER, node.replica_api());
    node.start();
    Ok(node)
}

async fn ready(node: &Node) {
    while node.client_api().readiness().is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Writes through one node and reads through another.
#[tokio::main(flavor = "current_thread")]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let network = MemoryNetwork::new();
    let first = start_node(&network, "one:1", 1, None).await?;
    let second = start_node(&network, "two:1", 2, Some("one:1")).await?;
    let third = start_node(&network, "three:1", 3, Some("one:1")).await?;
    for node in [&first, &second, &third] {
        ready(node).await;
    }

    let all = RequestOptions { quorum: Some("all".parse()?), ..RequestOptions::default() };
    let key = Key::new("greeting")?;
    let written = first.client_api().add(key.clone(), Value::new("hello"), all).await?;
    assert_eq!((written.verdict, written.achieved), (Verdict::Success, 3));

    let read = third.client_api().get(key, RequestOptions::default()).await?;
    assert_eq!(read.value, Some(Value::new("hello")));

    for node in [&first, &second, &third] {
        node.leave().await;
        node.close().await?;
    }
    Ok(())
}
