//! `DataDir`: the directory in which a node keeps what survives it.
//!
//! ```text
//! LOCK            locked for as long as a node runs on the directory
//! node.json       who the node is and whom it knew
//! outbox/         changes that wait for webhooks, in a directory for each
//! quarantine/     entries that were taken out, never deleted by Lally
//! log/            the log; INCOMPLETE in it says that it lacks records that it had
//! log.bak-<time>  logs that were set aside, never deleted by Lally
//! log.draft/      a log that is being written; left over from a crash, it is worth nothing
//! log.new/        a complete log on its way into place
//! ```

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::domain::Timestamp;

/// Only the owner may look in: the data is users'.
const MODE: u32 = 0o700;

const DRAFT: &str = "log.draft";
const STAGED: &str = "log.new";

/// In a log that lacks records which the node once had in it.
const INCOMPLETE: &str = "INCOMPLETE";
const INCOMPLETE_TEXT: &str = "\
Records are missing from this log that were in it once. The node that starts on it joins its cluster
again before it counts for quorums, and removes this file. See docs/operations.md.
";

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
    /// It is a log or a backup, and no data directory.
    #[error(
        "{path} holds a backup or a log, and is no data directory; to start on it, give the node a data directory of its own: --data-dir PATH --replay-log {path}"
    )]
    NotOne {
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
        if !exists(&path.join("LOCK"))? && is_log(path)? {
            // A node would start in it as a new one, with nothing.
            return Err(DataDirError::NotOne { path: path.to_owned() });
        }
        let builder = &mut DirBuilder::new();
        let created = builder.recursive(true).mode(MODE).create(path);
        created.map_err(|error| failed(path, error))?;
        // The name of the directory must survive a power cut, too.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        // Not ours to read, perhaps; then it is not ours to sync either. Nor are directories of file
        // systems that cannot, which say so. A disk that fails is another matter.
        if let Ok(dir) = File::open(parent)
            && let Err(error) = dir.sync_all()
            && !matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported)
        {
            return Err(failed(parent, error));
        }
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
    ///
    /// # Errors
    /// [`DataDirError`] when that cannot be told: a log that cannot be read now is not lost.
    pub fn has_log(&self) -> Result<bool, DataDirError> {
        let names = names_in(&self.log_dir())?;
        Ok(names.iter().any(|name| Path::new(name).extension().is_some_and(|e| e == "log")))
    }

    /// Whether the log was marked with [`mark_incomplete`].
    ///
    /// # Errors
    /// [`DataDirError`] when that cannot be told: a log that lacks records must not pass for a whole one.
    pub fn log_is_incomplete(&self) -> Result<bool, DataDirError> {
        exists(&self.log_dir().join(INCOMPLETE))
    }

    /// Removes the mark, once it is written down elsewhere that the node has to join.
    ///
    /// # Errors
    /// [`DataDirError`].
    pub fn unmark_log(&self) -> Result<(), DataDirError> {
        let mark = self.log_dir().join(INCOMPLETE);
        match fs::remove_file(&mark) {
            Ok(()) => sync_dir(&self.log_dir()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed(&mark, error)),
        }
    }

    /// Where the node's book is.
    pub fn book_path(&self) -> PathBuf {
        book_path(&self.path)
    }

    /// Where entries go that were taken out of the store.
    pub fn quarantine_dir(&self) -> PathBuf {
        self.path.join("quarantine")
    }

    /// Where changes wait for webhooks.
    pub fn outbox_dir(&self) -> PathBuf {
        self.path.join("outbox")
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
        [DRAFT, STAGED].iter().try_for_each(|name| remove_dir(&self.path.join(name)))
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
        if !exists(&log)? && exists(&staged)? {
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
        if !exists(&log)? {
            return Ok(None);
        }
        set_aside(&log, now).map(Some)
    }

    fn sync(&self) -> Result<(), DataDirError> {
        sync_dir(&self.path)
    }
}

