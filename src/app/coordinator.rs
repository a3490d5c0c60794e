//! `Coordinator`: carries out what clients ask, across the replicas.
//!
//! Here only admission, limits, hooks and the state of the cluster; the paths of an operation are
//! in `reading` and `writing`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::domain::{Content, Key, MemberState, QuorumSpec, Value};
use crate::ports::{
    Answer, ClientApi, ClientError, ClusterStatus, MemberStatus, NodeStats, NodeStatus, OpKind,
    OpLog, Operation, Origin, RequestOptions,
};

use super::apply::Replica;
use super::handoff::Handoff;
use super::hook_chain::HookChain;
use super::members::Members;
use super::reading::Reader;
use super::reconcile::Reconciler;
use super::repair::ReadRepair;
use super::stage::Stage;
use super::writing::Writer;

/// Longest timeout that a request may ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);

/// The node's side towards clients.
pub struct Coordinator {
    pub(crate) defaults: Defaults,
    pub(crate) stage: Arc<Stage>,
    pub(crate) members: Arc<Members>,
    pub(crate) hooks: Arc<HookChain>,
    pub(crate) reader: Arc<Reader>,
    pub(crate) writer: Arc<Writer>,
    pub(crate) replica: Arc<Replica>,
    pub(crate) log: Arc<dyn OpLog>,
    pub(crate) repair: Arc<ReadRepair>,
    pub(crate) handoff: Arc<Handoff>,
    pub(crate) reconciler: Arc<Reconciler>,
}

/// What holds for a request that does not say otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) read_quorum: QuorumSpec,
    pub(crate) write_quorum: QuorumSpec,
    pub(crate) timeout: Duration,
    pub(crate) max_value_bytes: usize,
}

#[async_trait]
impl ClientApi for Coordinator {
    async fn get(&self, key: Key, options: RequestOptions) -> Result<Answer, ClientError> {
        let deadline = self.admit(&options)?;
        self.ask_hooks(OpKind::Get, &key, None).await?;
        let quorum = options.quorum.unwrap_or(self.defaults.read_quorum);
        if self.hooks.is_empty() {
            return Ok(self.reader.read(key, quorum, deadline).await);
        }
        let answer = self.reader.read(key.clone(), quorum, deadline).await;
        self.hooks.after_read(&key, answer.value.is_some());
        Ok(answer)
    }

    async fn add(
        &self,
        key: Key,
        value: Value,
        options: RequestOptions,
    ) -> Result<Answer, ClientError> {
        let deadline = self.admit(&options)?;
        let (bytes, max_bytes) = (value.as_str().len(), self.defaults.max_value_bytes);
        if bytes > max_bytes {
            return Err(ClientError::TooLarge { bytes, max_bytes });
        }
        self.ask_hooks(OpKind::Add, &key, Some(&value)).await?;
        let quorum = options.quorum.unwrap_or(self.defaults.write_quorum);
        self.writer.write(key, Content::Live(value), quorum, deadline).await
    }

    async fn remove(&self, key: Key, options: RequestOptions) -> Result<Answer, ClientError> {
        let deadline = self.admit(&options)?;
        self.ask_hooks(OpKind::Remove, &key, None).await?;
        let quorum = options.quorum.unwrap_or(self.defaults.write_quorum);
        self.writer.write(key, Content::Tombstone, quorum, deadline).await
    }

    fn nodes(&self) -> Vec<String> {
        let view = self.members.view();
        let live = view.others().filter(|(_, state)| {
            matches!(state, MemberState::Alive | MemberState::Suspect | MemberState::Joining)
        });
        let mut addrs: Vec<_> = live.map(|(member, _)| member.grpc_addr.clone()).collect();
        addrs.sort();
        addrs
    }

    fn readiness(&self) -> Result<(), String> {
        self.stage.readiness()
    }

    fn cluster(&self) -> ClusterStatus {
        let view = self.members.view();
        let members = view.others().map(|(member, state)| {
            let hints = self.handoff.count(member.id);
            let in_sync =
                state == MemberState::Alive && hints == 0 && self.reconciler.is_in_sync(member.id);
            MemberStatus { member: member.clone(), state, hints, in_sync }
        });
        ClusterStatus {
            cluster: self.members.cluster().to_owned(),
            node: NodeStatus { member: view.me().clone(), state: view.my_state() },
            members: members.collect(),
            store: self.replica.store().stats(),
            digest: self.replica.store().digest(),
        }
    }

    fn stats(&self) -> NodeStats {
        let (entries_synced, drift_refusals) = self.replica.counts();
        let (hook_drops, hook_panics) = self.hooks.counts();
        NodeStats {
            store: self.replica.store().stats(),
            log: self.log.stats(),
            read_repairs: self.repair.repaired(),
            hints_delivered: self.handoff.delivered(),
            entries_synced,
            drift_refusals,
            hook_drops,
            hook_panics,
        }
    }
}

impl Coordinator {
    /// Whether the request is taken, and until when it must be answered.
    fn admit(&self, options: &RequestOptions) -> Result<Instant, ClientError> {
        self.stage.admit_client()?;
        let timeout = options.timeout.unwrap_or(self.defaults.timeout).min(MAX_TIMEOUT);
        Ok(Instant::now() + timeout)
    }

    async fn ask_hooks(
        &self,
        kind: OpKind,
        key: &Key,
        value: Option<&Value>,
    ) -> Result<(), ClientError> {
        if self.hooks.is_empty() {
            return Ok(());
        }
        let (key, value, origin) = (key.clone(), value.cloned(), Origin::Client);
        self.hooks.before(Operation { key, kind, origin, value, version: None }).await
    }
}
