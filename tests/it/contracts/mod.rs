//! The contracts of the ports, held over every adapter: the production one and its in-memory twin.
//!
//! Each suite is written from the documentation of its port, not from an adapter. A fact is a
//! function over the port; `suite` turns every pair of a fact and an adapter into a test, so that
//! a failure says both. What only one adapter can get wrong (bytes on disk, bytes on the wire)
//! stands beside the suite, in `log_backups`, `log_damage`, `log_sweep`, `transport_wire`,
//! `transport_slow` and `transport_ends`.

mod book;
mod clock;
mod detector;
mod log;
mod log_backups;
mod log_damage;
mod log_snapshots;
mod log_sweep;
mod logs_on_disk;
mod networks;
mod quarantine;
mod replica;
mod store;
mod suite;
mod transport;
mod transport_ends;
mod transport_slow;
mod transport_wire;
