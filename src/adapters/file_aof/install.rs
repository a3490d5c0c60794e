//! Copying another log into place.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::ports::{LogError, LogRecord, Replayed};

use super::aof::AofOptions;
use super::files::{FileKind, LogFiles, create, failed};
use super::format::encode;
use super::reader::read_all;
use super::rotation::Switched;

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
    let first = Switched { number: 1, first_sequence: 1 };
    let header = options.segments().header(FileKind::Segment, first);
    let path = create(&options.dir, &header)?;
    let file = OpenOptions::new().append(true).open(&path).map_err(|e| failed(&path, &e))?;
    let mut copy = Copy {
        out: BufWriter::new(file),
        salt: header.salt,
        sequence: first.first_sequence,
        record: Vec::new(),
        outcome: Ok(()),
    };
    let read = read_all(&files, &options.cluster, |record| copy.add(&record))?;
    copy.finish().map_err(|error| failed(&path, &error))?;
    Ok(read.map(|(replayed, _)| replayed).unwrap_or_default())
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

struct Copy {
    out: BufWriter<File>,
    salt: u64,
    sequence: u64,
    record: Vec<u8>,
    /// The first error of the disk; what follows it is not written.
    outcome: std::io::Result<()>,
}

impl Copy {
    fn add(&mut self, record: &LogRecord) {
        if self.outcome.is_ok() {
            self.record.clear();
            encode(record, self.sequence, self.salt, &mut self.record);
            self.sequence += 1;
            self.outcome = self.out.write_all(&self.record);
        }
    }

    fn finish(self) -> std::io::Result<()> {
        self.outcome?;
        let file = self.out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()
    }
}
