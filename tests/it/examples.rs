//! The examples, run as tests: what embedders copy must work.

#[path = "../../examples/custom_hook.rs"]
mod custom_hook;
#[path = "../../examples/custom_store.rs"]
mod custom_store;
#[path = "../../examples/in_memory_cluster.rs"]
mod in_memory_cluster;

#[test]
fn a_custom_hook_counts_and_refuses() {
    custom_hook::main().unwrap();
}

#[test]
fn a_custom_store_serves_a_node() {
    custom_store::main().unwrap();
}

#[test]
fn three_nodes_form_a_cluster_over_the_in_memory_network() {
    in_memory_cluster::main().unwrap();
}
