//! `lally log check`: what is in the files of logs, and what is wrong with them.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::adapters::data_dir::{book_path, data_dir_of};
use crate::adapters::file_aof::{FileReport, Flaw, Flaws, Owner, check_log};
use crate::adapters::json_book::JsonBook;
use crate::ports::MemberBook;

use super::command::Stopped;
use super::errors::{RunError, refuse_missing};

/// Reports on every file; damage is an error at the end.
pub(super) async fn check(paths: &[PathBuf], out: &mut (dyn Write + Send)) -> Result<(), Stopped> {
    let (mut files, mut damaged) = (0_u64, 0_u64);
    for path in paths {
        refuse_missing(path, "")?;
        let owner = owner_in(path).await?;
        for report in check_log(path, owner.as_ref())? {
            files += 1;
            damaged += u64::from(report.is_damaged());
            print(&report, out)?;
        }
    }
    if damaged > 0 {
        return Err(RunError::Damaged(format!(
            "damaged: {damaged} of {files} files; `lally log repair` keeps what is intact, a start with --recover-from-peers gets the data from the other members"
        ))
        .into());
    }
    Ok(())
}

/// Whose log that is, where it lies in a data directory.
pub(super) async fn owner_in(path: &Path) -> Result<Option<Owner>, Stopped> {
    let Some(dir) = data_dir_of(path)? else { return Ok(None) };
    let book = JsonBook::new(&book_path(&dir)).load().await?;
    Ok(book.map(|book| Owner { cluster: book.cluster, node: book.id }))
}

fn print(report: &FileReport, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let FileReport { path, kind, records, bytes, .. } = report;
    let verdict = if report.is_damaged() {
        "damaged".to_owned()
    } else if let Some(Flaw { bytes, .. }) = &report.torn {
        let (length, offset) = (bytes.end - bytes.start, bytes.start);
        format!("torn tail of {length} bytes at byte offset {offset}, which the next start cuts")
    } else {
        "intact".to_owned()
    };
    writeln!(out, "{}: {kind}, {records} records, {bytes} bytes: {verdict}", path.display())?;
    for flaw in &report.damages.listed {
        writeln!(out, "  {}", place(flaw))?;
    }
    and_more(&report.damages, out)?;
    if report.is_damaged() {
        writeln!(
            out,
            "  {} of the records stand behind the first of these",
            report.records_behind
        )?;
    }
    Ok(())
}

/// How many places there are that are not listed.
pub(super) fn and_more(flaws: &Flaws, out: &mut (dyn Write + Send)) -> io::Result<()> {
    match flaws.more {
        0 => Ok(()),
        more => writeln!(out, "  and {more} more places"),
    }
}

/// Where something is wrong in a file, and what.
pub(super) fn place(flaw: &Flaw) -> String {
    let Flaw { bytes, reason, .. } = flaw;
    let length = bytes.end - bytes.start;
    if length == 0 {
        return format!("at byte offset {}: {reason}", bytes.start);
    }
    format!("at byte offset {}, {length} bytes: {reason}", bytes.start)
}
