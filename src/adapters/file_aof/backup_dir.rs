//! `BackupDir`: a backup on its way into a directory.
//!
//! It is written under the name of a draft, forced to disk, read back as a start would read it, and
//! only then gets its name. So what has the name is a complete backup, whatever was interrupted when.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::ports::LogError;

use super::disk::is_full;
use super::files::{
    DRAFT, FileHeader, FileKind, LogFiles, draft_of, failed, file_name, publish, sync_dir,
};
use super::reader::{corrupt, read_all};

/// Only the owner may look in: the data is users'.
const DIR_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Bytes forced at a time, so that the end does not take long.
const FORCED_BYTES: u64 = 32 << 20;

/// A backup that is being written. Dropped before [`finish`](Self::finish), it leaves nothing.
#[derive(Debug)]
pub struct BackupDir {
    dir: PathBuf,
    /// Held for its lock: one writes into a directory at a time.
    _lock: File,
    draft: PathBuf,
    file: File,
    bytes: u64,
    unforced: u64,
    /// Whether the directory was not there before.
    is_new: bool,
    is_complete: bool,
}

/// A complete backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupWritten {
    /// Its file.
    pub path: PathBuf,
    /// Records in it.
    pub records: u64,
    /// Its length.
    pub bytes: u64,
}

/// Why there is no backup in the directory. What was there before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The directory holds something.
    #[error("{dir} is not empty, and a backup overwrites nothing; give it a directory of its own")]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// Another backup is on its way into it.
    #[error("another backup is being written into {dir}")]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// There is no space.
    #[error("the disk of {dir} is full after {bytes} bytes; nothing was kept")]
    DiskFull {
        /// The directory.
        dir: PathBuf,
        /// How much there was space for.
        bytes: u64,
    },
    /// The file system refused something.
    #[error("{path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// What was written does not read as a complete backup.
    #[error("what arrived is no complete backup ({0}); nothing was kept")]
    Incomplete(LogError),
}

