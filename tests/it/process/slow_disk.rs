//! A disk that takes six seconds to force data: with `everysec`, what is acknowledged is never more
//! than two seconds ahead of it; then writes are refused, and taken again when it has caught up. And one
//! that takes as long for a write: nobody waits for it but who writes. `strace` makes the disk slow; where it cannot, the test is skipped and says so.

use std::time::{Duration, Instant};

use super::durable_names::can_trace;
use super::node::{Setup, file_with};
use super::wait::{PATIENCE, eventually, is};

/// The value of a metric without labels.
fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[test]
fn a_disk_that_falls_behind_stops_acknowledgements_and_not_reads() {
    if !can_trace() {
        return;
    }
    let slow = "inject=fdatasync:delay_enter=6000000:when=1";
    // Detached (-D), so that signals reach the node.
    let wrapper = ["strace", "-D", "-f", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", slow];
    let mut node = Setup::new().under(wrapper).start_ready();
    let mut client = node.client();
    client.add("first", "1").succeeded();
    let first = Instant::now();
    let mut last = first;
    let refused = eventually("writes are refused", PATIENCE, || {
        let reply = node.client().add("later", "2");
        if reply.status != 200 {
            return Ok(reply);
        }
        last = Instant::now();
        Err(reply.verdict())
    });
    // What a power cut would take now.
    assert!(last - first < Duration::from_secs(2), "{:?}", last - first);
    refused.failed(503, "durability_lag");
    assert_eq!(refused.header("retry-after"), Some("1"));
    client.remove("first").failed(503, "durability_lag");
    assert_eq!(client.get("first").succeeded().value().as_deref(), Some("1"));
    let metrics = client.ask("GET", "/metrics").body;
    let lag = Duration::from_secs_f64(metric(&metrics, "lally_log_unforced_seconds"));
    assert!(lag > Duration::from_millis(1_900), "{lag:?}");

    eventually("writes are taken again", PATIENCE, || {
        let status = node.client().add("after", "3").status;
        is(status == 200, status)
    });
    let metrics = client.ask("GET", "/metrics").body;
    assert!(metric(&metrics, "lally_log_sync_duration_seconds_sum") >= 6.0, "{metrics}");
    node.wait_for_log(&["the disk is behind"]);
    node.wait_for_log(&["the disk has caught up"]);
    assert_eq!(node.terminate(), Some(0));
}

/// Also where a single thread serves.
#[test]
fn a_disk_that_hangs_in_a_write_holds_up_no_other_request() {
    if !can_trace() {
        return;
    }
    let setup = Setup::new().args(["--worker-threads", "1"]);
    let mut node = setup.clone().start_ready();
    node.client().add("there", "1").succeeded();
    assert_eq!(node.terminate(), Some(0));
    let (segment, _) = file_with(&setup.data_dir(), "there");
    let segment = segment.display().to_string();
    let slow = "inject=write,writev:delay_enter=6000000:when=20";
    let calls = "trace=write,writev";
    let wrapper =
        ["strace", "-D", "-f", "-o", "/dev/null", "-P", &segment, "-e", calls, "-e", slow];
    let mut node = setup.under(wrapper).start_ready();
    let mut writer = node.client();
    let writing = std::thread::spawn(move || {
        let took = (0..40).map(|n| {
            let began = Instant::now();
            writer.add(&format!("written {n}"), "2");
            began.elapsed()
        });
        took.max().unwrap()
    });
    let mut longest = Duration::ZERO;
    while !writing.is_finished() {
        let began = Instant::now();
        assert_eq!(node.client().get("there").succeeded().value().as_deref(), Some("1"));
        longest = longest.max(began.elapsed());
    }
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    let hung = writing.join().unwrap();
    assert!(hung > Duration::from_secs(5), "the disk did not hang: {hung:?}");
    assert_eq!(node.terminate(), Some(0));
}

/// The disk of the node that is asked is quick, that of the other one slow.
#[test]
fn a_replica_that_takes_long_says_so_with_who_asked_and_the_trace_of_the_request() {
    if !can_trace() {
        return;
    }
    let asked = Setup::new().start_ready();
    let slow = "inject=fdatasync,fsync:delay_enter=300000";
    let calls = "trace=fdatasync,fsync";
    let wrapper = ["strace", "-D", "-f", "-o", "/dev/null", "-e", calls, "-e", slow];
    let setup = Setup::new().args(["--fsync", "always"]).seed(asked.grpc());
    let mut replica = setup.under(wrapper).start_ready();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [("content-type", "application/json"), ("traceparent", &traceparent)];
    let body = br#"{"key":"slow-key","value":"v","quorum":"all","timeout_ms":10000}"#;
    asked.client().send("POST", "/add", &headers, body).succeeded();
    let trace_id = format!("trace_id=\"{trace}\"");
    asked.wait_for_log(&["slow request", &trace_id]);
    let id = asked.cluster()["node"]["id"].as_str().unwrap().to_owned();
    let peer = format!("peer=\"{id}\"");
    let line = replica.wait_for_log(&["slow call of a peer", &trace_id]);
    assert!(line.contains(&peer) && line.contains("call=\"write\""), "{line}");
    assert!(!replica.log().contains("slow-key"));
    assert_eq!(replica.terminate(), Some(0));
}
