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
use super::files::{HeaderError, failed};
use super::install::Copy;
use super::scan::read_header;
use super::source::Source;
use super::walk::{Flaw, Owner, Step, walk};

/// Places listed; of more, the number says enough.
const LISTED: usize = 100;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Salvaged {
    /// Records that were copied.
    pub records: u64,
    /// What was skipped, the first places of it. None: nothing is damaged.
    pub damages: Vec<Flaw>,
    /// How many more there are.
    pub more_damages: u64,
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
    refuse_foreign(&source, options)?;
    let mut copy = Copy::begin(options)?;
    let mut salvaged = Salvaged::default();
    let mut horizon = Timestamp::ZERO;
    walk(&source, None, &mut |step| {
        match step {
            Step::Record(record) => {
                if let LogRecord::Horizon(reached) = record {
                    horizon = reached;
                }
                salvaged.records += 1;
                copy.add(&record);
            }
            Step::Damage(flaw) => salvaged.note(flaw),
            Step::Torn(flaw) => salvaged.torn = Some(flaw),
            Step::File { .. } => {}
        }
        if copy.is_fine() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    copy.add(&LogRecord::ClockBound(now));
    if horizon > Timestamp::ZERO {
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
        let header = read_header(&file.file, file.length);
        let header = header.map_err(|error| failed(&file.path, &error))?;
        if let Ok(header) = header {
            return Ok(Some(Owner { cluster: header.cluster, node: header.node }));
        }
    }
    Ok(None)
}

/// What is intact and not ours is no damage: it must not be taken in, or skipped as lost.
fn refuse_foreign(source: &Source, options: &AofOptions) -> Result<(), LogError> {
    let owner = Owner { cluster: options.cluster.clone(), node: options.node };
    for file in &source.files {
        let header = read_header(&file.file, file.length);
        let reason = match header.map_err(|error| failed(&file.path, &error))? {
            Ok(header) => owner.refuses(&header),
            Err(error @ HeaderError::Version(_)) => Some(error.to_string()),
            Err(_) => None,
        };
        if let Some(reason) = reason {
            return Err(LogError::Corrupt {
                file: file.path.display().to_string(),
                offset: 0,
                reason,
            });
        }
    }
    Ok(())
}

impl Salvaged {
    /// Whether there was anything to repair.
    pub const fn is_damaged(&self) -> bool {
        !self.damages.is_empty()
    }

    fn note(&mut self, flaw: Flaw) {
        self.lost_bytes += flaw.bytes.end - flaw.bytes.start;
        if self.damages.len() < LISTED {
            self.damages.push(flaw);
        } else {
            self.more_damages += 1;
        }
    }
}
