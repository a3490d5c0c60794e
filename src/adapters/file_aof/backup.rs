//! Backups: what the log says at one moment, as a single snapshot file.
//!
//! What is read are the files of the log, up to the last record that was complete when the backup
//! began. They only grow, and one that is open stays although a compaction takes its name away. So
//! nothing waits for a backup, however slowly it is taken, and it needs no space here; and it is a
//! prefix of the log: of two writes the later one is never in it without the earlier.
//!
//! Every record is verified on its way, and framed anew: with a salt of its own, numbered from 1, and
//! the end of a snapshot behind the last one. So a backup that is cut off or changed anywhere does not
//! read. It is as long as the log; a compaction before it makes both short.

use std::ffi::OsStr;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::ports::{BackupStream, LogError};

use super::files::{FileHeader, FileKind, file_name};
use super::format::{encode, encode_end};
use super::reader::{Records, corrupt, read_header};
use super::rotation::SegmentDir;
use super::source::{SourceFile, open_all};
use super::writer::WrittenTo;

/// Bytes handed over at a time; two such pieces wait at most.
const PIECE_BYTES: usize = 256 * 1_024;

/// How often the files are looked for. They are missed if the log is compacted, or goes on in another
/// segment, just then.
const ATTEMPTS: usize = 20;

/// The files of the log up to one moment, open.
pub(super) struct OpenLog {
    files: Vec<SourceFile>,
    cluster: String,
}

impl OpenLog {
    /// Opens them. Blocks for as long as a look into the directory takes.
    pub(super) fn open(
        segments: &SegmentDir,
        end: impl Fn() -> Result<WrittenTo, LogError>,
    ) -> Result<Self, LogError> {
        for _ in 0..ATTEMPTS {
            let Some(mut files) = open_all(&segments.dir)? else { continue };
            // Asked for now, so that whatever is written up to there is in these files, or in later ones.
            let end = end()?;
            let last = file_name(FileKind::Segment, end.number);
            let is_last = |file: &SourceFile| file.path.file_name() == Some(OsStr::new(&last));
            let Some(at) = files.iter().position(is_last) else { continue };
            files.truncate(at + 1);
            if let Some(file) = files.last_mut() {
                file.length = end.bytes;
            }
            let cluster = segments.cluster.clone();
            return Ok(Self { files, cluster });
        }
        Err(LogError::Overloaded)
    }

    /// Their bytes.
    fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.length).sum()
    }

    /// Hands out the snapshot file that says the same, until `give` does not want any more of it.
    fn copy(
        &self,
        header: &FileHeader,
        mut give: impl FnMut(Bytes) -> Result<(), GivenUp>,
    ) -> Result<u64, Ended> {
        let mut piece = header.encode();
        let (mut records, mut sequence) = (0, 1);
        for SourceFile { path, file, length } in &self.files {
            let theirs = read_header(path, file, &self.cluster)?;
            let is_segment = theirs.kind == FileKind::Segment;
            if is_segment && theirs.first_sequence != sequence {
                return Err(corrupt(path, 0, "the file before this one is missing").into());
            }
            let mut reading = Records::new(path, file, &theirs)?;
            while reading.offset < *length
                && let Some(record) = reading.next()?
            {
                records += 1;
                encode(&record, records, header.salt, &mut piece);
                if piece.len() >= PIECE_BYTES {
                    give(std::mem::take(&mut piece).into())?;
                }
            }
            let is_complete = reading.offset == *length && (is_segment || reading.is_ended);
            if !is_complete {
                let reason = "unreadable, although the node has written it; what it holds in memory is not affected, and a compaction writes that anew (POST /admin/compact)";
                return Err(corrupt(path, reading.offset, reason).into());
            }
            sequence = if is_segment { reading.sequence } else { theirs.first_sequence };
        }
        encode_end(records, records + 1, header.salt, &mut piece);
        give(piece.into())?;
        Ok(records)
    }

    /// Begins to copy, on a thread of its own that waits for whoever takes the pieces.
    pub(super) fn stream(self, segments: &SegmentDir) -> Box<dyn BackupStream> {
        let header = segments.header(FileKind::Snapshot, 1, 1);
        let expected_bytes = self.bytes();
        let (give, pieces) = mpsc::channel(1);
        tokio::task::spawn_blocking(move || {
            let copied = self
                .copy(&header, |piece| give.blocking_send(Ok(Some(piece))).map_err(|_| GivenUp));
            let last = match copied {
                Ok(_) => Ok(None),
                Err(Ended::GivenUp) => return,
                Err(Ended::Unreadable(error)) => Err(error),
            };
            // Whoever does not wait any more does not need to know.
            give.blocking_send(last).ok();
        });
        Box::new(Pieces { pieces, expected_bytes })
    }
}

/// Nobody wants the rest.
struct GivenUp;

enum Ended {
    GivenUp,
    Unreadable(LogError),
}

impl From<GivenUp> for Ended {
    fn from(_: GivenUp) -> Self {
        Self::GivenUp
    }
}

impl From<LogError> for Ended {
    fn from(error: LogError) -> Self {
        Self::Unreadable(error)
    }
}

struct Pieces {
    pieces: mpsc::Receiver<Result<Option<Bytes>, LogError>>,
    expected_bytes: u64,
}

#[async_trait]
impl BackupStream for Pieces {
    fn expected_bytes(&self) -> u64 {
        self.expected_bytes
    }

    async fn next(&mut self) -> Result<Option<Bytes>, LogError> {
        let ended = || LogError::Failed("whoever read the log for the backup ended".into());
        self.pieces.recv().await.unwrap_or_else(|| Err(ended()))
    }
}