/// Where the book of a node is in its data directory.
pub fn book_path(dir: &Path) -> PathBuf {
    dir.join("node.json")
}

/// Removes a directory and what is in it, if it is there.
///
/// # Errors
/// [`DataDirError`].
pub fn remove_dir(path: &Path) -> Result<(), DataDirError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The data directory that a log belongs to, given that itself, the directory of its log, or a file
/// in there.
///
/// # Errors
/// [`DataDirError`] when that cannot be told: a log that a node may have must not pass for a copy.
pub fn data_dir_of(log: &Path) -> Result<Option<PathBuf>, DataDirError> {
    let own = log.join("log");
    if log.is_dir() && exists(&own)? && own.is_dir() {
        return Ok(Some(log.to_owned()));
    }
    let log = log.canonicalize().map_err(|error| failed(log, error))?;
    for log in log.ancestors().take(2).filter(|log| log.ends_with("log")) {
        let Some(dir) = log.parent() else { continue };
        if exists(&dir.join("LOCK"))? || exists(&book_path(dir))? {
            return Ok(Some(dir.to_owned()));
        }
    }
    Ok(None)
}

/// Marks a log that is being put together, durably: records that the node had are not in it.
///
/// # Errors
/// [`DataDirError`].
pub fn mark_incomplete(log: &Path) -> Result<(), DataDirError> {
    let mark = log.join(INCOMPLETE);
    let written = File::create(&mark).and_then(|mut file| {
        file.write_all(INCOMPLETE_TEXT.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| failed(&mark, error))?;
    sync_dir(log)
}

/// Renames a file or directory to `NAME.bak-20261124T113000Z`, with a number if that is taken. Says
/// what its name is now.
///
/// # Errors
/// [`DataDirError`].
pub fn set_aside(path: &Path, now: Timestamp) -> Result<PathBuf, DataDirError> {
    let second = i64::try_from(now.as_nanos() / 1_000_000_000).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_second(second).unwrap_or_default();
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".bak-{}", at.strftime("%Y%m%dT%H%M%SZ")));
    let numbered = (2..).map(|n| {
        let mut name = name.clone();
        name.push(format!("-{n}"));
        name
    });
    let mut names = std::iter::once(name.clone()).chain(numbered).map(PathBuf::from);
    let aside = loop {
        match names.next() {
            Some(path) if exists(&path)? => {}
            free => break free.unwrap_or_default(),
        }
    };
    fs::rename(path, &aside).map_err(|error| failed(path, error))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))?;
    Ok(aside)
}

/// Makes the names in a directory survive a power cut.
///
/// # Errors
/// [`DataDirError`].
pub fn sync_dir(dir: &Path) -> Result<(), DataDirError> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| failed(dir, error))
}

/// Whether there are files in the directory that are named as the files of a log or a backup are.
fn is_log(dir: &Path) -> Result<bool, DataDirError> {
    let is_numbered = |name: &str| name.len() == 16 && name.bytes().all(|b| b.is_ascii_digit());
    for name in names_in(dir)? {
        let (stem, ending) = name.split_once('.').unwrap_or_default();
        if is_numbered(stem) && matches!(ending, "log" | "snap") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The names of what is in a directory, as far as they are text; none if it is not there.
fn names_in(dir: &Path) -> Result<Vec<String>, DataDirError> {
    let files = match fs::read_dir(dir) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(dir, error)),
    };
    let names = files.map(|file| Ok(file?.file_name().into_string().ok()));
    let names: io::Result<Vec<_>> = names.filter_map(Result::transpose).collect();
    names.map_err(|error| failed(dir, error))
}

