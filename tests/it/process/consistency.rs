//! What reads may see: confirmed reads, and what last-writer-wins cannot give.

use serde_json::json;

use super::client::Client;
use super::node::{Node, Setup};
use super::ring::{self, wait_equal};
use super::turn::Turn;

const ANSWER: &str = "{status,key,value,timestamp,quorum{required,achieved},message}";

fn get_confirmed(client: &mut Client, key: &str) -> super::client::Reply {
    client.call("POST", "/get", &json!({"key": key, "consistency": "confirmed"}))
}

#[test]
fn a_read_says_how_consistent_it_has_to_be_and_nothing_else_does() {
    let node = Setup::new().start_ready();
    let mut client = node.client();
    client.add("k", "v").succeeded();
    for consistency in ["default", "confirmed"] {
        let body = json!({"key": "k", "consistency": consistency});
        let reply = client.call("POST", "/get", &body).succeeded();
        assert_eq!(reply.shape(), ANSWER);
        assert_eq!((reply.value().as_deref(), reply.quorum()), (Some("v"), (1, 1)));
    }
    for wrong in [json!("linearizable"), json!(""), json!(null), json!(true), json!(["confirmed"])]
    {
        let reply = client.call("POST", "/get", &json!({"key": "k", "consistency": wrong}));
        reply.failed(400, "bad_request");
        assert!(reply.text("message").contains(r#""default" or "confirmed""#), "{reply:?}");
    }
    let confirmed = json!({"key": "k", "value": "w", "consistency": "confirmed"});
    client.call("POST", "/add", &confirmed).failed(400, "bad_request");
    let confirmed = json!({"key": "k", "consistency": "confirmed"});
    client.call("DELETE", "/remove", &confirmed).failed(400, "bad_request");
    assert_eq!(client.get("k").value().as_deref(), Some("v"));
}

#[test]
fn what_a_confirmed_read_answers_a_majority_holds() {
    let nodes = ring::start(3, &[]);
    let mut clients: Vec<_> = nodes.iter().map(Node::client).collect();
    for i in 0..60 {
        // Answered by one node; the others may not have it yet.
        let written = (i % 6 != 5).then(|| format!("v{i}"));
        match &written {
            Some(value) => clients[i % 3].add("k", value).succeeded(),
            None => clients[i % 3].remove("k").succeeded(),
        };
        let reply = get_confirmed(&mut clients[i % 3], "k").succeeded();
        assert_eq!((reply.value(), reply.quorum().0), (written.clone(), 2), "write {i}");
        let own = clients.iter_mut().map(|client| client.get_from("k", 1).value());
        let holders = own.filter(|value| *value == written).count();
        assert!(holders >= 2, "write {i}: {holders} hold it");
        for client in &mut clients {
            assert_eq!(get_confirmed(client, "k").value(), written, "write {i}");
        }
    }
}

#[test]
fn without_a_majority_a_confirmed_read_is_partial_and_says_so() {
    let mut nodes = ring::start(3, &[]);
    nodes[0].client().add_to("k", "v", "all").succeeded();
    nodes[1].kill9();
    let mut client = nodes[0].client();
    assert_eq!(get_confirmed(&mut client, "k").succeeded().quorum(), (2, 2));
    nodes[2].kill9();
    let reply = get_confirmed(&mut client, "k");
    assert_eq!((reply.status, reply.verdict().as_str()), (200, "partial"));
    assert_eq!((reply.text("value").as_str(), reply.quorum()), ("v", (2, 1)));
    assert!(reply.text("message").contains("confirmed"), "{reply:?}");
}

const CLIENTS: usize = 6;
const COUNTERS: usize = 3;
const ROUNDS: usize = 20;

/// Reads a counter and writes it back one higher; the two are not one operation.
fn increment(client: &mut Client, counter: &str, consistency: &str) {
    let reply = client
        .call("POST", "/get", &json!({"key": counter, "consistency": consistency}))
        .succeeded();
    let count = reply.value().map_or(0, |count| count.parse::<usize>().unwrap());
    client.add(counter, &(count + 1).to_string()).succeeded();
}

fn total(nodes: &[Node], counters: &[String]) -> usize {
    wait_equal(nodes);
    let count = |counter: &String| -> usize {
        let value = nodes[0].client().get_from(counter, "all").value();
        value.map_or(0, |count| count.parse().unwrap())
    };
    counters.iter().map(count).sum()
}

/// The figure is quoted in docs/consistency.md:
/// `cargo test --test it -- --nocapture increments_by_reading_and_writing`.
#[test]
fn increments_by_reading_and_writing_are_lost_when_clients_are_concurrent() {
    let _alone = Turn::alone();
    for (quorum, consistency) in [("1", "default"), ("majority", "confirmed")] {
        let nodes = ring::start(3, &["--read-quorum", quorum, "--write-quorum", quorum]);
        let counters: Vec<_> = (0..COUNTERS).map(|i| format!("counter-{i}")).collect();
        std::thread::scope(|scope| {
            for i in 0..CLIENTS {
                let (nodes, counters) = (&nodes, &counters);
                scope.spawn(move || {
                    let mut client = nodes[i % nodes.len()].client();
                    for _ in 0..ROUNDS {
                        for counter in counters {
                            increment(&mut client, counter, consistency);
                        }
                    }
                });
            }
        });
        let (made, counted) = (CLIENTS * COUNTERS * ROUNDS, total(&nodes, &counters));
        let lost = made - counted.min(made);
        eprintln!(
            "quorums of {quorum}, {consistency} reads: {made} increments by {CLIENTS} clients, \
             {lost} lost ({} %)",
            lost * 100 / made
        );
        assert!((COUNTERS..=made).contains(&counted), "{counted} of {made}");
    }
}

#[test]
fn increments_one_after_another_are_all_counted_whichever_node_is_asked() {
    let nodes = ring::start(3, &["--write-quorum", "majority"]);
    let mut clients: Vec<_> = nodes.iter().map(Node::client).collect();
    for i in 0..60 {
        increment(&mut clients[i % 3], "counter", "confirmed");
    }
    assert_eq!(total(&nodes, &["counter".to_owned()]), 60);
}
