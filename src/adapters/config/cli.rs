//! The command line: one flag per key, in hyphens and in underscores, or a command.
//!
//! A command has the flags of those keys that it needs, and no others.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::ask::{self, AskPlan};
use super::bench::{self, BenchPlan};
use super::effective::ShowForm;
use super::forms::{self, SeedAddr};
use super::invocation::{Command as ToDo, TlsCommand};
use super::keys::{KEYS, KeySpec, Kind};
use super::secrets;
use super::security::Login;

const EXAMPLES: &str = "\
Each setting can also be given in the configuration file, under the flag's name with
underscores, and in the environment (LALLY_HTTP_PORT=3000). The command line wins over the
environment, the environment over the file, the file over the defaults. 'lally config show
--sources' says what came of that, 'lally config check' names every mistake.

Signals: SIGTERM and SIGINT stop the node, which leaves its cluster and loses nothing; a second one
stops it at once. SIGHUP has it read its configuration again; the log says what has changed.

Examples:
  lally
      One node with the defaults: HTTP on 127.0.0.1:3000, gRPC on 127.0.0.1:50071
  lally --http-port 3001 --grpc-port 50072 --data-dir ./node-2 --seed-node 127.0.0.1:50071
      A second node on the same host
  lally --bind 0.0.0.0 --seed-node db-1:50071 --read-quorum majority --write-quorum majority
      A node of a cluster over several hosts whose reads see every acknowledged write
  lally config check --config /etc/lally/lally.yml
      Would a node start with this file?
  lally add greeting hello && lally get greeting && lally status
      What a node that runs here is asked; LALLY_ADDR or --addr says where it is otherwise

Exit codes: 0 stopped on request, or done; 1 runtime failure; 2 usage or configuration; 65 corrupt
log. Those of a command are in its --help.

Read on: 'lally COMMAND --help', 'lally man'; of the documents, README.md to begin with,
docs/configuration.md for every setting, docs/commands.md for the commands, docs/operations.md for
what to do when something is wrong.";

/// The argument that commands work on.
const PATH: &str = "PATH";

/// The keys that a command for the data directory of a node takes as flags.
const DATA_DIR_KEYS: [&str; 3] = ["config", "data_dir", "cluster_name"];

/// The option that says which node a command talks to.
const FROM: &str = "from";

/// The keys by which that is known otherwise.
const HTTP_KEYS: [&str; 3] = ["config", "bind", "http_port"];

/// The keys by which the name of the cluster is known.
const CLUSTER_KEYS: [&str; 2] = ["config", "cluster_name"];
/// Options of `lally config show`.
const SOURCES: &str = "sources";
const JSON: &str = "json";

/// The argument of `lally completions`.
const SHELL: &str = "shell";

/// The option of `lally man`.
const DIR: &str = "dir";

