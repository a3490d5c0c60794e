//! Commands: what the binary does beside running a node.

use std::io::{self, Write};

use crate::adapters::config::{Command, LogCommand};
use crate::adapters::data_dir::DataDirError;
use crate::ports::{BookError, LogError};

use super::errors::RunError;
use super::{ask, backup, bench, log_check, log_dump, log_import, log_repair};

/// Carries out a command, and writes what it has to say to `out`, which may be a terminal. A reader who
/// has seen enough and closes it ends the command quietly.
///
/// # Errors
/// [`RunError`] says what is wrong, with the exit code.
pub async fn perform(
    command: Command,
    is_terminal: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), RunError> {
    let done = match command {
        Command::Log(LogCommand::Check { paths }) => log_check::check(&paths, out).await,
        Command::Log(LogCommand::Dump { paths }) => log_dump::dump(&paths, out),
        Command::Log(LogCommand::Repair { path }) => log_repair::repair(&path, out).await,
        Command::Log(LogCommand::Import { file, node }) => {
            log_import::import(&file, &node, out).await
        }
        Command::Backup { to, from } => backup::backup(&to, &from, out).await,
        Command::Bench(plan) => bench::bench(*plan, out).await,
        Command::Ask(plan) => ask::ask(*plan, is_terminal, out).await,
    };
    let flushed = out.flush().map_err(Stopped::from);
    match done.and(flushed) {
        Ok(()) => Ok(()),
        Err(Stopped::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Stopped::Output(error)) => {
            Err(RunError::Command(format!("cannot write the output: {error}")))
        }
        Err(Stopped::Failed(error)) => Err(error),
    }
}

/// Resolves when the process is interrupted. Where that cannot be noticed, it ends the process.
pub(super) async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Why a command did not go on.
#[derive(Debug)]
pub(super) enum Stopped {
    /// Its output went nowhere.
    Output(io::Error),
    Failed(RunError),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<RunError> for Stopped {
    fn from(error: RunError) -> Self {
        Self::Failed(error)
    }
}

impl From<LogError> for Stopped {
    /// No node runs that must not trust its log any more.
    fn from(error: LogError) -> Self {
        Self::Failed(match error {
            LogError::Corrupt { .. } => RunError::Damaged(error.to_string()),
            LogError::Failed(reason) => RunError::Command(reason),
            error => RunError::Command(error.to_string()),
        })
    }
}

impl From<DataDirError> for Stopped {
    fn from(error: DataDirError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<BookError> for Stopped {
    fn from(error: BookError) -> Self {
        Self::Failed(RunError::Command(error.to_string()))
    }
}
