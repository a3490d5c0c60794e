//! The configuration of a node: defaults, `lally.yml`, environment and command line, checked as a
//! whole before anything is touched.
//!
//! The keys are a table (`keys`) from which the flags, the environment variables and the
//! defaults follow, so that the ways to set a key cannot drift apart. Each way is a layer
//! (`layers`) of a figment, which remembers where every value came from: a refusal always names
//! the place to change. What a value must look like is in `forms`, what values must not meet in
//! `settings`, and what else but running a node can be asked for in `invocation`.
//! `docs/configuration.md` is the reference for users.

mod ask;
mod bench;
mod cli;
mod errors;
mod forms;
mod invocation;
mod keys;
mod layers;
mod settings;

pub use ask::{AskOptions, AskPlan, Question};
pub use bench::{BenchPlan, Distribution, Extent, Mix};
pub use errors::{ConfigExit, Stream};
pub use forms::{AdvertiseAddr, SeedAddr};
pub use invocation::{Command, Invocation, LogCommand};
pub use keys::KNOWN_HOOKS;
pub use layers::parse;
pub use settings::{Config, Fsync, LogFormat};
