//! How reading the configuration ends when it does not end in a configuration.

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
    /// Of a configuration: what is wrong with it, one by one.
    pub mistakes: Vec<String>,
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
            Self { text, stream: Stream::Stderr, code: 2, mistakes: Vec::new() }
        } else {
            Self { text, stream: Stream::Stdout, code: 0, mistakes: Vec::new() }
        }
    }
}

impl From<Refused> for ConfigExit {
    fn from(refused: Refused) -> Self {
        let mistakes: Vec<_> = refused.0.into_iter().map(|mistake| mistake.text).collect();
        let text =
            format!("error: {}\n\nFor all settings, try '--help'.\n", mistakes.join("\nerror: "));
        Self { text, stream: Stream::Stderr, code: 2, mistakes }
    }
}

/// A mistake in a configuration: the place, the key and the expected form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The keys that it is about; none if it is about the file as a whole, or a key there is not.
    pub(super) keys: Vec<&'static str>,
    /// What is wrong, and what is expected.
    pub(super) text: String,
}

impl Mistake {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { keys: Vec::new(), text: text.into() }
    }

    /// The same, about these keys.
    pub(super) fn about(self, keys: &[&'static str]) -> Self {
        Self { keys: keys.to_vec(), ..self }
    }
}

/// A refused configuration: every mistake that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused(pub(super) Vec<Mistake>);

impl Refused {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(vec![Mistake::new(text)])
    }
}
