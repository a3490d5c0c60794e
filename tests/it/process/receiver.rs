//! A receiver of webhooks: an HTTP server that notes what it gets and answers as it is told.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use ring::hmac;
use serde_json::Value;
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::wait::{PATIENCE, eventually, is};

/// The status that stands for no answer at all.
pub const NEVER: u16 = 0;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Post {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Post {
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map_or_else(|| panic!("no {name} in {self:?}"), |(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Whether it was signed with this secret, as the reference says.
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let (time, signature) = self.header("lally-signature").split_once(',').unwrap();
        let (time, signature) =
            (time.strip_prefix("t=").unwrap(), signature.strip_prefix("v1=").unwrap());
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signed = hmac::sign(&key, format!("{time}.{}", self.body).as_bytes());
        let mut expected = String::new();
        for byte in signed.as_ref() {
            write!(expected, "{byte:02x}").unwrap();
        }
        signature == expected
    }
}

/// The server. It listens until it is dropped.
pub struct Receiver {
    addr: SocketAddr,
    posts: Arc<Mutex<Vec<Post>>>,
    status: Arc<AtomicU16>,
    ended: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Receiver {
    pub fn start() -> Self {
        Self::serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), None)
    }

    /// At the place of one that is gone.
    pub fn start_at(addr: SocketAddr) -> Self {
        Self::serve(addr, None)
    }

    pub fn start_tls(config: ServerConfig) -> Self {
        Self::serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), Some(Arc::new(config)))
    }

    fn serve(addr: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind(addr).unwrap();
        let receiver = Self {
            addr: listener.local_addr().unwrap(),
            posts: Arc::default(),
            status: Arc::new(AtomicU16::new(200)),
            ended: Arc::default(),
            open: Arc::default(),
        };
        let (posts, status) = (Arc::clone(&receiver.posts), Arc::clone(&receiver.status));
        let (ended, open) = (Arc::clone(&receiver.ended), Arc::clone(&receiver.open));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                open.lock().unwrap().push(stream.try_clone().unwrap());
                let (posts, status, tls) = (Arc::clone(&posts), Arc::clone(&status), tls.clone());
                thread::spawn(move || match tls {
                    None => talk(stream, &posts, &status),
                    Some(tls) => {
                        let tls = ServerConnection::new(tls).unwrap();
                        talk(StreamOwned::new(tls, stream), &posts, &status);
                    }
                });
            }
        });
        receiver
    }

    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What is answered from now on.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    pub fn posts(&self) -> Vec<Post> {
        self.posts.lock().unwrap().clone()
    }

    /// The keys of what came, each once, sorted.
    pub fn keys(&self) -> Vec<String> {
        let text = |post: &Post| post.json()["key"].as_str().unwrap().to_owned();
        let mut keys: Vec<_> = self.posts().iter().map(text).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    /// Waits until exactly these keys came.
    pub fn wait_for(&self, keys: &[String]) {
        eventually(&format!("{} keys", keys.len()), PATIENCE, || {
            let got = self.keys();
            is(got == keys, format!("{} of {}: {got:?}", got.len(), keys.len()))
        });
    }
}

impl Drop for Receiver {
    /// Nobody listens afterwards, and what is open breaks off.
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        TcpStream::connect(self.addr).ok();
        for stream in self.open.lock().unwrap().drain(..) {
            stream.shutdown(Shutdown::Both).ok();
        }
        eventually("the listener is closed", PATIENCE, || {
            TcpStream::connect(self.addr).map_or(Ok(()), |_| Err("it listens"))
        });
    }
}

fn talk(stream: impl Read + Write, posts: &Mutex<Vec<Post>>, status: &AtomicU16) {
    let mut stream = BufReader::new(stream);
    while let Some(post) = read_post(&mut stream) {
        posts.lock().unwrap().push(post);
        let status = status.load(Ordering::SeqCst);
        if status == NEVER {
            // Until the other side gives up.
            stream.read_exact(&mut [0]).ok();
            return;
        }
        let answer = format!("HTTP/1.1 {status} Said\r\ncontent-length: 2\r\n\r\nok");
        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn read_post(from: &mut impl BufRead) -> Option<Post> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        lines.push(line.to_owned());
    }
    let headers: Vec<_> = lines[1..]
        .iter()
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let (_, length) = headers.iter().find(|(name, _)| name == "content-length")?;
    let mut body = vec![0; length.parse().unwrap()];
    from.read_exact(&mut body).ok()?;
    Some(Post { line: lines[0].clone(), headers, body: String::from_utf8(body).unwrap() })
}
