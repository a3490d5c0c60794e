//! `DataDir`: the directory in which a node keeps what survives it.
//!
//! ```text
//! LOCK            locked for as long as a node runs on the directory
//! node.json       who the node is and whom it knew
//! quarantine/     entries that were taken out, never deleted by Lally
//! log/            the log
//! log.bak-<time>  logs that were set aside, never deleted by Lally
//! log.draft/      a log that is being written; left over from a crash, it is worth nothing
//! log.new/        a complete log on its way into place
//! ```

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::domain::Timestamp;

/// Only the owner may look in: the data is users'.
const MODE: u32 = 0o700;

const DRAFT: &str = "log.draft";
const STAGED: &str = "log.new";

/// A data directory, locked until dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Held for its lock, which the system takes back with the process.
    _lock: File,
}

/// A data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error(
        "the data directory {path} is in use by another process; stop that one, or start this node with another --data-dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The file system refused something.
    #[error("data directory: {path}: {error}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl DataDir {
    /// Opens the directory, which is created if it does not exist, and locks it.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let builder = &mut DirBuilder::new();
        let created = builder.recursive(true).mode(MODE).create(path);
        created.map_err(|error| failed(path, error))?;
        // The name of the directory must survive a power cut, too.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let synced = File::open(parent.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all());
        // Not ours to read, perhaps; then it is not ours to sync either.
        synced.ok();
        let lock_path = path.join("LOCK");
        let mut open = File::options();
        open.create(true).truncate(false).write(true);
        let lock = open.open(&lock_path).map_err(|error| failed(&lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {
                let dir = Self { path: path.to_owned(), _lock: lock };
                dir.finish_swap()?;
                dir.sync()?;
                Ok(dir)
            }
            Err(TryLockError::WouldBlock) => Err(DataDirError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(failed(&lock_path, error)),
        }
    }

    /// Where the log is.
    pub fn log_dir(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Whether there is a log: its directory, with at least one file of it.
    pub fn has_log(&self) -> bool {
        let is_segment = |file: io::Result<fs::DirEntry>| {
            file.is_ok_and(|file| file.path().extension().is_some_and(|e| e == "log"))
        };
        fs::read_dir(self.log_dir()).is_ok_and(|mut files| files.any(is_segment))
    }

    /// Where the node's book is.
    pub fn book_path(&self) -> PathBuf {
        self.path.join("node.json")
    }

    /// Where entries go that were taken out of the store.
    pub fn quarantine_dir(&self) -> PathBuf {
        self.path.join("quarantine")
    }

    /// An empty directory for a log that is to replace the present one.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn stage_log(&self) -> Result<PathBuf, DataDirError> {
        self.discard_staged_log()?;
        let draft = self.path.join(DRAFT);
        DirBuilder::new().mode(MODE).create(&draft).map_err(|error| failed(&draft, error))?;
        Ok(draft)
    }

    /// Removes what was staged, if anything was.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn discard_staged_log(&self) -> Result<(), DataDirError> {
        for staged in [DRAFT, STAGED].map(|name| self.path.join(name)) {
            if let Err(error) = fs::remove_dir_all(&staged)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(failed(&staged, error));
            }
        }
        Ok(())
    }

    /// Whether a path lies in what is staged, which the next staging removes.
    pub fn is_staged(&self, path: &Path) -> bool {
        let (Ok(path), Ok(dir)) = (path.canonicalize(), self.path.canonicalize()) else {
            return false;
        };
        [DRAFT, STAGED].iter().any(|name| path.starts_with(dir.join(name)))
    }

    /// Puts the staged log, which is complete and on disk, in the place of the present one, which is
    /// set aside. Says where to. If a crash comes in between, [`open`](Self::open) goes on.
    ///
    /// # Errors
    /// [`DataDirError`]; the present log may be set aside already then.
    pub fn swap_in_staged_log(&self, now: Timestamp) -> Result<Option<PathBuf>, DataDirError> {
        let staged = self.path.join(STAGED);
        let complete = fs::rename(self.path.join(DRAFT), &staged);
        complete.map_err(|error| failed(&staged, error))?;
        self.sync()?;
        let aside = self.set_log_aside(now)?;
        self.finish_swap()?;
        Ok(aside)
    }

    /// A complete staged log without a present one: the swap was interrupted.
    fn finish_swap(&self) -> Result<(), DataDirError> {
        let (staged, log) = (self.path.join(STAGED), self.log_dir());
        if !log.exists() && staged.exists() {
            fs::rename(&staged, &log).map_err(|error| failed(&log, error))?;
            self.sync()?;
        }
        Ok(())
    }

    /// Sets the log aside, under a name with the time. Says where to; `None` if there is none.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn set_log_aside(&self, now: Timestamp) -> Result<Option<PathBuf>, DataDirError> {
        let log = self.log_dir();
        if !log.exists() {
            return Ok(None);
        }
        let aside = self.unused_name(now);
        fs::rename(&log, &aside).map_err(|error| failed(&log, error))?;
        self.sync()?;
        Ok(Some(aside))
    }

    /// `log.bak-20261124T113000Z`, with a number if that is taken.
    fn unused_name(&self, now: Timestamp) -> PathBuf {
        let second = i64::try_from(now.as_nanos() / 1_000_000_000).unwrap_or(i64::MAX);
        let at = jiff::Timestamp::from_second(second).unwrap_or_default();
        let name = format!("log.bak-{}", at.strftime("%Y%m%dT%H%M%SZ"));
        let numbered = (2..).map(|n| format!("{name}-{n}"));
        let names = std::iter::once(name.clone()).chain(numbered);
        let mut paths = names.map(|name| self.path.join(name));
        paths.find(|path| !path.exists()).unwrap_or_else(|| self.path.join(name))
    }

    fn sync(&self) -> Result<(), DataDirError> {
        let synced = File::open(&self.path).and_then(|dir| dir.sync_all());
        synced.map_err(|error| failed(&self.path, error))
    }
}

