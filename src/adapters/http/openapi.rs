//! The description of this API in the words of `OpenAPI` 3.1, as `GET /openapi.json` gives it out.
//!
//! It is built from the lists that the code itself goes by: codes and their statuses, states, limits.
//! Answers are written by hand (see `render`), so there are no types from which a schema could be
//! derived; tests compare each schema with what is really answered and taken, and the paths with the
//! routes. A node at its limits may answer any call with what stands under `default`.

use std::sync::LazyLock;

use axum::http::StatusCode;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::domain::MAX_KEY_BYTES;
use crate::ports::LogLevel;

use super::download::BACKUP_PATH;
use super::errors::Code;
use super::exporter::{self, STATES};
use super::fields::MAX_TIMEOUT_MS;
use super::render::state_name;

/// Where the description is.
pub(super) const OPENAPI_PATH: &str = "/openapi.json";

/// The description, as text.
pub(super) fn document() -> Bytes {
    static DOCUMENT: LazyLock<Bytes> =
        LazyLock::new(|| serde_json::to_vec(&described()).unwrap_or_default().into());
    DOCUMENT.clone()
}

fn described() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Lally",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "A distributed in-memory key-value database",
            "description": "JSON in, JSON out. What the words mean, by example: docs/api.md.",
            "license": { "name": "MIT", "identifier": "MIT" },
        },
        "paths": paths(),
        // A node without tokens takes requests without one.
        "security": [{}, { "token": [] }],
        "components": {
            "schemas": schemas(),
            "securitySchemes": { "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "A token of the node; docs/security.md says what which role may.",
            } },
            "headers": {
                "RequestId": {
                    "description": "The x-request-id of the request, or one that was made up.",
                    "schema": { "type": "string", "minLength": 1, "maxLength": 128 },
                },
                "RetryAfter": {
                    "description": "Seconds after which a retry may help; with 503 only.",
                    "schema": { "type": "integer", "minimum": 0 },
                },
            },
            "parameters": { "RequestId": {
                "name": "x-request-id",
                "in": "header",
                "required": false,
                "description":
                    "Comes back with the answer: 1 to 128 visible ASCII characters. Others are passed over.",
                "schema": { "type": "string" },
            } },
        },
    })
}

pub(super) fn paths() -> Value {
    use Code::{
        BadRequest, Conflict, DiskFull, DurabilityLag, Forbidden, LogFailed, MemoryFull, NotFound,
        NotReady, Overloaded, RequestTimeout, ShuttingDown, TooLarge, Unauthorized,
        UnsupportedMediaType, Vetoed,
    };
    // Where there are tokens; see docs/security.md.
    let token = [Unauthorized, Forbidden];
    let body = [
        Unauthorized,
        Forbidden,
        BadRequest,
        RequestTimeout,
        TooLarge,
        UnsupportedMediaType,
        Overloaded,
    ];
    let read = [&body[..], &[Vetoed, NotReady, ShuttingDown]].concat();
    let write = [&read[..], &[DurabilityLag, DiskFull, MemoryFull]].concat();
    let forget = [&body[..], &[NotFound, Conflict, NotReady, ShuttingDown]].concat();
    let nodes = [&token[..], &[Overloaded]].concat();
    let compact = [&token[..], &[Overloaded, NotReady, ShuttingDown, DiskFull, LogFailed]].concat();
    let backup = [&token[..], &[NotFound, LogFailed, Overloaded, NotReady, ShuttingDown]].concat();
    let log_level = [&body[..], &[NotFound]].concat();
    json!({
        "/get": { "post": taking("GetRequest", operation(
            "get", "Reads a key from as many replicas as the quorum says", &of("Answer"), &read)) },
        "/add": { "post": taking("AddRequest", operation(
            "add", "Writes a value", &of("Answer"), &write)) },
        "/remove": { "delete": taking("RemoveRequest", operation(
            "remove", "Removes a key; the answer has what was removed", &of("Answer"), &write)) },
        "/nodes": { "get": operation(
            "nodes", "The other live members", &of("Nodes"), &nodes) },
        "/healthz": { "get": operation(
            "health", "Whether the process lives", &of("Done"), &[]) },
        "/readyz": { "get": operation(
            "readiness", "Whether the node is ready, and why not", &of("Done"), &[NotReady]) },
        "/cluster": { "get": operation(
            "cluster", "The cluster as this node sees it", &of("Cluster"), &token) },
        "/cluster/forget": { "post": taking("ForgetRequest", operation(
            "forget", "Removes a member that is down and will never come back", &of("Done"), &forget)) },
        "/cluster/safe-to-stop": { "get": operation(
            "safeToStop", "Whether this node can be stopped now", &of("StopCheck"), &token) },
        "/admin/compact": { "post": operation(
            "compact", "Makes the log as short as what it says", &of("Compacted"), &compact) },
        "/admin/log-level": { "put": taking("LogLevelRequest", operation(
            "logLevel", "Changes the log level, until the next reload or restart", &of("Done"), &log_level)) },
        BACKUP_PATH: { "get": operation(
            "backup", "A backup of this node, as a file",
            &json!({ "application/octet-stream": { "schema": {} } }), &backup) },
        "/metrics": { "get": operation(
            "metrics", "Metrics for Prometheus; docs/metrics.md lists them",
            &json!({ exporter::CONTENT_TYPE: { "schema": { "type": "string" } } }), &token) },
        OPENAPI_PATH: { "get": operation(
            "openapi", "This description",
            &json!({ "application/json": { "schema": { "type": "object" } } }), &[]) },
    })
}

