//! Integration tests, in one binary: every extra one would link everything again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a test that cannot go on should panic, and says so on stderr"
)]

mod contracts;
mod corpus;
mod examples;
mod fire;
mod golden;
mod in_memory;
mod network;
mod process;
mod results;
mod simulation;
mod small_disk;
mod syscalls;
mod tidy;
