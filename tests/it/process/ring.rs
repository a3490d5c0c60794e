//! Several nodes that know each other.

use super::node::{Node, Setup};
use super::wait::{PATIENCE, eventually, is};

/// Starts a cluster: the first node without a seed, the others seeded with it, all with these
/// arguments. Returns when every node is ready and sees every other one alive.
pub fn start(size: usize, args: &[&str]) -> Vec<Node> {
    let first = Setup::new().args(args).start_ready();
    let seed = first.grpc();
    let others: Vec<_> = (1..size).map(|_| Setup::new().args(args).seed(seed).start()).collect();
    let nodes: Vec<_> = [first].into_iter().chain(others).collect();
    wait_whole(&nodes);
    nodes
}

/// Waits until every node is ready and sees every other one of these alive.
pub fn wait_whole<'a>(nodes: impl IntoIterator<Item = &'a Node>) {
    let nodes: Vec<_> = nodes.into_iter().collect();
    eventually("all members are alive everywhere", PATIENCE, || {
        nodes.iter().try_for_each(|node| {
            node.readiness()?;
            nodes
                .iter()
                .filter(|other| other.grpc() != node.grpc())
                .try_for_each(|other| state_is(node, other, "alive"))
        })
    });
}

/// Waits until `node` sees `other` in this state.
pub fn wait_state(node: &Node, other: &Node, state: &str) {
    eventually(&format!("the member is {state}"), PATIENCE, || state_is(node, other, state));
}

/// Whether `node` sees `other` in this state; else what it sees.
pub fn state_is(node: &Node, other: &Node, state: &str) -> Result<(), String> {
    let cluster = node.cluster();
    let addr = other.grpc().to_string();
    let seen = cluster["members"]
        .as_array()
        .unwrap()
        .iter()
        .any(|member| member["grpc_addr"] == addr.as_str() && member["state"] == state);
    is(seen, format!("{addr} is not {state} in {cluster}"))
}

/// Waits until all these nodes hold the same data.
pub fn wait_equal<'a>(nodes: impl IntoIterator<Item = &'a Node>) {
    let nodes: Vec<_> = nodes.into_iter().collect();
    eventually("all nodes hold the same data", PATIENCE * 2, || {
        let held: Vec<_> = nodes.iter().map(|node| node.holdings()).collect();
        is(held.windows(2).all(|pair| pair[0] == pair[1]), format!("{held:?}"))
    });
}

/// Waits until this node's own copy of a key is this value (`None`: absent).
pub fn wait_value(node: &Node, key: &str, value: Option<&str>) {
    eventually(&format!("{key:?} is {value:?}"), PATIENCE, || {
        let reply = node.client().get_from(key, 1);
        let found = reply.json()["value"].as_str().map(str::to_owned);
        is(
            reply.status == 200 && found.as_deref() == value,
            reply.body.chars().take(200).collect::<String>(),
        )
    });
}
