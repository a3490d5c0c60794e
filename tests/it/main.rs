//! Integration tests, in one binary: every extra one would link everything again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "a test that cannot go on should panic"
)]

mod examples;
mod in_memory;