/// What the command line gives.
#[derive(Debug)]
pub(super) struct CommandLine {
    /// As pairs of key and text.
    pub(super) flags: Vec<(&'static KeySpec, String)>,
    pub(super) asked: Asked,
    pub(super) login: Login,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Asked {
    Run,
    LogCheck(Vec<PathBuf>),
    LogDump(Vec<PathBuf>),
    LogRepair(PathBuf),
    LogImport(PathBuf),
    ConfigCheck,
    ConfigShow(ShowForm),
    Completions(Shell),
    /// The directory for the pages, if there is one.
    Man(Option<PathBuf>),
    Backup {
        to: PathBuf,
        from: Option<SeedAddr>,
    },
    /// The nodes may be left open.
    Bench(Box<BenchPlan>),
    /// The node, likewise.
    Ask(Box<AskPlan>),
    /// What needs nothing but this.
    Settled(ToDo),
    /// The cluster is left open.
    Tls(TlsCommand),
}

/// Reads the command line. The first argument is the program.
///
/// # Errors
/// Help and version end here too, as clap has it.
pub(super) fn read(args: Vec<OsString>) -> Result<CommandLine, clap::Error> {
    let matches = command().try_get_matches_from(args)?;
    let (mut innermost, mut names) = (&matches, Vec::new());
    while let Some((name, inner)) = innermost.subcommand() {
        names.push(name);
        innermost = inner;
    }
    let paths = || innermost.get_many::<PathBuf>(PATH).into_iter().flatten().cloned();
    let path = || paths().next().unwrap_or_default();
    let asked = match names.as_slice() {
        ["log", "check"] => Asked::LogCheck(paths().collect()),
        ["log", "dump"] => Asked::LogDump(paths().collect()),
        ["log", "repair"] => Asked::LogRepair(path()),
        ["log", "import"] => Asked::LogImport(path()),
        ["backup"] => {
            Asked::Backup { to: path(), from: innermost.get_one::<SeedAddr>(FROM).cloned() }
        }
        ["config", "check"] => Asked::ConfigCheck,
        ["config", "show"] => Asked::ConfigShow(ShowForm {
            with_sources: innermost.get_flag(SOURCES),
            json: innermost.get_flag(JSON),
        }),
        ["completions"] => {
            // Required, so it is there.
            Asked::Completions(innermost.get_one(SHELL).copied().unwrap_or(Shell::Bash))
        }
        ["man"] => Asked::Man(innermost.get_one::<PathBuf>(DIR).cloned()),
        ["bench"] => Asked::Bench(Box::new(bench::plan(innermost))),
        ["token", _] => Asked::Settled(secrets::new_token(innermost)),
        ["tls", command] => Asked::Tls(certificate(command, innermost)),
        [] => Asked::Run,
        [name, ..] => Asked::Ask(Box::new(ask::plan(name, innermost))),
    };
    let flags = KEYS.iter().filter_map(|key| Some((key, text(innermost, key)?))).collect();
    Ok(CommandLine { flags, asked, login: secrets::given(innermost) })
}

fn certificate(command: &str, matches: &ArgMatches) -> TlsCommand {
    let (dir, name, hosts, days) = secrets::certificate(matches);
    match command {
        "init" => TlsCommand::Init { dir, days },
        _ => TlsCommand::Node { dir, name, hosts, cluster: String::new(), days },
    }
}

/// The text of a key, if the command has its flag and it was given.
fn text(matches: &ArgMatches, key: &KeySpec) -> Option<String> {
    let values = matches.try_get_many::<String>(key.name).ok().flatten()?;
    // A list in several flags is the same list in one.
    Some(values.map(String::as_str).collect::<Vec<_>>().join(","))
}

/// The command line, as clap has it described.
pub(super) fn command() -> Command {
    Command::new("lally")
        .version(env!("CARGO_PKG_VERSION"))
        .about(
            "Lally, a distributed in-memory key-value database: runs one node, unless it is given a \
             command",
        )
        .after_help(EXAMPLES)
        .max_term_width(100)
        .args_conflicts_with_subcommands(true)
        .args(KEYS.iter().map(|key| arg(key).help_heading(heading(key))))
        .subcommands(ask::commands().map(|command| command.args(secrets::login()).args(http_keys())))
        .subcommand(log())
        .subcommand(backup())
        .subcommand(bench::command().args(secrets::login()).args(http_keys()))
        .subcommand(config())
        .subcommand(secrets::token())
        .subcommand(secrets::tls(keys(&CLUSTER_KEYS)))
        .subcommand(completions())
        .subcommand(man())
}

/// What commands work on.
fn path(help: &'static str) -> Arg {
    Arg::new(PATH).help(help).required(true).value_parser(value_parser!(PathBuf))
}

fn log() -> Command {
    let one = path("A segment or a snapshot, or a directory of them; a data directory is its log");
    let several = one.clone().num_args(1..);
    let file = path("Lines as 'lally log dump' prints them; - is standard input");
    let file = file.value_name("FILE");
    Command::new("log")
        .about("Checks, prints, repairs and extends logs on disk")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("check")
                .about("Reads logs as a start does and says what is damaged; changes nothing")
                .after_help(
                    "The log of a running node can be checked.\n\nExamples:\n  lally log check \
                     lally-data\n\nExit codes: 0 nothing is damaged (a torn tail, which the next start \
                     cuts, is no damage); 1 it cannot be read; 2 usage; 65 damaged.\n\nRead on: \
                     docs/operations.md",
                )
                .arg(several.clone()),
        )
        .subcommand(
            Command::new("dump")
                .about("Prints the records of logs as lines of JSON; changes nothing")
                .after_help(
                    "Examples:\n  lally log dump lally-data > records.jsonl\n\nExit codes: 0 everything \
                     is printed; 1 it cannot be read; 2 usage; 65 damaged, and everything before that is \
                     printed.\n\nRead on: docs/log-format.md",
                )
                .arg(several),
        )
        .subcommand(
            Command::new("repair")
                .about("Replaces a damaged log by what of it is intact; the original is kept")
                .after_help(
                    "The node of the log must not run. What is skipped is printed, and lost: the \
                     node joins its cluster again before it counts for quorums, and gets it from \
                     there. With other members, --recover-from-peers may be all you \
                     need.\n\nExamples:\n  lally log repair lally-data\n\nExit codes: 0 repaired, or \
                     nothing was damaged; 1 it could not be; 2 usage; 65 damaged in a way that is not \
                     repaired.\n\nRead on: docs/operations.md",
                )
                .arg(one),
        )
        .subcommand(
            Command::new("import")
                .about("Adds records to the log of a node that does not run")
                .after_help(
                    "Everything is imported, or, if a line is wrong, nothing. Records keep their \
                     versions: what the node holds already, or something newer, it \
                     keeps.\n\nExamples:\n  lally log import records.jsonl --data-dir lally-data\n\nExit \
                     codes: 0 imported; 1 nothing was; 2 usage or configuration; 65 the log is \
                     damaged.\n\nRead on: docs/operations.md",
                )
                .arg(file)
                .args(keys(&DATA_DIR_KEYS)),
        )
}

fn backup() -> Command {
    let from = Arg::new(FROM).long(FROM).value_name("HOST:PORT").value_parser(forms::seed).help(
        "HTTP address of the node [env: LALLY_ADDR] [default: the http_port of this machine's \
             configuration]",
    );
    Command::new("backup")
        .about("Makes a backup of a node that runs, without a pause")
        .after_help(
            "A node starts on the backup with 'lally --replay-log DIR'.\n\nExamples:\n  lally backup \
             /backup/monday\n  lally backup /backup/monday --from db-2.internal:3000\n\nExit codes: 0 the \
             backup is complete; 1 there is none, and nothing is left of it; 2 DIR is not \
             empty.\n\nRead on: docs/backup.md",
        )
        .arg(path("Where to put it: a directory that is empty, or does not exist").value_name("DIR"))
        .arg(from)
        .args(secrets::login())
        .args(http_keys())
}

fn config() -> Command {
    let flag = |name, help| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let node = || KEYS.iter().map(|key| arg(key).help_heading("Settings of the node"));
    Command::new("config")
        .about("Says what a node that is started here, with the same flags, would be configured to")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("check")
                .about("Says whether the configuration and the files that it names are fine, or every mistake; touches nothing")
                .after_help(
                    "Tokens, certificates, keys and secrets are read as a start reads them: ask as the user that \
                     runs the node.\n\nExamples:\n  lally config check\n  lally config check --config /etc/lally/lally.yml \
                     && systemctl reload lally\n\nExit codes: 0 it is fine; 2 it is not, and a node would \
                     not start with it.\n\nRead on: docs/configuration.md",
                )
                .args(node()),
        )
        .subcommand(
            Command::new("show")
                .about("Prints every setting with its effective value, as YAML; touches nothing")
                .after_help(
                    "What is printed is itself a configuration file, but for the paths of the URLs of \
                     webhooks, which are hidden. Secrets are in files of their own, and only their paths \
                     are shown.\n\nExamples:\n  lally config show --sources\n  lally \
                     config show --json --config /etc/lally/lally.yml\n\nExit codes: 0 printed; 2 a \
                     mistake in the configuration.\n\nRead on: docs/configuration.md",
                )
                .arg(flag(SOURCES, "Say of each setting where it comes from: the default, a file, a variable, a flag"))
                .arg(flag(JSON, "As JSON, for programs"))
                .args(node()),
        )
}