impl BackupDir {
    /// Begins a backup in this directory, which is created if it does not exist, and is empty. The
    /// draft of a backup that was interrupted is in nobody's way.
    ///
    /// # Errors
    /// [`BackupError`].
    pub fn create(dir: &Path) -> Result<Self, BackupError> {
        let refused = |error| io_error(dir, error);
        let is_new = !dir.exists();
        DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir).map_err(refused)?;
        let lock = File::open(dir).map_err(refused)?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                return Err(BackupError::InUse { dir: dir.to_owned() });
            }
            // A file system that cannot lock directories, perhaps.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let is_draft = |path: &Path| path.extension().is_some_and(|ending| ending == DRAFT);
        for file in fs::read_dir(dir).map_err(refused)? {
            if !is_draft(&file.map_err(refused)?.path()) {
                return Err(BackupError::NotEmpty { dir: dir.to_owned() });
            }
        }
        let draft = draft_of(&dir.join(file_name(FileKind::Snapshot, 1)));
        let mut open = File::options();
        open.create(true).truncate(true).read(true).write(true).mode(FILE_MODE);
        let file = open.open(&draft).map_err(|error| io_error(&draft, error))?;
        let (bytes, unforced, is_complete) = (0, 0, false);
        let dir = dir.to_owned();
        Ok(Self { dir, _lock: lock, draft, file, bytes, unforced, is_new, is_complete })
    }

    /// Writes the next piece.
    ///
    /// # Errors
    /// [`BackupError::DiskFull`] and [`BackupError::Io`]; then nothing comes of this backup.
    pub fn write(&mut self, piece: &[u8]) -> Result<(), BackupError> {
        let written = self.file.write_all(piece);
        written.map_err(|error| self.failed(error))?;
        self.bytes += piece.len() as u64;
        self.unforced += piece.len() as u64;
        if self.unforced >= FORCED_BYTES {
            self.unforced = 0;
            self.file.sync_data().map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Makes it durable, verifies it, and gives it its name.
    ///
    /// # Errors
    /// [`BackupError`]; nothing is left of this backup then.
    pub fn finish(mut self) -> Result<BackupWritten, BackupError> {
        self.file.sync_all().map_err(|error| self.failed(error))?;
        let records = self.verify().map_err(BackupError::Incomplete)?;
        let path = self.dir.join(file_name(FileKind::Snapshot, 1));
        publish(&self.draft, &path).map_err(|unmade| match LogError::from(unmade) {
            LogError::DiskFull => {
                BackupError::DiskFull { dir: self.dir.clone(), bytes: self.bytes }
            }
            other => io_error(&path, io::Error::other(other.to_string())),
        })?;
        self.is_complete = true;
        if self.is_new {
            let parent = self.dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            // Not ours to read, perhaps; then it is not ours to sync either.
            sync_dir(parent.unwrap_or(Path::new("."))).ok();
        }
        Ok(BackupWritten { path, records, bytes: self.bytes })
    }

    /// Reads it as a start would. The cluster is the one that it says.
    fn verify(&self) -> Result<u64, LogError> {
        let draft = &self.draft;
        let header = FileHeader::read(&self.file).map_err(|error| failed(draft, &error))?;
        let header = header.map_err(|error| corrupt(draft, 0, &error.to_string()))?;
        if header.kind != FileKind::Snapshot {
            return Err(corrupt(draft, 0, "it has no end by which to know that it is complete"));
        }
        let files = LogFiles { snapshot: Some(self.draft.clone()), ..LogFiles::default() };
        let read = read_all(&files, &header.cluster, |_| {})?;
        Ok(read.map(|(replayed, _)| replayed.records).unwrap_or_default())
    }

    fn failed(&self, error: io::Error) -> BackupError {
        if is_full(&error) {
            return BackupError::DiskFull { dir: self.dir.clone(), bytes: self.bytes };
        }
        io_error(&self.draft, error)
    }
}

impl Drop for BackupDir {
    fn drop(&mut self) {
        if !self.is_complete {
            // What stays has the name of a draft, and means nothing.
            fs::remove_file(&self.draft).ok();
            if self.is_new {
                fs::remove_dir(&self.dir).ok();
            }
        }
    }
}

fn io_error(path: &Path, error: io::Error) -> BackupError {
    BackupError::Io { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::file_aof::format::{encode, encode_end};
    use crate::domain::{NodeId, Timestamp};
    use crate::ports::LogRecord;

    fn backup(records: u64) -> Vec<u8> {
        let header = FileHeader {
            kind: FileKind::Snapshot,
            number: 1,
            node: NodeId::new(1),
            first_sequence: 1,
            salt: 7,
            cluster: "lally".into(),
        };
        let mut bytes = header.encode();
        for number in 1..=records {
            let bound = LogRecord::ClockBound(Timestamp::from_nanos(number));
            encode(&bound, number, header.salt, &mut bytes);
        }
        encode_end(records, records + 1, header.salt, &mut bytes);
        bytes
    }

    fn names(dir: &Path) -> Vec<String> {
        let files = fs::read_dir(dir).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn what_is_complete_has_its_name_and_what_is_cut_off_anywhere_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let bytes = backup(3);
        for length in 0..=bytes.len() {
            let dir = temp.path().join(format!("a/{length}"));
            let mut backup = BackupDir::create(&dir).unwrap();
            for piece in bytes[..length].chunks(10) {
                backup.write(piece).unwrap();
            }
            let finished = backup.finish();
            if length < bytes.len() {
                assert!(matches!(finished, Err(BackupError::Incomplete(_))), "{length}");
                assert!(!dir.exists());
            } else {
                let written = finished.unwrap();
                assert_eq!((written.records, written.bytes), (3, bytes.len() as u64));
                assert_eq!(fs::read(&written.path).unwrap(), bytes);
                assert_eq!(LogFiles::list(&dir).unwrap().snapshot, Some(written.path));
            }
        }
    }

    #[test]
    fn a_directory_that_holds_something_is_refused_and_a_left_over_draft_is_not() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("b");
        let draft = dir.join("0000000000000001.snap.new");
        fs::create_dir(&dir).unwrap();
        fs::write(&draft, "half a backup").unwrap();
        let first = BackupDir::create(&dir).unwrap();
        assert!(matches!(BackupDir::create(&dir), Err(BackupError::InUse { .. })));
        drop(first);
        assert_eq!(names(&dir), [""; 0]);
        let mut written = BackupDir::create(&dir).unwrap();
        written.write(&backup(1)).unwrap();
        let path = written.finish().unwrap().path;
        let refused = BackupDir::create(&dir).unwrap_err();
        assert!(matches!(refused, BackupError::NotEmpty { .. }), "{refused}");
        assert_eq!(fs::read(path).unwrap(), backup(1));
    }

    #[test]
    fn what_is_no_snapshot_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let mut segment = backup(1);
        segment[..8].copy_from_slice(b"LALLYLOG");
        for bytes in [b"<html>".as_slice(), &segment, &[backup(1), vec![0]].concat()] {
            let mut written = BackupDir::create(&temp.path().join("c")).unwrap();
            written.write(bytes).unwrap();
            assert!(matches!(written.finish(), Err(BackupError::Incomplete(_))));
        }
    }
}
