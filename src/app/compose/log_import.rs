//! `lally log import`: records from elsewhere, into the log of a node that does not run.
//!
//! Into a running node a client can write what it likes through HTTP, as new versions. What an import
//! is for are the versions as they are: so that a record that is older than what the node holds loses
//! against it, and that what was dumped is what is there again. So it goes into the log, as a segment
//! of its own, and the next start merges it in like everything else; the other members get it by
//! comparison.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::time::Duration;

use crate::adapters::clock::SystemClock;
use crate::adapters::config::Config;
use crate::adapters::data_dir::{DataDir, mark_incomplete};
use crate::adapters::file_aof::{AofOptions, Import, Imported};
use crate::adapters::json_book::JsonBook;
use crate::adapters::record_lines::{self, MAX_LINE_BYTES};
use crate::app::Identity;
use crate::domain::{KeptData, NodeId, Phase, Timestamp};
use crate::ports::{Clock, LogError, LogRecord, MemberBook};

use super::command::Stopped;
use super::errors::RunError;

/// A clock bound lies ahead of the clock, and the dump may be of a machine whose clock does.
const SLACK: Duration = Duration::from_secs(1);

/// Imports a file, or nothing of it.
pub(super) async fn import(
    file: &Path,
    node: &Config,
    out: &mut (dyn Write + Send),
) -> Result<(), Stopped> {
    let lines = open(file)?;
    let dir = claim(&node.data_dir)?;
    let book = JsonBook::new(&dir.book_path());
    let known = book.load().await?;
    let identity = Identity::load(&book, &node.cluster_name, NodeId::new(rand::random())).await;
    let identity = identity.map_err(RunError::from)?;
    let lost_its_log = !dir.has_log()?
        && known.as_ref().is_some_and(|book| matches!(book.phase, Phase::Whole | Phase::Left));
    let options = AofOptions::new(&dir.log_dir(), &node.cluster_name, identity.id());
    let mut import = Import::begin(&options, known.is_none())?;
    let now = SystemClock.now();
    let slack = node.max_clock_drift + SLACK;
    let latest = now.plus_nanos(u64::try_from(slack.as_nanos()).unwrap_or(u64::MAX));
    read(lines, file, |line| {
        let record = record_lines::decode(line)?;
        refuse_future(&record, latest)?;
        Ok(import.add(&record))
    })?;
    if lost_its_log {
        // With these records alone it would pass for a node that has everything it had.
        mark_incomplete(&options.dir)?;
    }
    if known.is_none() {
        // The log is of this node, whose first start is yet to come.
        identity.claim(&book, KeptData::None).await.map_err(RunError::from)?;
    }
    report(&import.finish()?, &dir, out)?;
    Ok(())
}

fn report(imported: &Imported, dir: &DataDir, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let Imported { records, behind_horizon, horizons, segment, cut_bytes } = imported;
    match segment {
        Some(segment) => writeln!(out, "{records} records imported into {}", segment.display())?,
        None => writeln!(out, "no record imported into {}", dir.log_dir().display())?,
    }
    if *behind_horizon > 0 {
        writeln!(
            out,
            "{behind_horizon} left out: not newer than the horizon of this node, which held everything up to there"
        )?;
    }
    if *horizons > 0 {
        writeln!(out, "{horizons} horizons left out: they are of another node")?;
    }
    if *cut_bytes > 0 {
        writeln!(out, "a torn tail of {cut_bytes} bytes of the log was cut, as a start does")?;
    }
    Ok(())
}

fn open(file: &Path) -> Result<Box<dyn BufRead + Send>, Stopped> {
    if file == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let refused = |error: io::Error| {
        RunError::Usage(format!(
            "{}: {error}; expected a file of lines as 'lally log dump' prints them",
            file.display()
        ))
    };
    let opened = File::open(file).map_err(refused)?;
    if opened.metadata().map_err(refused)?.is_dir() {
        return Err(refused(io::ErrorKind::IsADirectory.into()).into());
    }
    Ok(Box::new(BufReader::new(opened)))
}

/// A directory that is not there is a typing error rather than a new node.
fn claim(path: &Path) -> Result<DataDir, Stopped> {
    if path.is_dir() {
        return Ok(DataDir::open(path)?);
    }
    Err(RunError::Usage(format!(
        "{}: there is no such directory; expected the data directory of a node that does not run (--data-dir), or an empty one for a new node",
        path.display()
    ))
    .into())
}

/// Hands over every line that is not blank. A line that is refused ends it with its number.
fn read(
    mut lines: Box<dyn BufRead + Send>,
    file: &Path,
    mut take: impl FnMut(&[u8]) -> Result<Result<(), LogError>, String>,
) -> Result<(), Stopped> {
    let (mut line, mut number) = (Vec::new(), 0_u64);
    let refused = |number: u64, reason: String| {
        let file = file.display();
        RunError::Usage(format!("{file}, line {number}: {reason}; nothing was imported"))
    };
    loop {
        line.clear();
        number += 1;
        let mut bounded = lines.by_ref().take(MAX_LINE_BYTES + 1);
        let read = bounded
            .read_until(b'\n', &mut line)
            .map_err(|error| refused(number, error.to_string()))?;
        if read == 0 {
            return Ok(());
        }
        if read as u64 > MAX_LINE_BYTES {
            return Err(refused(number, format!("longer than {MAX_LINE_BYTES} bytes")).into());
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        take(&line).map_err(|reason| refused(number, reason))??;
    }
}

/// A version from the future would make its key unchangeable, and the clock of the node wrong.
fn refuse_future(record: &LogRecord, latest: Timestamp) -> Result<(), String> {
    let stamp = match record {
        LogRecord::Write(write) => write.entry.version.timestamp,
        LogRecord::ClockBound(stamp) | LogRecord::Horizon(stamp) => *stamp,
        LogRecord::Expunged { version, .. } => version.timestamp,
    };
    if stamp <= latest {
        return Ok(());
    }
    let ahead = Duration::from_nanos(stamp.nanos_after(latest)).as_secs();
    Err(format!(
        "the timestamp lies in the future, by {ahead} s more than max_clock_drift allows; expected one that has come, by the clock of this machine"
    ))
}
