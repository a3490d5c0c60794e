//! The four calls and the operations: shapes with their order, codes, limits.

use serde_json::{Value, json};

use super::client::{Client, JSON};
use super::node::{Node, Setup, free_port};

const ANSWER: &str = "{status,key,value,timestamp,quorum{required,achieved},message}";

fn node() -> Node {
    Setup::new().start_ready()
}

#[track_caller]
fn is_rfc3339_with_nanoseconds(timestamp: &str) {
    let pattern = "dddd-dd-ddTdd:dd:dd.dddddddddZ";
    let fits = timestamp.len() == pattern.len()
        && timestamp.chars().zip(pattern.chars()).all(|(found, wanted)| match wanted {
            'd' => found.is_ascii_digit(),
            exact => found == exact,
        });
    assert!(fits, "not RFC 3339, UTC, nanoseconds: {timestamp:?}");
}

#[test]
fn every_answer_has_all_fields_in_the_promised_order() {
    let node = node();
    let mut client = node.client();
    let added = client.add("k", "v");
    let found = client.get("k");
    let removed = client.remove("k");
    let removed_again = client.remove("k");
    let absent = client.get("k");
    for reply in [&added, &found, &removed, &removed_again, &absent] {
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.shape(), ANSWER, "{reply:?}");
        assert_eq!(reply.verdict(), "success");
        assert_eq!(reply.text("key"), "k");
        assert_eq!(reply.quorum(), (1, 1));
        assert!(!reply.text("message").is_empty(), "{reply:?}");
        assert!(reply.header("content-type").unwrap().starts_with("application/json"), "{reply:?}");
    }
    for reply in [&added, &found, &removed] {
        assert_eq!(reply.json()["value"], "v");
        is_rfc3339_with_nanoseconds(&reply.timestamp());
    }
    for reply in [&removed_again, &absent] {
        assert_eq!(reply.json()["value"], Value::Null, "{reply:?}");
        assert_eq!(reply.json()["timestamp"], Value::Null, "{reply:?}");
    }
    assert_eq!(found.timestamp(), added.timestamp());
    assert!(removed.timestamp() > added.timestamp(), "it is the time of the removal");
}

#[test]
fn the_text_of_an_answer_is_the_one_of_the_interface() {
    let node = node();
    let reply = node.client().add("k", "v");
    let start = format!(
        r#"{{"status":"success","key":"k","value":"v","timestamp":"{}","quorum":{{"required":1,"achieved":1}},"message":""#,
        reply.timestamp()
    );
    assert!(reply.body.starts_with(&start), "{}", reply.body);
}

#[test]
fn an_absent_key_is_a_successful_answer_that_says_so() {
    let node = node();
    let mut client = node.client();
    let never = client.get("never");
    client.add("once", "x").succeeded();
    client.remove("once").succeeded();
    let removed = client.get("once");
    for reply in [never, removed] {
        assert_eq!(reply.value(), None);
        let message = reply.text("message").to_lowercase();
        assert!(message.contains("not exist"), "{message}");
    }
}

#[test]
fn a_removal_returns_what_it_removed_and_always_leaves_a_tombstone() {
    let node = node();
    let mut client = node.client();
    client.add("k", "v").succeeded();
    assert_eq!(node.holdings().1, 1);
    assert_eq!(client.remove("k").value().as_deref(), Some("v"));
    assert_eq!((node.holdings().1, node.holdings().2), (0, 1));
    assert_eq!(client.remove("never").value(), None);
    assert_eq!((node.holdings().1, node.holdings().2), (0, 2));
    client.add("k", "again").succeeded();
    assert_eq!(client.get("k").value().as_deref(), Some("again"));
    assert_eq!((node.holdings().1, node.holdings().2), (1, 1));
}

#[test]
fn successive_writes_show_larger_timestamps_also_after_a_restart() {
    let mut node = node();
    let mut last = String::new();
    for round in 0..3 {
        let mut client = node.client();
        for i in 0..50 {
            let reply = if i % 5 == 4 { client.remove("k") } else { client.add("k", "v") };
            let timestamp = reply.succeeded().timestamp();
            assert!(timestamp > last, "round {round}: {timestamp} after {last}");
            last = timestamp;
        }
        client.add("k", "v").succeeded();
        node.kill9();
        node.restart();
        node.wait_ready();
    }
}

