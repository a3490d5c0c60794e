//! Start, stop, and what a node says and leaves behind.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::client::{JSON, open};
use super::node::{Setup, contents, file_with, free_port};
use super::turn::Turn;
use super::wait::{PATIENCE, eventually, is};

const GRACE: Duration = Duration::from_secs(10);

#[test]
fn the_first_lines_of_the_log_say_each_once_what_runs_where() {
    let mut node = Setup::new().start_ready();
    for i in 0..7 {
        node.client().add(&format!("k{i}"), "v").succeeded();
    }
    node.kill9();
    node.restart();
    node.wait_ready();
    node.wait_for_log(&[" INFO cluster state"]);
    let log = node.log();
    let expected = [
        ("starting", concat!("version=", env!("CARGO_PKG_VERSION")).to_owned()),
        ("data directory", "path=".to_owned()),
        ("log replayed", "records=".to_owned()),
        ("HTTP listening", format!("addr={}", node.http())),
        ("gRPC listening", format!("addr={}", node.grpc())),
        ("cluster state", String::new()),
    ];
    let mut last = 0;
    for (message, field) in expected {
        let lines: Vec<_> = log
            .lines()
            .enumerate()
            .filter(|(_, line)| {
                line.split_once(" INFO ").is_some_and(|(_, rest)| rest.trim().starts_with(message))
            })
            .collect();
        let [(at, line)] = lines[..] else {
            panic!("{message:?} is there {}x: {log}", lines.len())
        };
        assert!(line.contains(&field), "{line}");
        assert!(at >= last, "{message:?} comes too early: {log}");
        last = at;
    }
    let records: u64 = log
        .lines()
        .find_map(|line| line.split_once("records=")?.1.split_whitespace().next()?.parse().ok())
        .unwrap();
    assert!(records >= 7, "{log}");
    assert!(node.setup().data_dir().exists());
}

#[test]
fn a_second_process_on_the_data_directory_is_refused() {
    let node = Setup::new().start_ready();
    node.client().add("k", "v").succeeded();
    for args in [&[][..], &["--fresh"]] {
        node.setup().clone().args(args).run().refused(1, &["error", "lally-data"]);
    }
    node.client().add("k2", "v").succeeded();
    assert_eq!(node.client().get("k").value().as_deref(), Some("v"));
}

#[test]
fn a_port_that_is_taken_ends_it_with_1_and_changes_no_data() {
    let mut node = Setup::new().start_ready();
    for i in 0..20 {
        node.client().add(&format!("k{i}"), "needle-in-the-log").succeeded();
    }
    assert_eq!(node.terminate(), Some(0));
    let data_dir = node.setup().data_dir();
    let copy = node.setup().dir().join("copy-of-a-log");
    fs::copy(file_with(&data_dir, "needle-in-the-log").0, &copy).unwrap();
    let before = contents(&data_dir);
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    for args in [&[][..], &["--fresh"], &["--replay-log", "copy-of-a-log"]] {
        for setup in
            [node.setup().clone().http_port(Some(port)), node.setup().clone().grpc_port(Some(port))]
        {
            setup.args(args).run().refused(1, &["error", &port.to_string()]);
            assert!(contents(&data_dir) == before, "{args:?} changed the data directory");
        }
    }
    node.restart();
    node.wait_ready();
    assert_eq!(node.client().get("k7").value().as_deref(), Some("needle-in-the-log"));
}

#[test]
fn a_data_directory_that_cannot_be_made_ends_it_with_1() {
    let setup = Setup::new().args(["--data-dir", "a-file/data"]);
    fs::write(setup.dir().join("a-file"), "").unwrap();
    setup.run().refused(1, &["error", "a-file"]);
}

#[test]
fn the_files_of_the_data_directory_are_for_the_owner_alone() {
    let node = Setup::new().start_ready();
    node.client().add("k", "v").succeeded();
    let mode = fs::metadata(node.setup().data_dir()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "{mode:o}");
}

