//! What is generated from the description of the command line: completions and man pages.
//!
//! They follow from the same table as `--help`, so that none of them can fall behind.

use std::path::PathBuf;

use clap::Command as Cli;
use clap_complete::{Shell, generate};
use clap_mangen::Man;

use super::cli;
use super::invocation::Command;

/// The script that completes `lally` in this shell.
pub(super) fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    generate(shell, &mut cli::command(), "lally", &mut script);
    text(script)
}

/// The man page of `lally` itself; or, for a directory, that and one for each command.
pub(super) fn pages(dir: Option<PathBuf>) -> Command {
    let mut lally = cli::command().disable_help_subcommand(true);
    lally.build();
    match dir {
        None => Command::Print(page(&lally)),
        Some(dir) => {
            let mut pages = Vec::new();
            add(&lally, &mut pages);
            Command::Man { dir, pages }
        }
    }
}

fn add(command: &Cli, pages: &mut Vec<(String, String)>) {
    pages.push((Man::new(command.clone()).get_filename(), page(command)));
    command.get_subcommands().for_each(|inner| add(inner, pages));
}

fn page(command: &Cli) -> String {
    let mut roff = Vec::new();
    // Writing to memory does not fail.
    Man::new(command.clone()).render(&mut roff).unwrap_or_default();
    text(roff)
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMANDS: [&str; 8] =
        ["get", "add", "status", "log", "backup", "bench", "config", "completions"];

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands_and_the_flags() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Elvish, Shell::PowerShell] {
            let script = completions(shell);
            for word in COMMANDS.into_iter().chain(["http-port", "sources", "dump"]) {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn every_command_has_a_page_of_its_own() {
        let Command::Man { pages, .. } = pages(Some("d".into())) else { panic!("no pages") };
        let names: Vec<_> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in
            ["lally.1", "lally-get.1", "lally-log.1", "lally-log-dump.1", "lally-config-show.1"]
        {
            assert!(names.contains(&name), "{names:?}");
        }
        for (name, text) in &pages {
            assert!(text.contains(".TH") && text.contains(".SH SYNOPSIS"), "{name}: {text}");
        }
        assert!(!names.iter().any(|name| name.contains("help")), "{names:?}");
    }

    #[test]
    fn without_a_directory_it_is_the_page_of_the_node() {
        let Command::Print(page) = pages(None) else { panic!("no page") };
        assert!(page.contains("lally\\-status(1)") && page.contains("\\-\\-http\\-port"), "{page}");
    }
}