#[test]
fn the_last_value_wins() {
    let node = node();
    let mut client = node.client();
    for value in ["one", "two", "three"] {
        client.add("k", value).succeeded();
        assert_eq!(client.get("k").value().as_deref(), Some(value));
    }
}

#[test]
fn a_request_may_name_its_own_quorum_and_timeout() {
    let node = node();
    let mut client = node.client();
    for (quorum, verdict, required) in [
        (json!(1), "success", 1),
        (json!("majority"), "success", 1),
        (json!("all"), "success", 1),
        (json!(2), "partial", 2),
        (json!(1000), "partial", 1000),
    ] {
        for (method, path, body) in [
            (
                "POST",
                "/add",
                json!({"key": "k", "value": "v", "quorum": quorum, "timeout_ms": 800}),
            ),
            ("POST", "/get", json!({"key": "k", "quorum": quorum, "timeout_ms": 800})),
            ("DELETE", "/remove", json!({"key": "k", "quorum": quorum, "timeout_ms": 800})),
        ] {
            let reply = client.call(method, path, &body);
            assert_eq!((reply.status, reply.shape().as_str()), (200, ANSWER), "{body}: {reply:?}");
            assert_eq!(reply.verdict(), verdict, "{body}");
            assert_eq!(reply.quorum(), (required, 1), "{body}");
        }
    }
}

#[test]
fn a_partial_write_is_stored() {
    let node = node();
    let reply = node.client().add_to("k", "v", 2);
    assert_eq!(reply.verdict(), "partial");
    assert_eq!(node.client().get("k").value().as_deref(), Some("v"));
}

#[test]
fn bodies_that_are_not_what_they_should_be_are_bad_requests() {
    let node = node();
    let mut client = node.client();
    let long_key = "x".repeat(1025);
    let deep = "[".repeat(20_000);
    let for_all = [
        "",
        " ",
        "nonsense",
        "{",
        "[]",
        "[1]",
        "\"k\"",
        "null",
        "{}",
        r#"{"Key":"k"}"#,
        r#"{"key":null}"#,
        r#"{"key":1}"#,
        r#"{"key":["k"]}"#,
        r#"{"key":""}"#,
        r#"{"key":"k"} trailing"#,
        r#"{"key":"\ud800"}"#,
        "{'key':'k'}",
        &deep,
    ];
    for body in for_all {
        client.send("POST", "/get", &[JSON], body.as_bytes()).failed(400, "bad_request");
        client.send("POST", "/add", &[JSON], body.as_bytes()).failed(400, "bad_request");
        client.send("DELETE", "/remove", &[JSON], body.as_bytes()).failed(400, "bad_request");
    }
    for body in [
        json!({"key": "k", "value": "v"}),
        json!({"key": "k", "extra": 1}),
        json!({"key": long_key}),
        json!({"key": "k", "quorum": 0}),
        json!({"key": "k", "quorum": -1}),
        json!({"key": "k", "quorum": 1.5}),
        json!({"key": "k", "quorum": "most"}),
        json!({"key": "k", "quorum": true}),
        json!({"key": "k", "quorum": [1]}),
        json!({"key": "k", "timeout_ms": -1}),
        json!({"key": "k", "timeout_ms": 1.5}),
        json!({"key": "k", "timeout_ms": "100"}),
    ] {
        client.call("POST", "/get", &body).failed(400, "bad_request");
        client.call("DELETE", "/remove", &body).failed(400, "bad_request");
    }
    for body in [
        json!({"key": "k"}),
        json!({"value": "v"}),
        json!({"key": "k", "value": null}),
        json!({"key": "k", "value": 1}),
        json!({"key": "k", "value": {"a": 1}}),
        json!({"key": "", "value": "v"}),
        json!({"key": long_key, "value": "v"}),
        json!({"key": "k", "value": "v", "extra": 1}),
        json!({"key": "k", "value": "v", "quorum": 0}),
        json!({"key": "k", "value": "v", "quorum": "0"}),
    ] {
        client.call("POST", "/add", &body).failed(400, "bad_request");
    }
    client.send("POST", "/get", &[JSON], b"{\"key\":\"\xff\xfe\"}").failed(400, "bad_request");
    assert_eq!((node.holdings().1, node.holdings().2), (0, 0), "a refused request did something");
}

