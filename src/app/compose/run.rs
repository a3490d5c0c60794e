//! The life of the process.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::adapters::clock::SystemClock;
use crate::adapters::config::{Config, Origin, Settings};
use crate::adapters::dash_store::DashStore;
use crate::adapters::file_aof::FileAof;
use crate::adapters::grpc::{self, GrpcOptions, GrpcPeers, ServerOptions};
use crate::adapters::http::{self, LiveOptions};
use crate::adapters::swim;
use crate::adapters::systemd::{Milestone, ServiceManager};
use crate::app::{Node, NodeParts, NodeSettings};
use crate::ports::NodeStats;

use super::addresses::Addresses;
use super::descriptors::raise_limit;
use super::errors::RunError;
use super::hooks::HookPlan;
use super::log_level::{LogSwitch, SetLogLevel};
use super::reload::{Reloadable, Reloader};
use super::reloadables::{self, http_options, request_limits};
use super::security::{Locks, dial, upgrade};
use super::storage::Storage;

/// How long requests under way may take once the node is asked to stop.
pub(super) const DRAIN: Duration = Duration::from_secs(3);

/// How long connections are waited for that are open after that.
const LAST_CONNECTIONS: Duration = Duration::from_secs(2);

/// How often it is looked whether the service manager has something new to be told.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// What a node can be asked from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// To stop: gracefully, and when it comes a second time, at once.
    Stop,
    /// To read its configuration again.
    Reload,
}

/// What comes from outside.
pub trait Signals: Send {
    /// Resolves when the next signal arrives. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Signal> + Send;
}

/// What a reload needs.
pub struct Reloading {
    /// Where the configuration is read again.
    pub origin: Origin,
    /// What the node is started with.
    pub settings: Settings,
    /// How the log level is changed.
    pub set_log_level: SetLogLevel,
}

/// Runs a node until it is asked to stop, and tells `manager` how it is.
///
/// It is told that the node is up once that can fail no more by itself: the log is read and both ports
/// are served. Whether clients should come here (`/readyz`) may depend on other nodes, for which no
/// service manager must wait: if all machines start at once, each would wait for the others. So that
/// is told in words only.
///
/// # Errors
/// [`RunError`] says why it did not start, or ended otherwise.
pub async fn run(
    config: Config,
    reloading: Reloading,
    signals: &mut impl Signals,
    manager: &ServiceManager,
) -> Result<(), RunError> {
    manager.tell(None, "reading the log").await;
    // A signal stops a node that still starts at once: it has served nobody.
    let (running, is_outdated) = {
        let mut starting = pin!(start(config, reloading));
        let mut is_outdated = false;
        loop {
            tokio::select! {
                started = &mut starting => break (started?, is_outdated),
                signal = signals.next() => match signal {
                    Signal::Reload => is_outdated = true,
                    Signal::Stop => {
                        tracing::info!("stopped on request, before the node served");
                        return Ok(());
                    }
                },
            }
        }
    };
    if is_outdated {
        running.reloader.ask();
    }
    let mut reporting = pin!(running.report_to(manager));
    let outcome = loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Reload => running.reloader.ask(),
                Signal::Stop => break Ok(()),
            },
            failure = running.failure() => break Err(failure),
            never = &mut reporting => match never {},
        }
    };
    if let Err(failure) = &outcome {
        tracing::error!(%failure, "stopping");
    } else {
        tracing::info!("stopping on request");
    }
    let farewell = if outcome.is_ok() { Farewell::Leave } else { Farewell::Stay };
    let stopping = async {
        manager.tell(Some(Milestone::Stopping), "finishing what is under way").await;
        running.stop(farewell).await
    };
    tokio::select! {
        stopped = stopping => outcome.and(stopped),
        () = asked_to_stop(signals) => Err(RunError::Interrupted),
    }
}

async fn asked_to_stop(signals: &mut impl Signals) {
    while signals.next().await != Signal::Stop {}
}

