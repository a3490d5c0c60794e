//! One connection to a node, made anew when it is gone.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, header};
use tokio::time::timeout;

use crate::adapters::http::{HttpClient, Remote};
use crate::ports::OpKind;

/// Longer than a node takes for any request.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Success,
    /// Fewer nodes than required took part.
    Partial,
    /// The code of a refusal, or what went wrong on the way.
    Error(String),
}

/// A connection to one node.
#[derive(Debug)]
pub(super) struct Connection {
    remote: Remote,
    open: Option<HttpClient>,
}

impl Connection {
    /// Connects now, if the node is there, or when it is used.
    pub(super) async fn to(remote: Remote) -> Self {
        let connecting = timeout(CONNECT_WITHIN, HttpClient::connect(&remote)).await;
        // What is wrong is told to whoever asks.
        let open = connecting.ok().and_then(Result::ok);
        Self { remote, open }
    }

    /// Whether it broke off, or was never made.
    pub(super) const fn is_broken(&self) -> bool {
        self.open.is_none()
    }

    /// Sends a request and waits for what becomes of it. Not cancel safe: dropped halfway, the
    /// connection must not be used again.
    pub(super) async fn ask(&mut self, call: OpKind, body: Bytes) -> Reply {
        let asked = timeout(ANSWER_WITHIN, self.try_ask(call, body)).await;
        let late = || Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in 15 s"));
        asked.unwrap_or_else(|_| late()).unwrap_or_else(|error| {
            self.open = None;
            Reply::Error(format!("{}: {error}", self.remote.addr()))
        })
    }

    async fn try_ask(&mut self, call: OpKind, body: Bytes) -> io::Result<Reply> {
        let open = match self.open.take() {
            Some(open) if !open.is_closed() => open,
            _ => HttpClient::connect(&self.remote).await?,
        };
        let open = self.open.insert(open);
        let method = if call == OpKind::Remove { Method::DELETE } else { Method::POST };
        let request = Request::builder()
            .method(method)
            .uri(format!("/{}", call.as_str()))
            .header(header::HOST, self.remote.addr())
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body));
        let response = open.send(request.map_err(io::Error::other)?).await?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(io::Error::other)?;
        Ok(reply(status, &body.to_bytes()))
    }
}

fn reply(status: StatusCode, body: &[u8]) -> Reply {
    if status == StatusCode::OK && body.starts_with(br#"{"status":"success""#) {
        return Reply::Success;
    }
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let field = |name| json.get(name).and_then(serde_json::Value::as_str);
    match (field("status"), field("code")) {
        (Some("success"), _) => Reply::Success,
        (Some("partial"), _) => Reply::Partial,
        (_, Some(code)) => Reply::Error(format!("{} {code}", status.as_u16())),
        _ => Reply::Error(format!("{}, which is not what a node of Lally says", status.as_u16())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_what_the_body_says() {
        for (status, body, expected) in [
            (200, r#"{"status":"success","key":"k"}"#, Reply::Success),
            (200, r#"{ "status" : "success" }"#, Reply::Success),
            (200, r#"{"status":"partial","key":"k"}"#, Reply::Partial),
            (
                503,
                r#"{"status":"error","code":"overloaded","message":"m"}"#,
                Reply::Error("503 overloaded".into()),
            ),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(reply(status, body.as_bytes()), expected);
        }
        let foreign = reply(StatusCode::OK, b"<html>");
        assert!(matches!(foreign, Reply::Error(said) if said.contains("Lally")));
    }
}