#[test]
fn both_signals_stop_an_idle_node_with_0_and_nothing_is_lost() {
    for signal in ["TERM", "INT"] {
        let mut node = Setup::new().start_ready();
        node.client().add("k", signal).succeeded();
        let asked = Instant::now();
        node.signal(signal);
        assert_eq!(node.wait_for_exit(), Some(0), "{signal}");
        assert!(asked.elapsed() < GRACE, "{signal}: {:?}", asked.elapsed());
        node.restart();
        node.wait_ready();
        assert_eq!(node.client().get("k").value().as_deref(), Some(signal));
    }
}

#[test]
fn a_node_that_still_looks_for_its_seed_stops_with_0() {
    let mut node = Setup::new().seed(format!("127.0.0.1:{}", free_port())).start();
    let asked = Instant::now();
    assert_eq!(node.terminate(), Some(0));
    assert!(asked.elapsed() < GRACE, "{:?}", asked.elapsed());
}

#[test]
fn a_node_that_still_reads_a_log_stops_with_0() {
    let setup = Setup::new().args(["--replay-log", "endless"]);
    // A pipe that nobody writes to: reading it does not end.
    let pipe = setup.dir().join("endless");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut node = setup.start_halfway();
    node.wait_for_log(&["starting"]);
    let asked = Instant::now();
    assert_eq!(node.terminate(), Some(0));
    assert!(asked.elapsed() < GRACE, "{:?}", asked.elapsed());
}

#[test]
fn open_idle_connections_do_not_keep_a_node_from_stopping() {
    let mut node = Setup::new().start_ready();
    let mut kept_alive: Vec<_> = (0..5).map(|_| node.client()).collect();
    for client in &mut kept_alive {
        client.add("k", "v").succeeded();
    }
    let _silent: Vec<_> = (0..5).map(|_| open(node.http()).unwrap()).collect();
    let _silent_grpc: Vec<_> = (0..2).map(|_| open(node.grpc()).unwrap()).collect();
    let asked = Instant::now();
    assert_eq!(node.terminate(), Some(0));
    assert!(asked.elapsed() < GRACE, "{:?}", asked.elapsed());
}

