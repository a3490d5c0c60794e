//! Adds records from elsewhere to the log of a node that does not run.
//!
//! They become a segment of their own behind the others, which has its name only once everything is
//! in it and on disk: an import is done, or has not happened. Replaying is merging, so nothing held is
//! lost by it. What would bring a removed key back is left out: with a horizon in the log, the node
//! held everything stamped up to there, and may have forgotten that it was removed.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use crate::domain::Timestamp;
use crate::ports::{LogError, LogRecord};

use super::aof::AofOptions;
use super::files::{FileKind, LogFiles, begin_draft, create_dir, failed, file_name, publish};
use super::format::encode;
use super::marks::Marks;
use super::own::read_own;
use super::reader::End;
use super::tail::end_with_records;

/// An import under way; dropped before its end, it has not happened.
#[derive(Debug)]
pub struct Import {
    path: PathBuf,
    draft: PathBuf,
    out: Option<BufWriter<File>>,
    salt: u64,
    sequence: u64,
    record: Vec<u8>,
    /// The end of the segment before, if there is one.
    before: Option<End>,
    /// Where the node is certified, if it is.
    horizon: Option<Timestamp>,
    takes_horizons: bool,
    imported: Imported,
}

/// What came of an import.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Imported {
    /// Records that were added.
    pub records: u64,
    /// Entries that were left out, since they are not newer than the horizon.
    pub behind_horizon: u64,
    /// Horizons that were left out, since they are of another node.
    pub horizons: u64,
    /// The new segment; `None` if there was nothing to add.
    pub segment: Option<PathBuf>,
    /// Bytes of a torn tail of the log that were cut.
    pub cut_bytes: u64,
}

impl Import {
    /// Reads the log in the directory of the options, which is created if it does not exist, and
    /// begins the segment behind it. Horizons are taken in only if this is a node that never ran:
    /// others hold what the horizon of another node does not speak of.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] when the log is damaged, [`LogError::Failed`] when it cannot be read or
    /// the segment cannot be begun. The log is unchanged.
    pub fn begin(options: &AofOptions, is_new_node: bool) -> Result<Self, LogError> {
        create_dir(&options.dir)?;
        let files = LogFiles::list(&options.dir)?;
        let mut marks = Marks::default();
        let read = read_own(&files, options, |record| marks.raise(&record))?;
        let holds_nothing = read.as_ref().is_none_or(|(replayed, _)| replayed.records == 0);
        let before = read.map(|(_, end)| end);
        let (number, sequence) =
            before.as_ref().map_or((1, 1), |end| (number_behind(end), end.next_sequence));
        let header = options.segments().header(FileKind::Segment, number, sequence);
        let path = options.dir.join(file_name(FileKind::Segment, number));
        if path.try_exists().map_err(|error| failed(&path, &error))? {
            let reason = "a file of this name is in the way of the new segment";
            return Err(LogError::Failed(format!("{}: {reason}", path.display())));
        }
        let (draft, file) = begin_draft(&path)?;
        let mut import = Self {
            path,
            draft,
            out: Some(BufWriter::new(file)),
            salt: header.salt,
            sequence,
            record: header.encode(),
            before,
            horizon: marks.horizon(),
            takes_horizons: is_new_node && holds_nothing,
            imported: Imported::default(),
        };
        import.write()?;
        Ok(import)
    }

    /// Adds a record, or leaves it out.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn add(&mut self, record: &LogRecord) -> Result<(), LogError> {
        let stamp = match record {
            LogRecord::Write(write) => Some(write.entry.version.timestamp),
            LogRecord::Expunged { version, .. } => Some(version.timestamp),
            LogRecord::ClockBound(_) | LogRecord::Horizon(_) => None,
        };
        if stamp.is_some_and(|stamp| Some(stamp) <= self.horizon) {
            self.imported.behind_horizon += 1;
            return Ok(());
        }
        if matches!(record, LogRecord::Horizon(_)) && !self.takes_horizons {
            self.imported.horizons += 1;
            return Ok(());
        }
        self.record.clear();
        encode(record, self.sequence, self.salt, &mut self.record);
        self.sequence += 1;
        self.imported.records += 1;
        self.write()
    }

    /// Forces it to disk and makes it a part of the log.
    ///
    /// # Errors
    /// When the disk does not take it. The log is unchanged then, but for a torn tail that may be cut;
    /// only if its directory cannot be forced, the segment may be there. Importing it again is harmless.
    pub fn finish(mut self) -> Result<Imported, LogError> {
        let draft = self.draft.clone();
        let io_failed = |error: io::Error| failed(&draft, &error);
        let mut imported = std::mem::take(&mut self.imported);
        let Some(out) = self.out.take().filter(|_| imported.records > 0) else {
            return Ok(imported);
        };
        let file = out.into_inner().map_err(|error| io_failed(error.into_error()))?;
        file.sync_all().map_err(io_failed)?;
        if let Some(before) = &self.before {
            // The last segment until now: nothing but this one may be torn from here on.
            end_with_records(before)?;
            imported.cut_bytes = before.torn_bytes;
        }
        publish(&self.draft, &self.path)?;
        imported.segment = Some(self.path.clone());
        Ok(imported)
    }

    fn write(&mut self) -> Result<(), LogError> {
        let Some(out) = &mut self.out else { return Ok(()) };
        out.write_all(&self.record).map_err(|error| failed(&self.draft, &error))
    }
}

/// Its name counts for the order, whatever its header says.
fn number_behind(last: &End) -> u64 {
    let name: Option<u64> = last.path.file_stem().and_then(|name| name.to_str()?.parse().ok());
    name.unwrap_or_default().max(last.header.number) + 1
}

impl Drop for Import {
    fn drop(&mut self) {
        // Published, it has another name. What stays means nothing, and goes at the next start.
        fs::remove_file(&self.draft).ok();
    }
}
