//! A plain HTTP/1.1 client: one kept-alive connection, and answers as they came over the wire.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::shape::shape;

const CONNECT: Duration = Duration::from_secs(5);
/// Longer than any request may take.
const SILENCE: Duration = Duration::from_secs(20);

/// An answer, uninterpreted.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn shape(&self) -> String {
        shape(&self.body)
    }

    /// A field of the body, as text; the empty string if it is absent or not a string.
    pub fn text(&self, field: &str) -> String {
        self.json()[field].as_str().unwrap_or_default().to_owned()
    }

    pub fn verdict(&self) -> String {
        self.text("status")
    }

    pub fn timestamp(&self) -> String {
        self.text("timestamp")
    }

    /// `quorum.required` and `quorum.achieved`.
    pub fn quorum(&self) -> (u64, u64) {
        let json = self.json();
        let number = |field: &str| {
            json["quorum"][field].as_u64().unwrap_or_else(|| panic!("no {field}: {self:?}"))
        };
        (number("required"), number("achieved"))
    }

    /// The value of a successful answer: `None` for null.
    pub fn value(&self) -> Option<String> {
        assert_eq!((self.status, self.verdict().as_str()), (200, "success"), "{self:?}");
        self.json()["value"].as_str().map(str::to_owned)
    }

    /// Panics unless the answer is a success.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        let brief: String = self.body.chars().take(300).collect();
        assert!(
            self.status == 200 && self.verdict() == "success",
            "expected a success: {} {brief}",
            self.status
        );
        self
    }

    /// Panics unless the answer is this error, in the one shape that errors have.
    #[track_caller]
    pub fn failed(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "expected {status} {code}: {self:?}");
        assert_eq!(self.shape(), "{status,code,message}", "{self:?}");
        assert_eq!((self.verdict().as_str(), self.text("code").as_str()), ("error", code));
        assert!(!self.text("message").is_empty(), "{self:?}");
        assert!(
            self.header("content-type").is_some_and(|t| t.starts_with("application/json")),
            "{self:?}"
        );
    }
}

/// Speaks to one address.
pub struct Client {
    addr: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
    patience: Duration,
    /// How many connections were opened so far.
    pub connections: usize,
}

impl Client {
    pub const fn new(addr: SocketAddr) -> Self {
        Self::with_patience(addr, SILENCE)
    }

    /// One that waits no longer than this, for a connection or for an answer.
    pub const fn with_patience(addr: SocketAddr, patience: Duration) -> Self {
        Self { addr, connection: None, patience, connections: 0 }
    }

    /// `POST /get`.
    pub fn get(&mut self, key: &str) -> Reply {
        self.call("POST", "/get", &json!({ "key": key }))
    }

    /// `POST /get` with a quorum.
    pub fn get_from(&mut self, key: &str, quorum: impl Into<Value>) -> Reply {
        self.call("POST", "/get", &json!({ "key": key, "quorum": quorum.into() }))
    }

    /// `POST /add`.
    pub fn add(&mut self, key: &str, value: &str) -> Reply {
        self.call("POST", "/add", &json!({ "key": key, "value": value }))
    }

    /// `POST /add` with a quorum.
    pub fn add_to(&mut self, key: &str, value: &str, quorum: impl Into<Value>) -> Reply {
        self.call("POST", "/add", &json!({ "key": key, "value": value, "quorum": quorum.into() }))
    }

    /// `DELETE /remove`.
    pub fn remove(&mut self, key: &str) -> Reply {
        self.call("DELETE", "/remove", &json!({ "key": key }))
    }

    /// A request without a body.
    pub fn ask(&mut self, method: &str, path: &str) -> Reply {
        self.send(method, path, &[], b"")
    }

    /// A request with a JSON body.
    pub fn call(&mut self, method: &str, path: &str, body: &Value) -> Reply {
        self.send(method, path, &[JSON], body.to_string().as_bytes())
    }

