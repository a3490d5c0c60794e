//! The configuration of a node: defaults, `lally.yml`, environment and command line, checked as a
//! whole before anything is touched.
//!
//! The keys are a table (`keys`) from which the flags, the environment variables and the
//! defaults follow, so that the ways to set a key cannot drift apart. Each way is a layer
//! (`layers`; `file` is the one on disk) of a figment, which remembers where every value came from: a refusal always names
//! the place to change. What a value must look like is in `forms`, what values must not meet in
//! `settings` and `security`, how much of everything there may be in `limits`, and what else but running a node can be asked for in `invocation`. What
//! every key is set to, and by what, is `effective`; `origin` reads a configuration again, and `changes`
//! says what of it is new. What counts as left out is in `absence`. What a command shows of who it is, is in `secrets`.
//! `docs/configuration.md` is the reference for users.

mod absence;
mod ask;
mod bench;
mod changes;
mod choices;
mod cli;
mod effective;
mod errors;
mod file;
mod forms;
mod hooks;
mod invocation;
mod keys;
mod layers;
mod limits;
mod manual;
mod origin;
mod secrets;
mod section;
mod security;
mod settings;

pub use ask::{AskOptions, AskPlan, Question};
pub use bench::{BenchPlan, Distribution, Extent, Mix};
pub use changes::{Change, Changes};
pub use choices::{Fsync, LogFormat};
pub use effective::{Settings, ShowForm};
pub use errors::{ConfigExit, Stream};
pub use forms::{AdvertiseAddr, SeedAddr};
pub use hooks::{PolicyRuleConfig, WebhookConfig};
pub use invocation::{Command, Invocation, LogCommand, TlsCommand};
pub use keys::KNOWN_HOOKS;
pub use layers::parse;
pub use limits::Limits;
pub use origin::Origin;
pub use security::{CertFiles, Login, PeerCertFiles, Secret, Security};
pub use settings::Config;
