//! `lally get`, `add`, `remove`, `nodes`, `cluster` and `status`: what is asked of a node that runs.

use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::domain::QuorumSpec;
use crate::ports::Consistency;

use super::errors::Refused;
use super::forms::{self, SeedAddr};
use super::security::Login;
use super::{Config, bench};

/// The environment variable that says which node is asked.
pub(super) const ADDR_VARIABLE: &str = "LALLY_ADDR";

/// The option that does.
pub(super) const ADDR: &str = "addr";

/// What is asked, of which node, and how the answer is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskPlan {
    /// `HOST:PORT`, where the node answers clients.
    pub addr: String,
    /// What is asked.
    pub question: Question,
    /// The answer as JSON, for programs.
    pub json: bool,
}

/// A question to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// The value of a key.
    Get {
        /// The key.
        key: String,
        /// How.
        options: AskOptions,
    },
    /// Stores a value under a key.
    Add {
        /// The key.
        key: String,
        /// The value; `None`: what is on standard input.
        value: Option<String>,
        /// How.
        options: AskOptions,
    },
    /// Removes a key.
    Remove {
        /// The key.
        key: String,
        /// How.
        options: AskOptions,
    },
    /// The addresses of the other live members.
    Nodes,
    /// The members as the node sees them.
    Cluster,
    /// How the node is.
    Status,
}

/// What a request may say beside what it is about. What it does not say, the node decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AskOptions {
    /// How many nodes have to take part.
    pub quorum: Option<QuorumSpec>,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// What a read may answer.
    pub consistency: Consistency,
}

const KEY: &str = "KEY";
const VALUE: &str = "VALUE";

const CODES: &str = "Exit codes: 0 done; 1 refused or broken off; 2 usage; 3 no such key; 4 the quorum was \
                     not met; 5 no node can be reached.\n\nRead on: docs/commands.md";

/// Of commands that ask about nodes.
const NODE_CODES: &str = "Exit codes: 0 done; 1 refused or broken off; 2 usage; 5 no node can be \
                          reached.\n\nRead on: docs/commands.md";

pub(super) fn commands() -> [Command; 6] {
    let key = || Arg::new(KEY).required(true).help("The key");
    let value = Arg::new(VALUE)
        .allow_negative_numbers(true)
        .help("The value; without it, or if it is -, what is on standard input");
    [
        Command::new("get")
            .about("Prints the value of a key")
            .after_help(format!(
                "On a terminal the value has a line of its own, and what could steer the terminal is \
                 escaped. Elsewhere it is printed as it is, without a line break.\n\nExamples:\n  \
                 lally get greeting\n  lally get greeting --confirmed > greeting.txt\n\n{CODES}"
            ))
            .arg(key())
            .args(request())
            .arg(
                Arg::new("confirmed")
                    .long("confirmed")
                    .action(ArgAction::SetTrue)
                    .help("Have a majority hold what is answered, so that no later such read answers with anything older"),
            ),
        Command::new("add")
            .about("Stores a value under a key")
            .after_help(format!(
                "Examples:\n  lally add greeting hello\n  lally add greeting --quorum majority < \
                 greeting.txt\n\n{CODES}"
            ))
            .args([key(), value])
            .args(request()),
        Command::new("remove")
            .about("Removes a key")
            .after_help(format!("Examples:\n  lally remove greeting\n\n{CODES}"))
            .arg(key())
            .args(request()),
        Command::new("nodes")
            .about("Prints the gRPC addresses of the other live members, a line each")
            .after_help(format!("Examples:\n  lally nodes --addr db-2.internal:3000\n\n{NODE_CODES}")),
        Command::new("cluster").about("Shows the members as a node sees them").after_help(format!(
            "Two nodes with the same digest hold the same data.\n\nExamples:\n  lally cluster\n  lally \
             cluster --json | jq .digest\n\n{NODE_CODES}"
        )),
        Command::new("status").about("Says whether a node is ready, what it holds, and whether it can be stopped").after_help(
            "Examples:\n  lally status\n  lally status --addr db-2.internal:3000 && echo \
             ready\n\nExit codes: 0 the node is ready; 1 it is not; 2 usage; 5 no node can be \
             reached.\n\nRead on: docs/commands.md",
        ),
    ]
    .map(|command| command.args([addr(), json()]))
}

fn addr() -> Arg {
    Arg::new(ADDR).long(ADDR).value_name("HOST:PORT").value_parser(forms::seed).help(
        "HTTP address of the node [env: LALLY_ADDR] [default: the http_port of this machine's \
         configuration]",
    )
}

fn json() -> Arg {
    let help = "Print what the node answers, as JSON";
    Arg::new("json").long("json").action(ArgAction::SetTrue).help(help)
}

fn request() -> [Arg; 2] {
    [
        Arg::new("quorum").long("quorum").value_name("Q").value_parser(QuorumSpec::from_str).help(
            "How many nodes have to take part: a number, majority or all [default: the node's]",
        ),
        Arg::new("timeout")
            .long("timeout")
            .value_name("D")
            .value_parser(bench::duration)
            .help("How long it may take, up to 10s [default: the node's]"),
    ]
}

