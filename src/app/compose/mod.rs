//! The composition root: the production node, and the only module that names adapters.
//!
//! [`run`] is the life of the process: listen, claim the data directory, replay, serve, stop. What
//! can be refused is refused before anything is changed, in that order.

mod addresses;
mod errors;
mod run;
mod storage;

pub use errors::RunError;
pub use run::{Signals, run};
