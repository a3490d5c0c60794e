//! The store of the binary: a sharded hash map.
//!
//! * `store` is the `Store`: entries, digests and counts.
//! * `kept_prints` are the fingerprints of long values, which are not hashed twice.
//! * `staggered_hash` has the map's shards grow one after the other.

mod kept_prints;
mod staggered_hash;
mod store;

pub use store::DashStore;
