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

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::ports::{BackupStream, LogError};

use super::files::{FileHeader, FileKind, LogFiles, failed};
use super::format::{encode, encode_end};
use super::reader::{Records, corrupt, read_header};
use super::rotation::{SegmentDir, Switched};
use super::writer::WrittenTo;

/// Bytes handed over at a time; two such pieces wait at most.
const PIECE_BYTES: usize = 256 * 1_024;

/// How often the files are looked for. They are missed if the log is compacted, or goes on in another
/// segment, just then.
const ATTEMPTS: usize = 20;

/// The files of the log up to one moment, open.
pub(super) struct OpenLog {
    files: Vec<OpenFile>,
}

struct OpenFile {
    path: PathBuf,
    file: File,
    header: FileHeader,
    /// Up to where it is read.
    bytes: u64,
}

impl OpenLog {
    /// Opens them. Blocks for as long as a look into the directory takes.
    pub(super) fn open(
        segments: &SegmentDir,
        end: impl Fn() -> Result<WrittenTo, LogError>,
    ) -> Result<Self, LogError> {
        let mut missed = LogError::Overloaded;
        for _ in 0..ATTEMPTS {
            let mut files = match open_all(&segments.dir, &segments.cluster) {
                Ok(files) => files,
                Err(Missed::Gone) => continue,
                Err(Missed::Failed(error)) => return Err(error),
            };
            // Behind the last file that was there, what the snapshot among them says is written.
            let end = end()?;
            if let Some(at) = files.iter().position(|f| f.is_segment() && f.is_number(end.number)) {
                files.truncate(at + 1);
                match check_row(&files) {
                    Ok(()) => {
                        if let Some(last) = files.last_mut() {
                            last.bytes = end.bytes;
                        }
                        return Ok(Self { files });
                    }
                    Err(error) => missed = error,
                }
            }
        }
        Err(missed)
    }

    /// Their bytes.
    fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Hands out the snapshot file that says the same, until `give` does not want any more of it.
    fn copy(
        &self,
        header: &FileHeader,
        mut give: impl FnMut(Bytes) -> Result<(), GivenUp>,
    ) -> Result<u64, Ended> {
        let mut piece = header.encode();
        let (mut records, mut sequence) = (0, 1);
        for open in &self.files {
            let OpenFile { path, file, header: theirs, bytes } = open;
            if open.is_segment() && theirs.first_sequence != sequence {
                return Err(corrupt(path, 0, "the file before this one is missing").into());
            }
            let mut reading = Records::new(path, file, theirs)?;
            while reading.offset < *bytes
                && let Some(record) = reading.next()?
            {
                records += 1;
                encode(&record, records, header.salt, &mut piece);
                if piece.len() >= PIECE_BYTES {
                    give(std::mem::take(&mut piece).into())?;
                }
            }
            let is_complete = reading.offset == *bytes && (open.is_segment() || reading.is_ended);
            if !is_complete {
                let reason = "unreadable, although the node has written it; what it holds in memory is not affected, and a compaction writes that anew (POST /admin/compact)";
                return Err(corrupt(path, reading.offset, reason).into());
            }
            sequence = if open.is_segment() { reading.sequence } else { theirs.first_sequence };
        }
        encode_end(records, records + 1, header.salt, &mut piece);
        give(piece.into())?;
        Ok(records)
    }

    /// Begins to copy, on a thread of its own that waits for whoever takes the pieces.
    pub(super) fn stream(self, segments: &SegmentDir) -> Box<dyn BackupStream> {
        let begun = Switched { number: 1, first_sequence: 1 };
        let header = segments.header(FileKind::Snapshot, begun);
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

impl OpenFile {
    fn is_segment(&self) -> bool {
        self.header.kind == FileKind::Segment
    }

    const fn is_number(&self, number: u64) -> bool {
        self.header.number == number
    }
}

/// Why not all files are open.
enum Missed {
    /// One is not there any more.
    Gone,
    Failed(LogError),
}

fn open_all(dir: &Path, cluster: &str) -> Result<Vec<OpenFile>, Missed> {
    let files = LogFiles::list(dir).map_err(Missed::Failed)?;
    files.to_read().map(|path| open_one(path, cluster)).collect()
}

fn open_one(path: &Path, cluster: &str) -> Result<OpenFile, Missed> {
    let opened = File::open(path).and_then(|file| {
        let bytes = file.metadata()?.len();
        Ok((file, bytes))
    });
    let (file, bytes) = opened.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Missed::Gone,
        _ => Missed::Failed(failed(path, &error)),
    })?;
    let header = read_header(path, &file, cluster).map_err(Missed::Failed)?;
    Ok(OpenFile { path: path.to_owned(), file, header, bytes })
}

/// Whether each file follows on the one before. While a compaction renames and removes files, a look
/// into the directory can find some of the old ones without the new.
fn check_row(files: &[OpenFile]) -> Result<(), LogError> {
    let mut before: Option<&OpenFile> = None;
    for file in files {
        let follows = match before {
            None => !file.is_segment() || file.header.first_sequence == 1,
            Some(snapshot) if !snapshot.is_segment() => file.is_number(snapshot.header.number),
            Some(segment) => file.is_number(segment.header.number + 1),
        };
        if !follows {
            return Err(corrupt(&file.path, 0, "the file before this one is missing"));
        }
        before = Some(file);
    }
    Ok(())
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