fn failed(path: &Path, error: io::Error) -> DataDirError {
    DataDirError::Io { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const NOW: Timestamp = Timestamp::from_nanos(1_795_519_800_000_000_000);

    #[test]
    fn the_directory_is_created_for_the_owner_alone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        let _dir = DataDir::open(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_second_owner_is_refused_until_the_first_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let first = DataDir::open(temp.path()).unwrap();
        let refused = DataDir::open(temp.path()).unwrap_err();
        assert!(refused.to_string().contains("--data-dir"), "{refused}");
        drop(first);
        DataDir::open(temp.path()).unwrap();
    }

    #[test]
    fn a_log_set_aside_keeps_its_contents_also_twice_in_a_second() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        assert_eq!(dir.set_log_aside(NOW).unwrap(), None);
        for contents in ["one", "two"] {
            fs::create_dir(dir.log_dir()).unwrap();
            fs::write(dir.log_dir().join("x"), contents).unwrap();
            let aside = dir.set_log_aside(NOW).unwrap().unwrap();
            assert!(aside.file_name().unwrap().to_str().unwrap().starts_with("log.bak-2026"));
            assert_eq!(fs::read_to_string(aside.join("x")).unwrap(), contents);
            assert!(!dir.log_dir().exists());
        }
    }

    #[test]
    fn a_swap_that_was_interrupted_is_finished_at_the_next_start() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        fs::create_dir(dir.log_dir()).unwrap();
        fs::write(dir.log_dir().join("old.log"), "").unwrap();
        fs::write(dir.stage_log().unwrap().join("new.log"), "").unwrap();
        // As far as the swap comes before the crash: complete, and the present one set aside.
        fs::rename(temp.path().join(DRAFT), temp.path().join(STAGED)).unwrap();
        dir.set_log_aside(NOW).unwrap();
        assert!(!dir.has_log());
        drop(dir);
        let dir = DataDir::open(temp.path()).unwrap();
        assert!(dir.has_log() && dir.log_dir().join("new.log").exists());
    }

    #[test]
    fn a_directory_without_a_segment_is_no_log() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        assert!(!dir.has_log());
        fs::create_dir(dir.log_dir()).unwrap();
        assert!(!dir.has_log());
        fs::write(dir.log_dir().join("1.log"), "").unwrap();
        assert!(dir.has_log());
    }

    #[test]
    fn a_staged_log_takes_the_place_of_the_present_one() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        fs::create_dir(dir.log_dir()).unwrap();
        let left_over = dir.stage_log().unwrap();
        fs::write(left_over.join("old"), "").unwrap();
        let staged = dir.stage_log().unwrap();
        fs::write(staged.join("new"), "").unwrap();
        assert!(dir.swap_in_staged_log(NOW).unwrap().is_some());
        let names = fs::read_dir(dir.log_dir()).unwrap().map(|f| f.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["new"]);
    }
}
