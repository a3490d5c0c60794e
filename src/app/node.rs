//! `Node`: a whole node over any adapters.
//!
//! [`Node::new`] wires the use cases together and does nothing else. Then, in this order:
//! [`replay`](Node::replay) the log, let peers in, [`start`](Node::start); and at the end
//! [`refuse_clients`](Node::refuse_clients), [`leave`](Node::leave), let no more peers in,
//! [`close`](Node::close).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::domain::{Member, NodeId, Start};
use crate::ports::{Book, ClientApi, LogError, Replayed, ReplicaApi};

use super::announcer::Announcer;
use super::apply::Replica;
use super::clocks::Clocks;
use super::closing;
use super::collector::Collector;
use super::compactor::Compactor;
use super::coordinator::Coordinator;
use super::exchange::Sides;
use super::ghosts::Ghosts;
use super::handoff::{Handoff, HandoffLimits};
use super::hook_chain::HookChain;
use super::joining::Joining;
use super::lags::Lags;
use super::live::Live;
use super::members::Members;
use super::parts::NodeParts;
use super::peer_service::PeerService;
use super::reading::Reader;
use super::reconcile::Reconciler;
use super::recount::Recounter;
use super::repair::ReadRepair;
use super::settings::NodeSettings;
use super::slow_calls::SlowCalls;
use super::stage::{LifeStage, Stage};
use super::stamps::Stamps;
use super::tasks::Tasks;
use super::unawaited::Unawaited;
use super::writing::Writer;

/// How long a stopping node waits for what is under way: the deliveries of the last writes, each
/// bounded by the timeout of a call to a peer.
const FINISH_WITHIN: Duration = Duration::from_millis(2_500);

/// How long it delivers what members missed before.
const DELIVER_WITHIN: Duration = Duration::from_millis(1_500);

/// How long a stopping node gives its last words.
const LEAVE_WITHIN: Duration = Duration::from_millis(1_500);

/// A node.
pub struct Node {
    stage: Arc<Stage>,
    members: Arc<Members>,
    replica: Arc<Replica>,
    announcer: Arc<Announcer>,
    reconciler: Arc<Reconciler>,
    handoff: Arc<Handoff>,
    clocks: Arc<Clocks>,
    compactor: Arc<Compactor>,
    coordinator: Arc<Coordinator>,
    peer_service: Arc<PeerService>,
    parts: NodeParts,
    settings: NodeSettings,
    start: Start,
    /// The members of the last life.
    remembered: BTreeSet<NodeId>,
    tasks: Tasks,
}

impl Node {
    /// The record with which a node of this identity first states itself. The failure detector
    /// needs it before the node exists.
    pub fn first_record(book: &Book, start: Start, settings: &NodeSettings) -> Member {
        Member {
            id: book.id,
            generation: book.generation,
            phase: start.first_phase(),
            grpc_addr: settings.grpc_addr.clone(),
            http_addr: settings.http_addr.clone(),
        }
    }

