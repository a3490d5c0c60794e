//! What this HTTP stack costs without a database: a bare axum handler that reads the same JSON, writes
//! the same JSON, and does nothing else. `bench/speed.py` measures Lally against it.
//!
//! Usage: `floor ADDR [VALUE_BYTES]`; `/get` answers with a value of so many bytes, without it with null.

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Call {
    key: String,
    value: Option<String>,
}

#[derive(Serialize)]
struct Answer {
    status: &'static str,
    key: String,
    value: Option<String>,
    timestamp: &'static str,
    quorum: Quorum,
    message: &'static str,
}

#[derive(Serialize)]
struct Quorum {
    required: u32,
    achieved: u32,
}

async fn answer(State(kept): State<Option<String>>, Json(call): Json<Call>) -> Json<Answer> {
    Json(Answer {
        status: "success",
        key: call.key,
        value: call.value.or(kept),
        timestamp: "2026-01-01T00:00:00.123456789Z",
        quorum: Quorum { required: 1, achieved: 1 },
        message: "Operation completed successfully.",
    })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let addr = arguments.next().ok_or("usage: floor ADDR [VALUE_BYTES]")?;
    let kept = arguments.next().map(|bytes| bytes.parse().map(|bytes| "x".repeat(bytes)));
    // As large as the largest body that a node takes by default.
    let limit = axum::extract::DefaultBodyLimit::max(2 << 20);
    let router = Router::new().route("/add", post(answer)).route("/get", post(answer));
    let router = router.layer(limit).with_state(kept.transpose()?);
    axum::serve(tokio::net::TcpListener::bind(addr).await?, router).await?;
    Ok(())
}
