//! What may come of an injury.
//!
//! Never silence: a call that failed was done again or mattered to nobody (a short list), or the log of
//! the node names the file, or a client was told, or the process ended with exit code 1 and a message
//! that names the file. A failed sync or write of a segment leaves no choice.

use super::calls::Call;
use super::plan::Plan;
use super::scenes::{Injury, Run};

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The call was not made.
    Missed,
    Killed,
    /// Nobody saw a difference.
    Unnoticed,
    /// The node went on, and said so.
    Logged,
    /// A client was told, and the node went on.
    Answered,
    /// The node ended, and said why.
    Ended,
}

impl Class {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missed => "not made",
            Self::Killed => "killed",
            Self::Unnoticed => "unnoticed",
            Self::Logged => "logged",
            Self::Answered => "answered",
            Self::Ended => "ended",
        }
    }
}

/// The call that was hit first.
pub fn hit<'a>(run: &'a Run, plan: &Plan, injury: Injury) -> Option<&'a Call> {
    let mut named = run.calls.iter().filter(|call| call.name == plan.call);
    match injury {
        Injury::Kill if run.end.code.is_some() => None,
        Injury::Kill => named.find(|call| call.is_cut_off),
        Injury::Eio | Injury::Enospc | Injury::Eintr => named.find(|call| call.is_injected),
    }
}

/// What came of a run, or what is wrong with it.
pub fn judge(run: &Run, hit: Option<&Call>, injury: Option<Injury>) -> Result<Class, String> {
    let wrong: Vec<_> = run.told.wrong.iter().chain(&run.after).cloned().collect();
    if !wrong.is_empty() {
        return Err(wrong.join("\n  "));
    }
    if run.end.stderr.contains("panicked") {
        return Err("it panicked".into());
    }
    let class = class(run, hit, injury)?;
    match (hit, injury) {
        (Some(call), Some(injury)) if !may(class, call, injury, run.listened) => {
            Err(format!("{} is not allowed to be {}", call.shown(), class.name()))
        }
        _ => Ok(class),
    }
}

fn class(run: &Run, hit: Option<&Call>, injury: Option<Injury>) -> Result<Class, String> {
    let told = &run.told;
    let refused = told.full + told.in_doubt + told.not_compacted;
    // Whoever looks for the file must find it by what the node says.
    let is_parent = hit.is_some_and(|call| call.paths == [".."]);
    let place = if is_parent { run.data.parent().unwrap() } else { &run.data };
    let place = place.display().to_string();
    let names_it = |line: &&str| {
        let mut named = line.match_indices(&place).map(|(at, _)| &line[at + place.len()..]);
        // What is below the parent is not the parent.
        named.any(|rest| !is_parent || !rest.starts_with('/'))
    };
    let lines = || run.end.stderr.lines();
    match (run.end.code, hit) {
        (None, Some(_)) if injury == Some(Injury::Kill) => Ok(Class::Killed),
        (Some(0), None) if refused == 0 => Ok(Class::Missed),
        (Some(0), Some(_)) => {
            let injured = run.calls.iter().filter(|call| call.is_injected).count();
            // Two clients wait for one write at most.
            if refused > 2 * injured {
                return Err(format!("{refused} refusals after {injured} failed calls"));
            }
            // A failed call takes one compaction with it at most.
            if told.never_compacted || told.not_compacted > injured {
                return Err(format!("{} compactions fail, and it goes on", told.not_compacted));
            }
            // The torn tail of the crash before has nothing to do with the call.
            let trouble = |line: &&str| {
                (line.contains(" WARN ") || line.contains("ERROR ")) && !line.contains("torn tail")
            };
            let is_logged = lines().filter(trouble).any(|line| names_it(&line));
            Ok(match (refused > 0, is_logged) {
                (true, _) => Class::Answered,
                (false, true) => Class::Logged,
                (false, false) => Class::Unnoticed,
            })
        }
        (Some(1), Some(_)) => {
            let reason = lines().rfind(|line| line.starts_with("error: "));
            let reason = reason.ok_or("it ended without a reason")?;
            if names_it(&reason)
                || lines().filter(|line| line.contains(" WARN ")).any(|l| names_it(&l))
            {
                Ok(Class::Ended)
            } else {
                Err(format!("it ended without the name of the file: {reason}"))
            }
        }
        (code, _) => Err(format!("it ended with {code:?}, {refused} refusals")),
    }
}

