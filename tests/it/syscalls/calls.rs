//! The system calls in a trace that concern the data directory.

/// A call, as it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub thread: u32,
    pub name: String,
    /// What it is about, relative to the data directory, which is `.` itself, and lies in `..`.
    pub paths: Vec<String>,
    /// Whether it failed because it was told to.
    pub is_injected: bool,
    /// Whether it never came back.
    pub is_cut_off: bool,
}

impl Call {
    /// What tells it from others in a message.
    pub fn shown(&self) -> String {
        format!("{}({})", self.name, self.paths.join(", "))
    }

    /// Whether it writes a file of the log, or forces one to disk.
    pub fn forces_or_writes_log(&self) -> bool {
        ["write", "fsync", "fdatasync"].contains(&self.name.as_str())
            && self.paths.iter().all(|path| path.starts_with("log/"))
    }

    /// The paths by which `strace -P` finds it: of `rename` (not of `renameat`) it reads the first
    /// alone.
    pub fn watched(&self) -> &[String] {
        if self.name == "rename" { &self.paths[..1] } else { &self.paths }
    }

    /// Whether `strace -P` with these would show it.
    pub fn concerns(&self, paths: &[String]) -> bool {
        self.watched().iter().any(|path| paths.contains(path))
    }
}

/// The calls in the output of `strace -f -y`, in the order in which they began, without those that
/// do not concern this directory or the one that it is in.
pub fn calls(trace: &str, dir: &str) -> Vec<Call> {
    let mut found: Vec<Call> = Vec::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let (Ok(thread), rest) = (thread.parse(), rest.trim_start()) else { continue };
        let is_injected = rest.contains("(INJECTED");
        let is_over = !rest.ends_with("= ?");
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let name = resumed.split(' ').next().unwrap_or_default();
            let begun = found.iter_mut().rev().find(|call| call.thread == thread);
            if let Some(call) = begun.filter(|call| call.name == name && call.is_cut_off) {
                call.is_injected = is_injected;
                call.is_cut_off = !is_over;
            }
            continue;
        }
        let Some((name, args)) = rest.split_once('(') else { continue };
        let paths = paths(args, dir);
        if paths.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let is_cut_off = !is_over || rest.ends_with("<unfinished ...>");
        found.push(Call { thread, name: name.to_owned(), paths, is_injected, is_cut_off });
    }
    found
}

/// The paths below a directory in the arguments of a call: in quotes, or behind a descriptor.
fn paths(args: &str, dir: &str) -> Vec<String> {
    let mut found = Vec::new();
    let parent = dir.rsplit_once('/').map_or("", |(parent, _)| parent);
    if args.contains(&format!("\"{parent}\"")) || args.contains(&format!("<{parent}>")) {
        found.push("..".to_owned());
    }
    for (at, _) in args.match_indices(dir) {
        let is_whole = args[..at].ends_with(['"', '<']);
        let rest = &args[at + dir.len()..];
        let end = rest.find(['"', '>', '(']).unwrap_or(rest.len());
        let path = match rest[..end].strip_prefix('/') {
            Some(path) => path.trim_end(),
            None if end == 0 => ".",
            // Another directory, whose name begins like this one's.
            None => continue,
        };
        let path = without_time(path);
        if is_whole && !found.contains(&path) {
            found.push(path);
        }
    }
    found
}

/// A log that is set aside gets its time as a name, another one in each run.
fn without_time(path: &str) -> String {
    match path.split_once(".bak-") {
        Some((name, rest)) => {
            let below = rest.find('/').map_or("", |at| &rest[at..]);
            format!("{name}.bak-TIME{below}")
        }
        None => path.to_owned(),
    }
}

#[test]
fn calls_are_read_from_a_trace() {
    let trace = "\
7 openat(AT_FDCWD</cwd>, \"/w/d\", O_RDONLY) = 3</w/d>\n\
8 write(4</w/d/log/1.log>, \"\"..., 9 <unfinished ...>\n\
7 rename(\"/w/d/a.new\", \"/w/d/a\") = -1 EIO (Input/output error) (INJECTED)\n\
8 <... write resumed>) = -1 ENOSPC (No space left on device) (INJECTED)\n\
7 openat(AT_FDCWD</cwd>, \"/w/d-other/x\", O_RDONLY) = 3</w/d-other/x>\n\
7 --- SIGTERM {si_signo=SIGTERM} ---\n\
7 fsync(3</w>) = 0\n\
7 rename(\"/w/d/log\", \"/w/d/log.bak-20260131T120000Z\") = 0\n\
8 fdatasync(4</w/d/log/1.log> <unfinished ...>\n\
7 fsync(3</w/d>) = ?\n\
8 <... fdatasync resumed>) = ?\n\
7 +++ killed by SIGKILL +++\n";
    let call = |thread, name: &str, paths: &[&str], is_injected, is_cut_off| Call {
        thread,
        name: name.into(),
        paths: paths.iter().map(|&path| path.to_owned()).collect(),
        is_injected,
        is_cut_off,
    };
    assert_eq!(
        calls(trace, "/w/d"),
        [
            call(7, "openat", &["."], false, false),
            call(8, "write", &["log/1.log"], true, false),
            call(7, "rename", &["a.new", "a"], true, false),
            call(7, "fsync", &[".."], false, false),
            call(7, "rename", &["log", "log.bak-TIME"], false, false),
            call(8, "fdatasync", &["log/1.log"], false, true),
            call(7, "fsync", &["."], false, true),
        ]
    );
}