    /// Any request; panics if there is no answer. An idle connection that the other side closed
    /// meanwhile is replaced once.
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        let reused = self.connection.is_some();
        let first = self.try_send(method, path, headers, body);
        let last = if reused && first.is_err() {
            self.try_send(method, path, headers, body)
        } else {
            first
        };
        last.unwrap_or_else(|error| panic!("{method} {path} at {}: {error}", self.addr))
    }

    /// Any request; an error if there was no whole answer.
    pub fn try_send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Reply> {
        let request = request(self.addr, method, path, headers, body);
        let mut connection = self.connect()?;
        // A server may answer before it has read everything: what it says counts, not the write.
        let written = connection.get_mut().write_all(&request);
        let reply = read_reply(&mut connection, method == "HEAD")
            .map_err(|e| written.err().unwrap_or(e))?;
        if !reply.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close")) {
            self.connection = Some(connection);
        }
        Ok(reply)
    }

    /// Sends all requests before it reads the first answer.
    pub fn pipeline(&mut self, path: &str, bodies: &[Value]) -> Vec<Reply> {
        let requests: Vec<u8> = bodies
            .iter()
            .flat_map(|b| request(self.addr, "POST", path, &[JSON], b.to_string().as_bytes()))
            .collect();
        let mut connection = self.connect().unwrap();
        connection.get_mut().write_all(&requests).unwrap();
        let replies = bodies.iter().map(|_| read_reply(&mut connection, false).unwrap()).collect();
        self.connection = Some(connection);
        replies
    }

    /// Sends a request and hangs up without waiting for the answer.
    pub fn send_and_hang_up(&mut self, path: &str, body: &Value) {
        let request = request(self.addr, "POST", path, &[JSON], body.to_string().as_bytes());
        self.connection = None;
        self.connect().unwrap().get_mut().write_all(&request).unwrap();
    }

    fn connect(&mut self) -> io::Result<BufReader<TcpStream>> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        self.connections += 1;
        open_within(self.addr, self.patience).map(BufReader::new)
    }
}

/// The header of a JSON body.
pub const JSON: (&str, &str) = ("content-type", "application/json");

/// A bare connection, for what a client should not do.
pub fn open(addr: SocketAddr) -> io::Result<TcpStream> {
    open_within(addr, SILENCE)
}

fn open_within(addr: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, CONNECT.min(patience))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

/// A request, as it goes over the wire.
pub fn request(
    host: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n");
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    let chunked = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding"));
    if !chunked && (!body.is_empty() || method != "GET" && method != "HEAD") {
        head.extend(["content-length: ", &body.len().to_string(), "\r\n"]);
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

/// Status and headers of an answer.
type Head = (u16, Vec<(String, String)>);

/// Reads the head of an answer.
pub fn read_head(from: &mut impl BufRead) -> io::Result<Head> {
    let first = line(from)?;
    let status: u16 = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| bad(&format!("not a status line: {first:?}")))?;
    let mut headers = Vec::new();
    loop {
        let header = line(from)?;
        if header.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) = header.split_once(':').ok_or_else(|| bad("not a header"))?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
}

/// Reads one answer, passing over interim ones.
pub fn read_reply(from: &mut impl BufRead, without_body: bool) -> io::Result<Reply> {
    loop {
        let (status, headers) = read_head(from)?;
        if (100..200).contains(&status) {
            continue;
        }
        let mut reply = Reply { status, headers, body: String::new() };
        let mut body = Vec::new();
        if without_body || status == 204 {
        } else if let Some(length) = reply.header("content-length") {
            body.resize(length.parse().map_err(|_| bad("not a length"))?, 0);
            from.read_exact(&mut body)?;
        } else if reply.header("transfer-encoding").is_some() {
            loop {
                let size =
                    usize::from_str_radix(&line(from)?, 16).map_err(|_| bad("not a size"))?;
                let start = body.len();
                body.resize(start + size, 0);
                from.read_exact(&mut body[start..])?;
                line(from)?;
                if size == 0 {
                    break;
                }
            }
        } else {
            from.read_to_end(&mut body)?;
        }
        reply.body = String::from_utf8(body).map_err(|_| bad("the body is not UTF-8"))?;
        return Ok(reply);
    }
}

#[test]
fn answers_are_read_with_a_length_in_chunks_and_after_an_interim_one() {
    let mut wire: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n\
        HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab\
        HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
    let first = read_reply(&mut wire, false).unwrap();
    let second = read_reply(&mut wire, false).unwrap();
    assert_eq!((first.status, first.body.as_str()), (200, "ab"));
    assert_eq!((second.status, second.body.as_str()), (404, "abcd"));
    assert!(wire.is_empty());
}
