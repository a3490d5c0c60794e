//! The use cases: what a node does with its ports.
//!
//! * [`Coordinator`] carries out clients' operations across the replicas.
//! * [`Replica`] is the one path by which entries enter this node.
//! * The rest brings entries to whoever lacks them: hinted handoff, read repair, the comparison of
//!   two nodes, and joining.
//!
//! [`Node`] ties them together over any adapters; [`compose`] is the only module that names the
//! production ones. Decisions are made in `domain`; what is here waits, sends and counts.

pub mod compose;

mod announcer;
mod apply;
mod asking;
mod attempt;
mod backups;
mod clocks;
mod closing;
mod collector;
mod compactor;
mod confirming;
mod coordinator;
mod exchange;
mod fence;
#[cfg(test)]
mod fixture;
mod ghosts;
mod handoff;
mod hook_chain;
mod hook_queue;
mod identity;
mod joining;
mod lags;
mod live;
mod members;
mod node;
mod parts;
mod peer_service;
mod reading;
mod reconcile;
mod recount;
mod refusals;
mod repair;
mod restorer;
mod settings;
mod slow_calls;
mod stage;
mod stamps;
mod statements;
mod tasks;
mod unawaited;
mod underway;
mod walks;
mod writing;

pub use apply::Replica;
pub use coordinator::Coordinator;
pub use identity::{Identity, IdentityError, claim_identity};
pub use live::Live;
pub use node::Node;
pub use parts::NodeParts;
pub use settings::{NodeSettings, RequestLimits};
pub use walks::Walks;
