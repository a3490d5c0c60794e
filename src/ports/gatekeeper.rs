//! The `Gatekeeper`: who shows what, and what that gives.

use std::sync::Arc;

use crate::domain::Access;

/// Knows the tokens.
///
/// Asked on every request of a client, on the threads that serve: it MUST NOT wait, and how long it takes
/// MUST NOT tell how much of a token is right.
#[cfg_attr(test, mockall::automock)]
pub trait Gatekeeper: Send + Sync {
    /// What this token gives, unless it is unknown.
    fn access(&self, token: &[u8]) -> Option<Arc<Access>>;
}
