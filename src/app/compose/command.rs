//! Commands: what the binary does beside running a node.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use crate::adapters::config::{Command, LogCommand, Login};
use crate::adapters::data_dir::DataDirError;
use crate::ports::{BookError, LogError};

use super::errors::RunError;
use super::{
    ask, backup, bench, config_check, log_check, log_dump, log_import, log_repair, remote, secrets,
};

/// Carries out a command, showing nodes who asks, and writes what it has to say to `out`, which may be a terminal. A reader who
/// has seen enough and closes it ends the command quietly.
///
/// # Errors
/// [`RunError`] says what is wrong, with the exit code.
pub async fn perform(
    command: Command,
    login: &Login,
    is_terminal: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), RunError> {
    let done = carry_out(command, login, is_terminal, out).await;
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

async fn carry_out(
    command: Command,
    login: &Login,
    is_terminal: bool,
    out: &mut (dyn Write + Send),
) -> Result<(), Stopped> {
    match command {
        Command::Log(LogCommand::Check { paths }) => log_check::check(&paths, out).await,
        Command::Log(LogCommand::Dump { paths }) => log_dump::dump(&paths, out),
        Command::Log(LogCommand::Repair { path }) => log_repair::repair(&path, out).await,
        Command::Log(LogCommand::Import { file, node }) => {
            log_import::import(&file, &node, out).await
        }
        Command::Backup { to, from } => {
            backup::backup(&to, &remote::remote(&from, login)?, out).await
        }
        Command::Bench(plan) => {
            let nodes = remote::remotes(&plan.addrs, login)?;
            bench::bench(*plan, nodes, out).await
        }
        Command::Ask(plan) => {
            let node = remote::remote(&plan.addr, login)?;
            ask::ask(*plan, node, is_terminal, out).await
        }
        Command::NewToken { file, name, role, prefixes } => {
            secrets::new_token(&file, &name, role, &prefixes, out)
        }
        Command::Tls(command) => secrets::certify(&command, out),
        Command::CheckConfig { config, fine } => config_check::check(&config, &fine, out),
        Command::Print(text) => out.write_all(text.as_bytes()).map_err(Stopped::from),
        Command::Man { dir, pages } => write_pages(&dir, &pages),
    }
}

/// Writes man pages into a directory. What is there already under their names is replaced.
fn write_pages(dir: &Path, pages: &[(String, String)]) -> Result<(), Stopped> {
    let cannot = |path: &Path, error: io::Error| {
        RunError::Command(format!("cannot write {}: {error}", path.display()))
    };
    fs::create_dir_all(dir).map_err(|error| cannot(dir, error))?;
    for (name, text) in pages {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|error| cannot(&path, error))?;
    }
    Ok(())
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
