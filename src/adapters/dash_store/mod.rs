//! The store of the binary: a sharded hash map.
//!
//! * `store` is the `Store`: entries, digests and counts.
//! * `staggered_hash` has the map's shards grow one after the other.

mod staggered_hash;
mod store;

pub use store::DashStore;
