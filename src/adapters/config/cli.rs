//! The command line: one flag per key, in hyphens and in underscores.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::keys::{KEYS, KeySpec, Kind};

const EXAMPLES: &str = "\
Each setting can also be given in the configuration file, under the flag's name with
underscores, and in the environment (LALLY_HTTP_PORT=3000). The command line wins over the
environment, the environment over the file, the file over the defaults.

Examples:
  lally
      One node with the defaults: HTTP on 127.0.0.1:3000, gRPC on 127.0.0.1:50071
  lally --http-port 3001 --grpc-port 50072 --data-dir ./node-2 --seed-node 127.0.0.1:50071
      A second node on the same host
  lally --bind 0.0.0.0 --seed-node db-1.internal:50071 --read-quorum majority --write-quorum majority
      A node of a cluster over several hosts whose reads see every acknowledged write

Exit codes: 0 stopped on request; 1 runtime failure; 2 usage or configuration; 65 corrupt log.";

/// What the command line gives, as pairs of key and text. The first argument is the program.
///
/// # Errors
/// Help and version end here too, as clap has it.
pub(super) fn read(args: Vec<OsString>) -> Result<Vec<(&'static KeySpec, String)>, clap::Error> {
    let matches = command().try_get_matches_from(args)?;
    Ok(KEYS.iter().filter_map(|key| Some((key, text(&matches, key)?))).collect())
}

fn text(matches: &ArgMatches, key: &KeySpec) -> Option<String> {
    let values: Vec<&str> = matches.get_many::<String>(key.name)?.map(String::as_str).collect();
    // A list in several flags is the same list in one.
    Some(values.join(","))
}

fn command() -> Command {
    Command::new("lally")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Lally, a distributed in-memory key-value database: runs one node")
        .after_help(EXAMPLES)
        .max_term_width(100)
        .args(KEYS.iter().map(arg))
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
        read(args).unwrap().into_iter().map(|(key, text)| (key.name, text)).collect()
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
    }
}
