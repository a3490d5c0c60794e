//! `lally log repair`: a log of what is intact, in the place of a damaged one.
//!
//! The original is renamed, never changed. The log of a node is swapped as `--replay-log` does it, so
//! that a crash in between is finished by the next start; and it is marked, in the same step: the node
//! lost records that it had acknowledged, so it joins again as one that lost them all.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::adapters::clock::SystemClock;
use crate::adapters::data_dir::{
    DataDir, data_dir_of, mark_incomplete, remove_dir, set_aside, sync_dir,
};
use crate::adapters::file_aof::{AofOptions, Owner, Salvaged, owner_of, salvage_log};
use crate::ports::Clock;

use super::command::Stopped;
use super::errors::{RunError, refuse_missing};
use super::log_check::{and_more, owner_in, place};

/// Repairs the log at this path, if it is damaged.
pub(super) async fn repair(path: &Path, out: &mut (dyn Write + Send)) -> Result<(), Stopped> {
    refuse_missing(path, "")?;
    match data_dir_of(path)? {
        Some(dir) if path.is_dir() => repair_own(&dir, out).await,
        Some(dir) => Err(usage(&format!(
            "{}: this is one file of the log of a node; repair all of it: lally log repair {}",
            path.display(),
            dir.display()
        ))),
        None => repair_copy(path, out),
    }
}

/// The log in a data directory.
async fn repair_own(dir: &Path, out: &mut (dyn Write + Send)) -> Result<(), Stopped> {
    let locked = DataDir::open(dir)?;
    let log = locked.log_dir();
    let known = owner_in(dir).await?;
    let owner = known.map_or_else(|| owner_or_refuse(&log), Ok)?;
    let draft = locked.stage_log()?;
    let salvaged = match salvage(&log, &draft, &owner) {
        Ok(salvaged) if salvaged.is_damaged() => salvaged,
        nothing_to_do => {
            locked.discard_staged_log()?;
            return Ok(intact(&log, &nothing_to_do?, out)?);
        }
    };
    mark_incomplete(&draft)?;
    let Some(aside) = locked.swap_in_staged_log(SystemClock.now())? else { return Ok(()) };
    report(&salvaged, &log, &aside, out)?;
    writeln!(out, "The node joins its cluster again before it counts for quorums.")?;
    Ok(())
}

/// A log that is no node's: a copy, or one that was set aside.
fn repair_copy(path: &Path, out: &mut (dyn Write + Send)) -> Result<(), Stopped> {
    let owner = owner_or_refuse(path)?;
    // A repaired snapshot is a segment.
    let target = if path.is_dir() { path.to_owned() } else { path.with_extension("log") };
    if target != path && target.exists() {
        return Err(usage(&format!(
            "{}: the repaired file would be {}, which is there already; move it elsewhere",
            path.display(),
            target.display()
        )));
    }
    let draft = beside(path, ".draft");
    remove_dir(&draft)?;
    fs::create_dir(&draft).map_err(|error| io_failed(&draft, &error))?;
    let salvaged = match salvage(path, &draft, &owner) {
        Ok(salvaged) if salvaged.is_damaged() => salvaged,
        nothing_to_do => {
            remove_dir(&draft)?;
            return Ok(intact(path, &nothing_to_do?, out)?);
        }
    };
    let aside = set_aside(path, SystemClock.now())?;
    let (from, to) = if aside.is_dir() {
        (draft.clone(), path.to_owned())
    } else {
        (draft.join("0000000000000001.log"), target)
    };
    fs::rename(&from, &to).map_err(|error| io_failed(&to, &error))?;
    remove_dir(&draft)?;
    sync_dir(to.parent().unwrap_or(Path::new(".")))?;
    report(&salvaged, &to, &aside, out)?;
    writeln!(out, "To start a node on it: lally --replay-log {}", to.display())?;
    Ok(())
}

fn salvage(log: &Path, draft: &Path, owner: &Owner) -> Result<Salvaged, Stopped> {
    let options = AofOptions::new(draft, &owner.cluster, owner.node);
    Ok(salvage_log(log, &options, SystemClock.now())?)
}

fn owner_or_refuse(log: &Path) -> Result<Owner, Stopped> {
    owner_of(log)?.ok_or_else(|| {
        let log = log.display();
        RunError::Damaged(format!(
            "{log}: no file of this log has an intact header: nothing can be kept"
        ))
        .into()
    })
}

fn intact(log: &Path, salvaged: &Salvaged, out: &mut (dyn Write + Send)) -> io::Result<()> {
    writeln!(out, "{}: nothing is damaged; nothing was changed", log.display())?;
    match &salvaged.torn {
        Some(flaw) => writeln!(out, "A torn tail, {}, is cut by the next start.", place(flaw)),
        None => Ok(()),
    }
}

fn report(
    salvaged: &Salvaged,
    log: &Path,
    aside: &Path,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let Salvaged { records, lost_bytes, .. } = salvaged;
    writeln!(out, "{}: {records} records kept, {lost_bytes} bytes skipped:", log.display())?;
    for flaw in salvaged.damages.listed.iter().chain(&salvaged.torn) {
        let name = flaw.file.file_name().unwrap_or_default().display();
        writeln!(out, "  {name} {}", place(flaw))?;
    }
    and_more(&salvaged.damages, out)?;
    writeln!(out, "The original is {}", aside.display())
}

/// The path with this behind its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn io_failed(path: &Path, error: &io::Error) -> Stopped {
    RunError::Command(format!("{}: {error}", path.display())).into()
}

fn usage(message: &str) -> Stopped {
    RunError::Usage(message.to_owned()).into()
}
