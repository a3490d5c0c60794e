//! Hands out the records of a log, one by one.

use std::ops::ControlFlow;
use std::path::Path;

use crate::ports::{LogError, LogRecord};

use super::source::Source;
use super::walk::{Flaw, Step, walk};

/// Hands the records of a log (a file, a directory of them, or a data directory) to the visitor, in
/// their order, until it breaks off. Holds one record at a time; changes nothing, and may read while
/// the node writes. Returns the torn tail, if there is one.
///
/// # Errors
/// [`LogError::Corrupt`] at the first damage, after everything before it; [`LogError::Failed`] when
/// there is no log, or it cannot be read.
pub fn dump_log(
    path: &Path,
    visit: &mut dyn FnMut(LogRecord) -> ControlFlow<()>,
) -> Result<Option<Flaw>, LogError> {
    let source = Source::open(path)?;
    let (mut torn, mut damage) = (None, None);
    walk(&source, None, &mut |step| match step {
        Step::File { .. } => ControlFlow::Continue(()),
        Step::Record(record) => visit(record),
        Step::Torn(flaw) => {
            torn = Some(flaw);
            ControlFlow::Continue(())
        }
        Step::Damage(flaw) => {
            damage = Some(flaw);
            ControlFlow::Break(())
        }
    })?;
    damage.map_or(Ok(torn), |flaw| Err(flaw.corrupt()))
}
