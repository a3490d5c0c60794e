//! HTTP/2 by hand: frames as no library would send them, for the port of the peers.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::client::open;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame (RFC 9113, 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// What a client begins with.
pub fn hello() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat()
}

/// A header field without compression (RFC 7541, 6.2.2).
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let (name_length, length) = (name.len().try_into().unwrap(), value.len().try_into().unwrap());
    assert!(name_length < 127_u8 && length < 127_u8, "longer lengths have another form");
    [&[0, name_length], name.as_bytes(), &[length], value.as_bytes()].concat()
}

/// The head of a call of a peer of the default cluster.
pub fn call(method: &str) -> Vec<u8> {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", &format!("/lally.v1.Peer/{method}")),
        (":authority", "lally"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        // "lally"
        ("lally-cluster-bin", "bGFsbHk"),
        ("lally-protocol", "1-1"),
    ]
    .iter()
    .flat_map(|(name, value)| field(name, value))
    .collect()
}

/// A message as gRPC frames it.
pub fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0][..], &length, bytes].concat()
}

/// How a flood ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The node hung up, perhaps with a reason.
    HungUp(Option<u32>),
    /// The node took all of it.
    Taken,
    /// The node took no more of it, until its sender gave up.
    Stalled,
}

/// Sends the beginning, and then what `next` makes until it makes no more or the node hangs up. What the
/// node says is read only if `reads`.
pub fn flood(
    addr: SocketAddr,
    begin: &[u8],
    reads: bool,
    mut next: impl FnMut() -> Option<Vec<u8>>,
) -> Ended {
    let mut stream = open(addr).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    if stream.write_all(&hello()).and_then(|()| stream.write_all(begin)).is_err() {
        return hung_up(stream);
    }
    let mut heard = Heard::default();
    while let Some(bytes) = next() {
        match stream.write_all(&bytes) {
            Ok(()) => {}
            Err(error) if is_silence(&error) => return Ended::Stalled,
            Err(_) => return hung_up(stream),
        }
        if reads && heard.listen(&mut stream).is_err() {
            return Ended::HungUp(heard.reason());
        }
    }
    Ended::Taken
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// What was left to read when the node hung up.
fn hung_up(mut stream: TcpStream) -> Ended {
    let mut heard = Heard::default();
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline && heard.take(&mut stream).is_ok() {}
    Ended::HungUp(heard.reason())
}

/// What a node has said, frame by frame.
#[derive(Debug, Default)]
pub struct Heard {
    rest: Vec<u8>,
    goaway: Option<u32>,
    /// Streams that have ended, in whatever way.
    pub ended: usize,
}

impl Heard {
    /// The reason of a GOAWAY, if there was one.
    pub const fn reason(&self) -> Option<u32> {
        self.goaway
    }

    /// Takes what is there already.
    fn listen(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let taken = loop {
            match self.take(stream) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        stream.set_nonblocking(false)?;
        taken
    }

    /// Waits for some bytes, and takes them.
    pub fn take(&mut self, stream: &mut impl Read) -> io::Result<()> {
        let mut bytes = [0; 16_384];
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.rest.extend(&bytes[..count]);
        while let Some(head) = self.rest.first_chunk::<9>() {
            let length =
                usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let (kind, flags) = (head[3], head[4]);
            if self.rest.len() < 9 + length {
                break;
            }
            let payload: Vec<_> = self.rest.drain(..9 + length).skip(9).collect();
            match kind {
                GOAWAY => {
                    self.goaway =
                        payload.get(4..8).map(|code| u32::from_be_bytes(code.try_into().unwrap()));
                }
                RST_STREAM => self.ended += 1,
                HEADERS | DATA if flags & END_STREAM != 0 => self.ended += 1,
                _ => {}
            }
        }
        Ok(())
    }
}

#[test]
fn frames_are_read_as_they_were_written() {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    let reason = [&[0; 4][..], &11_u32.to_be_bytes()].concat();
    let frames = [
        frame(HEADERS, END_HEADERS, 1, &field("a", "b")),
        frame(DATA, END_STREAM, 1, b"x"),
        frame(RST_STREAM, 0, 3, &[0; 4]),
        frame(GOAWAY, 0, 0, &reason),
    ];
    far.write_all(&frames.concat()).unwrap();
    drop(far);
    let mut heard = Heard::default();
    while heard.take(&mut near).is_ok() {}
    assert_eq!((heard.ended, heard.reason()), (2, Some(11)));
}