/// Whether this may come of it, in a node that listened or did not come as far.
fn may(class: Class, call: &Call, injury: Injury, listened: bool) -> bool {
    let paths = &call.paths;
    let about = |ending: &str| paths.iter().any(|path| path.ends_with(ending));
    let is_sync = matches!(call.name.as_str(), "fsync" | "fdatasync");
    let is_write = call.name.contains("write");
    let is_segment = about(".log") && !about(".new");
    match (injury, class) {
        // Those that are interrupted are made again.
        (_, Class::Missed | Class::Killed) | (Injury::Eintr, Class::Unnoticed) => true,
        (Injury::Eintr, _) if is_sync || is_write => false,
        // What was synced in vain is believed nowhere; a directory of the log is part of it.
        (Injury::Eio | Injury::Enospc, _) if is_sync && (is_segment || paths == &["log"]) => {
            class == Class::Ended
        }
        (Injury::Eio, _) if is_write && is_segment => class == Class::Ended,
        // Nothing is appended: what is behind the end is overwritten.
        (Injury::Enospc, _) if call.name == "pwrite64" => class == Class::Logged,
        (Injury::Enospc, _) if is_write && is_segment && listened => class == Class::Answered,
        (Injury::Eio | Injury::Enospc, Class::Unnoticed) => matters_to_nobody(call),
        _ => true,
    }
}

/// Whether a call may fail and nobody needs to know.
fn matters_to_nobody(call: &Call) -> bool {
    let is_log_file = call.paths.iter().any(|path| path.starts_with("log/"));
    match call.name.as_str() {
        // The reserve: asked for less, or done without, which the node says; the size of the disk.
        "fallocate" | "fstatfs" => true,
        // Where names cannot be exchanged, the book's draft is renamed.
        "renameat2" => call.paths == ["node.new", "node.json"],
        // Giving back the reserve behind the end of a segment; lengths, for progress and counts.
        "ftruncate" => is_log_file,
        // The length of a file that is read whole is a guess at how much memory it takes.
        "statx" => is_log_file || call.paths == ["node.json"],
        // A parent that is not ours to read; room for the book after this one, which is asked for
        // again when that is saved.
        "openat" => call.paths == [".."] || call.paths == ["node.new"],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str, path: &str) -> Call {
        let (name, paths) = (name.to_owned(), vec![path.to_owned()]);
        Call { thread: 1, name, paths, is_injected: true, is_cut_off: false }
    }

    #[test]
    fn a_failed_sync_or_write_of_a_segment_must_end_the_node() {
        let segment = "log/0000000000000001.log";
        for class in [Class::Unnoticed, Class::Logged, Class::Answered] {
            for injury in [Injury::Eio, Injury::Enospc] {
                assert!(!may(class, &call("fdatasync", segment), injury, true), "{class:?}");
                assert!(!may(class, &call("fsync", "log"), injury, true), "{class:?}");
            }
            assert!(!may(class, &call("write", segment), Injury::Eio, true), "{class:?}");
        }
        assert!(may(Class::Answered, &call("write", segment), Injury::Enospc, true));
        assert!(!may(Class::Ended, &call("write", segment), Injury::Enospc, true));
        assert!(!may(Class::Ended, &call("fdatasync", segment), Injury::Eintr, true));
    }

    #[test]
    fn what_fails_is_not_unnoticed_but_for_a_few_calls() {
        for name in ["openat", "rename", "unlink", "mkdir", "read", "getdents64", "statx"] {
            assert!(!may(Class::Unnoticed, &call(name, "log"), Injury::Eio, true), "{name}");
        }
        assert!(may(Class::Unnoticed, &call("fallocate", "log/1.log"), Injury::Eio, true));
    }
}
