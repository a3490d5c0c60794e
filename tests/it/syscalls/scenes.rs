//! The starts of a node, and one run of one: under `strace`, through its script, to its end.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::super::process::node::{Finished, Node, Setup};
use super::super::process::wait::{PATIENCE, eventually, is, look_until};
use super::calls::{Call, calls};
use super::plan::Plan;
use super::workload::{Ledger, Told, Worker};

/// The calls that change files or name them.
pub const CHANGING: &str = "openat,write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,\
    ftruncate,fallocate,unlink,unlinkat,mkdir,mkdirat,rmdir";
/// Those that only look.
const LOOKING: &str = "read,pread64,getdents64,statx,newfstatat,fstatfs,flock,lseek";

/// Where a run begins, and how far it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// No data directory; the whole script, with this policy.
    First(&'static str),
    /// The same, and traced from just before SIGTERM.
    Stop,
    /// A node that was killed, with what crashes leave: a torn tail, drafts, files that a snapshot
    /// stands for.
    Restart,
    /// The same with `--fresh`.
    Fresh,
    /// The same with `--replay-log` of its own log.
    Replay,
}

/// What is done to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Injury {
    Kill,
    Eio,
    Enospc,
    Eintr,
}

impl Injury {
    pub const ALL: [Self; 4] = [Self::Kill, Self::Eio, Self::Enospc, Self::Eintr];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Eio => "EIO",
            Self::Enospc => "ENOSPC",
            Self::Eintr => "EINTR",
        }
    }

    fn expression(self) -> String {
        match self {
            Self::Kill => "signal=SIGKILL".into(),
            Self::Eio | Self::Enospc | Self::Eintr => format!("error={}", self.name()),
        }
    }
}

impl Scene {
    pub const ALL: [Self; 7] = [
        Self::First("always"),
        Self::First("everysec"),
        Self::First("never"),
        Self::Stop,
        Self::Restart,
        Self::Fresh,
        Self::Replay,
    ];

    pub fn name(self) -> String {
        match self {
            Self::First(policy) => format!("first start, --fsync {policy}"),
            Self::Stop => "stop".into(),
            Self::Restart => "start after a crash".into(),
            Self::Fresh => "--fresh".into(),
            Self::Replay => "--replay-log".into(),
        }
    }

    const fn policy(self) -> &'static str {
        match self {
            Self::First(policy) => policy,
            Self::Stop | Self::Restart | Self::Fresh | Self::Replay => "always",
        }
    }

    const fn begins_with_data(self) -> bool {
        matches!(self, Self::Restart | Self::Fresh | Self::Replay)
    }
}

/// A data directory to begin with, and what is in it.
pub struct Template {
    setup: Setup,
    ledger: Ledger,
}

impl Template {
    /// That of a node that lived and was killed, with what crashes leave behind.
    pub fn build() -> Self {
        let setup = Setup::new().args(["--fsync", "always"]);
        let mut node = setup.clone().start_ready();
        let mut worker = Worker::new(&node, Ledger::default());
        worker.live(&node, "always");
        assert!(worker.told.wrong.is_empty() && !worker.told.is_over, "{:?}", worker.told);
        node.kill9();
        let log = setup.data_dir().join("log");
        let (segment, snapshot) = ("0000000000000002.log", "0000000000000002.snap");
        assert!(log.join(snapshot).exists(), "the log was not compacted");
        fs::copy(log.join(segment), log.join("0000000000000001.log")).unwrap();
        fs::copy(log.join(snapshot), log.join("0000000000000001.snap")).unwrap();
        fs::write(log.join("0000000000000003.log.new"), "half a").unwrap();
        let mut torn = fs::read(log.join(segment)).unwrap();
        torn.extend_from_slice(b"\x20\0\0\0\x01\0\0");
        fs::write(log.join(segment), torn).unwrap();
        fs::create_dir(setup.data_dir().join("log.draft")).unwrap();
        fs::write(setup.data_dir().join("log.draft/0000000000000001.log.new"), "").unwrap();
        Self { setup, ledger: worker.ledger }
    }
}

/// What came of a run.
pub struct Run {
    pub calls: Vec<Call>,
    pub end: Finished,
    pub told: Told,
    /// Whether it came as far as listening.
    pub listened: bool,
    /// What was wrong after the restart.
    pub after: Vec<String>,
    pub data: PathBuf,
}

