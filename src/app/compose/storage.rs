//! What a node keeps on disk: opened, locked, and brought into the state that was asked for.

use std::path::Path;
use std::sync::Arc;

use crate::adapters::clock::SystemClock;
use crate::adapters::config::{Config, Fsync};
use crate::adapters::data_dir::{DataDir, DataDirError};
use crate::adapters::file_aof::{AofOptions, FileAof, FsyncPolicy, install_log};
use crate::adapters::json_book::JsonBook;
use crate::app::claim_identity;
use crate::domain::{KeptData, NodeId, Start};
use crate::ports::{Book, Clock};

use super::errors::RunError;

/// The data directory of a running node.
pub(super) struct Storage {
    /// Held for its lock.
    _dir: DataDir,
    pub(super) log: Arc<FileAof>,
    pub(super) book_file: Arc<JsonBook>,
    /// Who this node is.
    pub(super) book: Book,
    /// How it starts.
    pub(super) start: Start,
}

impl Storage {
    /// Claims the data directory, and puts the log aside or in place if that was asked for.
    pub(super) async fn open(config: &Config) -> Result<Self, RunError> {
        refuse_missing(config.replay_log.as_deref())?;
        let dir = DataDir::open(&config.data_dir).map_err(unusable)?;
        let book_file = Arc::new(JsonBook::new(&dir.book_path()));
        let new_id = NodeId::new(rand::random());
        let (book, last_phase) =
            claim_identity(book_file.as_ref(), &config.cluster_name, new_id).await?;
        let mut options = AofOptions::new(&dir.log_dir(), &config.cluster_name, book.id);
        options.fsync = match config.fsync {
            Fsync::Always => FsyncPolicy::Always,
            Fsync::EverySec => FsyncPolicy::EverySec,
            Fsync::Never => FsyncPolicy::Never,
        };
        let data = arrange_log(config, &dir, &options)?;
        let knows_others = !config.seed_nodes.is_empty() || !book.members.is_empty();
        let start = Start::decide(last_phase, data, knows_others);
        let log = Arc::new(FileAof::open(options)?);
        Ok(Self { _dir: dir, log, book_file, book, start })
    }
}

/// Sets the log aside, replaces it, or leaves it.
fn arrange_log(config: &Config, dir: &DataDir, options: &AofOptions) -> Result<KeptData, RunError> {
    let now = SystemClock.now();
    let (aside, data) = if let Some(source) = &config.replay_log {
        let staged = AofOptions { dir: dir.stage_log().map_err(unusable)?, ..options.clone() };
        // Read completely before the present log is touched; it may even be the same one.
        let read = install_log(source, &staged)?;
        let aside = dir.swap_in_staged_log(now).map_err(unusable)?;
        tracing::info!(source = %source.display(), records = read.records, "log replaced");
        (aside, KeptData::Replaced)
    } else if config.fresh {
        (dir.set_log_aside(now).map_err(unusable)?, KeptData::None)
    } else {
        (None, KeptData::All)
    };
    if let Some(aside) = aside {
        tracing::info!(to = %aside.display(), "old log moved aside");
    }
    Ok(data)
}

/// A path that does not exist is a mistake in the configuration, found before anything is touched.
fn refuse_missing(replay_log: Option<&Path>) -> Result<(), RunError> {
    let Some(path) = replay_log else { return Ok(()) };
    path.metadata().map(|_| ()).map_err(|error| {
        let path = path.display();
        RunError::Usage(format!(
            "replay_log: {path}: {error}; expected a log file, or a directory of them"
        ))
    })
}

#[expect(clippy::needless_pass_by_value, reason = "handed to map_err")]
fn unusable(error: DataDirError) -> RunError {
    RunError::DataDir(error.to_string())
}
