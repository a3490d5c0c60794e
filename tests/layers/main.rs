//! Compiles `domain` and `ports` alone: no adapter, no runtime, no protocol.
//!
//! What the two name in the rest of the crate does not exist here, so it does not compile. The
//! text check in `tests/it/tidy.rs` sees what a compiler cannot (a crate that must not be named,
//! such as `tokio`, is a dependency of this target as well); this sees what a text check cannot,
//! such as an alias.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::used_underscore_binding,
    reason = "half a crate, with nobody to use it, and its unit tests"
)]

#[path = "../../src/domain/mod.rs"]
pub mod domain;
#[path = "../../src/ports/mod.rs"]
pub mod ports;
