//! The log of this node, and no other one's.
//!
//! A log of another node that lies in the data directory (copied there by hand, or the directory's
//! `node.json` was lost) would count as everything that this node has acknowledged. So it is refused
//! like damage. `--replay-log` is the way to take over another node's log.

use std::fs::File;
use std::path::Path;

use crate::domain::NodeId;
use crate::ports::{LogError, LogRecord, Replayed};

use super::aof::AofOptions;
use super::files::{FileHeader, FileKind, HeaderError, LogFiles, failed};
use super::reader::{End, corrupt, read_all};

/// Whose log it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The name of the cluster.
    pub cluster: String,
    /// The node that writes it.
    pub node: NodeId,
}

/// Reads the log in the directory of the options as a start does, and changes nothing.
///
/// # Errors
/// [`LogError::Corrupt`] when a node would refuse to start on it, [`LogError::Failed`] when it cannot
/// be read.
pub fn verify_log(
    options: &AofOptions,
    visit: impl FnMut(LogRecord),
) -> Result<Replayed, LogError> {
    let files = LogFiles::list(&options.dir)?;
    let read = read_own(&files, options, visit)?;
    Ok(read.map(|(replayed, _)| replayed).unwrap_or_default())
}

/// Reads these files, which are those of this node. `None` when there are none.
pub(super) fn read_own(
    files: &LogFiles,
    options: &AofOptions,
    visit: impl FnMut(LogRecord),
) -> Result<Option<(Replayed, End)>, LogError> {
    refuse_foreign(files, options)?;
    let read = read_all(files, &options.cluster, visit)?;
    match read {
        Some((_, end)) if end.header.kind == FileKind::Snapshot => {
            Err(end.corrupt("the segment that follows this snapshot is missing"))
        }
        read => Ok(read),
    }
}

/// Whether the log in the directory of the options was written by this node, as far as its headers
/// can be read: known before anything is written down.
///
/// # Errors
/// [`LogError::Corrupt`] when it was not, [`LogError::Failed`] when it cannot be read.
pub fn refuse_foreign_log(options: &AofOptions) -> Result<(), LogError> {
    refuse_foreign(&LogFiles::list(&options.dir)?, options)
}

fn refuse_foreign(files: &LogFiles, options: &AofOptions) -> Result<(), LogError> {
    let owner = options.owner();
    files.to_read().try_for_each(|path| {
        let file = File::open(path).map_err(|error| failed(path, &error))?;
        owner.refuse_foreign(path, &file)
    })
}

impl Owner {
    /// What is wrong with a file that has this header, if it is not this one's.
    pub(super) fn refuses(&self, header: &FileHeader) -> Option<String> {
        let Self { cluster, node } = self;
        if *cluster != header.cluster {
            return Some(of_another_cluster(&header.cluster, cluster));
        }
        (*node != header.node).then(|| of_another_node(header.node, *node))
    }

    /// Refuses a file that is intact and not this one's: it must not be taken in, or skipped as lost.
    /// One whose header does not read is refused, or mended, when its turn comes.
    pub(super) fn refuse_foreign(&self, path: &Path, file: &File) -> Result<(), LogError> {
        let header = FileHeader::read(file).map_err(|error| failed(path, &error))?;
        let reason = match header {
            Ok(header) => self.refuses(&header),
            Err(error @ HeaderError::Version(_)) => Some(error.to_string()),
            Err(_) => None,
        };
        reason.map_or(Ok(()), |reason| Err(corrupt(path, 0, &reason)))
    }
}

/// Why a file of another cluster is refused.
pub(super) fn of_another_cluster(theirs: &str, ours: &str) -> String {
    format!("it belongs to the cluster {theirs:?}, not to {ours:?}")
}

fn of_another_node(theirs: NodeId, ours: NodeId) -> String {
    format!("it was written by node {theirs}, and this is node {ours}")
}
