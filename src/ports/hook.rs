//! The `Hook` port: code of the operator's choice beside every operation.

use std::time::Duration;

use crate::domain::{Key, Timestamp, Value, Version};

/// Sees operations, and may refuse those of clients. `docs/hooks.md` is the reference for users.
///
/// A hook cannot harm the database: calls of `after` come from a queue of the hook's own, on a
/// thread of its own; what does not fit into the queue is dropped and counted. A panic is caught,
/// counted, and the hook goes on with the next operation. `before` is called only if
/// [`may_veto`](Self::may_veto) says so, away from the request's thread; one that panics or takes
/// longer than 100 ms is passed over and counted, and the operation goes on.
#[cfg_attr(test, mockall::automock)]
pub trait Hook: Send + Sync + 'static {
    /// The name by which refusals and log lines call it.
    fn name(&self) -> &'static str;

    /// Whether `before` is to be called. Constant over the life of the hook.
    fn may_veto(&self) -> bool {
        false
    }

    /// Whether `before` neither waits for anything nor computes for long, and so is called on the
    /// request's thread: there is no time after which it is passed over, as a rule that must hold
    /// under load needs it. One that says so and waits holds up requests. Constant.
    fn answers_at_once(&self) -> bool {
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

    /// Whether `after` is to be called for operations like this; what nobody watches costs nothing.
    /// Asked once, when the node is put together.
    #[allow(unused_variables, reason = "the default watches everything")]
    fn watches(&self, kind: OpKind, origin: Origin) -> bool {
        true
    }

    /// An operation took effect on this node: an entry was merged in, from wherever it came, or a
    /// client read. Entries that were already known or superseded are not reported, nor is what a
    /// restart reads back from the log, unless [`resumes_from`](Self::resumes_from) asks for it.
    #[allow(unused_variables, reason = "the default does not look")]
    fn after(&self, operation: &Operation, effect: Effect) {}

    /// From where on a restart tells this hook once more of what the log holds: of entries that this
    /// node stamped, later than this. For a hook that keeps what it was told, and may have been
    /// killed before it was told. Those calls of [`after`](Self::after) have the origin
    /// [`Origin::Replay`], come while the node starts, from several threads at once and without a
    /// queue in between: they must not wait.
    fn resumes_from(&self) -> Option<Timestamp> {
        None
    }

    /// The node stops; no operation follows. What the hook still has to do may take this long, on
    /// its own thread; after that nobody waits for it.
    #[allow(unused_variables, reason = "the default has nothing left to do")]
    fn stop(&self, within: Duration) {}

    /// What it has passed on to elsewhere, if that is what it does.
    fn deliveries(&self) -> Option<DeliveryStats> {
        None
    }
}

/// What a hook that passes changes on has done with them since the node started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeliveryStats {
    /// Which one it is, of several hooks of a kind.
    pub name: String,
    /// Changes that were taken.
    pub delivered: u64,
    /// Attempts that failed, and were or are to be repeated.
    pub failures: u64,
    /// Changes that the receiver refused for good.
    pub refused: u64,
    /// Changes given up after they had been tried for too long.
    pub given_up: u64,
    /// Changes that found the queue full, or the disk.
    pub dropped: u64,
    /// Changes that were kept on disk and cannot be read any more.
    pub damaged: u64,
    /// Changes that wait, or are being sent.
    pub queued: u64,
    /// What those take.
    pub queued_bytes: u64,
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
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Get, Self::Add, Self::Remove];

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
    /// The log, which a restart reads: of a client of this node, once.
    Replay,
}

impl Origin {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Client, Self::Replica, Self::Repair, Self::Sync, Self::Replay];

    /// In lower case: `client`, `replica`, `repair`, `sync`, `replay`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Replica => "replica",
            Self::Repair => "repair",
            Self::Sync => "sync",
            Self::Replay => "replay",
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