#[test]
fn a_node_under_load_stops_with_0_and_keeps_every_acknowledged_write() {
    let _alone = Turn::alone();
    let mut node = Setup::new().start_ready();
    let addr = node.http();
    let stop = AtomicBool::new(false);
    let acknowledged = thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut client = super::client::Client::new(addr);
                    let mut acknowledged = Vec::new();
                    for i in 0_u32.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let key = format!("w{writer}-{i}");
                        let body = serde_json::json!({"key": key, "value": key}).to_string();
                        match client.try_send("POST", "/add", &[JSON], body.as_bytes()) {
                            Ok(reply) if reply.status == 200 => acknowledged.push(key),
                            Ok(reply) => {
                                reply.failed(503, "shutting_down");
                                assert!(reply.header("retry-after").is_some(), "{reply:?}");
                            }
                            Err(_) => break,
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        thread::sleep(Duration::from_millis(300));
        let asked = Instant::now();
        assert_eq!(node.terminate(), Some(0));
        assert!(asked.elapsed() < GRACE, "{:?}", asked.elapsed());
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(acknowledged.len() > 10, "the load was none: {}", acknowledged.len());
    node.restart();
    node.wait_ready();
    let mut client = node.client();
    for key in acknowledged {
        assert_eq!(client.get(&key).value(), Some(key));
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut node = Setup::new().start_ready();
    // A request that will not end: half a body.
    let mut half = open(node.http()).unwrap();
    let head = "POST /add HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
                content-length: 1000\r\n\r\n{\"key\":";
    std::io::Write::write_all(&mut half, head.as_bytes()).unwrap();
    let said = node.log().len();
    node.signal("TERM");
    eventually("the first signal was seen", PATIENCE, || {
        is(node.has_ended() || node.log().len() > said, "nothing happened")
    });
    if !node.has_ended() {
        node.signal("TERM");
    }
    let asked = Instant::now();
    node.wait_for_exit();
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
}

#[test]
fn a_log_that_is_damaged_in_the_middle_ends_it_with_65_and_the_place() {
    let mut node = Setup::new().start_ready();
    let mut client = node.client();
    for i in 0..400 {
        client.add(&format!("key-{i}"), &format!("value-{i:04}-end")).succeeded();
    }
    node.kill9();
    let (log, at) = file_with(&node.setup().data_dir(), "value-0200-end");
    let mut bytes = fs::read(&log).unwrap();
    bytes[at] ^= 0x20;
    fs::write(&log, &bytes).unwrap();
    let name = log.file_name().unwrap().to_str().unwrap();
    let refused = node.setup().run();
    refused.refused(65, &["error", name]);
    // The offset of the damaged record: a number near the damage.
    let near = refused
        .stderr
        .split(|c: char| !c.is_ascii_digit())
        .any(|number| number.parse().is_ok_and(|offset: usize| offset <= at && at - offset < 256));
    assert!(near, "no offset near {at}: {}", refused.stderr);
    assert!(fs::read(&log).unwrap() == bytes, "the damaged log was changed");
}

#[test]
fn a_torn_tail_is_cut_and_everything_before_it_is_served() {
    for torn in [1, 5, 17] {
        let mut node = Setup::new().start_ready();
        let mut client = node.client();
        for i in 0..100 {
            client.add(&format!("key-{i}"), &format!("value-{i:04}-end")).succeeded();
        }
        node.kill9();
        let (log, at) = file_with(&node.setup().data_dir(), "value-0099-end");
        let bytes = fs::read(&log).unwrap();
        fs::write(&log, &bytes[..at + "value-0099-end".len() - torn.min(14)]).unwrap();
        node.restart();
        node.wait_ready();
        let mut client = node.client();
        for i in 0..99 {
            let value = client.get(&format!("key-{i}")).value();
            assert_eq!(value, Some(format!("value-{i:04}-end")));
        }
        assert_eq!(client.get("key-99").value(), None);
        // And the log goes on behind the cut.
        client.add("after", "the cut").succeeded();
        node.kill9();
        node.restart();
        node.wait_ready();
        assert_eq!(node.client().get("after").value().as_deref(), Some("the cut"));
    }
}

#[test]
fn values_are_never_logged() {
    const SECRET: &str = "correct-horse-battery-staple";
    for format in ["text", "json"] {
        let args = ["--log-level", "trace", "--log-format", format];
        let first = Setup::new().args(args).start_ready();
        let mut second = Setup::new().args(args).seed(first.grpc()).start_ready();
        super::ring::wait_state(&first, &second, "alive");
        let mut client = first.client();
        client.add_to("k", SECRET, 2).succeeded();
        client.add_to("k2", SECRET, 5);
        assert_eq!(client.get_from("k", 2).value().as_deref(), Some(SECRET));
        client.call("DELETE", "/remove", &serde_json::json!({"key": "k", "quorum": 2})).succeeded();
        client.send("POST", "/add", &[JSON], format!("{{\"key\":\"{SECRET}").as_bytes());
        let wrong = serde_json::json!({"key": "k", "value": [SECRET], SECRET: 1});
        client.call("POST", "/add", &wrong).failed(400, "bad_request");
        let logs = |second: &super::node::Node| first.log() + &second.log();
        assert!(!logs(&second).contains(SECRET), "{}", logs(&second));
        second.kill9();
        first.client().add("k3", SECRET).succeeded();
        second.restart();
        super::ring::wait_value(&second, "k3", Some(SECRET));
        assert!(!logs(&second).contains(SECRET), "{}", logs(&second));
    }
}

#[test]
fn nothing_but_the_log_is_written_and_it_goes_to_stderr() {
    let node = Setup::new().start_ready();
    let first = node.log().lines().next().unwrap_or_default().to_owned();
    let (stamp, rest) = first.split_once(' ').unwrap();
    assert_eq!(stamp.len(), "2026-11-24T11:30:00.123456Z".len(), "{first}");
    assert!(stamp.ends_with('Z') && rest.trim().starts_with("INFO "), "{first}");
    assert!(!first.contains('\u{1b}'), "colours in a file: {first:?}");
}

#[test]
fn the_identity_of_a_node_outlives_its_process() {
    let mut node = Setup::new().start_ready();
    let id = node.cluster()["node"]["id"].clone();
    node.kill9();
    node.restart();
    assert_eq!(node.cluster()["node"]["id"], id);
    eventually("ready again", PATIENCE, || is(node.readiness().is_ok(), "not ready"));
}