/// What a command of this name asks. The address is empty if it was not given.
pub(super) fn plan(name: &str, matches: &ArgMatches) -> AskPlan {
    let text = |name| matches.get_one::<String>(name).cloned();
    let key = || text(KEY).unwrap_or_default();
    let question = match name {
        "get" => Question::Get { key: key(), options: options(matches) },
        "add" => {
            let value = text(VALUE).filter(|value| value != "-");
            Question::Add { key: key(), value, options: options(matches) }
        }
        "remove" => Question::Remove { key: key(), options: options(matches) },
        "nodes" => Question::Nodes,
        "cluster" => Question::Cluster,
        _ => Question::Status,
    };
    let addr = matches.get_one::<SeedAddr>(ADDR).map(SeedAddr::to_string).unwrap_or_default();
    AskPlan { addr, question, json: matches.get_flag("json") }
}

/// The node that the environment names, or else the one of this machine's configuration, which says
/// whether it speaks TLS, too. The option is what says it otherwise.
pub(super) fn node_here(
    named: Option<&String>,
    option: &str,
    login: &mut Login,
    config: impl FnOnce() -> Result<Box<Config>, Refused>,
) -> Result<String, Refused> {
    let Some(named) = named else {
        let config = config()?;
        if config.security.http_tls.is_some() && login.ca.is_none() {
            let own = config.security.peer_tls.as_ref().map(|tls| tls.ca.clone());
            let unknown = "the node of this configuration speaks TLS; say with --ca of which \
                           authority its certificate is";
            login.ca = Some(own.ok_or_else(|| Refused::new(unknown))?);
        }
        return config.http_addr_here(option).map_err(Refused::new);
    };
    let addr = forms::seed(named).map(|addr| addr.to_string());
    addr.map_err(|wrong| Refused::new(format!("environment variable {ADDR_VARIABLE}: {wrong}")))
}

fn options(matches: &ArgMatches) -> AskOptions {
    let is_confirmed = matches.try_get_one::<bool>("confirmed").ok().flatten() == Some(&true);
    AskOptions {
        quorum: matches.get_one("quorum").copied(),
        timeout: matches.get_one("timeout").copied(),
        consistency: if is_confirmed { Consistency::Confirmed } else { Consistency::Default },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<AskPlan, String> {
        let lally = Command::new("lally").subcommands(commands());
        let matches = lally.try_get_matches_from(["lally"].iter().chain(args));
        let matches = matches.map_err(|error| error.to_string())?;
        let (name, inner) = matches.subcommand().unwrap();
        Ok(plan(name, inner))
    }

    fn question(args: &[&str]) -> Question {
        read(args).unwrap().question
    }

    #[test]
    fn what_is_not_given_is_left_to_the_node() {
        let (key, options) = ("k".to_owned(), AskOptions::default());
        let plan = read(&["get", "k"]).unwrap();
        assert_eq!(plan.question, Question::Get { key: key.clone(), options });
        assert!(plan.addr.is_empty() && !plan.json);
        assert_eq!(question(&["remove", "k"]), Question::Remove { key, options });
        for (name, expected) in [
            ("nodes", Question::Nodes),
            ("cluster", Question::Cluster),
            ("status", Question::Status),
        ] {
            assert_eq!(question(&[name]), expected);
        }
    }

    #[test]
    fn what_is_given_is_taken() {
        let plan = read(&["get", "k", "--addr", "[::1]:3000", "--json", "--confirmed"]).unwrap();
        assert_eq!((plan.addr.as_str(), plan.json), ("[::1]:3000", true));
        let Question::Get { options, .. } = plan.question else { panic!("{plan:?}") };
        assert_eq!(options.consistency, Consistency::Confirmed);
        let asked = question(&["add", "k", "-5", "--quorum", "all", "--timeout", "250ms"]);
        let Question::Add { value, options, .. } = asked else { panic!("{asked:?}") };
        assert_eq!(value.as_deref(), Some("-5"));
        assert_eq!(options.quorum, Some(QuorumSpec::All));
        assert_eq!(options.timeout, Some(Duration::from_millis(250)));
    }

    #[test]
    fn a_value_that_is_not_given_is_on_standard_input() {
        for args in [&["add", "k"][..], &["add", "k", "-"]] {
            assert!(matches!(question(args), Question::Add { value: None, .. }), "{args:?}");
        }
        assert!(matches!(question(&["add", "k", ""]), Question::Add { value: Some(_), .. }));
    }

    #[test]
    fn what_is_wrong_is_refused_with_what_is_expected() {
        for (args, said) in [
            (&["get"][..], "KEY"),
            (&["get", "a", "b"], "'b'"),
            (&["get", "a", "--quorum", "none"], "majority"),
            (&["get", "a", "--timeout", "3"], "is not a duration"),
            (&["add", "a", "b", "--confirmed"], "--confirmed"),
            (&["nodes", "--addr", "here"], "has no port"),
        ] {
            let refused = read(args).unwrap_err();
            assert!(refused.contains(said), "{args:?}: {refused}");
        }
    }
}
