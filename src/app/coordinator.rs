//! `Coordinator`: carries out what clients ask, across the replicas.
//!
//! Here only admission, limits, hooks and the state of the cluster; the paths of an operation are
//! in `reading` and `writing`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use crate::domain::{
    Content, Forgotten, Key, MemberState, MemberView, MemoryLimit, NodeId, StopCheck, StopRisk,
    StopWitness, Timestamp, Value,
};
use crate::ports::{
    Answer, BackupStream, ClientApi, ClientError, ClusterStatus, Compacted, Consistency,
    ForgetError, LogLevel, MemberStatus, NoLogLevel, NodeStats, NodeStatus, OpKind, OpLog,
    Operation, Origin, PeerTransport, RequestOptions,
};

use super::announcer::Announcer;
use super::apply::Replica;
use super::attempt::Write;
use super::backups::Backups;
use super::clocks::Clocks;
use super::compactor::Compactor;
use super::handoff::Handoff;
use super::hook_chain::HookChain;
use super::lags::Lags;
use super::live::Live;
use super::members::{Members, VERSION};
use super::reading::{ConfirmedQuorums, Reader};
use super::reconcile::Reconciler;
use super::recount::Recounter;
use super::repair::ReadRepair;
use super::settings::RequestLimits;
use super::stage::Stage;
use super::tasks::Tasks;
use super::writing::Writer;

/// Longest timeout that a request may ask for.
const MAX_TIMEOUT: Duration = Duration::from_secs(10);

/// The node's side towards clients.
pub struct Coordinator {
    pub(crate) live: Arc<Live>,
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
    pub(crate) announcer: Arc<Announcer>,
    pub(crate) clocks: Arc<Clocks>,
    pub(crate) lags: Arc<Lags>,
    pub(crate) transport: Arc<dyn PeerTransport>,
    pub(crate) recounter: Arc<Recounter>,
    pub(crate) compactor: Arc<Compactor>,
    pub(crate) backups: Backups,
    pub(crate) tasks: Tasks,
}

#[async_trait]
impl ClientApi for Coordinator {
    async fn get(&self, key: Key, options: RequestOptions) -> Result<Answer, ClientError> {
        let limits = self.live.limits();
        let deadline = self.admit(&options, &limits)?;
        let hooks = self.ask_hooks(OpKind::Get, &key, None).await?;
        if self.hooks.is_empty() {
            return Ok(self.read(key, options, limits, deadline).await);
        }
        let mut answer = self.read(key.clone(), options, limits, deadline).await;
        answer.phases.hooks = hooks;
        self.hooks.after_read(&key, answer.value.is_some());
        Ok(answer)
    }

    async fn add(
        &self,
        key: Key,
        value: Value,
        options: RequestOptions,
    ) -> Result<Answer, ClientError> {
        let limits = self.live.limits();
        let deadline = self.admit_write(&options, &limits)?;
        let (bytes, max_bytes) = (value.as_str().len(), limits.max_value_bytes);
        if bytes > max_bytes {
            return Err(ClientError::TooLarge { bytes, max_bytes });
        }
        let content = Content::Live(value);
        self.admit_growth(&key, &content, limits.max_memory)?;
        let hooks = self.ask_hooks(OpKind::Add, &key, content.value()).await?;
        let quorum = options.quorum.unwrap_or(limits.write_quorum);
        let trace = options.trace;
        self.write(Write { key, content, quorum, deadline, trace }, hooks).await
    }

    async fn remove(&self, key: Key, options: RequestOptions) -> Result<Answer, ClientError> {
        let limits = self.live.limits();
        let deadline = self.admit_write(&options, &limits)?;
        let hooks = self.ask_hooks(OpKind::Remove, &key, None).await?;
        let quorum = options.quorum.unwrap_or(limits.write_quorum);
        let content = Content::Tombstone;
        let trace = options.trace;
        self.write(Write { key, content, quorum, deadline, trace }, hooks).await
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
        self.stage.readiness()?;
        self.members.check_whole()?;
        self.clocks.check()
    }

    fn cluster(&self) -> ClusterStatus {
        let view = self.members.view();
        ClusterStatus {
            cluster: self.members.cluster().to_owned(),
            node: NodeStatus {
                member: view.me().clone(),
                state: view.my_state(),
                version: VERSION.to_owned(),
            },
            members: self.others(&view),
            store: self.replica.store().stats(),
            digest: self.replica.store().digest(),
            horizon: Some(self.replica.horizon()).filter(|at| *at > Timestamp::ZERO),
        }
    }

