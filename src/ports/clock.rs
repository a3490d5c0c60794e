//! The `Clock` port: wall time, as the node believes it.

use crate::domain::Timestamp;

/// Wall time.
///
/// Contract (suite: `tests/it/contracts/clock.rs`): an adapter MUST answer at once. It MAY go back or
/// jump: the hybrid logical clock above it copes. Durations and deadlines do not come from here but
/// from the runtime's timer.
#[cfg_attr(test, mockall::automock)]
pub trait Clock: Send + Sync + 'static {
    /// The wall time now.
    fn now(&self) -> Timestamp;
}
