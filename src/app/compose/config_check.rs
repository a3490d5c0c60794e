//! `lally config check`: whether a node would start with this configuration, and the files that it names.

use std::io::Write;

use crate::adapters::config::Config;

use super::command::Stopped;
use super::errors::RunError;
use super::hooks::HookPlan;
use super::security::Locks;

/// Reads every file that the configuration names, as a start does. Touches nothing.
///
/// # Errors
/// [`RunError::Usage`], with what is wrong with each.
pub(super) fn read_files(config: &Config) -> Result<(Locks, HookPlan), RunError> {
    match (Locks::read(config), HookPlan::read(config)) {
        (Ok(locks), Ok(hooks)) => Ok((locks, hooks)),
        (locks, hooks) => {
            let mistakes: Vec<_> =
                [locks.err(), hooks.err()].into_iter().flatten().flatten().collect();
            // One line each, like mistakes in the configuration itself.
            Err(RunError::Usage(mistakes.join("\nerror: ")))
        }
    }
}

/// Says that all is fine, in these words, if it is.
pub(super) fn check(
    config: &Config,
    fine: &str,
    out: &mut (dyn Write + Send),
) -> Result<(), Stopped> {
    read_files(config)?;
    Ok(out.write_all(fine.as_bytes())?)
}
