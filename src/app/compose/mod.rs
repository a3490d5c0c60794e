//! The composition root: the production node, and the only module that names adapters.
//!
//! [`run`] is the life of the process: listen, claim the data directory, replay, serve, stop. What
//! can be refused is refused before anything is changed, in that order. [`perform`] carries out a
//! command instead, in a module for each.

mod addresses;
mod ask;
mod backup;
mod bench;
mod command;
mod config_check;
mod descriptors;
mod errors;
mod hooks;
mod log_check;
mod log_dump;
mod log_import;
mod log_level;
mod log_repair;
mod reload;
mod reloadables;
mod remote;
mod run;
mod secrets;
mod security;
mod standby;
mod storage;

pub use command::perform;
pub use errors::RunError;
pub use log_level::SetLogLevel;
pub use run::{Reloading, Signal, Signals, run};
pub use standby::ServingRuntime;

pub use crate::adapters::systemd::{NOTIFY_SOCKET, ServiceManager};