/// Unlike [`Path::exists`], which takes what cannot be looked at for missing.
fn exists(path: &Path) -> Result<bool, DataDirError> {
    path.try_exists().map_err(|error| failed(path, error))
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
    fn a_backup_is_no_data_directory_and_is_left_as_it_is() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["0000000000000001.snap", "0000000000000001.log"] {
            let dir = temp.path().join(name.replace('.', "-"));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join(name), "").unwrap();
            let refused = DataDir::open(&dir).unwrap_err();
            assert!(refused.to_string().contains("--replay-log"), "{refused}");
            let names = fs::read_dir(&dir).unwrap().map(|f| f.unwrap().file_name());
            assert_eq!(names.collect::<Vec<_>>(), [name]);
        }
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
        assert!(!dir.has_log().unwrap());
        drop(dir);
        let dir = DataDir::open(temp.path()).unwrap();
        assert!(dir.has_log().unwrap() && dir.log_dir().join("new.log").exists());
    }

    #[test]
    fn a_directory_without_a_segment_is_no_log() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        assert!(!dir.has_log().unwrap());
        fs::create_dir(dir.log_dir()).unwrap();
        assert!(!dir.has_log().unwrap());
        fs::write(dir.log_dir().join("1.log"), "").unwrap();
        assert!(dir.has_log().unwrap());
    }

    #[test]
    fn a_log_that_cannot_be_looked_at_is_not_a_missing_one() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        // A file where a directory is expected, and a name that leads to itself.
        fs::write(dir.log_dir(), "").unwrap();
        let refused = dir.has_log().unwrap_err().to_string();
        assert!(refused.contains("/log: "), "{refused}");
        fs::remove_file(dir.log_dir()).unwrap();
        std::os::unix::fs::symlink("log", dir.log_dir()).unwrap();
        let refused = dir.set_log_aside(NOW).unwrap_err().to_string();
        assert!(refused.contains("/log: "), "{refused}");
        let refused = data_dir_of(&dir.log_dir()).unwrap_err().to_string();
        assert!(refused.contains("/log: "), "{refused}");
    }

    #[test]
    fn a_directory_that_cannot_be_looked_at_is_not_begun_anew() {
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("LOCK", temp.path().join("LOCK")).unwrap();
        let refused = DataDir::open(temp.path()).unwrap_err().to_string();
        assert!(refused.contains("/LOCK: "), "{refused}");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_incomplete_log_says_so_until_it_is_unmarked() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        dir.unmark_log().unwrap();
        let staged = dir.stage_log().unwrap();
        fs::write(staged.join("1.log"), "").unwrap();
        mark_incomplete(&staged).unwrap();
        assert!(!dir.log_is_incomplete().unwrap());
        dir.swap_in_staged_log(NOW).unwrap();
        assert!(dir.log_is_incomplete().unwrap());
        dir.unmark_log().unwrap();
        assert!(!dir.log_is_incomplete().unwrap() && dir.has_log().unwrap());
        // A name that leads to itself cannot be looked at.
        std::os::unix::fs::symlink(INCOMPLETE, dir.log_dir().join(INCOMPLETE)).unwrap();
        let refused = dir.log_is_incomplete().unwrap_err().to_string();
        assert!(refused.contains(INCOMPLETE), "{refused}");
    }

    #[test]
    fn a_log_and_its_files_belong_to_their_data_directory_and_copies_to_none() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        for log in ["data/log", "data/log.bak-1", "elsewhere/log"] {
            fs::create_dir_all(root.join(log)).unwrap();
            fs::write(root.join(log).join("1.log"), "").unwrap();
        }
        drop(DataDir::open(&root.join("data")).unwrap());
        fs::create_dir(root.join("notes")).unwrap();
        fs::write(root.join("notes/log"), "a file").unwrap();
        let data = Some(root.join("data"));
        for (log, expected) in [
            ("data/log", &data),
            ("data/log/1.log", &data),
            ("data/log.bak-1", &None),
            ("data/log.bak-1/1.log", &None),
            ("elsewhere/log", &None),
            ("data", &data),
            ("notes", &None),
        ] {
            assert_eq!(data_dir_of(&root.join(log)).unwrap(), *expected, "{log}");
        }
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