/// JSON of this schema.
fn of(schema: &str) -> Value {
    json!({ "application/json": { "schema": reference(schema) } })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn operation(id: &str, summary: &str, content: &Value, refusals: &[Code]) -> Value {
    let headers = json!({ "x-request-id": { "$ref": "#/components/headers/RequestId" } });
    let mut responses = Map::new();
    let done = json!({ "description": "Done.", "headers": headers, "content": content });
    responses.insert("200".into(), done);
    for code in Code::ALL {
        let status = code.status();
        if !refusals.contains(&code) || responses.contains_key(status.as_str()) {
            continue;
        }
        let same = refusals.iter().filter(|other| other.status() == status);
        let codes = same.map(|code| format!("`{}`", code.as_str())).collect::<Vec<_>>().join(", ");
        let mut headers = headers.clone();
        if let (StatusCode::SERVICE_UNAVAILABLE, Some(headers)) = (status, headers.as_object_mut())
        {
            let header = json!({ "$ref": "#/components/headers/RetryAfter" });
            headers.insert("retry-after".into(), header);
        }
        let description = format!("Nothing was done: {codes}.");
        responses.insert(
            status.as_str().into(),
            json!({ "description": description, "headers": headers, "content": of("Error") }),
        );
    }
    let other = "Nothing was done; `code` says why.";
    responses.insert("default".into(), json!({ "description": other, "content": of("Error") }));
    json!({
        "operationId": id,
        "summary": summary,
        "parameters": [{ "$ref": "#/components/parameters/RequestId" }],
        "responses": responses,
    })
}

fn taking(schema: &str, mut operation: Value) -> Value {
    if let Some(fields) = operation.as_object_mut() {
        fields.insert("requestBody".into(), json!({ "required": true, "content": of(schema) }));
    }
    operation
}

fn schemas() -> Value {
    let key = json!({
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_KEY_BYTES,
        "description": format!("1 to {MAX_KEY_BYTES} bytes of UTF-8."),
    });
    let quorum = json!({
        "description": "Instead of the configured quorum.",
        "oneOf": [
            { "type": "integer", "minimum": 1, "maximum": u32::MAX },
            { "type": "string", "enum": ["majority", "all"] },
        ],
    });
    let timeout = json!({
        "type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS,
        "description": "Instead of the configured timeout.",
    });
    let value =
        json!({ "type": "string", "description": "Up to max_value_bytes (1 MiB) of UTF-8." });
    let consistency = json!({ "type": "string", "enum": ["default", "confirmed"] });
    let level = json!({ "type": "string", "enum": LogLevel::ALL.map(LogLevel::as_str) });
    let node_id = json!({ "type": "string", "pattern": "^[0-9a-f]{16}$" });
    let forgotten = json!({ "type": "string", "pattern": "^[0-9a-fA-F]{16}$" });
    let time = json!({ "type": ["string", "null"], "format": "date-time" });
    let text = json!({ "type": "string" });
    let optional_text = json!({ "type": ["string", "null"] });
    let count = json!({ "type": "integer", "minimum": 0 });
    let optional_count = json!({ "type": ["integer", "null"], "minimum": 0 });
    let flag = json!({ "type": "boolean" });
    let success = json!({ "const": "success" });
    let state = json!({ "type": "string", "enum": STATES.map(state_name) });
    let codes = json!({ "type": "string", "enum": Code::ALL.map(Code::as_str) });
    let texts = json!({ "type": "array", "items": text });
    let written = json!({
        "type": ["string", "null"],
        "format": "date-time",
        "description": "The version of the value; null if the key does not exist.",
    });
    let verdict = json!({
        "type": "string", "enum": ["success", "partial"],
        "description": "partial: fewer nodes than required answered; a write may have happened, and will spread.",
    });
    json!({
        "GetRequest": request(&["key"], json!({
            "key": key, "quorum": quorum, "timeout_ms": timeout, "consistency": consistency })),
        "AddRequest": request(&["key", "value"], json!({
            "key": key, "value": value, "quorum": quorum, "timeout_ms": timeout })),
        "RemoveRequest": request(&["key"], json!({
            "key": key, "quorum": quorum, "timeout_ms": timeout })),
        "LogLevelRequest": request(&["level"], json!({ "level": level })),
        "ForgetRequest": request(&["id"], json!({ "id": forgotten })),
        "Answer": answer(json!({
            "status": verdict, "key": text, "value": optional_text, "timestamp": written,
            "quorum": answer(json!({ "required": count, "achieved": count })), "message": text })),
        "Error": answer(json!({ "status": { "const": "error" }, "code": codes, "message": text })),
        "Done": answer(json!({ "status": success, "message": text })),
        "Nodes": answer(json!({ "status": success, "nodes": texts })),
        "Cluster": answer(json!({
            "status": success,
            "cluster": text,
            "node": answer(json!({
                "id": node_id, "grpc_addr": text, "http_addr": text, "state": state, "version": text })),
            "members": { "type": "array", "items": reference("Member") },
            "keys": count, "tombstones": count, "digest": node_id, "horizon": time })),
        "Member": answer(json!({
            "id": node_id, "grpc_addr": text, "http_addr": text, "state": state,
            "hints": count, "in_sync": flag,
            "clock_offset_ms": { "type": ["integer", "null"] },
            "last_heard_ms": optional_count, "lag_ms": optional_count, "version": optional_text })),
        "StopCheck": answer(json!({ "status": success, "safe": flag, "reasons": texts })),
        "Compacted": answer(json!({
            "status": success, "records": count, "bytes_before": count, "bytes_after": count,
            "message": text })),
    })
}

/// A body that is sent: these fields and no others.
#[expect(clippy::needless_pass_by_value, reason = "it becomes a part of the schema")]
fn request(required: &[&str], properties: Value) -> Value {
    json!({
        "type": "object", "properties": properties, "required": required,
        "additionalProperties": false,
    })
}

/// One that is answered: all of these, and later releases may have more.
#[expect(clippy::needless_pass_by_value, reason = "it becomes a part of the schema")]
fn answer(properties: Value) -> Value {
    let required: Vec<_> = properties.as_object().into_iter().flat_map(Map::keys).collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::http::fields;
    use std::collections::BTreeSet;

    /// Every path of the router's source, with the method that is taken there.
    fn routes() -> BTreeSet<(String, String)> {
        let source = include_str!("routes.rs");
        let calls = source.split(".route(").skip(1);
        let read = calls.map(|call| {
            let (path, handler) = call.split_once(',').unwrap();
            let path = match path {
                "BACKUP_PATH" => BACKUP_PATH,
                "OPENAPI_PATH" => OPENAPI_PATH,
                text => text.trim_matches('"'),
            };
            let method =
                handler.trim().strip_prefix("routing::").unwrap().split('(').next().unwrap();
            (path.to_owned(), method.to_owned())
        });
        read.collect()
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let paths = paths();
        let described = paths.as_object().unwrap().iter().flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone()))
        });
        assert_eq!(described.collect::<BTreeSet<_>>(), routes());
    }

    /// To update it: `LALLY_TEST_OPENAPI=1 cargo test --lib openapi`, and look at the difference.
    #[test]
    fn the_description_is_the_one_that_is_checked_in() {
        let mut text = serde_json::to_string_pretty(&described()).unwrap();
        text.push('\n');
        if std::env::var_os("LALLY_TEST_OPENAPI").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
            std::fs::write(path, &text).unwrap();
            return;
        }
        let kept: Value = serde_json::from_str(include_str!("../../../docs/openapi.json")).unwrap();
        assert!(
            kept == described(),
            "docs/openapi.json is another one; if the change is meant: \
             LALLY_TEST_OPENAPI=1 cargo test --lib openapi"
        );
    }

    /// Something that a schema of a request allows.
    fn allowed(property: &str) -> Value {
        match property {
            "quorum" => json!("majority"),
            "timeout_ms" => json!(MAX_TIMEOUT_MS),
            "consistency" => json!("confirmed"),
            "id" => json!("00000000000000aF"),
            "level" => json!("warn"),
            _ => json!("text"),
        }
    }

    #[test]
    fn bodies_with_every_described_field_are_taken_and_those_with_one_more_or_less_are_not() {
        let takes = |name: &str, body: &Value| {
            let bytes = serde_json::to_vec(body).unwrap();
            match name {
                "GetRequest" => fields::parse_get(&bytes).map(drop),
                "AddRequest" => fields::parse_write(&bytes).map(drop),
                "RemoveRequest" => fields::parse_key(&bytes).map(drop),
                "LogLevelRequest" => fields::parse_level(&bytes).map(drop),
                _ => fields::parse_id(&bytes).map(drop),
            }
        };
        let schemas = schemas();
        let schemas = schemas.as_object().unwrap();
        let requests: Vec<_> =
            schemas.iter().filter(|(name, _)| name.ends_with("Request")).collect();
        assert_eq!(requests.len(), 5);
        for (name, schema) in requests {
            let properties = schema["properties"].as_object().unwrap();
            let whole: Map<_, _> =
                properties.keys().map(|key| (key.clone(), allowed(key))).collect();
            assert_eq!(takes(name, &whole.clone().into()), Ok(()), "{name}");
            for field in properties.keys() {
                let mut less = whole.clone();
                less.remove(field);
                let required = schema["required"].as_array().unwrap().contains(&json!(field));
                assert_eq!(takes(name, &less.into()).is_err(), required, "{name} without {field}");
            }
            let mut more = whole;
            more.insert("more".into(), json!(1));
            assert!(takes(name, &more.into()).is_err(), "{name}");
        }
    }
}