#[test]
fn keys_are_from_1_to_1024_bytes() {
    let node = node();
    let mut client = node.client();
    for key in ["k".to_owned(), "x".repeat(1024), "é".repeat(512)] {
        client.add(&key, &key).succeeded();
        assert_eq!(client.get(&key).value(), Some(key));
    }
    // Bytes count, not characters.
    for key in [String::new(), "x".repeat(1025), "é".repeat(512) + "x"] {
        client.add(&key, "v").failed(400, "bad_request");
        client.get(&key).failed(400, "bad_request");
        client.remove(&key).failed(400, "bad_request");
    }
}

#[test]
fn values_are_up_to_1_mib() {
    let node = node();
    let mut client = node.client();
    let largest = "v".repeat(1 << 20);
    client.add("k", &largest).succeeded();
    assert!(client.get("k").value() == Some(largest.clone()), "1 MiB came back changed");
    client.add("k", &(largest.clone() + "v")).failed(413, "too_large");
    assert!(client.get("k").value() == Some(largest), "a refused value was stored");
    client.add("k", "").succeeded();
    assert_eq!(client.get("k").value().as_deref(), Some(""));
}

#[test]
fn bodies_over_2_mib_are_too_large() {
    let node = node();
    let body = json!({"key": "k", "value": "v".repeat(2 << 20)}).to_string();
    let mut client = node.client();
    client
        .send("POST", "/add", &[JSON, ("expect", "100-continue")], body.as_bytes())
        .failed(413, "too_large");
    let mut client = node.client();
    client.send("POST", "/add", &[JSON], body.as_bytes()).failed(413, "too_large");
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let mut client = node.client();
    client
        .send("POST", "/add", &[JSON, ("transfer-encoding", "chunked")], chunked.as_bytes())
        .failed(413, "too_large");
    node.client().add("k", "v").succeeded();
}

#[test]
fn a_chunked_body_is_fine() {
    let node = node();
    let chunks = ["{\"key\":", "\"k\",", "\"value\":\"v\"}"];
    let mut wire = chunks.map(|c| format!("{:x}\r\n{c}\r\n", c.len())).concat();
    wire.push_str("0\r\n\r\n");
    let headers = [JSON, ("transfer-encoding", "chunked")];
    node.client().send("POST", "/add", &headers, wire.as_bytes()).succeeded();
    assert_eq!(node.client().get("k").value().as_deref(), Some("v"));
}

#[test]
fn only_json_content_types_are_taken_and_none_is_fine() {
    let node = node();
    let mut client = node.client();
    let body = br#"{"key":"k","value":"v"}"#;
    for fine in ["application/json", "application/json; charset=utf-8", "Application/JSON"] {
        client.send("POST", "/add", &[("content-type", fine)], body).succeeded();
    }
    client.send("POST", "/add", &[], body).succeeded();
    for other in ["text/plain", "application/xml", "application/x-www-form-urlencoded"] {
        client
            .send("POST", "/add", &[("content-type", other)], body)
            .failed(415, "unsupported_media_type");
    }
}

#[test]
fn unknown_paths_and_wrong_methods_are_told_apart() {
    let node = node();
    let mut client = node.client();
    for path in ["/", "/nope", "/add/", "/get/k", "/nodes/1", "/ADD"] {
        client.ask("GET", path).failed(404, "not_found");
        client.call("POST", path, &json!({"key": "k"})).failed(404, "not_found");
    }
    for (path, allowed) in [
        ("/get", "POST"),
        ("/add", "POST"),
        ("/remove", "DELETE"),
        ("/nodes", "GET"),
        ("/healthz", "GET"),
        ("/readyz", "GET"),
        ("/metrics", "GET"),
        ("/cluster", "GET"),
    ] {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            if method == allowed {
                continue;
            }
            let reply = client.ask(method, path);
            reply.failed(405, "method_not_allowed");
            let allow = reply.header("allow").unwrap_or_default();
            assert!(allow.contains(allowed), "{method} {path}: allow: {allow:?}");
        }
    }
}