    fn stats(&self) -> NodeStats {
        let (entries_synced, drift_refusals) = self.replica.counts();
        let (late_arrivals, tombstones_dropped) = self.replica.fence().counts();
        let (hook_drops, hook_panics) = self.hooks.counts();
        NodeStats {
            store: self.replica.store().stats(),
            memory_limit: self.live.limits().max_memory,
            log: self.log.stats(),
            read_repairs: self.repair.repaired(),
            hints_delivered: self.handoff.delivered(),
            entries_synced,
            comparison: self.reconciler.counts(),
            digest_drift: self.recounter.drifted(),
            drift_refusals,
            late_arrivals,
            tombstones_dropped,
            quarantined: self.reconciler.quarantined(),
            horizon_age: self.replica.horizon_age(),
            hook_drops,
            hook_panics,
            unawaited_writes: self.writer.unawaited.count() as u64,
            peer_connections: self.live.peer_connections(),
            reloads: self.live.counts(),
            deliveries: self.hooks.deliveries(),
        }
    }

    async fn forget(&self, member: NodeId) -> Result<Forgotten, ForgetError> {
        self.stage.admit_operator()?;
        Ok(self.announcer.forget(member).await?)
    }

    async fn compact_log(&self) -> Result<Compacted, ClientError> {
        self.stage.admit_operator()?;
        let compactor = Arc::clone(&self.compactor);
        let (answer, compacted) = tokio::sync::oneshot::channel();
        self.tasks.spawn_loop(async move {
            // Whoever asked may be gone.
            answer.send(compactor.compact().await).ok();
        });
        compacted.await.unwrap_or(Err(ClientError::ShuttingDown))
    }

    async fn backup(&self) -> Result<Box<dyn BackupStream>, ClientError> {
        // As for a read: what is not whole is no backup.
        self.admit(&RequestOptions::default(), &self.live.limits())?;
        self.backups.begin().await
    }

    fn stop_risks(&self) -> Vec<StopRisk> {
        let others = self.others(&self.members.view()).into_iter().map(|other| StopWitness {
            id: other.member.id,
            phase: other.member.phase,
            state: other.state,
            hints: other.hints,
            in_sync: other.in_sync,
        });
        let RequestLimits { read_quorum, write_quorum, .. } = self.live.limits();
        StopCheck { others: others.collect(), read_quorum, write_quorum }.risks()
    }

    fn set_log_level(&self, level: LogLevel) -> Result<(), NoLogLevel> {
        self.live.set_log_level(level)
    }
}

impl Coordinator {
    /// Whether the request is taken, and until when it must be answered.
    fn admit(
        &self,
        options: &RequestOptions,
        limits: &RequestLimits,
    ) -> Result<Instant, ClientError> {
        self.stage.admit_client()?;
        // The stage follows when the rounds of joining begin; what is asked until then must wait.
        self.members.check_whole().map_err(ClientError::NotReady)?;
        let timeout = options.timeout.unwrap_or(limits.request_timeout).min(MAX_TIMEOUT);
        Ok(Instant::now() + timeout)
    }

    /// Whether there is memory for a value. Writes under way are not counted: together they may
    /// exceed the limit.
    fn admit_growth(
        &self,
        key: &Key,
        content: &Content,
        limit: MemoryLimit,
    ) -> Result<(), ClientError> {
        if limit == MemoryLimit::NONE {
            return Ok(());
        }
        let (used, held) = (self.replica.store().stats().memory_bytes, self.replica.get(key));
        let admitted = limit.admit(used, key, held.as_ref(), content);
        admitted.map_err(|full| ClientError::MemoryFull { max_memory: full.limit_bytes })
    }

    /// The other members, as this node sees them.
    fn others(&self, view: &MemberView) -> Vec<MemberStatus> {
        let others = view.others().map(|(member, state)| {
            let (lag, statements) = (self.lags.of(member.id, state), self.members.statements());
            MemberStatus {
                member: member.clone(),
                state,
                hints: lag.hints,
                in_sync: lag.in_sync,
                lag: lag.behind_for,
                last_heard: statements.last_heard(member.id),
                version: statements.version_of(member.id),
                calls: self.transport.stats(member.id),
                clock_offset_ms: self.clocks.offset_ms(member.id),
                clock_refusals: self.replica.clock_refusals(member.id),
            }
        });
        others.collect()
    }

    async fn write(&self, write: Write, hooks: Duration) -> Result<Answer, ClientError> {
        let mut answer = self.writer.write(write).await?;
        answer.phases.hooks = hooks;
        Ok(answer)
    }

    async fn read(
        &self,
        key: Key,
        options: RequestOptions,
        limits: RequestLimits,
        deadline: Instant,
    ) -> Answer {
        let read = options.quorum.unwrap_or(limits.read_quorum);
        match options.consistency {
            Consistency::Default => self.reader.read(key, read, deadline, options.trace).await,
            Consistency::Confirmed => {
                let quorums = ConfirmedQuorums { read, write: limits.write_quorum };
                self.reader.read_confirmed(key, quorums, deadline, options.trace).await
            }
        }
    }

    /// Likewise of a request that this node has to stamp.
    fn admit_write(
        &self,
        options: &RequestOptions,
        limits: &RequestLimits,
    ) -> Result<Instant, ClientError> {
        let deadline = self.admit(options, limits)?;
        self.clocks.check().map_err(ClientError::NotReady)?;
        self.writer.unawaited.check()?;
        Ok(deadline)
    }

