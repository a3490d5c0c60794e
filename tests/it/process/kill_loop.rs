//! SIGKILL at random moments under load, twenty times and once more: no acknowledged write is lost,
//! under any fsync policy, also while the log is compacted.
//!
//! Each writer owns its keys and knows, for each, what was acknowledged last and which later
//! operation got no answer: after a restart either of the two may be there, and nothing else. The
//! seed of the moments is printed; `LALLY_TEST_SEED` repeats it, `LALLY_TEST_KILLS` sets the number
//! of kills per policy.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{Client, JSON};
use super::node::Setup;
use super::turn::Turn;
use crate::results::from_env;

const WRITERS: usize = 4;
const KEYS_PER_WRITER: usize = 100;

/// What a key may hold: `None` is absent.
type State = Option<String>;

#[derive(Default)]
struct Known {
    acknowledged: State,
    /// Sent later, and never answered.
    in_doubt: Option<State>,
}

/// The keys of one writer.
#[derive(Default)]
struct Ledger {
    keys: BTreeMap<String, Known>,
    operations: usize,
}

impl Ledger {
    /// Writes until the node is gone.
    fn write_until_killed(
        &mut self,
        writer: usize,
        addr: SocketAddr,
        done: &AtomicUsize,
        dead: &AtomicBool,
    ) {
        let mut client = Client::new(addr);
        while !dead.load(Ordering::Relaxed) {
            let turn = self.operations;
            self.operations += 1;
            let key = format!("w{writer}-{}", turn % KEYS_PER_WRITER);
            // Of uneven lengths, so that the log is cut at uneven places.
            let state =
                (turn % 11 != 10).then(|| format!("{turn}:{}", "x".repeat(turn * 37 % 400)));
            let known = self.keys.entry(key.clone()).or_default();
            known.in_doubt = Some(state.clone());
            let (method, path, body) = match &state {
                Some(value) => ("POST", "/add", json!({"key": key, "value": value})),
                None => ("DELETE", "/remove", json!({ "key": key })),
            };
            match client.try_send(method, path, &[JSON], body.to_string().as_bytes()) {
                Ok(reply) if reply.status == 200 => {
                    assert_eq!(reply.verdict(), "success", "{reply:?}");
                    *known = Known { acknowledged: state, in_doubt: None };
                    done.fetch_add(1, Ordering::Relaxed);
                }
                Ok(refused) => panic!("{refused:?}"),
                Err(_) => break,
            }
        }
    }

    /// Compares with what the node has; what it has is acknowledged from now on.
    fn verify(&mut self, client: &mut Client) {
        for (key, known) in &mut self.keys {
            let found = client.get(key).value();
            let fine =
                found == known.acknowledged || known.in_doubt.as_ref().is_some_and(|s| *s == found);
            assert!(
                fine,
                "{key}: acknowledged {:?}, in doubt {:?}, found {found:?}",
                known.acknowledged, known.in_doubt
            );
            *known = Known { acknowledged: found, in_doubt: None };
        }
    }
}

/// Has the log compacted again and again until the node is gone.
fn compact_until_killed(addr: SocketAddr, dead: &AtomicBool) {
    let mut client = Client::new(addr);
    while !dead.load(Ordering::Relaxed) {
        match client.try_send("POST", "/admin/compact", &[], b"") {
            Ok(reply) => drop(reply.succeeded()),
            Err(_) => break,
        }
    }
}

#[test]
fn twenty_kills_under_load_lose_no_acknowledged_write() {
    let _alone = Turn::alone();
    let seed: u64 = from_env("LALLY_TEST_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let kills: u64 = from_env("LALLY_TEST_KILLS").unwrap_or(7);
    eprintln!("LALLY_TEST_SEED={seed}");
    let started = Instant::now();
    let mut moment = seed;
    for policy in ["always", "everysec", "never"] {
        let mut node = Setup::new().args(["--fsync", policy]).start_ready();
        let mut ledgers: Vec<Ledger> = (0..WRITERS).map(|_| Ledger::default()).collect();
        let mut acknowledged = 0;
        for _ in 0..kills {
            moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pause = Duration::from_micros((moment >> 33) % 300_000);
            let (done, dead) = (AtomicUsize::new(0), AtomicBool::new(false));
            let addr = node.http();
            thread::scope(|scope| {
                for (writer, ledger) in ledgers.iter_mut().enumerate() {
                    let (done, dead) = (&done, &dead);
                    scope.spawn(move || ledger.write_until_killed(writer, addr, done, dead));
                }
                // Every other time: without, more is written.
                if moment.is_multiple_of(2) {
                    scope.spawn(|| compact_until_killed(addr, &dead));
                }
                // Not a wait for a fact: the moment is what is random here.
                thread::sleep(pause);
                node.kill9();
                dead.store(true, Ordering::Relaxed);
            });
            acknowledged += done.into_inner();
            node.restart();
            node.wait_ready();
            let mut client = node.client();
            for ledger in &mut ledgers {
                ledger.verify(&mut client);
            }
        }
        assert!(acknowledged > 20, "{policy}: the load was none: {acknowledged}");
    }
    if kills <= 7 {
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    }
}

#[test]
fn a_killed_node_is_started_and_killed_again_before_it_is_ready() {
    let mut node = Setup::new().start_ready();
    for i in 0..500 {
        node.client().add(&format!("k{i}"), "v").succeeded();
    }
    for _ in 0..5 {
        node.kill9();
        node.restart();
    }
    node.wait_ready();
    assert_eq!(node.holdings().1, 500);
}