    #[expect(clippy::too_many_lines, reason = "wiring: one statement per use case, no branch")]
    /// A node of the identity in `book` (see [`claim_identity`](super::claim_identity)).
    pub fn new(parts: NodeParts, settings: NodeSettings, book: &Book, start: Start) -> Self {
        let tasks = Tasks::default();
        let stage = Arc::new(Stage::new());
        let me = Self::first_record(book, start, &settings);
        let hooks = Arc::new(HookChain::start(parts.hooks.clone()));
        let stamps = Arc::new(Stamps::new(
            me.id,
            settings.max_clock_drift,
            Arc::clone(&parts.clock),
            Arc::clone(&parts.log),
        ));
        let replica = Replica::new(
            Arc::clone(&parts.store),
            Arc::clone(&parts.log),
            Arc::clone(&stamps),
            Arc::clone(&hooks),
            Arc::clone(&stage),
        );
        let replica = Arc::new(replica.walking(settings.walks));
        let members = Arc::new(Members::new(
            &settings.cluster,
            me.clone(),
            book.members.clone(),
            start,
            Arc::clone(replica.fence().horizon()),
        ));
        let sides = Sides {
            replica: Arc::clone(&replica),
            transport: Arc::clone(&parts.transport),
            ghosts: Ghosts::new(
                Arc::clone(&replica),
                Arc::clone(&parts.quarantine),
                Arc::clone(&parts.clock),
            ),
            peer_timeout: settings.peer_timeout,
            walks: settings.walks,
            counts: Mutex::default(),
        };
        let reconciler =
            Arc::new(Reconciler::new(Arc::clone(&members), sides, Arc::clone(&parts.clock)));
        let handoff = Arc::new(Handoff::new(
            Arc::clone(&members),
            Arc::clone(&parts.transport),
            Arc::clone(&parts.store),
            Arc::clone(&reconciler),
            HandoffLimits {
                peer_timeout: settings.peer_timeout,
                max_hint_bytes: settings.max_hint_bytes,
            },
        ));
        let repair = Arc::new(ReadRepair::new(
            Arc::clone(&members),
            Arc::clone(&parts.transport),
            Arc::clone(&replica),
            Arc::clone(&handoff),
            settings.peer_timeout,
        ));
        let announcer = Arc::new(Announcer {
            members: Arc::clone(&members),
            transport: Arc::clone(&parts.transport),
            detector: Arc::clone(&parts.detector),
            book: Arc::clone(&parts.book),
            reconciler: Arc::clone(&reconciler),
            handoff: Arc::clone(&handoff),
        });
        let writer = Arc::new(Writer {
            members: Arc::clone(&members),
            replica: Arc::clone(&replica),
            stamps: Arc::clone(&stamps),
            transport: Arc::clone(&parts.transport),
            handoff: Arc::clone(&handoff),
            tasks: tasks.clone(),
            unawaited: Unawaited::default(),
            peer_timeout: settings.peer_timeout,
        });
        let reader = Arc::new(Reader {
            members: Arc::clone(&members),
            replica: Arc::clone(&replica),
            stamps,
            transport: Arc::clone(&parts.transport),
            repair: Arc::clone(&repair),
            tasks: tasks.clone(),
            peer_timeout: settings.peer_timeout,
        });
        let clocks = Arc::new(Clocks::new(
            Arc::clone(&members),
            Arc::clone(&parts.transport),
            Arc::clone(&parts.clock),
            settings.max_clock_drift,
        ));
        let compactor =
            Arc::new(Compactor { replica: Arc::clone(&replica), log: Arc::clone(&parts.log) });
        let coordinator = Arc::new(Coordinator {
            live: Arc::new(Live::new((&settings).into())),
            stage: Arc::clone(&stage),
            members: Arc::clone(&members),
            hooks,
            reader,
            writer,
            replica: Arc::clone(&replica),
            log: Arc::clone(&parts.log),
            repair,
            handoff: Arc::clone(&handoff),
            reconciler: Arc::clone(&reconciler),
            announcer: Arc::clone(&announcer),
            clocks: Arc::clone(&clocks),
            lags: Arc::new(Lags::new(&members, &handoff, &reconciler)),
            transport: Arc::clone(&parts.transport),
            recounter: Arc::new(Recounter::new(Arc::clone(&parts.store), settings.walks)),
            compactor: Arc::clone(&compactor),
            backups: super::backups::Backups::new(Arc::clone(&parts.log), tasks.clone()),
            tasks: tasks.clone(),
        });
        let peer_service = Arc::new(PeerService {
            replica: Arc::clone(&replica),
            announcer: Arc::clone(&announcer),
            detector: Arc::clone(&parts.detector),
            clock: Arc::clone(&parts.clock),
            walks: settings.walks,
            slow_calls: SlowCalls::beyond(settings.slow_log_threshold),
        });
        Self {
            stage,
            members,
            replica,
            announcer,
            reconciler,
            handoff,
            clocks,
            compactor,
            coordinator,
            peer_service,
            parts,
            settings,
            start,
            remembered: book.members.iter().map(|member| member.id).collect(),
            tasks,
        }
    }

    /// What clients call. Before the node serves, every call says that it is not ready.
    pub fn client_api(&self) -> Arc<dyn ClientApi> {
        Arc::clone(&self.coordinator) as Arc<dyn ClientApi>
    }

