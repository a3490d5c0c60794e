//! One node as an operating system process.
//!
//! A [`Setup`] says how to run it (its working directory is a fresh temporary one, the data
//! directory below it, and both ports are free ones unless said otherwise); a [`Node`] is one that
//! runs and whose addresses were read from its log lines; [`Finished`] is one that ended by itself.
//! Whatever a test starts is killed when its handle is dropped, and its log is shown if the test
//! failed.

use std::fmt::Display;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::client::Client;
use super::turn::Turn;
use super::wait::{PATIENCE, eventually, is};

/// How to run a node.
#[derive(Clone)]
pub struct Setup {
    dir: Arc<TempDir>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    wrapper: Vec<String>,
    seeds: Vec<String>,
    http_port: Option<u16>,
    grpc_port: Option<u16>,
}

impl Setup {
    pub fn new() -> Self {
        Self {
            dir: Arc::new(TempDir::new().unwrap()),
            args: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
            seeds: Vec::new(),
            http_port: Some(0),
            grpc_port: Some(0),
        }
    }

    pub fn args<S: AsRef<str>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs the node by this program, which must become it.
    pub fn under<S: AsRef<str>>(mut self, wrapper: impl IntoIterator<Item = S>) -> Self {
        self.wrapper = wrapper.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Writes `lally.yml` in the working directory.
    pub fn yaml(self, text: &str) -> Self {
        fs::write(self.dir().join("lally.yml"), text).unwrap();
        self
    }

    pub fn seed(mut self, addr: impl Display) -> Self {
        self.seeds.push(addr.to_string());
        self
    }

    pub fn without_seeds(mut self) -> Self {
        self.seeds.clear();
        self
    }

    /// The port on the command line; `None` leaves the flag out.
    pub fn http_port(mut self, port: Option<u16>) -> Self {
        self.http_port = port;
        self
    }

    /// The port on the command line; `None` leaves the flag out.
    pub fn grpc_port(mut self, port: Option<u16>) -> Self {
        self.grpc_port = port;
        self
    }

    /// The working directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where the node keeps its data by default.
    pub fn data_dir(&self) -> PathBuf {
        self.dir().join("lally-data")
    }

    /// Starts the node and waits until it listens.
    pub fn start(self) -> Node {
        let mut process = Process::spawn(&self);
        let http = process.listens_on("HTTP listening");
        let grpc = process.listens_on("gRPC listening");
        Node { setup: self, process, http, grpc }
    }

    /// Starts a node that logs too little to tell its ports, which are given.
    pub fn start_silent(self) -> Node {
        let at = |port: Option<u16>| SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap()));
        let (http, grpc) = (at(self.http_port), at(self.grpc_port));
        let process = Process::spawn(&self);
        let node = Node { setup: self, process, http, grpc };
        eventually("the node answers", PATIENCE, || {
            node.client().try_send("GET", "/healthz", &[], b"").map(|_| ())
        });
        node
    }

    /// Starts a node that does not come as far as listening.
    pub fn start_halfway(self) -> Node {
        let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let process = Process::spawn(&self);
        Node { setup: self, process, http: nowhere, grpc: nowhere }
    }

    /// Starts the node and waits until it listens, or has ended instead.
    pub fn start_or_end(self) -> Result<Node, Finished> {
        let mut node = self.start_halfway();
        let listens = eventually("the node listens, or ends", PATIENCE, || {
            let ended = node.has_ended();
            let log = node.log();
            let addr_of = |what| log.lines().find(|line| line.contains(what)).and_then(addr_in);
            match (addr_of("HTTP listening"), addr_of("gRPC listening")) {
                (Some(http), Some(grpc)) => Ok(Some((http, grpc))),
                _ if ended => Ok(None),
                _ => Err(log),
            }
        });
        match listens {
            Some((http, grpc)) => Ok(Node { http, grpc, ..node }),
            None => Err(node.finished()),
        }
    }

    /// Starts the node and waits until it is ready.
    pub fn start_ready(self) -> Node {
        let node = self.start();
        node.wait_ready();
        node
    }

    /// Runs a node that is expected to end by itself.
    pub fn run(&self) -> Finished {
        let mut process = Process::spawn(self);
        let code = process
            .wait(PATIENCE)
            .unwrap_or_else(|| panic!("it runs on instead of ending:\n{}", process.stderr.text()));
        process.finish_reading();
        Finished { code, stdout: process.stdout.text(), stderr: process.stderr.text() }
    }

    /// Runs a command of the binary in the directory of the node.
    pub fn run_command<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        let bare = Self { args: Vec::new(), http_port: None, grpc_port: None, ..self.clone() };
        bare.without_seeds().args(args).run()
    }

    fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_lally");
        let mut command = match self.wrapper.split_first() {
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("LALLY_") || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        command
            .current_dir(self.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .args(&self.args);
        for seed in &self.seeds {
            command.args(["--seed-node", seed]);
        }
        for (flag, port) in [("--http-port", self.http_port), ("--grpc-port", self.grpc_port)] {
            if let Some(port) = port {
                command.arg(flag).arg(port.to_string());
            }
        }
        command
    }
}

