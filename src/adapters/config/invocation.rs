//! What a command line asks for: a node, or something done with nodes and what they leave behind.

use std::path::PathBuf;

use super::{AskPlan, BenchPlan, Config};

/// What the process is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Invocation {
    /// Run a node until it is asked to stop.
    Run(Box<Config>),
    /// Carry this out, and end.
    Do(Command),
}

/// Anything but running a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// `lally log ...`.
    Log(LogCommand),
    /// `lally backup`.
    Backup {
        /// The directory that it is written into.
        to: PathBuf,
        /// `HOST:PORT`, where the node answers clients.
        from: String,
    },
    /// `lally bench`.
    Bench(Box<BenchPlan>),
    /// `lally get` and the other questions to a node.
    Ask(Box<AskPlan>),
}

/// What is done with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogCommand {
    /// Reads logs and says whether they are damaged.
    Check {
        /// Files of a log, or directories of them; each is a log of its own.
        paths: Vec<PathBuf>,
    },
    /// Writes the records of logs to standard output.
    Dump {
        /// As above.
        paths: Vec<PathBuf>,
    },
    /// Replaces a damaged log by what of it is intact.
    Repair {
        /// A file of a log, or a directory of them.
        path: PathBuf,
    },
    /// Adds records to the log of a node that does not run.
    Import {
        /// Lines as `Dump` writes them; `-` is standard input.
        file: PathBuf,
        /// The node.
        node: Box<Config>,
    },
}