    /// What can be changed while it runs.
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.coordinator.live)
    }

    /// What peers call.
    pub fn replica_api(&self) -> Arc<dyn ReplicaApi> {
        Arc::clone(&self.peer_service) as Arc<dyn ReplicaApi>
    }

    /// Fills the store from the log.
    ///
    /// # Errors
    /// Those of [`OpLog::replay`](crate::ports::OpLog::replay); the node must not be started then.
    pub async fn replay(&self) -> Result<Replayed, LogError> {
        self.replica.replay().await
    }

    /// Joins the cluster, or founds it, and serves. Returns at once; what follows is reported by
    /// [`ClientApi::readiness`].
    pub fn start(&self) {
        let state = self.members.view().my_state();
        tracing::info!(?state, known = self.members.view().others().count(), "cluster state");
        for member in self.members.view().peers() {
            self.parts.detector.watch(member);
        }
        let (announcer, stopped) = (Arc::clone(&self.announcer), self.tasks.stopped());
        self.tasks.spawn(async move { announcer.run_spreading(stopped).await });
        let announcer = Arc::clone(&self.announcer);
        self.tasks.spawn_loop(async move { announcer.run_detection().await });
        let (announcer, seeds) = (Arc::clone(&self.announcer), self.settings.seeds.clone());
        self.tasks.spawn_loop(async move { announcer.run_searching(&seeds).await });
        let handoff = Arc::clone(&self.handoff);
        self.tasks.spawn_loop(async move { handoff.run().await });
        let clocks = Arc::clone(&self.clocks);
        self.tasks.spawn_loop(async move { clocks.run().await });
        let lags = Arc::clone(&self.coordinator.lags);
        self.tasks.spawn_loop(async move { lags.run().await });
        let compactor = Arc::clone(&self.compactor);
        self.tasks.spawn_loop(async move { compactor.run().await });
        let (reconciler, interval) =
            (Arc::clone(&self.reconciler), self.settings.anti_entropy_interval);
        let random_seed = self.settings.random_seed;
        self.tasks.spawn_loop(async move { reconciler.run(interval, random_seed).await });
        let recounter = Arc::clone(&self.coordinator.recounter);
        self.tasks.spawn_loop(async move { recounter.run().await });
        let collector = Collector {
            members: Arc::clone(&self.members),
            reconciler: Arc::clone(&self.reconciler),
            replica: Arc::clone(&self.replica),
            transport: Arc::clone(&self.parts.transport),
            clock: Arc::clone(&self.parts.clock),
            grace: self.settings.tombstone_grace,
            max_absence: self.settings.max_absence,
        };
        self.tasks.spawn_loop(collector.run(random_seed));
        let joining = Joining {
            start: self.start,
            seeds: self.settings.seeds.clone(),
            members: Arc::clone(&self.members),
            announcer: Arc::clone(&self.announcer),
            reconciler: Arc::clone(&self.reconciler),
            stage: Arc::clone(&self.stage),
            replica: Arc::clone(&self.replica),
            remembered: self.remembered.clone(),
        };
        self.tasks.spawn_loop(joining.run());
    }

    /// Takes no more operations of clients; those that run go on. The first step of a stop.
    pub fn refuse_clients(&self) {
        self.stage.advance(LifeStage::Stopping);
    }

    /// Finishes what is under way, delivers what members that are up have missed, and tells the
    /// peers "left". Takes at most five and a half seconds.
    pub async fn leave(&self) {
        self.finish_up().await;
        // What only this node has must not go with it: nobody counts on its return.
        let delivering = self.handoff.deliver_once();
        if tokio::time::timeout(DELIVER_WITHIN, delivering).await != Ok(true) {
            tracing::warn!("leaving although members that are up have missed writes");
        }
        self.members.leave();
        let farewell = async {
            self.announcer.save().await;
            self.announcer.announce_to_all().await;
            self.parts.detector.leave().await;
        };
        if tokio::time::timeout(LEAVE_WITHIN, farewell).await.is_err() {
            tracing::warn!("not every peer heard that this node left");
        }
    }

    /// Finishes what is under way and says nothing: for a node that cannot go on, and stays a member
    /// until it is back. Takes at most two and a half seconds.
    pub async fn finish_up(&self) {
        self.refuse_clients();
        if !self.tasks.finish(FINISH_WITHIN).await {
            tracing::warn!("stopping although deliveries are under way: peers will compare");
        }
    }

    /// Ends without a word, as a crash would: for tests of what comes after. Nothing is flushed.
    pub fn abandon(&self) {
        self.stage.advance(LifeStage::Stopping);
        self.tasks.abandon();
    }

    /// Closes the connections to the peers and the log, and has the hooks finish meanwhile. The last
    /// step of a stop.
    ///
    /// # Errors
    /// [`LogError`] when the log could not be closed properly.
    pub async fn close(&self) -> Result<(), LogError> {
        closing::close(&self.parts, &self.coordinator.hooks).await
    }
}

#[cfg(test)]
impl Node {
    /// The members, for tests that bring them together by hand.
    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    /// The data, for tests that exchange it by hand.
    pub(crate) const fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// The hints, for tests that deliver them by hand.
    pub(crate) fn handoff(&self) -> &Handoff {
        &self.handoff
    }

    /// The comparisons, for tests that know how they end.
    pub(crate) fn reconciler(&self) -> &Reconciler {
        &self.reconciler
    }

    /// Serves without joining anybody.
    pub(crate) fn serve_at_once(&self) {
        self.stage.advance(LifeStage::Serving);
    }

    /// Waits for everything that goes on after the answers.
    pub(crate) async fn finish(&self) {
        assert!(self.tasks.finish(Duration::from_secs(60)).await);
    }
}