fn completions() -> Command {
    Command::new("completions")
        .about("Prints a script that completes lally's commands and flags in a shell")
        .after_help(
            "Examples:\n  lally completions bash > ~/.local/share/bash-completion/completions/lally\n  \
             lally completions zsh > ~/.zfunc/_lally\n  lally completions fish > \
             ~/.config/fish/completions/lally.fish\n\nExit codes: 0 printed; 2 usage.\n\nRead on: \
             docs/commands.md",
        )
        .arg(Arg::new(SHELL).value_name("SHELL").required(true).value_parser(value_parser!(Shell)).help("Which shell"))
}

fn man() -> Command {
    Command::new("man")
        .about("Prints the man page of lally, or writes one for each command into a directory")
        .after_help("Examples:\n  lally man | man -l -\n  lally man --dir ~/.local/share/man/man1\n\nExit codes: 0 \
             done; 1 a page cannot be written; 2 usage.\n\nRead on: docs/commands.md")
        .arg(
            Arg::new(DIR)
                .long(DIR)
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Write every page into this directory, which is made if it is missing"),
        )
}

/// The flags by which the node of this machine's configuration is found.
fn http_keys() -> impl Iterator<Item = Arg> {
    let keys = HTTP_KEYS.iter().filter_map(|name| KeySpec::find(name));
    keys.map(|key| arg(key).help_heading("Which node, by this machine's configuration"))
}

