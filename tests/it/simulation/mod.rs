//! Whole nodes in one process, on a simulated network, clock and disk, driven by one seed.
//!
//! What is simulated and what is checked: `docs/simulation.md`.

mod checks;
mod cluster;
mod disk;
mod fabricated;
mod faults;
mod history;
mod linearizability;
mod losses;
mod network;
mod registers;
mod runner;
mod streams;
mod tests;
mod transport;
mod watching;
mod wire;
mod workload;
mod world;
