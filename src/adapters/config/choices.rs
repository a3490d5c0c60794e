//! Settings that are one of a few words.

use figment::value::Value;

use super::forms::{self, Wrong};

/// When the log is forced to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// Before every acknowledgement.
    Always,
    /// Every second.
    EverySec,
    /// When the operating system sees fit.
    Never,
}

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

pub(super) fn fsync(value: &Value) -> Result<Fsync, Wrong> {
    match forms::text(value)? {
        "always" => Ok(Fsync::Always),
        "everysec" => Ok(Fsync::EverySec),
        "never" => Ok(Fsync::Never),
        other => Err(format!("{} is no policy", forms::quoted(other))),
    }
}

pub(super) fn log_format(value: &Value) -> Result<LogFormat, Wrong> {
    match forms::text(value)? {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("{} is no format", forms::quoted(other))),
    }
}
