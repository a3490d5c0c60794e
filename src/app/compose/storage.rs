//! What a node keeps on disk: opened, locked, and brought into the state that was asked for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::adapters::clock::SystemClock;
use crate::adapters::config::{Config, Fsync};
use crate::adapters::data_dir::DataDir;
use crate::adapters::file_aof::{
    AofOptions, FileAof, FsyncPolicy, free_bytes, install_log, log_bytes, refuse_foreign_log,
    verify_log,
};
use crate::adapters::json_book::JsonBook;
use crate::adapters::json_quarantine::JsonQuarantine;
use crate::app::Identity;
use crate::domain::{KeptData, NodeId, Start};
use crate::ports::{Book, Clock, LogError};

use super::errors::{RunError, refuse_missing};

/// The data directory of a running node.
pub(super) struct Storage {
    /// Held for its lock, too.
    dir: DataDir,
    pub(super) log: Arc<FileAof>,
    pub(super) book_file: Arc<JsonBook>,
    pub(super) quarantine: Arc<JsonQuarantine>,
    /// Who this node is.
    pub(super) book: Book,
    /// How it starts.
    pub(super) start: Start,
}

impl Storage {
    /// Claims the data directory, and puts the log aside or in place if that was asked for.
    ///
    /// What can be refused (a book of another cluster, a log to replay that does not read) is
    /// refused before the node's own files change.
    pub(super) async fn open(config: &Config) -> Result<Self, RunError> {
        // A mistake in the configuration, found before anything is touched.
        if let Some(path) = &config.replay_log {
            refuse_missing(path, "replay_log: ")?;
        }
        let dir = DataDir::open(&config.data_dir)?;
        let book_file = Arc::new(JsonBook::new(&dir.book_path()));
        let new_id = NodeId::new(rand::random());
        let identity = Identity::load(book_file.as_ref(), &config.cluster_name, new_id).await?;
        let options = aof_options(config, &dir, identity.id());
        let knows_others = !config.seed_nodes.is_empty() || identity.knows_members();
        let change = LogChange::prepare(config, &dir, &options, knows_others).await?;
        let data = change.kept_data();
        let (book, last_phase) = identity.claim(book_file.as_ref(), data).await?;
        change.carry_out(&dir)?;
        let start = Start::decide(last_phase, data, knows_others);
        let log = Arc::new(FileAof::open(options)?);
        let quarantine = Arc::new(JsonQuarantine::new(&dir.quarantine_dir()));
        Ok(Self { dir, log, book_file, quarantine, book, start })
    }

    /// Where changes wait for the webhook of this name.
    pub(super) fn outbox_dir(&self, webhook: &str) -> PathBuf {
        self.dir.outbox_dir().join(webhook)
    }
}

fn aof_options(config: &Config, dir: &DataDir, node: NodeId) -> AofOptions {
    let fsync = match config.fsync {
        Fsync::Always => FsyncPolicy::Always,
        Fsync::EverySec => FsyncPolicy::EverySec,
        Fsync::Never => FsyncPolicy::Never,
    };
    let queue_bytes = config.limits.max_log_queue;
    let options = AofOptions::new(&dir.log_dir(), &config.cluster_name, node);
    AofOptions { fsync, queue_bytes, ..options }
}

/// What happens to the log before the node starts.
enum LogChange {
    /// Nothing.
    Keep,
    /// There is none, though the node may have had one: the disk was replaced, say.
    Missing,
    /// Nothing, but it lacks records: it was repaired.
    Incomplete,
    /// It is set aside.
    SetAside,
    /// It is set aside, and the staged one takes its place.
    SwapIn,
}

impl LogChange {
    /// Decides, and reads the log to replay completely into the staging directory; it may even be
    /// the present one.
    async fn prepare(
        config: &Config,
        dir: &DataDir,
        options: &AofOptions,
        knows_others: bool,
    ) -> Result<Self, RunError> {
        let Some(source) = &config.replay_log else {
            if config.fresh {
                return Ok(Self::SetAside);
            }
            return match dir.has_log()? {
                false => Ok(Self::Missing),
                true if config.recover_from_peers => {
                    Self::recover(dir, options, knows_others).await
                }
                true => {
                    refuse_foreign_log(options)?;
                    Self::keep(dir)
                }
            };
        };
        if dir.is_staged(source) {
            return Err(RunError::Usage(format!(
                "replay_log: {}: this directory is a swap area that is emptied first; move it elsewhere",
                source.display()
            )));
        }
        refuse_without_space(source, &config.data_dir)?;
        let staged = AofOptions { dir: dir.stage_log()?, ..options.clone() };
        // Away from the thread that waits for signals.
        let from = source.clone();
        let reading = tokio::task::spawn_blocking(move || install_log(&from, &staged)).await;
        match reading.unwrap_or_else(|error| Err(LogError::Failed(error.to_string()))) {
            Ok(read) => {
                let source = source.display();
                tracing::info!(%source, records = read.records, "log to replay read");
                Ok(Self::SwapIn)
            }
            Err(error) => {
                dir.discard_staged_log()?;
                Err(error.into())
            }
        }
    }

    fn keep(dir: &DataDir) -> Result<Self, RunError> {
        Ok(if dir.log_is_incomplete()? { Self::Incomplete } else { Self::Keep })
    }

    /// Reads the whole log, once more than a start does otherwise: what becomes of it has to be known
    /// before anything is written down.
    async fn recover(
        dir: &DataDir,
        options: &AofOptions,
        knows_others: bool,
    ) -> Result<Self, RunError> {
        let own = options.clone();
        let reading = tokio::task::spawn_blocking(move || verify_log(&own, drop)).await;
        match reading.unwrap_or_else(|error| Err(LogError::Failed(error.to_string()))) {
            Ok(_) => Self::keep(dir),
            Err(damage @ LogError::Corrupt { .. }) if knows_others => {
                tracing::warn!(%damage, "recovering from the other members");
                Ok(Self::SetAside)
            }
            Err(damage @ LogError::Corrupt { .. }) => Err(RunError::Usage(format!(
                "recover_from_peers: {damage}; and this node knows no other member to get its data from; add --seed-node with the address of one, or see what is intact with `lally log check {}`. Nothing was changed",
                dir.log_dir().display()
            ))),
            Err(error) => Err(error.into()),
        }
    }

    const fn kept_data(&self) -> KeptData {
        match self {
            Self::Keep => KeptData::All,
            Self::Incomplete => KeptData::Incomplete,
            Self::Missing | Self::SetAside => KeptData::None,
            Self::SwapIn => KeptData::Replaced,
        }
    }

    fn carry_out(self, dir: &DataDir) -> Result<(), RunError> {
        let now = SystemClock.now();
        let aside = match self {
            Self::Keep => None,
            Self::Missing | Self::Incomplete => {
                dir.unmark_log()?;
                None
            }
            Self::SetAside => dir.set_log_aside(now)?,
            Self::SwapIn => dir.swap_in_staged_log(now)?,
        };
        if let Some(aside) = aside {
            tracing::info!(to = %aside.display(), "old log moved aside");
        }
        Ok(())
    }
}

/// The log to replay is copied before it replaces anything, so there must be space for it.
fn refuse_without_space(source: &Path, data_dir: &Path) -> Result<(), RunError> {
    let needed = log_bytes(source)?;
    match free_bytes(data_dir) {
        Some(free) if free < needed => {
            let (source, dir) = (source.display(), data_dir.display());
            Err(RunError::DataDir(format!(
                "replay_log: {source} has {needed} bytes, and the disk of {dir} has {free} bytes free; nothing was changed"
            )))
        }
        _ => Ok(()),
    }
}
