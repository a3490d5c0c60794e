//! `ServiceManager`: what systemd, or whoever has started the node in its way, is told about it.
//!
//! The protocol is that of `sd_notify(3)`: a datagram of `NAME=VALUE` lines to the Unix socket that
//! `NOTIFY_SOCKET` names, a path or, behind an `@`, a name that is in no file system. Without that
//! variable nobody is told anything.
//!
//! There is no port for it: the application knows no service manager, only `app::compose` does. The
//! socket is opened anew for each message, of which there are few: a service manager that was replaced
//! meanwhile hears the next one. Not supported are the sockets of virtual machines (`vsock:`).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::timeout;

/// The environment variable that names the socket.
pub const NOTIFY_SOCKET: &str = "NOTIFY_SOCKET";

/// How long a message may wait for a service manager that is behind with reading.
const SEND_WITHIN: Duration = Duration::from_secs(1);

/// Longer ones are cut: `systemctl status` has a line for it.
const MAX_STATUS_CHARS: usize = 512;

/// How far the node has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Milestone {
    /// It answers: it has read its log, and both servers listen.
    Ready,
    /// It has begun to stop.
    Stopping,
}

/// Whoever has started this process and wants to know how it is; or nobody.
#[derive(Debug, Clone, Default)]
pub struct ServiceManager {
    /// The value of [`NOTIFY_SOCKET`].
    address: Option<OsString>,
}

impl ServiceManager {
    /// The service manager that listens at this address, the value of [`NOTIFY_SOCKET`]; nobody, if
    /// there is none or it is empty.
    pub fn at(address: Option<OsString>) -> Self {
        Self { address: address.filter(|address| !address.is_empty()) }
    }

    /// Whether anybody is told anything.
    pub const fn listens(&self) -> bool {
        self.address.is_some()
    }

    /// Tells what the node has come to, if it has, and in words how it is. Takes a second at most. What
    /// cannot be told is logged, and the node goes on: whether it should run is not for a socket to say.
    pub async fn tell(&self, milestone: Option<Milestone>, status: &str) {
        let Some(address) = &self.address else { return };
        let message = message(milestone, status);
        let told = timeout(SEND_WITHIN, send(address, &message)).await;
        let told = told.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if let Err(error) = told {
            let socket = address.display();
            tracing::warn!(%socket, %error, ?milestone, "the service manager was not told");
        }
    }
}

fn message(milestone: Option<Milestone>, status: &str) -> String {
    let state = match milestone {
        None => "",
        Some(Milestone::Ready) => "READY=1\n",
        Some(Milestone::Stopping) => "STOPPING=1\n",
    };
    // A line break would begin another variable.
    let in_one_line = status.chars().map(|c| if c.is_control() { ' ' } else { c });
    let status: String = in_one_line.take(MAX_STATUS_CHARS).collect();
    format!("{state}STATUS={status}\n")
}

async fn send(address: &OsStr, message: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&resolve(address)?)?;
    socket.set_nonblocking(true)?;
    let sent = tokio::net::UnixDatagram::from_std(socket)?.send(message.as_bytes()).await?;
    if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn resolve(address: &OsStr) -> io::Result<SocketAddr> {
    match address.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(address),
        [b'@', name @ ..] => abstract_address(name),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "neither a path from the root nor a name behind @",
        )),
    }
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_name: &[u8]) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    /// What arrives at `socket` of one message.
    async fn heard(address: impl Into<OsString>, socket: &UnixDatagram) -> String {
        ServiceManager::at(Some(address.into())).tell(Some(Milestone::Ready), "serves").await;
        let mut datagram = [0; 2_048];
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let length = socket.recv(&mut datagram).unwrap();
        String::from_utf8(datagram[..length].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_socket_is_reached_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        assert_eq!(heard(path, &socket).await, "READY=1\nSTATUS=serves\n");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_socket_is_reached_by_a_name_that_is_in_no_file_system() {
        let name = format!("lally-{}-{:016x}", std::process::id(), rand::random::<u64>());
        let socket = UnixDatagram::bind_addr(&abstract_address(name.as_bytes()).unwrap()).unwrap();
        assert_eq!(heard(format!("@{name}"), &socket).await, "READY=1\nSTATUS=serves\n");
    }

    #[test]
    fn a_status_is_one_line_of_bounded_length() {
        assert_eq!(
            message(Some(Milestone::Stopping), "a\nREADY=1\u{1b}"),
            "STOPPING=1\nSTATUS=a READY=1 \n"
        );
        assert_eq!(message(None, "reads"), "STATUS=reads\n");
        let long = message(None, &"ü".repeat(10_000));
        assert_eq!(long.chars().count(), "STATUS=\n".len() + MAX_STATUS_CHARS);
    }

    #[tokio::test]
    async fn nobody_is_told_where_nobody_listens() {
        for address in [None, Some(OsString::new())] {
            let nobody = ServiceManager::at(address);
            assert!(!nobody.listens());
            nobody.tell(Some(Milestone::Ready), "serves").await;
        }
    }

    #[tokio::test]
    async fn an_address_of_another_kind_is_refused() {
        for address in ["vsock:2:1234", "relative", "@"] {
            let refused = send(OsStr::new(address), "STATUS=").await;
            assert!(refused.is_err(), "{address}");
        }
    }

    #[tokio::test]
    async fn a_service_manager_that_reads_nothing_holds_nobody_up_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _silent = UnixDatagram::bind(&path).unwrap();
        let manager = ServiceManager::at(Some(path.into()));
        // The queue of a Unix socket has few places: `net.unix.max_dgram_qlen`.
        let other = UnixDatagram::unbound().unwrap();
        other.set_nonblocking(true).unwrap();
        while other.send_to(b"STATUS=", manager.address.as_ref().unwrap()).is_ok() {}
        let asked = Instant::now();
        manager.tell(Some(Milestone::Ready), "serves").await;
        assert!(asked.elapsed() < SEND_WITHIN + Duration::from_secs(5), "{:?}", asked.elapsed());
    }
}
