//! `Source`: the files of a log, opened while its node runs, by another program or for a backup.
//!
//! A running node begins segments, publishes snapshots, and removes what those stand for. So the
//! files are opened first, all of them, and the listing is believed only if it is the same
//! afterwards: what is open can be read to its end, removed or not. A record that is being written
//! at the end looks like a torn tail.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::ports::LogError;

use super::files::{LogFiles, failed};

/// A node would have to begin a file each time in the few microseconds that a listing takes.
const ATTEMPTS: usize = 100;

/// The files of a log, open.
#[derive(Debug)]
pub(super) struct Source {
    /// In the order in which they are read.
    pub(super) files: Vec<SourceFile>,
    /// Whether these are all files of a log, and not one alone.
    pub(super) is_whole: bool,
}

/// A file of a log.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// When it was opened: what comes later is not looked at.
    pub(super) length: u64,
}

impl Source {
    /// Opens a file of a log, a directory of them, or the log in a data directory.
    pub(super) fn open(path: &Path) -> Result<Self, LogError> {
        let metadata = path.metadata().map_err(|error| failed(path, &error))?;
        if !metadata.is_dir() {
            let file = SourceFile::open(path).map_err(|error| failed(path, &error))?;
            return Ok(Self { files: vec![file], is_whole: false });
        }
        let dir = log_dir(path)?;
        for _ in 0..ATTEMPTS {
            if let Some(files) = open_all(&dir)? {
                return Ok(Self { files, is_whole: true });
            }
        }
        let reason = "its files change faster than they can be listed; try again";
        Err(LogError::Failed(format!("{}: {reason}", dir.display())))
    }
}

impl SourceFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, length })
    }
}

/// The directory of the files: this one, or the `log` in it.
pub(super) fn log_dir(path: &Path) -> Result<PathBuf, LogError> {
    let inner = path.join("log");
    for dir in [path, &inner] {
        if dir.is_dir() && !LogFiles::list(dir)?.is_empty() {
            return Ok(dir.to_owned());
        }
    }
    let reason = "there is no log (no *.log, no *.snap) in this directory";
    Err(LogError::Failed(format!("{}: {reason}", path.display())))
}

/// All files of a log, in the order in which they are read; `None` if they have changed meanwhile.
pub(super) fn open_all(dir: &Path) -> Result<Option<Vec<SourceFile>>, LogError> {
    let listed = LogFiles::list(dir)?;
    let mut files = Vec::new();
    for path in listed.to_read() {
        match SourceFile::open(path) {
            Ok(file) => files.push(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(path, &error)),
        }
    }
    let is_same = LogFiles::list(dir)?.to_read().eq(listed.to_read());
    Ok(is_same.then_some(files))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_directory_a_data_directory_and_a_file_are_sources() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::create_dir(&log).unwrap();
        let refused = Source::open(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("there is no log"), "{refused}");
        for name in ["3.snap", "3.log", "4.log", "2.log", "5.new"] {
            fs::write(log.join(name), name).unwrap();
        }
        for path in [dir.path(), &log] {
            let source = Source::open(path).unwrap();
            let names = source.files.iter().map(|file| file.path.file_name().unwrap());
            assert!(names.eq(["3.snap", "3.log", "4.log"]) && source.is_whole);
        }
        let source = Source::open(&log.join("2.log")).unwrap();
        assert_eq!((source.files.len(), source.is_whole), (1, false));
        assert_eq!(source.files[0].length, 5);
        assert!(Source::open(&dir.path().join("missing")).is_err());
    }

    /// Files appear and vanish as in compactions; a source never lacks one in the middle.
    #[test]
    fn a_listing_is_never_of_two_moments() {
        let dir = tempfile::tempdir().unwrap();
        let name = |n: u64, kind: &str| dir.path().join(format!("{n:016}.{kind}"));
        fs::write(name(1, "log"), "").unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 2..500 {
                    fs::write(name(n, "log"), "").unwrap();
                    fs::write(name(n, "snap"), "").unwrap();
                    fs::remove_file(name(n - 1, "log")).unwrap();
                    fs::remove_file(name(n - 1, "snap")).ok();
                }
                done.store(true, Ordering::Relaxed);
            });
            let mut read = 0;
            while !done.load(Ordering::Relaxed) || read == 0 {
                let Ok(source) = Source::open(dir.path()) else { continue };
                read += 1;
                let first = source.files[0].path.file_stem().unwrap().to_owned();
                let begins = source.files[0].path.extension().unwrap() == "snap";
                assert!(begins || first == "0000000000000001", "{source:?}");
            }
        });
    }
}
