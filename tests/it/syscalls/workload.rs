//! What the client does, what it was told, and so what the node must hold.
//!
//! Each key is written by one client only. An operation that got no answer, or was told that the
//! node is stopping, may have been done or not; one that was refused for lack of space was not.

use std::collections::BTreeMap;
use std::thread;

use serde_json::json;

use super::super::process::client::{Client, JSON, Reply};
use super::super::process::node::Node;
use super::super::process::wait::{PATIENCE, is, look_until};

/// How often a compaction is tried before it is said not to work any more: an injury hits a call of
/// each of a few threads.
const COMPACTIONS: usize = 5;

/// What a key may hold: `None` is absent.
pub type State = Option<String>;

#[derive(Debug, Clone, Default)]
struct Known {
    acknowledged: State,
    /// Sent since, and perhaps done.
    in_doubt: Vec<State>,
}

impl Known {
    fn allows(&self, state: &State) -> bool {
        self.acknowledged == *state || self.in_doubt.contains(state)
    }
}

/// What the node must hold.
#[derive(Debug, Clone, Default)]
pub struct Ledger(BTreeMap<String, Known>);

impl Ledger {
    /// The keys, with what must be there if nothing is in doubt.
    fn known(&mut self, key: &str) -> &mut Known {
        self.0.entry(key.to_owned()).or_default()
    }

    /// The log may have been given up for an empty one.
    pub fn may_be_gone(&mut self) {
        for known in self.0.values_mut() {
            known.in_doubt.push(None);
        }
    }

    /// It has.
    pub fn is_gone(&mut self) {
        self.0.values_mut().for_each(|known| *known = Known::default());
    }

    /// Compares with what the node holds, and says what is wrong.
    pub fn objections(&self, client: &mut Client) -> Vec<String> {
        let wrong = |(key, known): (&String, &Known)| {
            let reply = client.try_send("POST", "/get", &[JSON], body(key, None).as_bytes());
            let reply = match reply {
                Ok(reply) if reply.status == 200 => reply,
                other => return Some(format!("{key}: {other:?}")),
            };
            let found = reply.value();
            let Known { acknowledged, in_doubt } = known;
            (!known.allows(&found)).then(|| {
                format!(
                    "{key}: acknowledged {acknowledged:?}, in doubt {in_doubt:?}, found {found:?}"
                )
            })
        };
        self.0.iter().filter_map(wrong).collect()
    }

    fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// What the client was told.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub done: usize,
    /// 200 `partial`.
    pub in_doubt: usize,
    /// 507 `disk_full`.
    pub full: usize,
    /// Compactions that failed with a documented error.
    pub not_compacted: usize,
    /// However often it was asked for.
    pub never_compacted: bool,
    /// 503 `shutting_down`, or no answer at all.
    pub is_over: bool,
    /// What no client should be told.
    pub wrong: Vec<String>,
}

impl Told {
    fn add(&mut self, other: Self) {
        self.done += other.done;
        self.in_doubt += other.in_doubt;
        self.full += other.full;
        self.not_compacted += other.not_compacted;
        self.never_compacted |= other.never_compacted;
        self.is_over |= other.is_over;
        self.wrong.extend(other.wrong);
    }
}

/// A client of one node, until that ends.
pub struct Worker {
    client: Client,
    pub ledger: Ledger,
    pub told: Told,
}

impl Worker {
    pub fn new(node: &Node, ledger: Ledger) -> Self {
        Self { client: node.client(), ledger, told: Told::default() }
    }

