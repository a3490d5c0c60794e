//! What a node says, taken apart. The shapes are those of `docs/api.md`; what is not needed here is
//! passed over, so that a newer node is understood as well.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::adapters::http::Answered;

use super::super::errors::RunError;
use super::shown::harmless;

/// The answer to `/get`, `/add` or `/remove`.
#[derive(Debug, Deserialize)]
pub(super) struct DataAnswer {
    pub(super) status: Verdict,
    pub(super) value: Option<String>,
    pub(super) timestamp: Option<String>,
    pub(super) quorum: Quorum,
    pub(super) message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Success,
    Partial,
}

#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Quorum {
    pub(super) required: u64,
    pub(super) achieved: u64,
}

/// The answer to `/nodes`.
#[derive(Debug, Deserialize)]
pub(super) struct NodesAnswer {
    pub(super) nodes: Vec<String>,
}

/// The answer to `/cluster`.
#[derive(Debug, Deserialize)]
pub(super) struct ClusterAnswer {
    pub(super) cluster: String,
    pub(super) node: Member,
    pub(super) members: Vec<OtherMember>,
    pub(super) keys: u64,
    pub(super) tombstones: u64,
    pub(super) digest: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Member {
    pub(super) id: String,
    pub(super) grpc_addr: String,
    pub(super) http_addr: String,
    pub(super) state: String,
    #[serde(default)]
    pub(super) version: Option<String>,
}

/// A member as the node that was asked sees it.
#[derive(Debug, Deserialize)]
pub(super) struct OtherMember {
    #[serde(flatten)]
    pub(super) member: Member,
    pub(super) hints: u64,
    pub(super) in_sync: bool,
    pub(super) clock_offset_ms: Option<i64>,
    // Of those that follow, nodes before them say nothing.
    #[serde(default)]
    pub(super) last_heard_ms: Option<u64>,
    #[serde(default)]
    pub(super) lag_ms: Option<u64>,
}

/// The answer to `/cluster/safe-to-stop`.
#[derive(Debug, Deserialize)]
pub(super) struct StopAnswer {
    pub(super) safe: bool,
    pub(super) reasons: Vec<String>,
}

/// A refusal, or the answer to `/readyz`.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    pub(super) code: Option<String>,
    pub(super) message: String,
}

/// What is in an answer that is no refusal.
pub(super) fn taken<T: DeserializeOwned>(answered: &Answered) -> Result<T, RunError> {
    if answered.status.is_success() {
        return serde_json::from_slice(&answered.body).map_err(|_| foreign(answered));
    }
    let Ok(refusal) = serde_json::from_slice::<Refusal>(&answered.body) else {
        return Err(foreign(answered));
    };
    let code = refusal.code.map(|code| format!("{code}: ")).unwrap_or_default();
    let said = format!("{code}{}", refusal.message);
    Err(RunError::Command(harmless(&said).into_owned()))
}

fn foreign(answered: &Answered) -> RunError {
    let status = answered.status;
    RunError::Command(format!("HTTP {status}, which is not what a node of Lally says"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use hyper::StatusCode;

    fn answered(status: u16, body: &'static str) -> Answered {
        let status = StatusCode::from_u16(status).unwrap();
        Answered { status, body: Bytes::from_static(body.as_bytes()) }
    }

    #[test]
    fn what_a_newer_node_adds_is_passed_over() {
        let said = r#"{"status":"partial","key":"k","value":null,"timestamp":null,
            "quorum":{"required":2,"achieved":1,"late":1},"message":"m","more":[1]}"#;
        let answer: DataAnswer = taken(&answered(200, said)).unwrap();
        assert_eq!((answer.status, answer.value), (Verdict::Partial, None));
        assert_eq!((answer.quorum.required, answer.quorum.achieved), (2, 1));
    }

    #[test]
    fn a_refusal_is_told_in_the_words_of_the_node_and_what_is_none_by_its_status() {
        let refused = r#"{"status":"error","code":"memory_full","message":"no room"}"#;
        for (status, body, said) in [
            (507, refused, "memory_full: no room"),
            (200, "<html>", "HTTP 200 OK, which is not"),
            (404, "nobody", "HTTP 404 Not Found, which is not"),
        ] {
            let error = taken::<NodesAnswer>(&answered(status, body)).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
