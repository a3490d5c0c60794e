//! From one segment to the next.
//!
//! A segment ends for one of two reasons: it is large, or a snapshot is to stand for it and all
//! before. Either way everything in it is on the device before the next one has a name: so what a
//! power cut tears is the last segment's tail, and anything unreadable before that is damage.
//!
//! Most of it is forced while appends go on; the rest, and the next file, take as long as a few
//! syncs, during which appends wait in the queue.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use tokio::sync::oneshot;

use crate::domain::NodeId;
use crate::ports::LogError;

use super::disk::{Disk, allocate, file_system_bytes};
use super::files::{FileHeader, FileKind, Unmade, create, failed};
use super::marks::Marks;
use super::reserve::Reserve;

/// A segment of this length is ended. Large enough that the syncs between two do not matter, small
/// enough to copy.
pub(super) const SEGMENT_BYTES: u64 = 256 << 20;

/// A segment that is appended to.
pub(super) struct OpenSegment {
    pub(super) number: u64,
    /// For people.
    pub(super) path: PathBuf,
    pub(super) disk: Box<dyn Disk>,
    /// Enters the checksum of every record.
    pub(super) salt: u64,
}

/// Where a writer goes on in a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Position {
    pub(super) good_bytes: u64,
    pub(super) next_sequence: u64,
}

/// A file that can be appended to.
pub(super) struct Begun {
    pub(super) segment: OpenSegment,
    pub(super) position: Position,
    pub(super) reserve: Reserve,
}

/// What was there before.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Older {
    /// Of the files before the one that is written.
    pub(super) bytes: u64,
    pub(super) marks: Marks,
}

/// Where the log goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Switched {
    /// Number of the segment.
    pub(super) number: u64,
    /// Sequence of its first record.
    pub(super) first_sequence: u64,
    /// Length of all files before it.
    pub(super) older_bytes: u64,
}

/// The end of a segment, under way.
#[derive(Default)]
pub(super) struct Rotation {
    /// Whether most of the segment was forced.
    pub(super) is_prepared: bool,
    /// Who wants to know.
    pub(super) waiting: Vec<oneshot::Sender<Result<Switched, LogError>>>,
}

impl Rotation {
    pub(super) fn tell(self, outcome: &Result<Switched, LogError>) {
        for waiting in self.waiting {
            // Whoever does not wait any more does not need to know.
            waiting.send(outcome.clone()).ok();
        }
    }
}

/// Begins segments.
pub(super) trait Segments: Send + Sync {
    /// Begins the segment of this number, durably.
    fn begin(&self, number: u64, first_sequence: u64) -> Result<Begun, Unmade>;
}

/// Segments in a directory.
#[derive(Debug, Clone)]
pub(super) struct SegmentDir {
    pub(super) dir: PathBuf,
    pub(super) cluster: String,
    pub(super) node: NodeId,
}

impl SegmentDir {
    /// The header of a new file.
    pub(super) fn header(&self, kind: FileKind, number: u64, first_sequence: u64) -> FileHeader {
        let (salt, cluster) = (rand::random(), self.cluster.clone());
        FileHeader { kind, number, node: self.node, first_sequence, salt, cluster }
    }

    /// Goes on in a segment, whose header this is.
    pub(super) fn open(
        path: &Path,
        header: &FileHeader,
        position: Position,
    ) -> Result<Begun, LogError> {
        let file = OpenOptions::new().append(true).open(path).map_err(|e| failed(path, &e))?;
        let mut reserve = Reserve::new(position.good_bytes, file_system_bytes(&file));
        // A disk that has not got it goes on all the same: it may have less to write than the disk
        // holds, and reads need no disk.
        if let Some(ahead) = reserve.ahead_of(position.good_bytes, 0, false) {
            reserve.record(allocate(&file, ahead, false));
        }
        let FileHeader { number, salt, .. } = *header;
        let segment = OpenSegment { number, path: path.to_owned(), disk: Box::new(file), salt };
        Ok(Begun { segment, position, reserve })
    }
}

impl Segments for SegmentDir {
    fn begin(&self, number: u64, first_sequence: u64) -> Result<Begun, Unmade> {
        let header = self.header(FileKind::Segment, number, first_sequence);
        let position =
            Position { good_bytes: header.bytes() as u64, next_sequence: first_sequence };
        let (path, begun) =
            create(&self.dir, &header, |draft| Self::open(draft, &header, position))?;
        let segment = OpenSegment { path, ..begun.segment };
        Ok(Begun { segment, ..begun })
    }
}
