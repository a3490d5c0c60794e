//! A node joins that has much to fetch, and the member that it fetches it from is killed in the middle.
//!
//! 20 MB by default; `make join` takes 200 MB.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::node::{Node, Setup};
use super::ring::{self, wait_equal, wait_whole};
use super::turn::Turn;
use super::wait::{eventually, is};

const MIB: usize = 1 << 20;

/// Requests sent before the first answer is read.
const AHEAD: usize = 100;

/// Large values; for each, a hundred small ones.
fn megabytes() -> usize {
    std::env::var("LALLY_TEST_JOIN_MB").map_or(20, |megabytes| megabytes.parse().unwrap())
}

/// Every value is of its key alone.
fn large(i: usize) -> String {
    let pattern = format!("{i}-");
    let mut value = pattern.repeat(MIB / pattern.len());
    value.push_str(&"x".repeat(MIB - value.len()));
    value
}

fn load(node: &Node, megabytes: usize) {
    let mut client = node.client();
    for i in 0..megabytes {
        client.add_to(&format!("large-{i}"), &large(i), 2).succeeded();
        let small: Vec<_> = (i * 100..(i + 1) * 100)
            .map(|i| json!({"key": format!("small-{i}"), "value": i.to_string(), "quorum": 2}))
            .collect();
        for batch in small.chunks(AHEAD) {
            for reply in client.pipeline("/add", batch) {
                reply.succeeded();
            }
        }
    }
}

#[test]
fn a_large_join_survives_the_death_of_the_member_that_it_fetches_from() {
    let _alone = Turn::alone();
    let megabytes = megabytes();
    let total = megabytes as u64 * 101;
    let mut members = ring::start(2, &[]);
    let began = Instant::now();
    load(&members[0], megabytes);
    wait_equal(&members);
    eprintln!("{:6.1} s  {megabytes} MB written", began.elapsed().as_secs_f32());
    // The first one that a newcomer asks is the one with the smallest id.
    members.sort_by_key(|node| node.cluster()["node"]["id"].as_str().map(str::to_owned));
    let survivor = members.pop().unwrap();
    let mut donor = members.pop().unwrap();

    let began = Instant::now();
    let joined = Setup::new().seed(donor.grpc()).start();
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = survivor.client();
            while !stop.load(Ordering::Relaxed) {
                let i = written.load(Ordering::Relaxed);
                client.add(&format!("meanwhile-{i}"), "v").succeeded();
                written.store(i + 1, Ordering::Relaxed);
            }
        });
        eventually("it has some of the data", Duration::from_secs(60), || {
            let keys = joined.holdings().1;
            is(keys > total / 20, keys)
        });
        donor.kill9();
        eprintln!("{:6.1} s  donor killed", began.elapsed().as_secs_f32());
        joined.wait_for_log(&["comparison broken off, trying again"]);
        assert!(joined.readiness().is_err(), "the donor died too late");
        eventually("it has joined", Duration::from_secs(60), || joined.readiness());
        stop.store(true, Ordering::Relaxed);
    });
    eprintln!("{:6.1} s  joined", began.elapsed().as_secs_f32());
    let written = written.load(Ordering::Relaxed);
    assert!(joined.holdings().1 >= total, "{:?}", joined.holdings());
    wait_equal([&survivor, &joined]);
    let mut client = joined.client();
    for i in 0..megabytes {
        let value = client.get_from(&format!("large-{i}"), 1).value();
        assert!(value.is_some_and(|value| value == large(i)), "large-{i}");
    }
    for key in [format!("small-{}", megabytes * 100 - 1), format!("meanwhile-{}", written - 1)] {
        assert!(client.get_from(&key, 1).value().is_some(), "{key}");
    }
    donor.restart_as(Setup::without_seeds);
    wait_whole([&survivor, &joined, &donor]);
    wait_equal([&survivor, &joined, &donor]);
    eprintln!("{:6.1} s  all equal", began.elapsed().as_secs_f32());
}