    /// Writes, removes, has the log compacted while another client writes, and goes on writing.
    pub fn live(&mut self, node: &Node, policy: &str) {
        for i in 0..5 {
            self.write(&format!("k{i}"), Some(&format!("first {i} {}", "x".repeat(i * 37))));
        }
        self.write("k0", None);
        if policy == "everysec" {
            self.wait_for_sync();
        }
        let mut other = Self::new(node, Ledger::default());
        thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..6 {
                    other.write(&format!("beside {i}"), Some("v"));
                }
                other.write("beside 0", None);
            });
            self.compact();
        });
        self.ledger.merge(other.ledger);
        self.told.add(other.told);
        for i in 1..8 {
            self.write(&format!("k{i}"), Some(&format!("second {i}")));
        }
        self.write("k1", None);
        if !self.told.is_over {
            self.check();
        }
    }

    /// A short life after a start: what is there is read, something is written.
    pub fn look_around(&mut self) {
        self.check();
        self.write("k1", Some("third"));
        self.write("k2", None);
    }

    /// Compares what is held now with what is known; a node that ends meanwhile is no objection.
    fn check(&mut self) {
        let objections = self.ledger.objections(&mut self.client);
        let is_stopping = objections.iter().any(|objection| objection.contains("shutting_down"));
        if is_stopping || self.client.try_send("GET", "/healthz", &[], b"").is_err() {
            self.told.is_over = true;
        } else {
            self.told.wrong.extend(objections);
        }
    }

    fn write(&mut self, key: &str, value: Option<&str>) {
        if self.told.is_over {
            return;
        }
        let state = value.map(str::to_owned);
        self.ledger.known(key).in_doubt.push(state.clone());
        let (method, path) = if value.is_some() { ("POST", "/add") } else { ("DELETE", "/remove") };
        let reply = self.client.try_send(method, path, &[JSON], body(key, value).as_bytes());
        let known = self.ledger.known(key);
        match reply.map(|reply| (reply.status, reply.verdict(), reply.text("code"), reply)) {
            Ok((200, verdict, ..)) if verdict == "success" => {
                *known = Known { acknowledged: state, in_doubt: Vec::new() };
                self.told.done += 1;
            }
            // Its log failed while it wrote: perhaps it did.
            Ok((200, verdict, ..)) if verdict == "partial" => self.told.in_doubt += 1,
            Ok((507, _, code, _)) if code == "disk_full" => {
                known.in_doubt.pop();
                self.told.full += 1;
            }
            Ok((503, _, code, _)) if code == "shutting_down" => self.told.is_over = true,
            Ok((.., reply)) => self.told.wrong.push(format!("{method} {path}: {}", brief(&reply))),
            Err(_) => self.told.is_over = true,
        }
    }

    /// Has the log compacted, again if it did not work.
    fn compact(&mut self) {
        for _ in 0..COMPACTIONS {
            let reply = self.client.try_send("POST", "/admin/compact", &[], b"");
            match reply.map(|reply| (reply.status, reply.text("code"), reply)) {
                Ok((200, ..)) => return,
                Ok((507 | 500, code, _))
                    if ["disk_full", "log_failed"].contains(&code.as_str()) =>
                {
                    self.told.not_compacted += 1;
                }
                Ok((503, code, _)) if code == "shutting_down" => {
                    self.told.is_over = true;
                    return;
                }
                Ok((.., reply)) => {
                    self.told.wrong.push(format!("/admin/compact: {}", brief(&reply)));
                    return;
                }
                Err(_) => {
                    self.told.is_over = true;
                    return;
                }
            }
        }
        self.told.never_compacted = true;
    }

    /// Until the log was forced by itself, which `everysec` does after a second.
    fn wait_for_sync(&mut self) {
        let client = &mut self.client;
        let mut first = None;
        let forced = look_until(PATIENCE, || {
            let Ok(reply) = client.try_send("GET", "/metrics", &[], b"") else {
                return Ok(false);
            };
            let line = reply
                .body
                .lines()
                .find(|l| l.starts_with("lally_log_sync_duration_seconds_count "));
            let syncs = line.map(str::to_owned);
            let first = first.get_or_insert_with(|| syncs.clone());
            is(*first != syncs, "nothing is forced").map(|()| true)
        });
        match forced {
            Ok(true) => {}
            Ok(false) => self.told.is_over = true,
            Err(seen) => self.told.wrong.push(seen),
        }
    }
}

fn body(key: &str, value: Option<&str>) -> String {
    match value {
        Some(value) => json!({ "key": key, "value": value }).to_string(),
        None => json!({ "key": key }).to_string(),
    }
}

fn brief(reply: &Reply) -> String {
    format!("{} {}", reply.status, reply.body.chars().take(200).collect::<String>())
}