#[test]
fn head_is_answered_without_a_body() {
    let node = node();
    let mut client = node.client();
    for (path, status) in [("/healthz", 200), ("/nope", 404)] {
        let reply = client.ask("HEAD", path);
        assert_eq!((reply.status, reply.body.as_str()), (status, ""), "{path}");
    }
    // The connection is still in step.
    client.add("k", "v").succeeded();
    assert_eq!(client.connections, 1);
}

#[test]
fn a_node_alone_lists_no_other_nodes() {
    let node = node();
    let reply = node.client().ask("GET", "/nodes");
    assert_eq!((reply.status, reply.body.as_str()), (200, r#"{"status":"success","nodes":[]}"#));
}

#[test]
fn the_cluster_page_has_the_promised_shape() {
    let node = node();
    let mut client = node.client();
    client.add("k", "v").succeeded();
    client.remove("gone").succeeded();
    let reply = client.ask("GET", "/cluster");
    assert_eq!(
        reply.shape(),
        "{status,cluster,node{id,grpc_addr,http_addr,state,version},members[],keys,tombstones,digest,horizon}"
    );
    let cluster = reply.json();
    assert_eq!(cluster["status"], "success");
    assert_eq!(cluster["node"]["state"], "alive");
    assert_eq!((cluster["keys"].as_u64(), cluster["tombstones"].as_u64()), (Some(1), Some(1)));

    let other = Setup::new().seed(node.grpc()).start_ready();
    super::ring::wait_whole([&node, &other]);
    assert_eq!(
        client.ask("GET", "/cluster").shape(),
        "{status,cluster,node{id,grpc_addr,http_addr,state,version},\
         members[{id,grpc_addr,http_addr,state,hints,in_sync,clock_offset_ms,last_heard_ms,lag_ms,version}],keys,tombstones,digest,horizon}"
    );
}

/// Whether a value is as a schema says, with all of its fields and no others.
fn fits(schema: &Value, value: &Value, schemas: &Value) -> bool {
    if let Some(reference) = schema["$ref"].as_str() {
        return fits(&schemas[reference.rsplit('/').next().unwrap()], value, schemas);
    }
    if !schema["const"].is_null() {
        return schema["const"] == *value;
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let types = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    let listed = |choices: &Value| choices.as_array().is_none_or(|all| all.contains(value));
    let inner = match value {
        Value::Array(items) => items.iter().all(|item| fits(&schema["items"], item, schemas)),
        Value::Object(fields) => {
            let described = schema["properties"].as_object().unwrap();
            described.len() == fields.len()
                && described.iter().all(|(name, schema)| {
                    fields.get(name).is_some_and(|field| fits(schema, field, schemas))
                })
        }
        _ => true,
    };
    types.contains(&kind.into()) && listed(&schema["enum"]) && inner
}

#[test]
fn answers_have_the_fields_that_the_description_says_and_no_others() {
    let first = node();
    let second = Setup::new().seed(first.grpc()).start_ready();
    super::ring::wait_whole([&first, &second]);
    let mut client = first.client();
    let described = client.ask("GET", "/openapi.json").json();
    assert_eq!(
        described,
        serde_json::from_str::<Value>(include_str!("../../../docs/openapi.json")).unwrap()
    );
    let schemas = &described["components"]["schemas"];
    let (key, nobody) = (json!({"key": "k"}), json!({"id": "0123456789abcdef"}));
    let written = json!({"key": "k", "value": "v"});
    let mut replies = vec![
        ("Answer", client.call("POST", "/add", &written)),
        ("Answer", client.call("POST", "/get", &key)),
        ("Answer", client.call("DELETE", "/remove", &key)),
        ("Answer", client.call("POST", "/get", &key)),
        ("Error", client.call("POST", "/get", &written)),
        ("Error", client.call("POST", "/cluster/forget", &nobody)),
        ("Compacted", client.ask("POST", "/admin/compact")),
        ("Error", client.ask("GET", "/nothing")),
        ("Error", client.ask("GET", "/add")),
    ];
    for (path, methods) in described["paths"].as_object().unwrap() {
        let schema = &methods["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        if let Some(name) = schema["$ref"].as_str() {
            replies.push((name.rsplit('/').next().unwrap(), client.ask("GET", path)));
        }
    }
    assert_eq!(replies.len(), 14);
    for (name, reply) in replies {
        assert!(fits(&schemas[name], &reply.json(), schemas), "{name}: {}", reply.body);
    }
    let members = client.ask("GET", "/cluster").json()["members"].clone();
    assert_eq!(members[0]["version"], env!("CARGO_PKG_VERSION"));
    let wrong = json!({"status": "success", "nodes": [1]});
    assert!(!fits(&schemas["Nodes"], &wrong, schemas), "the comparison compares nothing");
}

#[test]
fn a_node_that_never_joined_is_alive_but_not_ready() {
    let node = Setup::new().args([format!("--seed-node=127.0.0.1:{}", free_port())]).start();
    let mut client = node.client();
    assert_eq!(client.ask("GET", "/healthz").status, 200);
    let ready = client.ask("GET", "/readyz");
    assert_eq!(ready.status, 503);
    assert!(!ready.body.trim().is_empty(), "no reason");
    for reply in [client.add("k", "v"), client.get("k"), client.remove("k")] {
        reply.failed(503, "not_ready");
        let after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!(after >= 1, "{after}");
    }
    // What is wrong with a request does not depend on the node's state.
    client.call("POST", "/get", &json!({})).failed(400, "bad_request");
}

#[test]
fn a_healthy_node_says_so() {
    let node = node();
    assert_eq!(node.client().ask("GET", "/healthz").status, 200);
    assert_eq!(node.client().ask("GET", "/readyz").status, 200);
}

#[test]
fn the_metrics_count_what_happened() {
    let node = node();
    let mut client = node.client();
    client.add("k", "v").succeeded();
    client.add_to("k", "v", 2);
    client.get("k").succeeded();
    client.remove("gone").succeeded();
    client.call("POST", "/get", &json!({})).failed(400, "bad_request");
    let reply = client.ask("GET", "/metrics");
    assert_eq!(reply.status, 200);
    let kind = reply.header("content-type").unwrap();
    assert!(kind.starts_with("text/plain") || kind.contains("openmetrics-text"), "{kind}");
    let has = |name: &str, words: &[&str]| {
        let found = reply
            .body
            .lines()
            .any(|line| line.starts_with(name) && words.iter().all(|word| line.contains(word)));
        assert!(found, "no {name} with {words:?}:\n{}", reply.body);
    };
    for (call, status) in [
        ("add", "success"),
        ("add", "partial"),
        ("get", "success"),
        ("remove", "success"),
        ("get", "error"),
    ] {
        has("lally_requests_total{", &[&format!("\"{call}\""), &format!("\"{status}\""), "} 1"]);
    }
    has("lally_", &["_bucket{", "le=\"+Inf\""]);
    has("lally_", &["members", "\"alive\""]);
    has("lally_keys", &[" 1"]);
    has("lally_tombstones", &[" 1"]);
    has("lally_log_bytes", &[]);
}

#[test]
fn one_connection_serves_many_requests_in_order() {
    let node = node();
    let mut client = node.client();
    for i in 0..20 {
        client.add(&format!("k{i}"), &i.to_string()).succeeded();
    }
    let bodies: Vec<_> = (0..20).map(|i| json!({"key": format!("k{i}")})).collect();
    let replies = client.pipeline("/get", &bodies);
    for (i, reply) in replies.iter().enumerate() {
        assert_eq!(reply.value(), Some(i.to_string()));
    }
    assert_eq!(client.connections, 1);
}

#[test]
fn two_clients_see_each_others_writes() {
    let node = node();
    let (mut one, mut two) = (node.client(), Client::new(node.http()));
    one.add("k", "1").succeeded();
    assert_eq!(two.get("k").value().as_deref(), Some("1"));
    two.remove("k").succeeded();
    assert_eq!(one.get("k").value(), None);
}
