//! `Orders`: what the node asks of the task that owns the protocol, kept apart from the packets, which
//! may be dropped: nobody would ask again.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::domain::{Member, NodeId};

/// What the node asks for. Asking never waits and is never in vain.
#[derive(Default)]
pub(super) struct Orders {
    open: Mutex<OpenOrders>,
    /// Wakes the task.
    pub(super) given: Notify,
}

/// What the task has not seen yet: at most one order per member.
#[derive(Default)]
pub(super) struct OpenOrders {
    /// Whom to watch, or not any more.
    pub(super) watch: BTreeMap<NodeId, (Member, Watch)>,
    pub(super) restate: Option<Member>,
    pub(super) leave: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    Begin,
    End,
}

impl Orders {
    pub(super) fn give(&self, order: impl FnOnce(&mut OpenOrders)) {
        order(&mut self.open());
        self.given.notify_one();
    }

    pub(super) fn watch(&self, member: &Member, watch: Watch) {
        self.give(|open| drop(open.watch.insert(member.id, (member.clone(), watch))));
    }

    pub(super) fn take(&self) -> OpenOrders {
        std::mem::take(&mut self.open())
    }

    fn open(&self) -> MutexGuard<'_, OpenOrders> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
