//! The log under fire: kills, and power cuts on a real file system, of Lally and of `redis-server`.
//!
//! One harness for both: [`server`] is what it asks of a server (with [`lally`] and [`redis`]),
//! [`history`] what clients did and what may be left of it, [`disk`] a file system whose power can be
//! cut, [`ballast`] data that makes snapshots long, [`campaign`] the rounds of load, failure, restart
//! and comparison, and their table. The campaigns themselves are [`kills`], [`power_cuts`], and [`handover`], which kills nodes while one
//! of them joins or is given what it missed.
//!
//! `cargo test` runs a few rounds, beside `redis-server` if that is installed; `make kills` and
//! `make power-cuts` run many and write dated results.

mod ballast;
mod campaign;
mod disk;
mod handover;
mod history;
mod kills;
mod lally;
mod power_cuts;
pub(super) mod redis;
pub(super) mod server;
