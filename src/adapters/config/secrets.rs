//! `lally token` and `lally tls`, which make what a closed cluster needs; and the options by which a
//! command shows who it is.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::domain::Role;

use super::invocation::Command as ToDo;
use super::security::{Login, Secret};

/// The environment variable of the token itself. It has no flag: what stands on a command line can be
/// read by everybody on the machine.
const TOKEN_VARIABLE: &str = "LALLY_TOKEN";

/// Those of the two options.
const TOKEN_FILE_VARIABLE: &str = "LALLY_TOKEN_FILE";
const CA_VARIABLE: &str = "LALLY_CA";

/// What is said of a node by it, too: that the network is trusted.
const INSECURE_VARIABLE: &str = "LALLY_INSECURE";

const TOKEN_FILE: &str = "token-file";
const CA: &str = "ca";
const DAYS: &str = "days";
const DIR: &str = "dir";
const FILE: &str = "file";
const HOST: &str = "host";
const NAME: &str = "NAME";
const PREFIX: &str = "prefix";
const ROLE: &str = "role";

/// The options of commands that ask nodes.
pub(super) fn login() -> [Arg; 2] {
    [
        Arg::new(TOKEN_FILE)
            .long(TOKEN_FILE)
            .value_name("PATH")
            .value_parser(value_parser!(PathBuf))
            .help("File with the token that the node wants [env: LALLY_TOKEN_FILE, or LALLY_TOKEN with the token itself]"),
        Arg::new(CA).long(CA).value_name("PATH").value_parser(value_parser!(PathBuf)).help(
            "Speak TLS, and believe nodes with a certificate of this authority, in PEM [env: LALLY_CA]",
        ),
    ]
}

/// What was given of these; nothing, if the command has none of them.
pub(super) fn given(matches: &ArgMatches) -> Login {
    let path = |name| matches.try_get_one::<PathBuf>(name).ok().flatten().cloned();
    Login { token_file: path(TOKEN_FILE), ca: path(CA), ..Login::default() }
}

/// What the command line says of it, and else the environment.
pub(super) fn or_from_variables(given: Login, variable: impl Fn(&str) -> Option<String>) -> Login {
    let token = variable(TOKEN_VARIABLE).filter(|_| given.token_file.is_none());
    let path = |name| variable(name).map(PathBuf::from);
    Login {
        token: token.map(Secret::new),
        token_file: given.token_file.or_else(|| path(TOKEN_FILE_VARIABLE)),
        ca: given.ca.or_else(|| path(CA_VARIABLE)),
        insecure: variable(INSECURE_VARIABLE).is_some_and(|text| text == "true"),
    }
}

pub(super) fn token() -> Command {
    Command::new("token")
        .about("Makes tokens, by which clients say who they are")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("new")
                .about("Makes a token, prints it, and appends its hash to a file of tokens")
                .after_help(
                    "The token is printed once and kept nowhere; the file holds no secret. A node reads \
                     it when it starts with --tokens FILE, and again when it gets a SIGHUP. A role may \
                     do what the ones before it may: read (get, nodes, cluster), write (add, remove), \
                     admin (forget, compact, backup).\n\nExamples:\n  \
                     lally token new shop --role write --prefix cart: --prefix order: --file tokens.yml\n  \
                     lally token new ops --role admin --file tokens.yml > ops.token\n\n\
                     Exit codes: 0 made; 1 it cannot be; 2 usage.\n\nRead on: docs/security.md",
                )
                .arg(Arg::new(NAME).required(true).help("What the token is known by in the file"))
                .arg(
                    Arg::new(ROLE)
                        .long(ROLE)
                        .value_name("ROLE")
                        .required(true)
                        .value_parser(role)
                        .help("What it is for: read, write or admin"),
                )
                .arg(
                    Arg::new(PREFIX)
                        .long(PREFIX)
                        .value_name("TEXT")
                        .action(ArgAction::Append)
                        .help("Only for keys that begin like this; may be given several times [default: every key]"),
                )
                .arg(
                    Arg::new(FILE)
                        .long(FILE)
                        .value_name("PATH")
                        .required(true)
                        .value_parser(value_parser!(PathBuf))
                        .help("The file of tokens; created if it is missing"),
                ),
        )
}

