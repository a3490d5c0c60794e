//! `lally log dump`: the records of logs as lines of JSON.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::adapters::file_aof::dump_log;
use crate::adapters::record_lines;

use super::command::Stopped;
use super::errors::refuse_missing;

/// Writes record after record, and holds no more than one at a time.
pub(super) fn dump(paths: &[PathBuf], out: &mut (dyn Write + Send)) -> Result<(), Stopped> {
    let mut line = Vec::new();
    for path in paths {
        refuse_missing(path, "")?;
        let mut outcome: io::Result<()> = Ok(());
        let dumped = dump_log(path, &mut |record| {
            line.clear();
            record_lines::encode(&record, &mut line);
            outcome = out.write_all(&line);
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        outcome?;
        dumped?;
    }
    Ok(())
}