    /// How long they took, if none refuses.
    async fn ask_hooks(
        &self,
        kind: OpKind,
        key: &Key,
        value: Option<&Value>,
    ) -> Result<Duration, ClientError> {
        if self.hooks.asks_nobody() {
            return Ok(Duration::ZERO);
        }
        let since = Instant::now();
        let (key, value, origin) = (key.clone(), value.cloned(), Origin::Client);
        self.hooks.before(Operation { key, kind, origin, value, version: None }).await?;
        Ok(since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::fixture::{Fixture, TestNode, announced, key, live, member};
    use crate::domain::{Entry, KeyedEntry, Phase};

    /// A node whose data may take as much as these values under keys of one letter do.
    fn node_for(values: &[usize]) -> TestNode {
        let memory = values.iter().map(|bytes| content(*bytes).memory_bytes(&key("k")) as u64);
        let mut fixture = Fixture::with_peers([2]).all_acknowledge();
        fixture.settings.max_memory = MemoryLimit::bytes(memory.sum());
        fixture.build()
    }

    fn content(bytes: usize) -> Content {
        Content::Live(value(bytes))
    }

    fn value(bytes: usize) -> Value {
        Value::new(&"v".repeat(bytes))
    }

    async fn add(node: &TestNode, name: &str, bytes: usize) -> Result<(), ClientError> {
        let options = RequestOptions::default();
        node.client().add(key(name), value(bytes), options).await.map(|_| ())
    }

    fn full(node: &TestNode) -> Result<(), ClientError> {
        let max_memory = node.client().stats().memory_limit.as_bytes().unwrap();
        Err(ClientError::MemoryFull { max_memory })
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_makes_the_data_outgrow_its_memory_is_refused_and_nothing_is_done() {
        let node = node_for(&[100, 100]);
        add(&node, "a", 100).await.unwrap();
        add(&node, "b", 100).await.unwrap();
        let held = node.held("a");
        for (name, bytes) in [("c", 0), ("a", 200)] {
            assert_eq!(add(&node, name, bytes).await, full(&node));
        }
        assert_eq!((node.held("a"), node.held("c")), (held, None));
        node.node.finish().await;
        assert_eq!(node.client().cluster().members[0].hints, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_makes_no_data_grow_is_taken_and_what_it_frees_can_be_used() {
        let node = node_for(&[1_000, 1_000]);
        for name in ["a", "b"] {
            add(&node, name, 1_000).await.unwrap();
        }
        assert_eq!(add(&node, "c", 10).await, full(&node));
        add(&node, "a", 1_000).await.unwrap();
        add(&node, "a", 500).await.unwrap();
        add(&node, "c", 10).await.unwrap();
        assert_eq!(add(&node, "d", 500).await, full(&node));
        for name in ["b", "absent"] {
            node.client().remove(key(name), RequestOptions::default()).await.unwrap();
        }
        add(&node, "d", 500).await.unwrap();
        assert!(node.client().get(key("d"), RequestOptions::default()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_other_nodes_send_is_taken_beyond_the_limit() {
        let node = node_for(&[100]);
        let writes: Vec<_> =
            ["a", "b", "c"].map(|name| KeyedEntry::new(key(name), live(5, "v"))).into();
        for origin in [Origin::Replica, Origin::Sync] {
            let replies = node.node.replica_api().apply(writes.clone(), origin.into()).await;
            assert!(replies.iter().all(Result::is_ok), "{replies:?}");
        }
        let stats = node.client().stats();
        assert!(stats.store.memory_bytes > stats.memory_limit.as_bytes().unwrap());
        assert_eq!(add(&node, "d", 1).await, full(&node));
        assert_eq!(node.held("c").as_ref().and_then(Entry::value), Some(&Value::new("v")));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_everything_is_taken() {
        let node = Fixture::with_peers([]).build();
        add(&node, "a", 1 << 20).await.unwrap();
        assert_eq!(node.client().stats().memory_limit, MemoryLimit::NONE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_has_to_join_again_serves_nobody_from_that_moment_on() {
        let node = Fixture::with_peers([]).build();
        node.hold("k", live(5, "of the smaller cluster"));
        assert_eq!(node.client().readiness(), Ok(()));
        // Of another cluster, with more members.
        let theirs = announced(member(2, Phase::Whole), vec![member(3, Phase::Whole)]);
        node.node.members().take_in(theirs, None);
        let options = RequestOptions::default();
        let read = node.client().get(key("k"), options).await;
        assert!(matches!(read, Err(ClientError::NotReady(_))), "{read:?}");
        let write = node.client().add(key("k"), Value::new("v"), options).await;
        assert!(matches!(write, Err(ClientError::NotReady(_))), "{write:?}");
        assert!(node.client().readiness().is_err());
    }
}
