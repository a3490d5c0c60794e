//! How reading the configuration ends when it does not end in a configuration.

use std::fmt;

/// The process is to print this and end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ConfigExit {
    /// What to print, with its line breaks.
    pub text: String,
    /// Where to print it.
    pub stream: Stream,
    /// The exit code: 0 for help and version, 2 for a usage or configuration error.
    pub code: u8,
}

/// An output of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl From<clap::Error> for ConfigExit {
    fn from(error: clap::Error) -> Self {
        // Plain text: whether the output is a terminal is not known here.
        let text = error.render().to_string();
        if error.use_stderr() {
            Self { text, stream: Stream::Stderr, code: 2 }
        } else {
            Self { text, stream: Stream::Stdout, code: 0 }
        }
    }
}

impl From<Refused> for ConfigExit {
    fn from(refused: Refused) -> Self {
        let text = format!("error: {refused}\n\nFor all settings, try '--help'.\n");
        Self { text, stream: Stream::Stderr, code: 2 }
    }
}

/// A refused configuration: the place, the key and the expected form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused(String);

impl Refused {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
