//! `Stage`: how far this node is in its life, and so what it answers.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::ports::ClientError;

/// The stages of a node's life, in their order; a node that has to join again goes back once more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LifeStage {
    /// Reads its log. Takes nothing.
    Replaying,
    /// Gets the data it lacks. Takes writes from peers; clients wait. The text says what for.
    Joining(String),
    /// Serves, and compares itself with the members it can reach for the first time.
    CatchingUp,
    /// Serves.
    Serving,
    /// Finishes what runs.
    Stopping,
}

/// The stage, shared. Every request looks at it, so looking takes no lock.
#[derive(Debug)]
pub(crate) struct Stage(ArcSwap<LifeStage>);

impl Stage {
    pub(crate) fn new() -> Self {
        Self(ArcSwap::from_pointee(LifeStage::Replaying))
    }

    /// Goes on to `next`, unless the node is already stopping.
    pub(crate) fn advance(&self, next: LifeStage) {
        let next = Arc::new(next);
        self.0.rcu(|stage| Arc::clone(if **stage == LifeStage::Stopping { stage } else { &next }));
    }

    /// Whether clients' operations are taken.
    pub(crate) fn admit_client(&self) -> Result<(), ClientError> {
        match &**self.0.load() {
            LifeStage::CatchingUp | LifeStage::Serving => Ok(()),
            LifeStage::Stopping => Err(ClientError::ShuttingDown),
            LifeStage::Replaying => Err(ClientError::NotReady("replaying the log".into())),
            LifeStage::Joining(why) => Err(ClientError::NotReady(why.clone())),
        }
    }

    /// Whether peers' writes are taken: from the end of the replay to the end of the node.
    pub(crate) fn admit_peer(&self) -> Result<(), &'static str> {
        match &**self.0.load() {
            LifeStage::Replaying => Err("replaying the log"),
            _ => Ok(()),
        }
    }

    /// Whether operators' changes are taken: while the node keeps up with its cluster.
    pub(crate) fn admit_operator(&self) -> Result<(), ClientError> {
        match &**self.0.load() {
            LifeStage::Stopping => Err(ClientError::ShuttingDown),
            LifeStage::Replaying => Err(ClientError::NotReady("replaying the log".into())),
            LifeStage::Joining(_) | LifeStage::CatchingUp | LifeStage::Serving => Ok(()),
        }
    }

    /// Whether a load balancer should send clients here.
    pub(crate) fn readiness(&self) -> Result<(), String> {
        match &**self.0.load() {
            LifeStage::Serving => Ok(()),
            LifeStage::Replaying => Err("replaying the log".into()),
            LifeStage::Joining(why) => Err(why.clone()),
            LifeStage::CatchingUp => Err("comparing data with the other members".into()),
            LifeStage::Stopping => Err("shutting down".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_served_while_the_node_catches_up_but_balancers_wait() {
        let stage = Stage::new();
        assert!(stage.admit_client().is_err() && stage.admit_peer().is_err());
        assert!(stage.admit_operator().is_err());
        stage.advance(LifeStage::Joining("joining".into()));
        assert!(stage.admit_client().is_err() && stage.admit_peer().is_ok());
        assert!(stage.admit_operator().is_ok());
        stage.advance(LifeStage::CatchingUp);
        assert!(stage.admit_client().is_ok() && stage.readiness().is_err());
        stage.advance(LifeStage::Serving);
        assert!(stage.readiness().is_ok());
    }

    #[test]
    fn a_stopping_node_does_not_come_back_but_still_takes_what_peers_send() {
        let stage = Stage::new();
        stage.advance(LifeStage::Stopping);
        stage.advance(LifeStage::Serving);
        assert_eq!(stage.admit_client(), Err(ClientError::ShuttingDown));
        assert_eq!(stage.admit_operator(), Err(ClientError::ShuttingDown));
        assert!(stage.admit_peer().is_ok());
    }
}