async fn start(config: Config, reloading: Reloading) -> Result<Running, RunError> {
    // Names are resolved: away from the thread that waits for signals.
    let for_addresses = config.clone();
    let opening = tokio::task::spawn_blocking(move || Addresses::open(&for_addresses)).await;
    let addresses =
        opening.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    tracing::info!(version = %env!("CARGO_PKG_VERSION"), "starting");
    raise_limit(config.max_connections.saturating_add(config.limits.max_peer_connections));
    let guards = super::config_check::read_files(&config)?;
    guards.0.report(&config);
    let storage = Storage::open(&config).await?;
    tracing::info!(path = %config.data_dir.display(), "data directory");
    Running::start(&config, addresses, guards, storage, reloading).await
}

/// What the peers are told at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Farewell {
    /// That the node has left.
    Leave,
    /// Nothing: it failed, and stays a member. If it left, a write acknowledged by few could be
    /// outvoted by the rest.
    Stay,
}

/// A node with its servers.
struct Running {
    node: Node,
    storage: Storage,
    servers: TaskTracker,
    http_stop: CancellationToken,
    grpc_stop: CancellationToken,
    server_failed: Arc<tokio::sync::Mutex<tokio::sync::mpsc::Receiver<RunError>>>,
    reloader: Arc<Reloader>,
}

