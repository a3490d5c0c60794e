//! What clients saw: every operation with its beginning and its end, and what was done to the
//! cluster meanwhile. Written as Jepsen writes histories, one JSON object per event, so that other
//! checkers can read it.
//!
//! Times are nanoseconds since the run began, of one monotonic clock: clients are threads of one
//! process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// The version of a value as clients see it: the timestamp's text, which compares as times do.
pub type Version = String;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Get,
    Add,
    Remove,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quorum {
    One,
    Majority,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// `success`, with the value and version of the answer.
    Ok { value: Option<String>, version: Option<Version> },
    /// Nothing was done: the node said so, or was not reached.
    Fail(String),
    /// It may have happened, or may happen yet: `partial`, or no answer.
    Info(String),
}

#[derive(Debug, Clone)]
pub struct Operation {
    pub process: usize,
    /// The node that was asked.
    pub node: usize,
    pub call: Call,
    pub quorum: Quorum,
    pub key: String,
    /// What `Add` writes.
    pub value: Option<String>,
    pub began: Duration,
    pub ended: Duration,
    pub end: End,
}

impl Operation {
    pub const fn is_write(&self) -> bool {
        !matches!(self.call, Call::Get)
    }

    pub const fn succeeded(&self) -> bool {
        matches!(self.end, End::Ok { .. })
    }

    pub const fn failed(&self) -> bool {
        matches!(self.end, End::Fail(_))
    }

    /// Whether it succeeded with a majority.
    pub fn is_firm(&self) -> bool {
        self.succeeded() && self.quorum == Quorum::Majority
    }

    /// The version of a successful operation, if its answer had one.
    pub const fn version(&self) -> Option<&Version> {
        match &self.end {
            End::Ok { version, .. } => version.as_ref(),
            _ => None,
        }
    }

    pub fn took(&self) -> Duration {
        self.ended.saturating_sub(self.began)
    }

    fn events(&self) -> [(Duration, Value); 2] {
        let f = match self.call {
            Call::Get => "get",
            Call::Add => "add",
            Call::Remove => "remove",
        };
        let quorum = match self.quorum {
            Quorum::One => json!(1),
            Quorum::Majority => json!("majority"),
        };
        let event = |kind: &str, time: Duration, value: &Option<String>| {
            json!({
                "process": self.process, "type": kind, "f": f, "key": self.key, "value": value,
                "quorum": quorum, "node": self.node, "time": nanoseconds(time),
            })
        };
        let invoked = event("invoke", self.began, &self.value);
        let ended = match &self.end {
            End::Ok { value, version } => {
                let mut ended = event("ok", self.ended, value);
                ended["version"] = json!(version);
                ended
            }
            End::Fail(why) | End::Info(why) => {
                let kind = if self.failed() { "fail" } else { "info" };
                let mut ended = event(kind, self.ended, &self.value);
                ended["error"] = json!(why);
                ended
            }
        };
        [(self.began, invoked), (self.ended, ended)]
    }
}

/// A time during which something was wrong.
#[derive(Debug, Clone)]
pub struct Trouble {
    pub what: String,
    pub began: Duration,
    pub ended: Duration,
    /// Nodes that were paused, not running or cut off from their clients.
    pub silent: Vec<usize>,
    /// The node that lost its disk.
    pub wiped: Option<usize>,
}

/// What a node holds when all is over: `None` of a key it does not have.
#[derive(Debug, Clone, Default)]
pub struct Held {
    pub digest: String,
    pub keys: BTreeMap<String, Option<(String, Version)>>,
}

#[derive(Debug, Clone, Default)]
pub struct History {
    /// In the order in which they began.
    pub operations: Vec<Operation>,
    pub troubles: Vec<Trouble>,
    /// By node.
    pub held: Vec<Held>,
}

impl History {
    /// Every key with its operations, in the order in which they began.
    pub fn by_key(&self) -> BTreeMap<&str, Vec<&Operation>> {
        let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.operations {
            keys.entry(&operation.key).or_default().push(operation);
        }
        keys
    }

    /// Writes every event in the order of time.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let mut events: Vec<_> = self.operations.iter().flat_map(Operation::events).collect();
        for trouble in &self.troubles {
            for (time, begins) in [(trouble.began, true), (trouble.ended, false)] {
                let event = json!({
                    "process": "nemesis", "type": "info", "f": trouble.what,
                    "value": if begins { "begins" } else { "ended" }, "time": nanoseconds(time),
                });
                events.push((time, event));
            }
        }
        events.sort_by_key(|(time, _)| *time);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut out = BufWriter::new(File::create(path)?);
        for (index, (_, mut event)) in events.into_iter().enumerate() {
            event["index"] = json!(index);
            writeln!(out, "{event}")?;
        }
        out.flush()
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap()
}

#[test]
fn a_history_is_written_in_the_order_of_time_with_every_event() {
    let operation = |process, began, ended, end| Operation {
        process,
        node: 0,
        call: Call::Add,
        quorum: Quorum::Majority,
        key: "k".into(),
        value: Some("v".into()),
        began: Duration::from_nanos(began),
        ended: Duration::from_nanos(ended),
        end,
    };
    let history = History {
        operations: vec![
            operation(1, 10, 40, End::Ok { value: Some("v".into()), version: Some("t".into()) }),
            operation(2, 20, 30, End::Info("no answer".into())),
        ],
        ..History::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/history.jsonl");
    history.save(&path).unwrap();
    let text = fs::read_to_string(path).unwrap();
    let events: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let seen: Vec<_> = events
        .iter()
        .map(|e| (e["index"].as_u64(), e["process"].as_u64(), e["type"].as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            (Some(0), Some(1), Some("invoke")),
            (Some(1), Some(2), Some("invoke")),
            (Some(2), Some(2), Some("info")),
            (Some(3), Some(1), Some("ok")),
        ]
    );
    assert_eq!((&events[3]["version"], &events[2]["error"]), (&json!("t"), &json!("no answer")));
}
