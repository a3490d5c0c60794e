//! Says of each file of a log what is in it and what is wrong with it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::ports::LogError;

use super::own::Owner;
use super::source::Source;
use super::walk::{Flaw, Flaws, Step, walk};

/// What is in a file of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// What it is: `segment` or `snapshot`.
    pub kind: &'static str,
    /// Records that verify.
    pub records: u64,
    /// Those of them that stand behind the first damage.
    pub records_behind: u64,
    /// Its length.
    pub bytes: u64,
    /// A torn tail.
    pub torn: Option<Flaw>,
    /// Damaged places.
    pub damages: Flaws,
}

/// Reads a log (a file, a directory of them, or a data directory) as a replay does, and on past
/// whatever is damaged. Changes nothing, and may read while the node writes.
///
/// # Errors
/// [`LogError::Failed`] when there is no log, or it cannot be read.
pub fn check_log(path: &Path, owner: Option<&Owner>) -> Result<Vec<FileReport>, LogError> {
    let source = Source::open(path)?;
    let mut reports: Vec<FileReport> = Vec::new();
    walk(&source, owner, &mut |step| {
        match step {
            Step::File { path, kind, bytes } => reports.push(FileReport {
                path: path.to_owned(),
                kind: kind.name(),
                records: 0,
                records_behind: 0,
                bytes,
                torn: None,
                damages: Flaws::default(),
            }),
            step => {
                if let Some(report) = reports.last_mut() {
                    report.note(step);
                }
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(reports)
}

impl FileReport {
    /// Whether a start would refuse it.
    pub const fn is_damaged(&self) -> bool {
        !self.damages.is_empty()
    }

    fn note(&mut self, step: Step<'_>) {
        match step {
            Step::Record(_) => {
                self.records += 1;
                self.records_behind += u64::from(self.is_damaged());
            }
            Step::Damage(flaw) => self.damages.note(flaw),
            Step::Torn(flaw) => self.torn = Some(flaw),
            Step::File { .. } => {}
        }
    }
}
