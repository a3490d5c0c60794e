//! Copying another log into place.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::ports::{LogError, LogRecord, Replayed};

use super::aof::{AofOptions, begin_segment};
use super::format::encode;
use super::reader::read_all;
use super::segment::{failed, list};

/// Writes the records of the log at `source` (a segment, or a directory of them, also of another
/// node) as a new log into the empty directory of the options, and forces it to disk. The source is
/// only read. A torn tail in it is left out.
///
/// # Errors
/// [`LogError::Corrupt`] when the source is damaged or of another cluster, [`LogError::Failed`]
/// when it cannot be read or the copy cannot be written. The directory may hold a part of the copy
/// then.
pub fn install_log(source: &Path, options: &AofOptions) -> Result<Replayed, LogError> {
    let segments = segments_of(source)?;
    let (path, position) = begin_segment(options, 1, 1)?;
    let file = OpenOptions::new().append(true).open(&path).map_err(|e| failed(&path, &e))?;
    let mut copy = Copy {
        out: BufWriter::new(file),
        salt: position.salt,
        sequence: position.next_sequence,
        record: Vec::new(),
        outcome: Ok(()),
    };
    let read = read_all(&segments, &options.cluster, |record| copy.add(&record))?;
    copy.finish().map_err(|error| failed(&path, &error))?;
    Ok(read.map(|(replayed, _)| replayed).unwrap_or_default())
}

fn segments_of(source: &Path) -> Result<Vec<PathBuf>, LogError> {
    let metadata = source.metadata().map_err(|error| failed(source, &error))?;
    if !metadata.is_dir() {
        return Ok(vec![source.to_owned()]);
    }
    let segments = list(source)?;
    if segments.is_empty() {
        let reason = "there is no log (no *.log) in this directory";
        return Err(LogError::Failed(format!("{}: {reason}", source.display())));
    }
    Ok(segments)
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