impl Running {
    async fn start(
        config: &Config,
        addresses: Addresses,
        (locks, hooks): (Locks, HookPlan),
        storage: Storage,
        reloading: Reloading,
    ) -> Result<Self, RunError> {
        let id = storage.book.id;
        let random_seed = rand::random();
        let options = GrpcOptions::new(&config.cluster_name, id, random_seed);
        let transport = GrpcPeers::new(match &locks.peers {
            Some(peers) => options.dialling(dial(peers)),
            None => options,
        });
        let webhook_secrets = hooks.secrets();
        let settings = settings(config, &addresses, random_seed);
        let me = Node::first_record(&storage.book, storage.start, &settings);
        let detector = swim::Swim::start(
            &swim::SwimOptions::new(me, &config.cluster_name, random_seed),
            Arc::clone(&transport) as _,
        );
        let parts = NodeParts {
            store: Arc::new(DashStore::new()),
            log: Arc::clone(&storage.log) as _,
            transport,
            detector,
            book: Arc::clone(&storage.book_file) as _,
            quarantine: Arc::clone(&storage.quarantine) as _,
            clock: Arc::new(SystemClock),
            hooks: hooks.start(&storage, &config.cluster_name)?,
        };
        let node = Node::new(parts, settings, &storage.book, storage.start);

        let (servers, http_stop, grpc_stop) =
            (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        let (failed, server_failed) = tokio::sync::mpsc::channel(2);
        // Clients are answered from the start, if only to be told to wait for the replay.
        let options = LiveOptions::from(http_options(config));
        let parts: Vec<Box<dyn Reloadable>> = vec![
            Box::new(reloadables::Requests(node.live())),
            Box::new(reloadables::Http(options.clone())),
            Box::new(locks.clone()),
            Box::new(webhook_secrets),
        ];
        let reloader = reloader(reloading, &config.log_level, &node, parts);
        let (clients, entrance, stop) = (node.client_api(), locks.entrance(), http_stop.clone());
        let serving = http::serve(addresses.http, clients, options, entrance, stop);
        servers.spawn(report("HTTP", serving, failed.clone()));

        let replayed = node.replay().await?;
        tracing::info!(records = replayed.records, bytes = replayed.bytes, "log replayed");
        report_space(&storage.log, &node.client_api().stats());
        let (bound, advertised) = (addresses.http_bound, &addresses.http_addr);
        tracing::info!(addr = %bound, %advertised, "HTTP listening");

        let limits = &config.limits;
        let options = ServerOptions::new(&config.cluster_name, id)
            .limited(limits.max_peer_connections, limits.max_peer_streams)
            .upgraded_by(locks.peers.as_ref().map(upgrade));
        node.live().meter_peer_connections_by(options.meter());
        let serving = grpc::serve(addresses.grpc, node.replica_api(), options, grpc_stop.clone());
        servers.spawn(report("gRPC", serving, failed));
        let (bound, advertised) = (addresses.grpc_bound, &addresses.grpc_addr);
        tracing::info!(addr = %bound, %advertised, "gRPC listening");

        node.start();
        servers.spawn(Arc::clone(&reloader).run(http_stop.clone()));
        let server_failed = Arc::new(tokio::sync::Mutex::new(server_failed));
        Ok(Self { node, storage, servers, http_stop, grpc_stop, server_failed, reloader })
    }

    /// Tells that the node is up, and from then on in words what becomes of it.
    async fn report_to(&self, manager: &ServiceManager) -> Infallible {
        let api = self.node.client_api();
        let (mut milestone, mut told) = (Some(Milestone::Ready), None);
        loop {
            let readiness = api.readiness();
            if told.as_ref() != Some(&readiness) {
                let status = match &readiness {
                    Ok(()) => "ready".to_owned(),
                    Err(why) => format!("not ready: {why}"),
                };
                manager.tell(milestone.take(), &status).await;
                told = Some(readiness);
            }
            tokio::time::sleep(STATUS_EVERY).await;
        }
    }

    /// Resolves when something fails without which the node must not go on.
    async fn failure(&self) -> RunError {
        let mut server_failed = self.server_failed.lock().await;
        tokio::select! {
            failure = self.storage.log.wait_failed() => failure.into(),
            Some(failure) = server_failed.recv() => failure,
        }
    }

    /// Stops in the order in which nothing acknowledged is lost: clients first, then the farewell
    /// to the peers, then what peers send, the log last.
    async fn stop(&self, farewell: Farewell) -> Result<(), RunError> {
        self.node.refuse_clients();
        self.http_stop.cancel();
        match farewell {
            Farewell::Leave => self.node.leave().await,
            Farewell::Stay => self.node.finish_up().await,
        }
        self.grpc_stop.cancel();
        self.servers.close();
        if tokio::time::timeout(LAST_CONNECTIONS, self.servers.wait()).await.is_err() {
            tracing::warn!("stopping although connections are open");
        }
        self.node.close().await?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Everything that a reload reaches, or a call that changes the log level.
fn reloader(
    reloading: Reloading,
    log_level: &str,
    node: &Node,
    parts: Vec<Box<dyn Reloadable>>,
) -> Arc<Reloader> {
    let Reloading { origin, settings, set_log_level } = reloading;
    let log = Arc::new(LogSwitch::new(set_log_level, log_level));
    let asked = Arc::clone(&log);
    node.live().set_log_level_by(move |level| asked.ask(level));
    Arc::new(Reloader::new(origin, settings, parts, log, node.live()))
}

/// Says what the disk of the log has room for, before it has not.
fn report_space(log: &FileAof, held: &NodeStats) {
    let weight = held.log.weight(&held.store);
    let Some(free_bytes) = log.free_bytes() else { return };
    let (log_bytes, compaction_bytes) = (weight.log_bytes, weight.live_bytes());
    if weight.is_too_much_for(free_bytes) {
        tracing::warn!(
            free_bytes,
            compaction_bytes,
            log_bytes,
            "the disk has no room to compact the log, which will grow with every write: free some space"
        );
    } else {
        tracing::info!(free_bytes, compaction_bytes, log_bytes, "disk of the log");
    }
}

async fn report(
    server: &'static str,
    serving: impl Future<Output = io::Result<()>>,
    failed: tokio::sync::mpsc::Sender<RunError>,
) {
    if let Err(error) = serving.await {
        failed.send(RunError::Server { server, error }).await.ok();
    }
}

fn settings(config: &Config, addresses: &Addresses, random_seed: u64) -> NodeSettings {
    let limits = request_limits(config);
    NodeSettings {
        seeds: config.seed_nodes.iter().map(ToString::to_string).collect(),
        read_quorum: limits.read_quorum,
        write_quorum: limits.write_quorum,
        request_timeout: limits.request_timeout,
        max_value_bytes: limits.max_value_bytes,
        peer_timeout: config.limits.peer_timeout,
        max_hint_bytes: config.limits.max_hints,
        slow_log_threshold: config.slow_log_threshold,
        max_memory: limits.max_memory,
        max_clock_drift: config.max_clock_drift,
        anti_entropy_interval: config.anti_entropy_interval,
        tombstone_grace: config.tombstone_grace,
        max_absence: config.max_absence,
        random_seed,
        ..NodeSettings::new(&config.cluster_name, &addresses.grpc_addr, &addresses.http_addr)
    }
}