/// A node that ended by itself.
#[derive(Debug)]
pub struct Finished {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Panics unless it ended with this code and a message that names all of `mentions`.
    #[track_caller]
    pub fn refused(&self, code: i32, mentions: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let said = self.stderr.to_lowercase();
        assert!(!said.contains("panicked"), "{self:?}");
        for word in mentions {
            assert!(said.contains(&word.to_lowercase()), "nothing about {word:?}: {}", self.stderr);
        }
    }
}

/// A node that runs, or did.
pub struct Node {
    setup: Setup,
    process: Process,
    http: SocketAddr,
    grpc: SocketAddr,
}

impl Node {
    pub const fn http(&self) -> SocketAddr {
        self.http
    }

    pub const fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    pub const fn setup(&self) -> &Setup {
        &self.setup
    }

    pub const fn client(&self) -> Client {
        Client::new(self.http)
    }

    /// What the node wrote to stderr since it was started last.
    pub fn log(&self) -> String {
        self.process.stderr.text()
    }

    /// `GET /cluster`.
    pub fn cluster(&self) -> Value {
        self.client().ask("GET", "/cluster").json()
    }

    /// The digest, and how many keys and tombstones it is about.
    pub fn holdings(&self) -> (String, u64, u64) {
        let cluster = self.cluster();
        let count = |field: &str| cluster[field].as_u64().unwrap();
        (cluster["digest"].to_string(), count("keys"), count("tombstones"))
    }

    /// Whether `/readyz` says 200; else what it says.
    pub fn readiness(&self) -> Result<(), String> {
        let reply = self
            .client()
            .try_send("GET", "/readyz", &[], b"")
            .map_err(|error| format!("/readyz: {error}"))?;
        is(reply.status == 200, format!("/readyz: {} {}", reply.status, reply.body))
    }

    pub fn wait_ready(&self) {
        eventually("the node is ready", PATIENCE, || self.readiness());
    }

    /// Waits for a line of the log that contains all of these words.
    pub fn wait_for_log(&self, words: &[&str]) -> String {
        eventually(&format!("a log line with {words:?}"), PATIENCE, || {
            let log = self.log();
            log.lines()
                .find(|line| words.iter().all(|word| line.contains(word)))
                .map(str::to_owned)
                .ok_or(log.clone())
        })
    }

    /// Sends a signal by name, without waiting for anything.
    pub fn signal(&self, name: &str) {
        signal(&self.process.child, name);
    }

    /// SIGSTOP, and waits until no thread of it runs any more: a signal that was sent has not
    /// arrived yet.
    pub fn hang(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.process.child.id());
        eventually("every thread is stopped", PATIENCE, || {
            let runs = fs::read_dir(&tasks).unwrap().find_map(|task| {
                let stat = fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
                // The state stands behind the name, which is in parentheses.
                let state = stat.rsplit(')').next()?.trim_start().chars().next()?;
                (state != 'T').then_some(stat)
            });
            runs.map_or(Ok(()), Err)
        });
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// SIGTERM, and the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.wait_for_exit()
    }

    /// The exit code, once it has ended.
    pub fn wait_for_exit(&mut self) -> Option<i32> {
        self.process
            .wait(PATIENCE)
            .unwrap_or_else(|| panic!("it does not end:\n{}", self.process.stderr.text()))
    }

    /// How it ended, once it has.
    pub fn finished(mut self) -> Finished {
        let code = self.wait_for_exit();
        self.process.finish_reading();
        Finished { code, stdout: self.process.stdout.text(), stderr: self.process.stderr.text() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.child.id()
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.child.try_wait().unwrap().is_some()
    }

    /// Starts it again in its place: same directory, same settings, same ports.
    pub fn restart(&mut self) {
        self.restart_as(|setup| setup);
    }

    /// Starts it again in its place and with its ports, with changed settings.
    pub fn restart_as(&mut self, change: impl FnOnce(Setup) -> Setup) {
        assert!(self.has_ended(), "it still runs");
        let same = self.setup.clone();
        let setup = same.http_port(Some(self.http.port())).grpc_port(Some(self.grpc.port()));
        *self = change(setup).start();
    }

    /// Starts it again in its directory, with other ports, which somebody else may have by now; or how
    /// it ended instead of listening.
    pub fn try_restart(&mut self) -> Result<(), Finished> {
        assert!(self.has_ended(), "it still runs");
        *self = self.setup.clone().start_or_end()?;
        Ok(())
    }
}