fn keys(names: &'static [&'static str]) -> impl Iterator<Item = Arg> {
    names.iter().filter_map(|name| KeySpec::find(name)).map(arg)
}

/// Under which heading the help of the node shows a key.
fn heading(key: &KeySpec) -> &'static str {
    match key.name {
        "http_port" | "grpc_port" | "bind" | "advertise_addr" | "seed_node" | "cluster_name" => {
            "Addresses and cluster"
        }
        "data_dir" | "fsync" | "fresh" | "replay_log" | "recover_from_peers" => "Data and log",
        "read_quorum" | "write_quorum" | "request_timeout" => "Requests",
        "max_clock_drift" | "anti_entropy_interval" | "tombstone_grace" | "max_absence" => {
            "Between nodes"
        }
        "tokens" | "metrics_need_token" | "insecure" => "Security",
        name if name.contains("_tls_") => "Security",
        name if name.starts_with("max_") || name.ends_with("_timeout") => "Limits",
        name if name.starts_with("log_") => "Logging",
        _ => "Other settings",
    }
}

fn arg(key: &KeySpec) -> Arg {
    let default = key.default.map(|text| format!(" [default: {text}]")).unwrap_or_default();
    let arg = Arg::new(key.name).long(key.flag).value_name(key.placeholder).help(format!(
        "{}{default} [env: {}]",
        key.help,
        key.variable()
    ));
    let arg = if key.name.contains('_') { arg.alias(key.name) } else { arg };
    match key.kind {
        // `--fresh` alone, or `--fresh=false` to overrule the file.
        Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Kind::List => arg.action(ArgAction::Append),
        Kind::Number | Kind::Text => arg,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(args: &[&str]) -> Vec<(&'static str, String)> {
        let args = ["lally"].iter().chain(args).map(OsString::from).collect();
        let read = read(args).unwrap();
        assert_eq!(read.asked, Asked::Run);
        read.flags.into_iter().map(|(key, text)| (key.name, text)).collect()
    }

    #[test]
    fn the_command_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn hyphens_and_underscores_are_the_same() {
        for args in [["--http-port", "1"], ["--http_port", "1"]] {
            assert_eq!(given(&args), [("http_port", "1".to_owned())]);
        }
        assert_eq!(given(&["--http_port=1"]), [("http_port", "1".to_owned())]);
    }

    #[test]
    fn nothing_given_is_nothing_set() {
        assert!(given(&[]).is_empty());
    }

    #[test]
    fn fresh_needs_no_value_and_may_have_one() {
        assert_eq!(given(&["--fresh"]), [("fresh", "true".to_owned())]);
        assert_eq!(given(&["--fresh=false"]), [("fresh", "false".to_owned())]);
    }

    #[test]
    fn seeds_add_up() {
        let seeds = given(&["--seed-node", "a:1", "--seed_node", "b:2,c:3"]);
        assert_eq!(seeds, [("seed_node", "a:1,b:2,c:3".to_owned())]);
    }

    #[test]
    fn the_help_shows_every_flag_its_default_and_its_variable() {
        let help = command().render_help().to_string();
        for key in &KEYS {
            assert!(help.contains(&format!("--{}", key.flag)), "{}", key.name);
            assert!(help.contains(&key.variable()), "{}", key.name);
        }
        assert!(help.contains("[default: 50071]") && help.contains("Examples:"));
        for command in ["get", "add", "status", "log", "bench"] {
            assert!(help.contains(&format!("\n  {command} ")), "{help}");
        }
    }

    /// Every command of this one, itself included, with the words that call it.
    fn walk(command: &Command, words: &[String], visit: &mut impl FnMut(&Command, &[String])) {
        visit(command, words);
        for inner in command.get_subcommands() {
            walk(inner, &[words, &[inner.get_name().to_owned()]].concat(), visit);
        }
    }

    #[test]
    fn every_help_has_examples_that_are_understood_and_says_how_it_ends() {
        let mut examples = 0;
        walk(&command(), &["lally".to_owned()], &mut |command, words| {
            if command.has_subcommands() && words.len() > 1 {
                return;
            }
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Examples:") && help.contains("Read on: "), "{words:?}: {help}");
            assert!(help.contains("Exit codes: "), "{words:?}: {help}");
            let after = command.get_after_help().unwrap().to_string();
            for line in after.lines().filter(|line| line.starts_with("  lally")) {
                // Up to where the shell takes over.
                let given =
                    line.split_whitespace().take_while(|w| !["|", ">", "<", "&&"].contains(w));
                let given: Vec<_> = given.map(OsString::from).collect();
                assert!(read(given).is_ok(), "{line}");
                examples += 1;
            }
        });
        assert!(examples >= 20, "{examples}");
    }

    #[test]
    fn a_backup_is_made_of_the_node_that_is_named_or_configured() {
        let read = |args: &[&str]| {
            let args = ["lally", "backup"].iter().chain(args).map(OsString::from).collect();
            read(args).map(|read| (read.asked, read.flags.len()))
        };
        let backup = |from| Asked::Backup { to: "d".into(), from };
        let addr = SeedAddr { host: "::1".into(), port: 3000 };
        assert_eq!(read(&["d"]).unwrap(), (backup(None), 0));
        assert_eq!(read(&["--from", "[::1]:3000", "d"]).unwrap(), (backup(Some(addr)), 0));
        assert_eq!(read(&["d", "--http-port", "1"]).unwrap(), (backup(None), 1));
        for wrong in [&[][..], &["d", "e"], &["d", "--from", "here"], &["d", "--data-dir", "x"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_command_has_its_own_flags() {
        let args = ["lally", "log", "import", "a", "--data_dir", "d", "--cluster-name=c"];
        let read = read(args.map(OsString::from).into()).unwrap();
        assert_eq!(read.asked, Asked::LogImport("a".into()));
        let flags = read.flags.iter().map(|(key, text)| (key.name, text.as_str()));
        assert!(flags.eq([("data_dir", "d"), ("cluster_name", "c")]));
    }
}
