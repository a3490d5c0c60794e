//! What clients do while the cluster suffers: threads with a kept-alive connection each, which read,
//! write and remove through one node, with quorums of one and of a majority.
//!
//! There are three kinds of keys. *Hot* ones are fought over by all clients, with majorities only:
//! they show reads that miss a write. *Loose* ones too, mostly with quorums of one. *Single* ones are
//! written once (some are removed later): there is no newer write behind which a lost one could
//! hide. Every value is written once in a run, so a value that is read names its write.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use super::super::process::client::{Client, JSON, Reply};
use super::history::{Call, End, Operation, Quorum};

pub const CLIENTS_PER_NODE: usize = 2;
/// Longer than any request may take; shorter than most faults, so that clients feel many of them.
const PATIENCE: Duration = Duration::from_secs(4);
/// Two cores serve five nodes of a debug build and all clients: they are not to be the fault.
const BETWEEN_OPERATIONS: Duration = Duration::from_millis(8);
const HOT_KEYS: usize = 8;
const LOOSE_KEYS: usize = 8;

/// One client, for the length of a run.
pub struct Worker {
    process: usize,
    node: usize,
    random: StdRng,
    client: Client,
    operations: Vec<Operation>,
    singles: usize,
}

impl Worker {
    pub fn new(process: usize, node: usize, addr: SocketAddr, seed: u64) -> Self {
        Self {
            process,
            node,
            random: StdRng::seed_from_u64(seed ^ (process as u64 + 1) << 32),
            client: Client::with_patience(addr, PATIENCE),
            operations: Vec::new(),
            singles: 0,
        }
    }

    /// Operates until it is told to stop, and returns what it saw.
    pub fn run(mut self, start: Instant, stop: &AtomicBool) -> Vec<Operation> {
        while !stop.load(Ordering::Relaxed) {
            let planned = self.plan();
            let operation = self.perform(planned, start);
            self.operations.push(operation);
            // The rate of the load, not a wait for a fact.
            thread::sleep(BETWEEN_OPERATIONS);
        }
        self.operations
    }

    fn plan(&mut self) -> (Call, Quorum, String) {
        let mostly_one = if self.random.random_bool(0.7) { Quorum::One } else { Quorum::Majority };
        let call = match self.random.random_range(0..10) {
            0..5 => Call::Get,
            5..9 => Call::Add,
            _ => Call::Remove,
        };
        match self.random.random_range(0..10) {
            0..5 => {
                let key = format!("hot-{}", self.random.random_range(0..HOT_KEYS));
                (call, Quorum::Majority, key)
            }
            5..7 => {
                let key = format!("loose-{}", self.random.random_range(0..LOOSE_KEYS));
                (call, mostly_one, key)
            }
            _ => {
                let quorum =
                    if self.random.random_bool(0.3) { Quorum::One } else { Quorum::Majority };
                if call == Call::Add || self.singles == 0 {
                    self.singles += 1;
                    return (
                        Call::Add,
                        quorum,
                        format!("single-{}-{}", self.process, self.singles),
                    );
                }
                let number = self.random.random_range(1..=self.singles);
                (call, quorum, format!("single-{}-{number}", self.process))
            }
        }
    }

    fn perform(
        &mut self,
        (call, quorum, key): (Call, Quorum, String),
        start: Instant,
    ) -> Operation {
        let value =
            (call == Call::Add).then(|| format!("{}-{}", self.process, self.operations.len()));
        let mut body = json!({ "key": key });
        body["quorum"] = match quorum {
            Quorum::One => json!(1),
            Quorum::Majority => json!("majority"),
        };
        let (method, path) = match call {
            Call::Get => ("POST", "/get"),
            Call::Add => ("POST", "/add"),
            Call::Remove => ("DELETE", "/remove"),
        };
        if let Some(value) = &value {
            body["value"] = json!(value);
        }
        let began = start.elapsed();
        let reply = self.client.try_send(method, path, &[JSON], body.to_string().as_bytes());
        let ended = start.elapsed();
        let end = match reply {
            Ok(reply) => end_of(&reply),
            // Only opening a connection is refused: nothing was sent.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                End::Fail(error.to_string())
            }
            // Whatever else went wrong: the request may have gone out.
            Err(error) => End::Info(error.to_string()),
        };
        Operation {
            process: self.process,
            node: self.node,
            call,
            quorum,
            key,
            value,
            began,
            ended,
            end,
        }
    }
}

fn end_of(reply: &Reply) -> End {
    match reply.verdict().as_str() {
        "success" => {
            let json = reply.json();
            let text = |field: &str| json[field].as_str().map(str::to_owned);
            End::Ok { value: text("value"), version: text("timestamp") }
        }
        "partial" => End::Info("partial".into()),
        _ => End::Fail(reply.text("code")),
    }
}
