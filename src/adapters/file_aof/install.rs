//! Copying another log into place.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::ports::{LogError, LogRecord, Replayed};

use super::aof::AofOptions;
use super::files::{FileKind, LogFiles, create, failed};
use super::format::encode;
use super::reader::read_all;

/// Writes the records of the log at `source` (a segment, a snapshot, or a directory of them, also of
/// another node) as a new log into the empty directory of the options, and forces it to disk. The source is
/// only read. A torn tail in it is left out.
///
/// # Errors
/// [`LogError::Corrupt`] when the source is damaged or of another cluster, [`LogError::Failed`]
/// when it cannot be read or the copy cannot be written. The directory may hold a part of the copy
/// then.
pub fn install_log(source: &Path, options: &AofOptions) -> Result<Replayed, LogError> {
    let files = files_of(source)?;
    let mut copy = Copy::begin(options)?;
    let read = read_all(&files, &options.cluster, |record| copy.add(&record))?;
    copy.finish()?;
    Ok(read.map(|(replayed, _)| replayed).unwrap_or_default())
}

/// The length of the log at `source`, as [`install_log`] reads it.
///
/// # Errors
/// [`LogError::Failed`] when there is none, or it cannot be looked at.
pub fn log_bytes(source: &Path) -> Result<u64, LogError> {
    let files = files_of(source)?;
    let length = |path: &PathBuf| path.metadata().map(|metadata| metadata.len());
    files.to_read().map(|path| length(path).map_err(|error| failed(path, &error))).sum()
}

fn files_of(source: &Path) -> Result<LogFiles, LogError> {
    let metadata = source.metadata().map_err(|error| failed(source, &error))?;
    if !metadata.is_dir() {
        return Ok(LogFiles::only(source));
    }
    let files = LogFiles::list(source)?;
    if files.is_empty() {
        let reason = "there is no log (no *.log, no *.snap) in this directory";
        return Err(LogError::Failed(format!("{}: {reason}", source.display())));
    }
    Ok(files)
}

/// A log of one segment that is being written into an empty directory.
pub(super) struct Copy {
    path: PathBuf,
    out: BufWriter<File>,
    salt: u64,
    sequence: u64,
    record: Vec<u8>,
    /// The first error of the disk; what follows it is not written.
    outcome: io::Result<()>,
}

impl Copy {
    pub(super) fn begin(options: &AofOptions) -> Result<Self, LogError> {
        let header = options.segments().header(FileKind::Segment, 1, 1);
        let open = |draft: &Path| {
            OpenOptions::new().append(true).open(draft).map_err(|error| failed(draft, &error))
        };
        let (path, file) = create(&options.dir, &header, open)?;
        Ok(Self {
            path,
            out: BufWriter::new(file),
            salt: header.salt,
            sequence: header.first_sequence,
            record: Vec::new(),
            outcome: Ok(()),
        })
    }

    pub(super) fn add(&mut self, record: &LogRecord) {
        if self.outcome.is_ok() {
            self.record.clear();
            encode(record, self.sequence, self.salt, &mut self.record);
            self.sequence += 1;
            self.outcome = self.out.write_all(&self.record);
        }
    }

    /// Whether the disk has taken everything so far.
    pub(super) const fn is_fine(&self) -> bool {
        self.outcome.is_ok()
    }

    /// Forces it to disk. Returns the segment.
    pub(super) fn finish(self) -> Result<PathBuf, LogError> {
        let Self { path, out, outcome, .. } = self;
        let finish = || {
            outcome?;
            let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()
        };
        finish().map_err(|error| failed(&path, &error))?;
        Ok(path)
    }
}
