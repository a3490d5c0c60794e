//! What a command line asks for: a node, or something done with nodes and what they leave behind.

use std::path::PathBuf;

use crate::domain::Role;

use super::{AskPlan, BenchPlan, Config, Login, Settings};

/// What the process is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Invocation {
    /// Run a node until it is asked to stop.
    Run {
        /// Its configuration,
        config: Box<Config>,
        /// and the same as it was written down.
        settings: Settings,
    },
    /// Carry this out, and end. Nodes that are asked for something are shown who asks.
    Do(Command, Login),
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
    /// `lally token new`.
    NewToken {
        /// The file that its hash is appended to.
        file: PathBuf,
        /// What it is known by there.
        name: String,
        /// What it is for.
        role: Role,
        /// The beginnings of the keys that it is for; none: every key.
        prefixes: Vec<String>,
    },
    /// `lally tls ...`.
    Tls(TlsCommand),
    /// `lally config check`: the configuration itself is right.
    CheckConfig {
        /// Whose files are to be looked at.
        config: Box<Config>,
        /// What is said if they are right, too.
        fine: String,
    },
    /// Writes this to standard output: what needs nothing but the command line and the configuration.
    Print(String),
    /// `lally man --dir`.
    Man {
        /// Where the pages go.
        dir: PathBuf,
        /// The name and the text of each.
        pages: Vec<(String, String)>,
    },
}

/// What is done with the certificates of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsCommand {
    /// Makes an authority.
    Init {
        /// Where.
        dir: PathBuf,
        /// For how long.
        days: u32,
    },
    /// Issues a certificate for a node.
    Node {
        /// Where the authority is.
        dir: PathBuf,
        /// The node.
        name: String,
        /// Where clients reach it.
        hosts: Vec<String>,
        /// The cluster that it is of.
        cluster: String,
        /// For how long.
        days: u32,
    },
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