/// Runs a scene, with an injury if one is given.
pub fn run(scene: Scene, template: &Template, injury: Option<(&Plan, Injury)>) -> Run {
    let setup = Setup::new();
    let dir = setup.dir().canonicalize().unwrap();
    // Not in the working directory, which `strace` shows with every relative name.
    let home = dir.join("home");
    fs::create_dir(&home).unwrap();
    let data = home.join("data");
    let mut ledger = Ledger::default();
    if scene.begins_with_data() {
        copy(&template.setup.data_dir(), &data);
        ledger = template.ledger.clone();
    }
    let base = ["--data-dir", &data.display().to_string(), "--worker-threads", "1"];
    let setup = setup.args(base).args(["--fsync", scene.policy()]);
    let trace = dir.join("trace");
    let options = options(&trace, &data, injury);
    let started = match scene {
        Scene::Fresh => setup.clone().args(["--fresh"]),
        Scene::Replay => {
            setup.clone().args(["--replay-log", &data.join("log").display().to_string()])
        }
        Scene::First(_) | Scene::Restart | Scene::Stop => setup.clone(),
    };
    let traced = match scene {
        Scene::Stop => started,
        _ => started.under(["strace".to_owned(), "-D".into()].into_iter().chain(options.clone())),
    };
    let (mut told, mut attached) = (Told::default(), None);
    let listening = traced.start_or_end();
    let listened = listening.is_ok();
    if scene == Scene::Fresh {
        if listened { ledger.is_gone() } else { ledger.may_be_gone() }
    }
    let end = match listening {
        Err(end) => end,
        Ok(mut node) => {
            let mut worker = Worker::new(&node, ledger);
            if is_ready(&mut node) {
                match scene {
                    Scene::First(_) => worker.live(&node, scene.policy()),
                    Scene::Stop | Scene::Restart | Scene::Fresh | Scene::Replay => {
                        worker.look_around();
                    }
                }
                if scene == Scene::Stop {
                    attached = Some(attach(&node, &options));
                }
            }
            (told, ledger) = (worker.told, worker.ledger);
            if !told.is_over && !node.has_ended() {
                node.signal("TERM");
            }
            node.finished()
        }
    };
    if let Some(mut tracer) = attached {
        tracer.wait().unwrap();
    }
    let text = whole_trace(&trace);
    let after = look_after(scene, &setup, &data, &ledger);
    let calls = calls(&text, &data.display().to_string());
    Run { calls, end, told, listened, after, data }
}

/// What `strace` is told.
fn options(trace: &Path, data: &Path, injury: Option<(&Plan, Injury)>) -> Vec<String> {
    let mut options: Vec<String> =
        ["-f", "-y", "-s", "0", "-o", &trace.display().to_string()].map(str::to_owned).into();
    match injury {
        None => options.extend(["-e".into(), format!("trace={CHANGING},{LOOKING}")]),
        Some((plan, injury)) => {
            options.extend(["-e".into(), format!("trace={}", plan.call)]);
            for path in &plan.paths {
                let path = match path.as_str() {
                    "." => data.to_owned(),
                    ".." => data.parent().unwrap().to_owned(),
                    path => data.join(path),
                };
                options.extend(["-P".into(), path.display().to_string()]);
            }
            let Plan { call, when, .. } = plan;
            let expression = format!("inject={call}:{}:when={when}", injury.expression());
            options.extend(["-e".into(), expression]);
        }
    }
    options
}

/// Traces a node that runs.
fn attach(node: &Node, options: &[String]) -> Child {
    let mut command = Command::new("strace");
    command.args(options).args(["-p", &node.pid().to_string()]);
    let mut tracer = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(tracer.stderr.take().unwrap()).lines();
    let attached = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("attached")));
    assert!(attached.is_some(), "strace does not attach");
    // Threads that come are announced, too: nobody must have to wait for us to read it.
    std::thread::spawn(move || lines.for_each(drop));
    tracer
}

/// Whether it becomes ready, rather than end.
fn is_ready(node: &mut Node) -> bool {
    let ready = look_until(PATIENCE, || match node.readiness() {
        Ok(()) => Ok(true),
        Err(seen) => is(node.has_ended(), seen).map(|()| false),
    });
    ready.unwrap_or_else(|seen| panic!("it is neither ready nor ends: {seen}\n{}", node.log()))
}

/// The trace, once every thread has ended.
fn whole_trace(path: &Path) -> String {
    eventually("the trace is complete", PATIENCE, || {
        let trace = fs::read_to_string(path).unwrap_or_default();
        let mut threads: BTreeMap<&str, bool> = BTreeMap::new();
        for line in trace.lines() {
            let (thread, rest) = line.split_once(' ').unwrap_or_default();
            *threads.entry(thread).or_default() |= rest.trim_start().starts_with("+++ ");
        }
        is(threads.values().all(|ended| *ended) && !threads.is_empty(), &trace)?;
        Ok::<_, String>(trace)
    })
}

/// Starts the node again, untraced, and says what is wrong with what it holds.
fn look_after(scene: Scene, setup: &Setup, data: &Path, ledger: &Ledger) -> Vec<String> {
    let mut node = match setup.clone().start_or_end() {
        Ok(node) => node,
        Err(end) => return vec![format!("it does not start again: {end:?}")],
    };
    node.wait_ready();
    let mut client = node.client();
    let mut wrong = ledger.objections(&mut client);
    let reply = client.add("after", "v");
    if reply.status != 200 {
        wrong.push(format!("it takes no write: {reply:?}"));
    }
    let code = node.terminate();
    if code != Some(0) {
        wrong.push(format!("it stops with {code:?}: {}", node.log()));
    }
    // Nothing is deleted but what a snapshot stands for, whatever takes the place of the log.
    let mut logs = fs::read_dir(data).unwrap().map(|file| file.unwrap().path());
    if scene.begins_with_data() && !logs.any(|log| log.join("0000000000000002.snap").exists()) {
        wrong.push("the old log is gone".into());
    }
    wrong
}

/// Copies a directory.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(|file| file.unwrap()) {
        let (source, target) = (file.path(), to.join(file.file_name()));
        if file.file_type().unwrap().is_dir() {
            copy(&source, &target);
        } else {
            fs::copy(&source, &target).unwrap();
        }
    }
}
