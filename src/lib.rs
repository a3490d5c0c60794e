//! Lally: a distributed in-memory key-value database, as a library.
//!
//! The binary is `app::compose` over the production adapters; an embedding program composes a
//! node from the adapters of its choice. Who may name whom:
//!
//! ```text
//! main --> app --> adapters --> ports --> domain
//! ```
//!
//! Start reading at [`domain`], then [`ports`]; `ARCHITECTURE.md` has the map.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "numbers in tests are small"
    )
)]

pub mod adapters;
pub mod app;
pub mod domain;
pub mod ports;
