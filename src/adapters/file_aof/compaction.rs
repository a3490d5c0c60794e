//! Snapshots: what all segments before one come to, so that they can go.
//!
//! Replaying is merging, so a snapshot needs no moment at which it is true: it holds each key as it
//! was at some time after the switch to a new segment, and what came since is in the segments behind
//! it. Every step can be the last before a crash:
//!
//! 1. The log goes on in a new segment; all before is on the device.
//! 2. The entries are written to a draft, with how many there are at the end, and forced. A draft
//!    means nothing.
//! 3. The log is forced: entries may be in the draft that were written while it was, and a power cut
//!    must not keep them and take what was written before them.
//! 4. The draft gets its name, and the directory is forced. From now on it counts, and what is
//!    before it does not, whether it is still there or not.
//! 5. The files before it are removed.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::ports::{LogError, LogRecord, SnapshotEntries};

use super::files::{FileKind, LogFiles, Unmade, begin_draft, failed, file_name, kind_of, publish};
use super::format::{encode, encode_end};
use super::marks::Marks;
use super::rotation::{SegmentDir, Switched};

/// Bytes handed to the system at a time, and forced at a time: so that the device always has
/// something to do, and a sync of the log never has to wait for a whole snapshot.
const CHUNK_BYTES: usize = 1 << 20;
const FORCED_BYTES: u64 = 8 << 20;

/// After each chunk it rests as long as that took, at most so long: who writes meanwhile shall hardly
/// notice, and nothing is in a hurry for a snapshot.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// What is in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// Length on disk.
    pub(super) bytes: u64,
    pub(super) records: u64,
}

/// Drafts the snapshot that stands for everything before `at`. Stops when `stop` is set. A failure
/// leaves the log as it is.
pub(super) fn draft_snapshot(
    dir: &SegmentDir,
    at: Switched,
    marks: Marks,
    entries: &mut dyn SnapshotEntries,
    stop: &AtomicBool,
) -> Result<Draft, LogError> {
    let header = dir.header(FileKind::Snapshot, at.number, at.first_sequence);
    let name = dir.dir.join(file_name(FileKind::Snapshot, at.number));
    let (path, file) = begin_draft(&name)?;
    let mut draft = Draft {
        name,
        path,
        file,
        buffer: header.encode(),
        salt: header.salt,
        records: 0,
        bytes: 0,
        unforced: 0,
        rested: Instant::now(),
        is_published: false,
    };
    draft.fill(marks, entries, stop)?;
    Ok(draft)
}

/// Removes what the newest snapshot stands for, but no draft, which may be the next segment's. What
/// stays costs space, and is tried again.
pub(super) fn remove_superseded(dir: &Path) {
    match LogFiles::list(dir) {
        Ok(mut files) => {
            files.leftovers.retain(|path| kind_of(path).is_some());
            files.remove_leftovers();
        }
        Err(error) => tracing::warn!(%error, "old files of the log not removed"),
    }
}

/// A snapshot that is being written; dropped before it has its name, it is removed.
pub(super) struct Draft {
    /// The name that it gets.
    name: PathBuf,
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    salt: u64,
    records: u64,
    bytes: u64,
    unforced: u64,
    /// The end of the last rest.
    rested: Instant,
    is_published: bool,
}

impl Draft {
    /// Gives it its name. The log must have been forced since the last entry was taken. A failure
    /// leaves the log as it is, unless it says otherwise.
    pub(super) fn publish(mut self) -> Result<Snapshot, Unmade> {
        publish(&self.path, &self.name)?;
        self.is_published = true;
        Ok(Snapshot { bytes: self.bytes, records: self.records })
    }

    /// Writes and forces all of it.
    fn fill(
        &mut self,
        marks: Marks,
        entries: &mut dyn SnapshotEntries,
        stop: &AtomicBool,
    ) -> Result<(), LogError> {
        for record in marks.records() {
            self.add(&record)?;
        }
        while let Some(chunk) = entries.next() {
            if stop.load(Ordering::Relaxed) {
                return Err(LogError::Closed);
            }
            for entry in chunk {
                self.add(&LogRecord::Write(entry))?;
            }
        }
        encode_end(self.records, self.records + 1, self.salt, &mut self.buffer);
        self.write()?;
        self.file.sync_all().map_err(|error| self.failed(&error))
    }

    fn add(&mut self, record: &LogRecord) -> Result<(), LogError> {
        self.records += 1;
        encode(record, self.records, self.salt, &mut self.buffer);
        if self.buffer.len() < CHUNK_BYTES {
            return Ok(());
        }
        self.write()?;
        std::thread::sleep(self.rested.elapsed().min(LONGEST_REST));
        self.rested = Instant::now();
        Ok(())
    }

    fn write(&mut self) -> Result<(), LogError> {
        let written = self.file.write_all(&self.buffer);
        written.map_err(|error| self.failed(&error))?;
        self.bytes += self.buffer.len() as u64;
        self.unforced += self.buffer.len() as u64;
        self.buffer.clear();
        if self.unforced >= FORCED_BYTES {
            self.unforced = 0;
            self.file.sync_data().map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> LogError {
        failed(&self.path, error)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_published {
            // What stays means nothing, and goes at the next start.
            std::fs::remove_file(&self.path).ok();
        }
    }
}