/// Sends a signal by name, without waiting for anything.
pub fn signal(process: &Child, name: &str) {
    let pid = process.id().to_string();
    // The shell's own `kill`: not every small image has the program.
    let kill = ["-c", "kill -\"$0\" \"$1\"", name, &pid];
    let status = Command::new("sh").args(kill).status().unwrap();
    assert!(status.success(), "signal {name} not sent");
}

/// A port that nobody listened on a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Every file below a directory with its bytes, by relative path; directories too, without bytes.
pub fn contents(dir: &Path) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    fn walk(dir: &Path, root: &Path, found: &mut Vec<(PathBuf, Option<Vec<u8>>)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_owned();
            if path.is_dir() {
                found.push((name, None));
                walk(&path, root, found);
            } else {
                let bytes = fs::read(&path).unwrap();
                found.push((name, Some(bytes)));
            }
        }
    }
    let mut found = Vec::new();
    if dir.exists() {
        walk(dir, dir, &mut found);
    }
    found.sort();
    found
}

/// The file below `dir` that holds these bytes, and where: how a test finds the log without
/// knowing its name.
pub fn file_with(dir: &Path, needle: &str) -> (PathBuf, usize) {
    contents(dir)
        .into_iter()
        .filter(|(name, _)| !name.to_string_lossy().contains(".bak-"))
        .find_map(|(name, bytes)| {
            let at = bytes?.windows(needle.len()).position(|part| part == needle.as_bytes())?;
            Some((dir.join(name), at))
        })
        .unwrap_or_else(|| panic!("no file below {} holds {needle:?}", dir.display()))
}

struct Process {
    child: Child,
    stdout: Captured,
    stderr: Captured,
    _turn: Arc<Turn>,
}

impl Process {
    fn spawn(setup: &Setup) -> Self {
        let turn = Turn::of_this_thread();
        let mut child = setup.command().spawn().unwrap();
        let stdout = Captured::from(child.stdout.take().unwrap());
        let stderr = Captured::from(child.stderr.take().unwrap());
        Self { child, stdout, stderr, _turn: turn }
    }

    fn listens_on(&mut self, message: &str) -> SocketAddr {
        eventually(&format!("the log says {message:?}"), PATIENCE, || {
            let ended = self.child.try_wait().unwrap();
            let log = self.stderr.text();
            let found = log.lines().find(|line| line.contains(message)).and_then(addr_in);
            if let (None, Some(status)) = (found, ended) {
                panic!("it ended with {status} instead of listening:\n{log}");
            }
            found.ok_or(log)
        })
    }

    /// The exit code (`None` within: a signal), or `None` if it still runs.
    #[expect(clippy::option_option, reason = "both absences mean something, one line apart")]
    fn wait(&mut self, within: Duration) -> Option<Option<i32>> {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status.code());
            }
            thread::sleep(Duration::from_millis(5));
        }
        None
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn finish_reading(&mut self) {
        self.stdout.finish();
        self.stderr.finish();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.kill().and_then(|()| self.child.wait()).is_err() {
            eprintln!("process {} could not be killed", self.child.id());
        }
        if thread::panicking() {
            let log = self.stderr.text();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("--- the log of process {} ends with:\n{tail}\n---", self.child.id());
        }
    }
}

/// What a process writes, as it comes.
struct Captured {
    text: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Captured {
    fn from(source: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&text);
        let reader = thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        });
        Self { text, reader: Some(reader) }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
    }
}

/// The address in a log line, in text or JSON format.
pub fn addr_in(line: &str) -> Option<SocketAddr> {
    ["addr=", "\"addr\":\""].iter().find_map(|before| {
        let (_, rest) = line.split_once(before)?;
        rest.split(|c: char| c == '"' || c == ',' || c.is_whitespace()).next()?.parse().ok()
    })
}

#[test]
fn addresses_are_read_from_both_log_formats() {
    let text = "2026-11-24T11:30:00.123456Z  INFO HTTP listening addr=127.0.0.1:41234";
    let json = r#"{"level":"INFO","fields":{"message":"HTTP listening","addr":"[::1]:4000"}}"#;
    assert_eq!(addr_in(text), "127.0.0.1:41234".parse().ok());
    assert_eq!(addr_in(json), "[::1]:4000".parse().ok());
    assert_eq!(addr_in("HTTP listening"), None);
}
