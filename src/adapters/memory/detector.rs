//! `TrustingDetector`: the failure detector of a cluster that lives in one process.
//!
//! It believes every member alive that it is told to watch. For tests that decide themselves who is
//! down, [`TrustingDetector::report`] says so by hand.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::domain::{Liveness, Member};
use crate::ports::{FailureDetector, LivenessChange};

/// Changes that wait to be taken; more are dropped, as a busy detector would.
const QUEUE_LENGTH: usize = 1_024;

/// Believes what it is told.
pub struct TrustingDetector {
    /// Taken away by [`leave`](FailureDetector::leave), which ends the stream of changes.
    sender: Mutex<Option<mpsc::Sender<LivenessChange>>>,
    changes: tokio::sync::Mutex<mpsc::Receiver<LivenessChange>>,
}

impl TrustingDetector {
    /// A detector that watches nobody yet.
    pub fn new() -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let (sender, changes) = (Mutex::new(Some(sender)), tokio::sync::Mutex::new(receiver));
        Self { sender, changes }
    }

    /// Reports this of a member.
    pub fn report(&self, member: &Member, liveness: Liveness) {
        let change = LivenessChange {
            id: member.id,
            generation: member.generation,
            grpc_addr: member.grpc_addr.clone(),
            liveness,
        };
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = sender.as_ref() {
            sender.try_send(change).ok();
        }
    }
}

impl Default for TrustingDetector {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl FailureDetector for TrustingDetector {
    fn watch(&self, member: &Member) {
        self.report(member, Liveness::Alive);
    }

    fn unwatch(&self, _member: &Member) {}

    fn restate(&self, _me: &Member) {}

    fn receive(&self, _packet: &[u8]) {}

    async fn next_change(&self) -> Option<LivenessChange> {
        self.changes.lock().await.recv().await
    }

    async fn leave(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