fn role(text: &str) -> Result<Role, String> {
    Role::named(text).ok_or_else(|| "expected read, write or admin".to_owned())
}

/// The cluster's name is the one of the configuration: it has the flags for that.
pub(super) fn tls(cluster: impl IntoIterator<Item = Arg>) -> Command {
    let dir = || {
        Arg::new(DIR)
            .long(DIR)
            .value_name("DIR")
            .default_value("./lally-tls")
            .value_parser(value_parser!(PathBuf))
            .help("Directory of the authority and of what it issues")
    };
    let days = |default: &'static str| {
        Arg::new(DAYS)
            .long(DAYS)
            .value_name("N")
            .default_value(default)
            .value_parser(value_parser!(u32).range(1..=36_500))
            .help("For how many days it holds")
    };
    Command::new("tls")
        .about("Makes the certificates of a cluster")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("init")
                .about("Makes the authority of a cluster: ca.pem, which every node needs, and ca.key")
                .after_help(
                    "Keep ca.key away from the nodes: whoever has it can make nodes. Nothing is \
                     overwritten.\n\nExamples:\n  lally tls init\n\nExit codes: 0 made; 1 it cannot be; 2 usage.\n\n\
                     Read on: docs/security.md",
                )
                .args([dir(), days("3650")]),
        )
        .subcommand(
            Command::new("node")
                .about("Issues a certificate for a node: NAME.pem and NAME.key")
                .after_help(
                    "It is for other nodes (--peer-tls-cert, --peer-tls-key) and for clients \
                     (--http-tls-cert, --http-tls-key), who know the node by NAME, by localhost and by \
                     each --host. It names the cluster: nodes of another one do not believe it.\n\n\
                     Examples:\n  lally tls node db-1 --host db-1.internal --host 10.0.0.1\n\n\
                     Exit codes: 0 made; 1 it cannot be; 2 usage.\n\nRead on: docs/security.md",
                )
                .arg(Arg::new(NAME).required(true).help("The node, by a name of its own"))
                .arg(
                    Arg::new(HOST)
                        .long(HOST)
                        .value_name("HOST")
                        .action(ArgAction::Append)
                        .help("Where clients reach it: a DNS name or an IP address; may be given several times"),
                )
                .args([dir(), days("825")])
                .args(cluster),
        )
}

/// What `lally token new` is to make.
pub(super) fn new_token(matches: &ArgMatches) -> ToDo {
    ToDo::NewToken {
        file: matches.get_one::<PathBuf>(FILE).cloned().unwrap_or_default(),
        name: text(matches, NAME),
        role: matches.get_one(ROLE).copied().unwrap_or(Role::Read),
        prefixes: texts(matches, PREFIX),
    }
}

/// What `lally tls` is to make: where, for which node if it is for one, under which hosts, for how long.
pub(super) fn certificate(matches: &ArgMatches) -> (PathBuf, String, Vec<String>, u32) {
    let dir = matches.get_one::<PathBuf>(DIR).cloned().unwrap_or_default();
    let days = matches.get_one(DAYS).copied().unwrap_or(1);
    (dir, text(matches, NAME), texts(matches, HOST), days)
}

fn text(matches: &ArgMatches, name: &str) -> String {
    matches.try_get_one::<String>(name).ok().flatten().cloned().unwrap_or_default()
}

fn texts(matches: &ArgMatches, name: &str) -> Vec<String> {
    let given = matches.try_get_many::<String>(name).ok().flatten();
    given.into_iter().flatten().cloned().collect()
}
