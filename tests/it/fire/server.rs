//! What the harness asks of a server that keeps a log.

use std::fmt::{self, Display};
use std::path::Path;

use super::lally::Lally;
use super::redis::Redis;

/// What a key holds: `None` is absent.
pub type State = Option<String>;

/// When what was acknowledged must be on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    Always,
    Everysec,
    Never,
}

impl Policy {
    pub const ALL: [Self; 3] = [Self::Always, Self::Everysec, Self::Never];
}

impl Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Always => "always",
            Self::Everysec => "everysec",
            Self::Never => "never",
        })
    }
}

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Lally,
    Redis,
}

impl Kind {
    /// Starts one on this directory, which may be absent.
    pub fn start(self, data: &Path, policy: Policy) -> Result<Box<dyn Server>, String> {
        Ok(match self {
            Self::Lally => Box::new(Lally::start(data, policy)?),
            Self::Redis => Box::new(Redis::start(data, policy)?),
        })
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lally => "Lally",
            Self::Redis => "redis-server",
        })
    }
}

/// A server process and its data.
pub trait Server {
    /// Another client's connection.
    fn session(&self) -> Box<dyn Session>;

    /// SIGKILL, if it has not ended by itself, and waits until it is gone.
    fn kill(&mut self);

    /// SIGTERM; an error if it does not end well.
    fn stop(&mut self) -> Result<(), String>;

    /// Starts it on its data again and waits until it serves; an error if it will not.
    fn restart(&mut self) -> Result<(), String>;
}

/// What an operation came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Acknowledged,
    /// Answered otherwise: it may have been done or not.
    Refused(String),
    /// No answer.
    Silence,
}

/// One client.
pub trait Session: Send {
    /// Writes a key, or removes it.
    fn put(&mut self, key: &str, state: Option<&str>) -> Outcome;

    /// What a key holds; panics if there is no answer.
    fn get(&mut self, key: &str) -> State;

    /// Has the log compacted, and waits for it.
    fn compact(&mut self) -> Outcome;
}
