//! What a node keeps on disk: opened, locked, and brought into the state that was asked for.

use std::sync::Arc;

use crate::adapters::clock::SystemClock;
use crate::adapters::config::Config;
use crate::adapters::data_dir::DataDir;
use crate::adapters::file_aof::{AofOptions, FileAof, FsyncPolicy};
use crate::adapters::json_book::JsonBook;
use crate::app::claim_identity;
use crate::domain::{KeptData, NodeId, Start};
use crate::ports::{Book, Clock};

use super::addresses::Addresses;
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
