//! Whether a file that gets its name by a rename keeps it through a power cut: its data must be forced
//! to the device before the rename, and the directory after it, before anything else is done. Which
//! system calls a node makes is seen with `strace`; where that is missing or not allowed the test is
//! skipped and says so, unless `CI` is set and it is missing: then it fails.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::node::Setup;
use super::wait::{PATIENCE, eventually, is};

/// Whether `strace` may trace here; says so if not.
pub fn can_trace() -> bool {
    let mut probe = Command::new("strace");
    match probe.args(["-o", "/dev/null", "true"]).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => true,
        Ok(_) => {
            eprintln!("SKIPPED: strace may not trace here");
            false
        }
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "strace is missing: {error}");
            eprintln!("SKIPPED: strace is missing");
            false
        }
    }
}

/// The calls of one thread, one per line, as strace writes them.
fn threads(at: &Path) -> Vec<String> {
    let files = fs::read_dir(at).unwrap().map(|file| file.unwrap().path());
    files.map(|file| fs::read_to_string(file).unwrap()).collect()
}

/// Starts a node whose calls are written to files in a directory of this name, gives it something to
/// do and stops it: what each of its threads did.
fn trace(setup: &Setup, name: &str) -> Vec<String> {
    let at = setup.dir().join(name);
    fs::create_dir(&at).unwrap();
    let prefix = at.join("calls").display().to_string();
    let calls = "trace=openat,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat";
    // Detached (-D), so that signals reach the node; paths of descriptors shown (-y).
    let wrapper = ["strace", "-D", "-ff", "-y", "-s", "4096", "-e", calls, "-o", &prefix];
    let mut node = setup.clone().under(wrapper).start_ready();
    node.client().add("k", name).succeeded();
    assert_eq!(node.terminate(), Some(0));
    eventually("the trace is complete", PATIENCE, || {
        is(
            threads(&at).iter().all(|calls| calls.contains("+++ exited with")),
            "a thread has not ended",
        )
    });
    threads(&at)
}

/// The path in quotes of this number in a call.
fn quoted(call: &str, number: usize) -> PathBuf {
    call.split('"').nth(2 * number + 1).unwrap_or_default().into()
}

/// The path behind the descriptor that a call is about.
fn descriptor(call: &str) -> PathBuf {
    call.split(['<', '>']).nth(1).unwrap_or_default().into()
}

fn is_sync(call: &str) -> bool {
    call.starts_with("fsync(") || call.starts_with("fdatasync(")
}

/// Checks the calls that concern files below `data`; counts the names that were made durable.
fn names_made_durable(threads: &[String], data: &Path) -> usize {
    // A draft of a directory is filled by one thread and named by another.
    let calls = threads.iter().flat_map(|calls| calls.lines());
    let forced = calls.filter(|call| is_sync(call)).map(descriptor);
    let drafts = forced.filter(|path| path.extension().is_some_and(|ending| ending == "draft"));
    let filled = drafts.map(|draft| draft.with_extension("new")).collect();
    threads.iter().map(|calls| names_made_durable_by(calls, data, &filled)).sum()
}

/// The same for one thread; `filled` are directories that some thread forced before they were named.
fn names_made_durable_by(calls: &str, data: &Path, filled: &BTreeSet<PathBuf>) -> usize {
    let mut forced = BTreeSet::new();
    let mut unforced: Option<PathBuf> = None;
    let mut names = 0;
    for call in calls.lines().filter(|call| !call.contains(" = -1 ")) {
        if is_sync(call) {
            let path = descriptor(call);
            if unforced.as_ref() == Some(&path) {
                unforced = None;
                names += 1;
            }
            forced.insert(path);
        } else if call.starts_with("rename") || call.starts_with("mkdir") {
            let is_rename = call.starts_with("rename");
            let made = quoted(call, usize::from(is_rename));
            // A draft is nothing before it has its name.
            let is_draft = made.extension().is_some_and(|ending| ending == "draft");
            if !made.starts_with(data) || made == data || is_draft {
                continue;
            }
            assert_eq!(unforced, None, "not forced before the next one: {call}");
            let source = quoted(call, 0);
            // What is moved aside was forced in an earlier life, or is what it was.
            if is_rename && source.extension().is_some_and(|ending| ending == "new") {
                let is_forced = forced.contains(&source) || filled.contains(&source);
                assert!(is_forced, "renamed before it was forced: {call}");
            }
            unforced = made.parent().map(Path::to_owned);
        }
    }
    assert_eq!(unforced, None, "a directory was never forced");
    names
}

#[test]
fn every_name_in_the_data_directory_is_durable_before_anything_is_built_on_it() {
    if !can_trace() {
        return;
    }
    let setup = Setup::new();
    // Absolute, so that names are written as descriptors are shown.
    let data = setup.dir().canonicalize().unwrap().join("data");
    let setup = setup.args(["--data-dir", &data.display().to_string()]);
    let count = |threads: &[String]| names_made_durable(threads, &data);
    // The directory of the log, its first segment, and the book.
    let first = count(&trace(&setup, "first"));
    assert!(first >= 4, "{first}");
    let again = count(&trace(&setup, "again"));
    assert!(again >= 2, "{again}");
    // The log moved aside, and a new one.
    let fresh = count(&trace(&setup.clone().args(["--fresh"]), "fresh"));
    assert!(fresh > again, "{fresh}");
    let aside = fs::read_dir(&data).unwrap().map(|file| file.unwrap().path());
    let aside = aside.filter(|path| path.to_string_lossy().contains(".bak-")).max().unwrap();
    let replay = setup.clone().args(["--replay-log", &aside.display().to_string()]);
    let replayed = count(&trace(&replay, "replayed"));
    assert!(replayed > again, "{replayed}");
}

#[test]
fn the_check_notices_what_is_missing() {
    let data = Path::new("/d");
    let good = "openat(AT_FDCWD</w>, \"/d/a.new\", O_WRONLY) = 3</d/a.new>\n\
                fsync(3</d/a.new>) = 0\n\
                rename(\"/d/a.new\", \"/d/a\") = 0\n\
                openat(AT_FDCWD</w>, \"/d\", O_RDONLY) = 4</d>\n\
                fsync(4</d>) = 0\n";
    let check = |calls: &str| names_made_durable(&[calls.to_owned()], data);
    assert_eq!(check(good), 1);
    let missing = ["fsync(3</d/a.new>) = 0\n", "fsync(4</d>) = 0\n"];
    let bad = missing.map(|call| good.replace(call, ""));
    for calls in bad.into_iter().chain(["mkdir(\"/d/log\", 0777) = 0\n".to_owned()]) {
        std::panic::catch_unwind(|| check(&calls)).unwrap_err();
    }
}
