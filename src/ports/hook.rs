//! The `Hook` port: code of the operator's choice beside every operation.

use crate::domain::{Key, Value, Version};

/// Sees operations, and may refuse those of clients.
///
/// A hook cannot harm the database: calls of `after` come from a queue of the hook's own, on a
/// thread of its own; what does not fit into the queue is dropped and counted. A panic is caught,
/// counted, and the hook goes on with the next operation. `before` is called only if
/// [`may_veto`](Self::may_veto) says so, away from the request's thread; one that panics or takes
/// longer than 100 ms is passed over and counted, and the operation goes on.
#[cfg_attr(test, mockall::automock)]
pub trait Hook: Send + Sync + 'static {
    /// The name by which the configuration turns it on.
    fn name(&self) -> &'static str;

    /// Whether `before` is to be called. Constant over the life of the hook.
    fn may_veto(&self) -> bool {
        false
    }

    /// A client asks this node for an operation that has not begun.
    ///
    /// # Errors
    /// A [`Veto`] refuses it: nothing is done, and the client gets the reason.
    #[allow(unused_variables, reason = "the default has nothing to object to")]
    fn before(&self, operation: &Operation) -> Result<(), Veto> {
        Ok(())
    }

    /// An operation took effect on this node: an entry was merged in, from wherever it came, or a
    /// client read. Entries that were already known or superseded are not reported, nor is what a
    /// restart reads back from the log.
    fn after(&self, operation: &Operation, effect: Effect);
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// The register.
    pub key: Key,
    /// What is done to it.
    pub kind: OpKind,
    /// On whose behalf.
    pub origin: Origin,
    /// The value written. It belongs to a user: it must not be logged.
    pub value: Option<Value>,
    /// The version written; not known yet in `before`, and not for reads.
    pub version: Option<Version>,
}

/// Kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// A read by a client.
    Get,
    /// A write of a value.
    Add,
    /// A removal.
    Remove,
}

impl OpKind {
    /// In lower case: `get`, `add`, `remove`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Add => "add",
            Self::Remove => "remove",
        }
    }
}

/// How an operation came to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A client of this node.
    Client,
    /// A client of another node, which sent it here, at once or as a hint.
    Replica,
    /// A read that found this node behind.
    Repair,
    /// A comparison with another node: joining, or anti-entropy.
    Sync,
}

impl Origin {
    /// In lower case: `client`, `replica`, `repair`, `sync`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Replica => "replica",
            Self::Repair => "repair",
            Self::Sync => "sync",
        }
    }
}

/// What an operation did on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// The entry is held now.
    Applied,
    /// The key was read and has a value.
    Found,
    /// The key was read and has none.
    NotFound,
}

/// A hook refuses an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Veto {
    /// Shown to the client.
    pub reason: String,
}
