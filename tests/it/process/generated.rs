//! Completions and man pages, read by the programs that they are for.
//!
//! What is not installed is skipped, and says so, unless `CI` is set and it is `bash`: then it fails.

use std::fs;
use std::process::Command;

use super::node::Setup;

/// Whether there is such a program; says so if not.
fn is_there(program: &str, version: &str) -> bool {
    let found = Command::new(program).arg(version).output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("SKIPPED: {program} is missing");
    }
    found
}

/// What a command of the binary prints.
fn printed(args: &[&str]) -> String {
    let done = Setup::new().run_command(args);
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""), "{args:?}");
    done.stdout
}

#[test]
fn completions_are_scripts_that_their_shells_can_read() {
    let place = tempfile::tempdir().unwrap();
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let script = place.path().join(shell);
        fs::write(&script, printed(&["completions", shell])).unwrap();
        if !is_there(shell, "--version") {
            assert!(shell != "bash" || std::env::var_os("CI").is_none(), "bash is missing");
            continue;
        }
        let read = Command::new(shell).arg(check).arg(&script).output().unwrap();
        assert!(read.status.success() && read.stderr.is_empty(), "{shell}: {read:?}");
    }
}

#[test]
fn bash_completes_commands_and_flags() {
    if !is_there("bash", "--version") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let script = place.path().join("lally.bash");
    fs::write(&script, printed(&["completions", "bash"])).unwrap();
    for (line, expected) in [
        ("lally con", "config"),
        ("lally config sh", "show"),
        ("lally config show --sou", "--sources"),
        ("lally get --conf", "--confirmed"),
        ("lally --http-p", "--http-port"),
    ] {
        let words: Vec<_> = line.split(' ').collect();
        let shell = format!(
            "source '{}'; COMP_WORDS=({line}); COMP_CWORD={last}; _lally lally '{word}' ''; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display(),
            last = words.len() - 1,
            word = words[words.len() - 1],
        );
        let done = Command::new("bash").args(["--norc", "-c", &shell]).output().unwrap();
        let offered = String::from_utf8(done.stdout).unwrap();
        assert!(offered.lines().any(|word| word == expected), "{line}: {offered}");
    }
}

#[test]
fn an_unknown_shell_is_refused_with_those_that_there_are() {
    Setup::new().run_command(["completions", "sh"]).refused(2, &["bash", "zsh", "fish"]);
    Setup::new().run_command(["completions"]).refused(2, &["SHELL"]);
}

#[test]
fn each_command_has_a_man_page_that_groff_renders_without_a_complaint() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("share/man1");
    assert_eq!(printed(&["man", "--dir", dir.to_str().unwrap()]), "");
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    for name in ["lally.1", "lally-add.1", "lally-config-check.1", "lally-log-import.1"] {
        assert!(names.iter().any(|there| there == name), "{names:?}");
    }
    assert_eq!(printed(&["man"]), fs::read_to_string(dir.join("lally.1")).unwrap());
    if !is_there("groff", "--version") {
        return;
    }
    for name in &names {
        let page = dir.join(name);
        let rendered = Command::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-z"])
            .arg(&page)
            .output()
            .unwrap();
        assert!(rendered.status.success() && rendered.stderr.is_empty(), "{name}: {rendered:?}");
    }
    if !is_there("man", "--version") {
        return;
    }
    let page = dir.join("lally-config-show.1");
    let shown = Command::new("man").arg("-l").arg(&page).env("MANPAGER", "cat").output().unwrap();
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.status.success() && text.contains("SYNOPSIS"), "{text}");
}

#[test]
fn pages_that_cannot_be_written_are_a_failure() {
    let setup = Setup::new();
    fs::write(setup.dir().join("file"), "").unwrap();
    setup.run_command(["man", "--dir", "file/man1"]).refused(1, &["cannot write", "file/man1"]);
}
