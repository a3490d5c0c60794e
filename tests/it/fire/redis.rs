//! `redis-server` with an append-only file, as a server of the harness.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::NamedTempFile;

use super::super::process::node::{free_port, signal};
use super::super::process::wait::{PATIENCE, eventually, look_until};
use super::server::{Outcome, Policy, Server, Session, State};

/// Longer than any command may take.
const SILENCE: Duration = Duration::from_secs(20);

/// Ended when dropped.
pub struct Redis {
    child: Child,
    addr: SocketAddr,
    data: PathBuf,
    policy: Policy,
    /// What it says. Not beside its data, which may be cut off.
    log: NamedTempFile,
}

impl Redis {
    /// Its version, if it is installed.
    pub fn version() -> Option<String> {
        let output = Command::new("redis-server").arg("--version").output().ok();
        let Some(output) = output else {
            eprintln!("redis-server is not installed: nothing to compare with");
            return None;
        };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split_whitespace().find_map(|word| word.strip_prefix("v="));
        Some(version.unwrap_or("of an unknown version").to_owned())
    }

    /// Starts one on this directory, which may be absent, and waits until it serves.
    pub fn start(data: &Path, policy: Policy) -> Result<Self, String> {
        fs::create_dir_all(data).unwrap();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let log = NamedTempFile::new().unwrap();
        let child = spawn(data, addr, policy, log.reopen().unwrap());
        let mut redis = Self { child, addr, data: data.to_owned(), policy, log };
        redis.wait_ready()?;
        Ok(redis)
    }

    pub fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).unwrap()
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(3)..].join("\n")
    }

    fn wait_ready(&mut self) -> Result<(), String> {
        look_until(10 * PATIENCE, || match Connection::to(self.addr).command(&["PING"]) {
            Ok(Answer::Line(line)) if line == "+PONG" => Ok(Ok(())),
            other => match self.child.try_wait().unwrap() {
                Some(status) => Ok(Err(format!("it ended with {status}: {}", self.last_words()))),
                None => Err(format!("{other:?}")),
            },
        })?
    }
}

/// A new process, which says what it has to say in this file.
fn spawn(data: &Path, addr: SocketAddr, policy: Policy, log: File) -> Child {
    let port = addr.port().to_string();
    let policy = if policy == Policy::Never { "no".to_owned() } else { policy.to_string() };
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port, "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "yes", "--appendfsync", &policy])
        .current_dir(data)
        .stdin(Stdio::null())
        .stdout(log)
        .spawn()
        .unwrap()
}

impl Server for Redis {
    fn session(&self) -> Box<dyn Session> {
        Box::new(Connection::to(self.addr))
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn stop(&mut self) -> Result<(), String> {
        signal(&self.child, "TERM");
        let status = eventually("redis-server ends", PATIENCE, || {
            self.child.try_wait().unwrap().ok_or("it runs")
        });
        if status.success() { Ok(()) } else { Err(format!("it ended with {status}")) }
    }

    fn restart(&mut self) -> Result<(), String> {
        self.log = NamedTempFile::new().unwrap();
        self.addr.set_port(free_port());
        self.child = spawn(&self.data, self.addr, self.policy, self.log.reopen().unwrap());
        self.wait_ready()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// An answer in the protocol of Redis, as far as it is needed.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// A status, an error or a number, with its sign.
    Line(String),
    Bulk(Option<String>),
}

/// A client that connects when it is first used.
struct Connection {
    addr: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
}

impl Connection {
    const fn to(addr: SocketAddr) -> Self {
        Self { addr, stream: None }
    }

    fn command(&mut self, words: &[&str]) -> io::Result<Answer> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect_timeout(&self.addr, SILENCE)?;
                stream.set_read_timeout(Some(SILENCE))?;
                stream.set_nodelay(true)?;
                none.insert(BufReader::new(stream))
            }
        };
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            write!(request, "${}\r\n{word}\r\n", word.len()).unwrap();
        }
        stream.get_mut().write_all(request.as_bytes())?;
        answer(stream)
    }

    fn outcome(&mut self, words: &[&str]) -> Outcome {
        match self.command(words) {
            Ok(Answer::Line(line)) if !line.starts_with('-') => Outcome::Acknowledged,
            Ok(other) => Outcome::Refused(format!("{other:?}")),
            Err(_) => Outcome::Silence,
        }
    }

    /// Waits until the file is not being rewritten; what came of it if that does not end well.
    fn not_rewritten(&mut self) -> Option<Outcome> {
        let done = look_until(10 * PATIENCE, || match self.is_rewriting() {
            Ok(true) => Err("it is being rewritten"),
            Ok(false) => Ok(true),
            Err(_) => Ok(false),
        });
        match done {
            Ok(true) => None,
            Ok(false) => Some(Outcome::Silence),
            Err(why) => Some(Outcome::Refused(why.to_owned())),
        }
    }

    /// Whether the file is being rewritten, or soon will be.
    fn is_rewriting(&mut self) -> io::Result<bool> {
        let info = match self.command(&["INFO", "persistence"])? {
            Answer::Bulk(Some(info)) => info,
            other => return Err(io::Error::other(format!("{other:?}"))),
        };
        let is_on = |field: &str| info.lines().any(|line| line == format!("{field}:1"));
        Ok(is_on("aof_rewrite_in_progress") || is_on("aof_rewrite_scheduled"))
    }
}

fn answer(from: &mut impl BufRead) -> io::Result<Answer> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let Some(line) = line.strip_suffix("\r\n") else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let Some(length) = line.strip_prefix('$') else { return Ok(Answer::Line(line.to_owned())) };
    // -1 is absent.
    let Ok(length) = length.parse::<usize>() else { return Ok(Answer::Bulk(None)) };
    let mut bytes = vec![0; length + 2];
    from.read_exact(&mut bytes)?;
    bytes.truncate(length);
    let text = String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(Answer::Bulk(Some(text)))
}

impl Session for Connection {
    fn put(&mut self, key: &str, state: Option<&str>) -> Outcome {
        match state {
            Some(value) => self.outcome(&["SET", key, value]),
            None => self.outcome(&["DEL", key]),
        }
    }

    fn get(&mut self, key: &str) -> State {
        match self.command(&["GET", key]) {
            Ok(Answer::Bulk(value)) => value,
            other => panic!("GET {key}: {other:?}"),
        }
    }

    fn compact(&mut self) -> Outcome {
        // It may be rewriting by itself.
        if let Some(outcome) = self.not_rewritten() {
            return outcome;
        }
        match self.outcome(&["BGREWRITEAOF"]) {
            Outcome::Acknowledged => self.not_rewritten().unwrap_or(Outcome::Acknowledged),
            outcome => outcome,
        }
    }
}

#[test]
fn answers_are_read() {
    let mut wire: &[u8] = b"+OK\r\n$3\r\na\r\n\r\n$-1\r\n-ERR no\r\n:1\r\n$9\r\nha";
    let line = |text: &str| Answer::Line(text.to_owned());
    assert_eq!(answer(&mut wire).unwrap(), line("+OK"));
    assert_eq!(answer(&mut wire).unwrap(), Answer::Bulk(Some("a\r\n".to_owned())));
    assert_eq!(answer(&mut wire).unwrap(), Answer::Bulk(None));
    assert_eq!(answer(&mut wire).unwrap(), line("-ERR no"));
    assert_eq!(answer(&mut wire).unwrap(), line(":1"));
    assert!(answer(&mut wire).is_err());
}
