//! `max_memory`: what makes the data grow is refused, everything else works, and what is freed can be
//! used again.

use super::client::Client;
use super::node::Setup;

/// Some bytes of a line of `/metrics`.
fn metric(client: &mut Client, name: &str) -> Option<u64> {
    let text = client.ask("GET", "/metrics").body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    Some(line.parse().unwrap())
}

#[test]
fn a_full_memory_refuses_growth_and_serves_everything_else() {
    const LIMIT: u64 = 1 << 20;
    let mut node = Setup::new().args(["--max-memory", "1MiB"]).start_ready();
    let mut client = node.client();
    let value = "x".repeat(20_000);
    let written = (0..1_000)
        .find(|i| {
            let reply = client.add(&format!("k{i}"), &value);
            if reply.status == 200 {
                return false;
            }
            reply.failed(507, "memory_full");
            assert!(reply.text("message").contains("1048576 bytes (max_memory)"), "{reply:?}");
            true
        })
        .unwrap();
    assert_eq!(written, LIMIT / (20_000 + 160));
    assert_eq!(metric(&mut client, "lally_memory_limit_bytes"), Some(LIMIT));
    let used = metric(&mut client, "lally_memory_bytes").unwrap();
    assert!(used <= LIMIT && used + 20_160 > LIMIT, "{used}");
    for refused in ["one more", "k0"] {
        client.add(refused, &"x".repeat(50_000)).failed(507, "memory_full");
    }
    // Nothing was done, and what makes nothing grow is.
    assert_eq!(client.get("one more").value(), None);
    assert_eq!(client.get("k0").value().as_ref(), Some(&value));
    client.add("k0", &"y".repeat(20_000)).succeeded();
    client.add("k0", "short").succeeded();
    client.add("in its place", &value[..19_000]).succeeded();
    client.add("one more", &value).failed(507, "memory_full");
    assert_eq!(client.remove("k1").succeeded().value().as_ref(), Some(&value));
    client.add("one more", &value[..19_000]).succeeded();
    // The log brings it all back, and the limit holds on.
    node.kill9();
    node.restart();
    node.wait_ready();
    let mut client = node.client();
    assert_eq!(client.get("k2").value().as_ref(), Some(&value));
    client.add("two more", &value).failed(507, "memory_full");
}

#[test]
fn without_max_memory_there_is_no_limit() {
    let node = Setup::new().start_ready();
    let mut client = node.client();
    client.add("k", &"x".repeat(1 << 20)).succeeded();
    client.add("l", &"x".repeat(1 << 20)).succeeded();
    assert!(metric(&mut client, "lally_memory_bytes").unwrap() > 2 << 20);
    assert_eq!(metric(&mut client, "lally_memory_limit_bytes"), None);
}
