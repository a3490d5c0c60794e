//! `LogLevel`: from which importance on a node says what it does.

use std::fmt;
use std::str::FromStr;

/// A level of the messages of a node. Without a filter by module, which could make libraries show what
/// they carry: users' values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What needs a human.
    Error,
    /// And what is degraded.
    Warn,
    /// And changes of the node's state.
    Info,
    /// And each request.
    Debug,
    /// And everything else.
    Trace,
}

impl LogLevel {
    /// Every level, from the most silent one on.
    pub const ALL: [Self; 6] =
        [Self::Off, Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// It is none of the levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no log level")]
pub struct InvalidLogLevel;

impl FromStr for LogLevel {
    type Err = InvalidLogLevel;

    fn from_str(text: &str) -> Result<Self, InvalidLogLevel> {
        Self::ALL.into_iter().find(|level| level.as_str() == text).ok_or(InvalidLogLevel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_read_back_as_they_are_shown() {
        for level in LogLevel::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        for text in ["", "INFO", "loud", "info,hyper=trace"] {
            assert_eq!(text.parse::<LogLevel>(), Err(InvalidLogLevel));
        }
    }
}
