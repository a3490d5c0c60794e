//! Writes a new log of what of a damaged one is intact.
//!
//! What is missing may be anything: a value, a removal, a clock bound, a horizon. So the copy ends
//! with two records of its own:
//!
//! * a clock bound of now, for one that may be lost;
//! * a horizon of zero, if there was one. A horizon says that everything stamped up to there is held,
//!   which is not so any more: what is lost would be refused when others send it.

use std::ops::ControlFlow;
use std::path::Path;

use crate::domain::Timestamp;
use crate::ports::{LogError, LogRecord};

use super::aof::AofOptions;
use super::files::{FileHeader, failed};
use super::install::Copy;
use super::marks::Marks;
use super::own::Owner;
use super::source::Source;
use super::walk::{Flaw, Flaws, Step, walk};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Salvaged {
    /// Records that were copied.
    pub records: u64,
    /// What was skipped. None: nothing is damaged.
    pub damages: Flaws,
    /// Bytes that were skipped.
    pub lost_bytes: u64,
    /// A torn tail, which is left out, too.
    pub torn: Option<Flaw>,
}

/// Copies every record of the log at `source` (a file, a directory of them, or a data directory) that
/// verifies, into a new log in the empty directory of the options, and forces it to disk. The source
/// is only read.
///
/// # Errors
/// [`LogError::Corrupt`] when a part of the log is not damaged but of another cluster, node or format
/// version, [`LogError::Failed`] when it cannot be read or the copy cannot be written. The directory
/// may hold a part of the copy then.
pub fn salvage_log(
    source: &Path,
    options: &AofOptions,
    now: Timestamp,
) -> Result<Salvaged, LogError> {
    let source = Source::open(source)?;
    let owner = options.owner();
    for file in &source.files {
        owner.refuse_foreign(&file.path, &file.file)?;
    }
    let mut copy = Copy::begin(options)?;
    let mut salvaged = Salvaged::default();
    let mut marks = Marks::default();
    walk(&source, None, &mut |step| {
        match step {
            Step::Record(record) => {
                marks.raise(&record);
                salvaged.records += 1;
                copy.add(&record);
            }
            Step::Damage(flaw) => {
                salvaged.lost_bytes += flaw.bytes.end - flaw.bytes.start;
                salvaged.damages.note(flaw);
            }
            Step::Torn(flaw) => salvaged.torn = Some(flaw),
            Step::File { .. } => {}
        }
        if copy.is_fine() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    copy.add(&LogRecord::ClockBound(now));
    if marks.horizon().is_some() {
        copy.add(&LogRecord::Horizon(Timestamp::ZERO));
    }
    copy.finish()?;
    Ok(salvaged)
}

/// Whose log it is, as the first of its files says whose header is intact.
///
/// # Errors
/// [`LogError::Failed`] when there is no log, or it cannot be read.
pub fn owner_of(source: &Path) -> Result<Option<Owner>, LogError> {
    for file in Source::open(source)?.files {
        let header = FileHeader::read(&file.file).map_err(|error| failed(&file.path, &error))?;
        if let Ok(header) = header {
            return Ok(Some(Owner { cluster: header.cluster, node: header.node }));
        }
    }
    Ok(None)
}

impl Salvaged {
    /// Whether there was anything to repair.
    pub const fn is_damaged(&self) -> bool {
        !self.damages.is_empty()
    }
}
