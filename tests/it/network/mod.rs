//! Real processes on a real network that fails: five nodes, each in a network namespace of its own.
//!
//! While clients read and write through all nodes, a seeded schedule cuts, flaps and pauses, kills
//! and wipes. What the clients saw becomes a history, which is checked afterwards against what the
//! README promises, together with what every node holds once the cluster has healed by itself.
//!
//! [`lab`] is the network and its nodes, [`faults`] what is done to them, [`workload`] what clients
//! do meanwhile, [`history`] what they saw, [`checkers`] whether that was right, [`campaign`] a run
//! of all that, and the tests. `docs/faults.md` says it for readers of results.
//!
//! Not here: clocks that disagree, disks that fail, more than one fault of processes at a time.

mod campaign;
mod checkers;
mod checkers_tests;
mod faults;
mod history;
mod lab;
mod workload;
