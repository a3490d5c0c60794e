//! The log of this node, and no other one's.
//!
//! A log of another node that lies in the data directory (copied there by hand, or the directory's
//! `node.json` was lost) would count as everything that this node has acknowledged. So it is refused
//! like damage. `--replay-log` is the way to take over another node's log.

use std::fs::File;
use std::path::Path;

use crate::ports::{LogError, LogRecord, Replayed};

use super::aof::AofOptions;
use super::files::{FileHeader, FileKind, HeaderError, LogFiles, failed};
use super::reader::{End, read_all};
use super::scan::read_header;
use super::walk::of_another_node;

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
    for path in files.to_read() {
        // One that does not read is refused when its turn comes.
        if let Ok(header) = header_of(path)?
            && header.node != options.node
        {
            return Err(LogError::Corrupt {
                file: path.display().to_string(),
                offset: 0,
                reason: of_another_node(header.node, options.node),
            });
        }
    }
    Ok(())
}

fn header_of(path: &Path) -> Result<Result<FileHeader, HeaderError>, LogError> {
    let read = || {
        let file = File::open(path)?;
        read_header(&file, file.metadata()?.len())
    };
    read().map_err(|error| failed(path, &error))
}
