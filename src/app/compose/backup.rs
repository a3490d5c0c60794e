//! `lally backup`: a backup of a node that runs, into a directory.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use tokio::task::JoinError;
use tokio::time::Instant;

use crate::adapters::file_aof::{BackupDir, BackupError, BackupWritten};
use crate::adapters::http::{Download, DownloadError, Remote};

use super::command::{Stopped, interrupted};
use super::errors::RunError;

/// How often a long backup says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// Makes a backup of the node `from` in this directory, and says what came of it.
/// How far it is goes to stderr. An interrupt ends it.
///
/// Whatever ends it, nothing is left that passes for a backup.
pub(super) async fn backup(
    dir: &Path,
    from: &Remote,
    out: &mut (dyn Write + Send),
) -> Result<(), Stopped> {
    let began = Instant::now();
    let BackupWritten { path, records, bytes } = tokio::select! {
        written = fetch(dir, from) => written?,
        () = interrupted() => return Err(no_backup("interrupted").into()),
    };
    let (path, took) = (path.display(), began.elapsed().as_secs_f64());
    writeln!(out, "{path}: complete: {records} records, {bytes} bytes, {took:.1} s")?;
    Ok(())
}

async fn fetch(dir: &Path, from: &Remote) -> Result<BackupWritten, RunError> {
    let dir = dir.to_owned();
    // Before the node is asked for anything.
    let mut into = aside(move || BackupDir::create(&dir)).await?.map_err(refused)?;
    let mut node = Download::begin(from).await.map_err(failed)?;
    let mut shown =
        Shown { bytes: 0, expected: node.expected_bytes(), next: Instant::now() + PROGRESS_EVERY };
    while let Some(piece) = node.next().await.map_err(failed)? {
        shown.bytes += piece.len() as u64;
        let written = aside(move || into.write(&piece).map(|()| into)).await?;
        into = written.map_err(refused)?;
        // A terminal that is gone is no reason to have no backup.
        shown.show(&mut io::stderr()).ok();
    }
    aside(move || into.finish()).await?.map_err(refused)
}

/// Away from the thread that waits for the network.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RunError> {
    let ended = |error: JoinError| no_backup(error);
    tokio::task::spawn_blocking(work).await.map_err(ended)
}

fn refused(error: BackupError) -> RunError {
    match error {
        BackupError::NotEmpty { .. } => RunError::Usage(error.to_string()),
        other => no_backup(other),
    }
}

fn failed(error: DownloadError) -> RunError {
    no_backup(error)
}

fn no_backup(reason: impl std::fmt::Display) -> RunError {
    RunError::Command(format!("no backup: {reason}"))
}

/// How far it is.
struct Shown {
    bytes: u64,
    expected: Option<u64>,
    next: Instant,
}

impl Shown {
    fn show(&mut self, progress: &mut impl Write) -> io::Result<()> {
        if Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + PROGRESS_EVERY;
        let bytes = self.bytes;
        match self.expected {
            Some(expected) => {
                // It is about right only, and the end is still to come.
                let percent = (bytes * 100 / expected.max(1)).min(99);
                writeln!(progress, "{percent} %: {bytes} of about {expected} bytes")
            }
            None => writeln!(progress, "{bytes} bytes"),
        }
    }
}
