//! What a node tells systemd, through a real socket of the kind that systemd has.

use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use super::node::{Setup, file_with, free_port};
use super::wait::PATIENCE;

/// Where systemd would listen.
pub(super) struct Listener(UnixDatagram);

impl Listener {
    pub(super) fn at(path: &Path) -> Self {
        Self::of(UnixDatagram::bind(path).unwrap())
    }

    /// At a name that is in no file system.
    pub(super) fn at_name(name: &str) -> Self {
        Self::of(UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap())
    }

    fn of(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// The next message, as its lines.
    fn next(&self) -> Vec<String> {
        let mut datagram = [0; 4_096];
        let length = self.0.recv(&mut datagram).expect("the node says nothing");
        let text = std::str::from_utf8(&datagram[..length]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Reads until a message has this line; all lines until then.
    pub(super) fn wait_for(&self, line: &str) -> Vec<String> {
        let mut lines = Vec::new();
        while !lines.iter().any(|heard| heard == line) {
            lines.extend(self.next());
        }
        lines
    }

    /// Whether nothing more was said.
    fn is_silent(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        self.0.recv(&mut [0; 16]).is_err()
    }
}

/// How often these lines have this one.
fn count(lines: &[String], line: &str) -> usize {
    lines.iter().filter(|heard| *heard == line).count()
}

#[test]
fn a_service_manager_hears_that_the_node_is_up_how_it_is_and_that_it_stops() {
    let setup = Setup::new();
    let path = setup.dir().join("notify");
    let listener = Listener::at(&path);
    let mut node = setup.env("NOTIFY_SOCKET", path.to_str().unwrap()).start();
    let mut lines = listener.wait_for("STATUS=ready");
    assert_eq!(lines[0], "STATUS=reading the log");
    assert_eq!(node.terminate(), Some(0));
    lines.extend(listener.wait_for("STOPPING=1"));
    for once in ["READY=1", "STOPPING=1"] {
        assert_eq!(count(&lines, once), 1, "{lines:?}");
    }
    assert!(listener.is_silent());
    assert!(!node.log().contains("WARN"), "{}", node.log());
}

#[test]
fn a_socket_that_is_in_no_file_system_is_reached_too() {
    let setup = Setup::new();
    // A name of its own, as its directory has one.
    let name = format!("lally{}", setup.dir().display());
    let listener = Listener::at_name(&name);
    let _node = setup.env("NOTIFY_SOCKET", &format!("@{name}")).start();
    listener.wait_for("READY=1");
}

/// Everybody would wait for everybody, if all machines of a cluster are started at once.
#[test]
fn a_node_that_waits_for_others_is_up_and_says_what_it_waits_for() {
    let nobody = free_port();
    let setup = Setup::new().seed(format!("127.0.0.1:{nobody}"));
    let path = setup.dir().join("notify");
    let listener = Listener::at(&path);
    let node = setup.env("NOTIFY_SOCKET", path.to_str().unwrap()).start();
    let mut heard = listener.wait_for("READY=1");
    assert_eq!(node.client().ask("GET", "/healthz").status, 200);
    assert!(node.readiness().is_err());
    let waits = |line: &String| line.contains("no member answered") && line.contains("127.0.0.1");
    while !heard.iter().any(waits) {
        heard = listener.next();
    }
}

#[test]
fn a_node_that_cannot_start_is_never_said_to_be_up() {
    let mut node = Setup::new().start_ready();
    for i in 0..400 {
        node.client().add(&format!("key-{i}"), &format!("value-{i:04}-end")).succeeded();
    }
    node.kill9();
    let (log, at) = file_with(&node.setup().data_dir(), "value-0200-end");
    let mut bytes = fs::read(&log).unwrap();
    bytes[at] ^= 0x20;
    fs::write(&log, &bytes).unwrap();
    let path = node.setup().dir().join("notify");
    let listener = Listener::at(&path);
    let refused = node.setup().clone().env("NOTIFY_SOCKET", path.to_str().unwrap()).run();
    refused.refused(65, &["error"]);
    assert_eq!(listener.next(), ["STATUS=reading the log"]);
    assert!(listener.is_silent());
}

#[test]
fn a_socket_where_nobody_listens_is_logged_and_the_node_serves() {
    for nowhere in ["/nonexistent/notify", "vsock:2:9999"] {
        let mut node = Setup::new().env("NOTIFY_SOCKET", nowhere).start_ready();
        node.client().add("k", "v").succeeded();
        node.wait_for_log(&["WARN", "the service manager was not told", nowhere]);
        assert_eq!(node.terminate(), Some(0));
    }
}
