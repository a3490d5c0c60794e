//! A node as a server of the harness.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::json;

use super::super::process::client::{Client, JSON};
use super::super::process::node::{Node, Setup};
use super::server::{Outcome, Policy, Server, Session, State};

pub struct Lally {
    node: Node,
}

impl Lally {
    pub fn start(data: &Path, policy: Policy) -> Result<Self, String> {
        let data = data.display().to_string();
        let setup = Setup::new().args(["--data-dir", &data, "--fsync", &policy.to_string()]);
        let node = setup.start_or_end().map_err(|end| format!("{end:?}"))?;
        node.wait_ready();
        Ok(Self { node })
    }
}

impl Server for Lally {
    fn session(&self) -> Box<dyn Session> {
        Box::new(Connection::to(self.node.http()))
    }

    fn kill(&mut self) {
        self.node.kill9();
    }

    fn stop(&mut self) -> Result<(), String> {
        match self.node.terminate() {
            Some(0) => Ok(()),
            code => Err(format!("it stops with {code:?}: {}", self.node.log())),
        }
    }

    fn restart(&mut self) -> Result<(), String> {
        self.node.try_restart().map_err(|end| format!("{end:?}"))?;
        self.node.wait_ready();
        Ok(())
    }
}

/// A client that asks of one node alone.
pub struct Connection(Client);

impl Connection {
    pub const fn to(addr: SocketAddr) -> Self {
        Self(Client::new(addr))
    }

    fn outcome(&mut self, method: &str, path: &str, body: &[u8]) -> Outcome {
        match self.0.try_send(method, path, &[JSON], body) {
            Ok(reply) if reply.status == 200 && reply.verdict() == "success" => {
                Outcome::Acknowledged
            }
            Ok(reply) => Outcome::Refused(format!("{path}: {} {}", reply.status, reply.body)),
            Err(_) => Outcome::Silence,
        }
    }
}

impl Session for Connection {
    fn put(&mut self, key: &str, state: Option<&str>) -> Outcome {
        let (method, path, body) = match state {
            Some(value) => ("POST", "/add", json!({"key": key, "value": value, "quorum": 1})),
            None => ("DELETE", "/remove", json!({"key": key, "quorum": 1})),
        };
        self.outcome(method, path, body.to_string().as_bytes())
    }

    fn get(&mut self, key: &str) -> State {
        self.0.get_from(key, 1).value()
    }

    fn compact(&mut self) -> Outcome {
        self.outcome("POST", "/admin/compact", b"")
    }
}
