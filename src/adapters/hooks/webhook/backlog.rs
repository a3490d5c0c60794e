//! `Backlog`: the changes that wait for a receiver, in memory or on disk, in their order.

use std::collections::{BTreeMap, VecDeque};

use tokio::time::Instant;

use super::event::Event;
use super::outbox::Outbox;

/// What may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes: u64,
    pub(super) changes: usize,
}

/// Why a change is not kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum Dropped {
    /// The bound is reached.
    #[error("as much waits as may wait")]
    Full,
    /// The disk does not take it.
    #[error("the outbox cannot be written: {0}")]
    Disk(#[from] std::io::Error),
}

/// A change that is being delivered. It is kept until it is [`Backlog::done`] with.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) ticket: Ticket,
    pub(super) event: Event,
    /// When it began to wait; in an outbox, in this life of the node.
    pub(super) since: Instant,
}

/// Which change it is: of two, the one that came later is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// What waits for a receiver.
#[derive(Debug)]
pub(super) enum Backlog {
    Memory(MemoryBacklog),
    Disk(Box<Outbox>),
}

impl Backlog {
    /// Keeps a change, or says why not. `again` if it comes from the log, and may be here already.
    pub(super) fn put(&mut self, event: Event, again: bool) -> Result<(), Dropped> {
        match self {
            Self::Memory(memory) => memory.put(event),
            Self::Disk(outbox) => outbox.put(&event, again),
        }
    }

    /// The next change.
    pub(super) fn take(&mut self) -> Option<Taken> {
        match self {
            Self::Memory(memory) => memory.take(),
            Self::Disk(outbox) => outbox.take(),
        }
    }

    /// Forgets a change that was taken.
    pub(super) fn done(&mut self, ticket: Ticket) {
        match self {
            Self::Memory(memory) => memory.done(ticket),
            Self::Disk(outbox) => outbox.done(ticket),
        }
    }

    /// Changes that could not be read any more.
    pub(super) const fn damaged(&self) -> u64 {
        match self {
            Self::Memory(_) => 0,
            Self::Disk(outbox) => outbox.damaged(),
        }
    }

    /// How many changes wait or are being delivered, and what they take.
    pub(super) fn size(&self) -> (u64, u64) {
        match self {
            Self::Memory(memory) => memory.size(),
            Self::Disk(outbox) => outbox.size(),
        }
    }
}

/// Changes in memory: gone with the process.
#[derive(Debug)]
pub(super) struct MemoryBacklog {
    limits: Limits,
    waiting: VecDeque<(Event, Instant)>,
    /// What those that are being delivered take.
    under_way: BTreeMap<Ticket, u64>,
    bytes: u64,
    taken: u64,
}

impl MemoryBacklog {
    pub(super) const fn new(limits: Limits) -> Self {
        Self { limits, waiting: VecDeque::new(), under_way: BTreeMap::new(), bytes: 0, taken: 0 }
    }

    fn put(&mut self, event: Event) -> Result<(), Dropped> {
        let bytes = self.bytes + event.weight();
        let changes = self.waiting.len() + self.under_way.len();
        if bytes > self.limits.bytes || changes >= self.limits.changes {
            return Err(Dropped::Full);
        }
        self.bytes = bytes;
        self.waiting.push_back((event, Instant::now()));
        Ok(())
    }

    fn take(&mut self) -> Option<Taken> {
        let (event, since) = self.waiting.pop_front()?;
        let ticket = Ticket { segment: 0, offset: self.taken };
        self.taken += 1;
        self.under_way.insert(ticket, event.weight());
        Some(Taken { ticket, event, since })
    }

    fn done(&mut self, ticket: Ticket) {
        self.bytes -= self.under_way.remove(&ticket).unwrap_or_default();
    }

    fn size(&self) -> (u64, u64) {
        ((self.waiting.len() + self.under_way.len()) as u64, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{NodeId, Timestamp, Version};

    fn event(at: u64, bytes: usize) -> Event {
        let version = Version::new(Timestamp::from_nanos(at), NodeId::new(7));
        Event { version, body: vec![b'b'; bytes].into() }
    }

    #[test]
    fn what_is_being_delivered_counts_until_it_is_done_with() {
        let weight = event(0, 10).weight();
        let limits = Limits { bytes: 2 * weight, changes: 10 };
        let mut backlog = Backlog::Memory(MemoryBacklog::new(limits));
        backlog.put(event(1, 10), false).unwrap();
        backlog.put(event(2, 10), false).unwrap();
        assert!(matches!(backlog.put(event(3, 0), false), Err(Dropped::Full)));
        let first = backlog.take().unwrap();
        assert_eq!(first.event, event(1, 10));
        assert!(backlog.put(event(3, 10), false).is_err());
        assert_eq!(backlog.size(), (2, 2 * weight));
        backlog.done(first.ticket);
        backlog.put(event(3, 10), false).unwrap();
        assert_eq!(backlog.take().unwrap().event, event(2, 10));
    }

    #[test]
    fn changes_without_bytes_to_speak_of_are_counted() {
        let mut backlog = MemoryBacklog::new(Limits { bytes: u64::MAX, changes: 2 });
        for at in 0..2 {
            backlog.put(event(at, 0)).unwrap();
        }
        assert!(matches!(backlog.put(event(2, 0)), Err(Dropped::Full)));
    }
}
