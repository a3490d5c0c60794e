//! Responses: each is written into one buffer, in the order of the fields that clients were
//! promised, and goes out with its head in one write. Only a long value stays where it is.
//!
//! Written by hand rather than derived: the shapes are few, and the four calls are the hot path.

use std::io::Write;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use jiff::fmt::temporal::DateTimePrinter;

use crate::domain::{Member, MemberState, StopRisk, Timestamp, Value};
use crate::ports::{Answer, BackupStream, ClusterStatus, Compacted, Verdict};

use super::download::EXPECTED_BYTES;
use super::errors::{Code, Refusal};
use super::json_text::{is_plain, push_text};
use super::metrics::Call;
use super::pieces::Pieces;

/// A body that is there as a whole.
pub(super) type Whole = Pieces;

/// RFC 3339 with all nine digits, so that timestamps of one length compare as texts do.
const NANOSECONDS: DateTimePrinter = DateTimePrinter::new().precision(Some(9));

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Room for an answer without its key and value.
const ENVELOPE_BYTES: usize = 256;

/// A value of so many bytes is sent from where it is, unless a character of it must be escaped. To
/// copy a shorter one costs less than a second write.
const LONG_VALUE_BYTES: usize = 16 * 1_024;

/// The answer to `/get` or `/remove`.
pub(super) fn answer(call: Call, key: &str, answer: &Answer) -> Response<Whole> {
    envelope(key, answer, is_plain, |out| push_message(out, call, answer))
}

/// The answer to `/add`, of whose value it may be known that it has nothing to escape.
pub(super) fn written(key: &str, answer: &Answer, known_as_plain: bool) -> Response<Whole> {
    let is_plain = |value: &str| known_as_plain || is_plain(value);
    envelope(key, answer, is_plain, |out| push_message(out, Call::Add, answer))
}

/// The answer to a confirmed read.
pub(super) fn confirmed(key: &str, answer: &Answer) -> Response<Whole> {
    envelope(key, answer, is_plain, |out| match answer.verdict {
        Verdict::Success => push_message(out, Call::Get, answer),
        Verdict::Partial => push_unconfirmed(out, answer),
    })
}

fn envelope(
    key: &str,
    answer: &Answer,
    is_plain: impl FnOnce(&str) -> bool,
    push_message: impl FnOnce(&mut Vec<u8>),
) -> Response<Whole> {
    let is_long = |value: &str| value.len() >= LONG_VALUE_BYTES && is_plain(value);
    let (copied, long) = match &answer.value {
        Some(value) if is_long(value.as_str()) => (None, Some(value)),
        value => (value.as_ref().map(Value::as_str), None),
    };
    let mut out = Vec::with_capacity(ENVELOPE_BYTES + key.len() + copied.map_or(0, str::len));
    out.extend_from_slice(match answer.verdict {
        Verdict::Success => br#"{"status":"success","key":"#,
        Verdict::Partial => br#"{"status":"partial","key":"#,
    });
    push_text(&mut out, key);
    out.extend_from_slice(br#","value":"#);
    if let Some(value) = long {
        out.push(b'"');
        let mut after = Vec::with_capacity(ENVELOPE_BYTES);
        after.push(b'"');
        push_after_value(&mut after, answer, push_message);
        return json(StatusCode::OK, Pieces::around(out, value.clone(), after));
    }
    match copied {
        Some(value) => push_text(&mut out, value),
        None => out.extend_from_slice(b"null"),
    }
    push_after_value(&mut out, answer, push_message);
    json(StatusCode::OK, out)
}

fn push_after_value(out: &mut Vec<u8>, answer: &Answer, push_message: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(br#","timestamp":"#);
    match answer.timestamp {
        Some(timestamp) => push_timestamp(out, timestamp),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(br#","quorum":{"required":"#);
    push_number(out, answer.required.into());
    out.extend_from_slice(br#","achieved":"#);
    push_number(out, answer.achieved.into());
    out.extend_from_slice(br#"},"message":"#);
    push_message(out);
    out.push(b'}');
}

/// The answer to `/nodes`.
pub(super) fn nodes(addresses: &[String]) -> Response<Whole> {
    let mut out = Vec::with_capacity(ENVELOPE_BYTES + 32 * addresses.len());
    out.extend_from_slice(br#"{"status":"success","nodes":["#);
    push_list(&mut out, addresses, |out, address| push_text(out, address));
    out.extend_from_slice(b"]}");
    json(StatusCode::OK, out)
}

/// The answer to `/cluster`.
pub(super) fn cluster(status: &ClusterStatus) -> Response<Whole> {
    let mut out = Vec::with_capacity(2 * ENVELOPE_BYTES + 160 * status.members.len());
    out.extend_from_slice(br#"{"status":"success","cluster":"#);
    push_text(&mut out, &status.cluster);
    out.extend_from_slice(br#","node":{"#);
    push_member(&mut out, &status.node.member, status.node.state);
    out.extend_from_slice(br#","version":"#);
    push_text(&mut out, &status.node.version);
    out.extend_from_slice(br#"},"members":["#);
    push_list(&mut out, &status.members, |out, other| {
        out.push(b'{');
        push_member(out, &other.member, other.state);
        out.extend_from_slice(br#","hints":"#);
        push_number(out, other.hints);
        out.extend_from_slice(if other.in_sync {
            br#","in_sync":true,"clock_offset_ms":"#
        } else {
            br#","in_sync":false,"clock_offset_ms":"#
        });
        push_optional(out, other.clock_offset_ms);
        out.extend_from_slice(br#","last_heard_ms":"#);
        push_optional(out, other.last_heard.map(|time| time.as_millis()));
        out.extend_from_slice(br#","lag_ms":"#);
        push_optional(out, other.lag.map(|time| time.as_millis()));
        out.extend_from_slice(br#","version":"#);
        match &other.version {
            Some(version) => push_text(out, version),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
    });
    out.extend_from_slice(br#"],"keys":"#);
    push_number(&mut out, status.store.keys);
    out.extend_from_slice(br#","tombstones":"#);
    push_number(&mut out, status.store.tombstones);
    out.extend_from_slice(br#","digest":"#);
    push_text(&mut out, &status.digest.to_string());
    out.extend_from_slice(br#","horizon":"#);
    match status.horizon {
        Some(horizon) => push_timestamp(&mut out, horizon),
        None => out.extend_from_slice(b"null"),
    }
    out.push(b'}');
    json(StatusCode::OK, out)
}

/// The answer to `/cluster/safe-to-stop`.
pub(super) fn stop_risks(risks: &[StopRisk]) -> Response<Whole> {
    let mut out = Vec::with_capacity(ENVELOPE_BYTES + 128 * risks.len());
    out.extend_from_slice(if risks.is_empty() {
        br#"{"status":"success","safe":true,"reasons":["#
    } else {
        br#"{"status":"success","safe":false,"reasons":["#
    });
    push_list(&mut out, risks, |out, risk| push_text(out, &risk.to_string()));
    out.extend_from_slice(b"]}");
    json(StatusCode::OK, out)
}

/// The answer to `/admin/compact`.
pub(super) fn compacted(compacted: &Compacted) -> Response<Whole> {
    let mut out = Vec::with_capacity(ENVELOPE_BYTES);
    let Compacted { records, bytes_before, bytes_after } = *compacted;
    out.extend_from_slice(br#"{"status":"success","records":"#);
    push_number(&mut out, records);
    out.extend_from_slice(br#","bytes_before":"#);
    push_number(&mut out, bytes_before);
    out.extend_from_slice(br#","bytes_after":"#);
    push_number(&mut out, bytes_after);
    out.extend_from_slice(br#","message":"The log is compacted."}"#);
    json(StatusCode::OK, out)
}

/// The answer to `/admin/backup`: its pieces as they come. One that ends before its end breaks the
/// connection, so that no client takes it for complete.
pub(super) fn backup(stream: Box<dyn BackupStream>) -> Response<Body> {
    let expected_bytes = HeaderValue::from(stream.expected_bytes());
    let pieces = futures_util::stream::try_unfold(stream, |mut stream| async move {
        stream.next().await.map(|piece| piece.map(|bytes| (bytes, stream)))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(EXPECTED_BYTES, expected_bytes);
    response
}

/// JSON that is there already.
pub(super) fn document(text: Bytes) -> Response<Whole> {
    let mut response = Response::new(Whole::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// A plain success with a message.
pub(super) fn fine(message: &str) -> Response<Whole> {
    let mut out = Vec::with_capacity(ENVELOPE_BYTES);
    out.extend_from_slice(br#"{"status":"success","message":"#);
    push_text(&mut out, message);
    out.push(b'}');
    json(StatusCode::OK, out)
}

/// Nothing was done, and why.
pub(super) fn refusal(refusal: &Refusal) -> Response<Whole> {
    let mut out = Vec::with_capacity(ENVELOPE_BYTES + refusal.message.len());
    out.extend_from_slice(br#"{"status":"error","code":"#);
    push_text(&mut out, refusal.code.as_str());
    out.extend_from_slice(br#","message":"#);
    push_text(&mut out, &refusal.message);
    out.push(b'}');
    let mut response = json(refusal.code.status(), out);
    let headers = response.headers_mut();
    if refusal.code.status() == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if refusal.code == Code::Unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if refusal.code == Code::RequestTimeout {
        // The rest of the body may still come; nothing can follow it on this connection.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// In one word, as `/cluster` and the metrics show it.
pub(super) const fn state_name(state: MemberState) -> &'static str {
    match state {
        MemberState::Joining => "joining",
        MemberState::Alive => "alive",
        MemberState::Suspect => "suspect",
        MemberState::Down => "down",
        MemberState::Left => "left",
    }
}

fn json(status: StatusCode, body: impl Into<Whole>) -> Response<Whole> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

fn push_message(out: &mut Vec<u8>, call: Call, answer: &Answer) {
    let existed = answer.timestamp.is_some();
    if answer.verdict == Verdict::Success {
        out.extend_from_slice(match (call, existed) {
            (Call::Get | Call::Remove, false) => br#""The key does not exist.""#,
            (Call::Remove, true) => br#""Key successfully removed.""#,
            _ => br#""Operation completed successfully.""#,
        });
        return;
    }
    let Answer { achieved, required, .. } = *answer;
    let consequence = match (call, existed) {
        (Call::Get, true) => "this is the newest value among their answers",
        (Call::Get, false) => "the key does not exist on them",
        _ => "the operation may have happened, and may still spread to the other nodes",
    };
    write!(
        out,
        r#""Only {achieved} of the {required} nodes required by the quorum answered in time; {consequence}.""#
    )
    .unwrap_or_default();
}

fn push_unconfirmed(out: &mut Vec<u8>, answer: &Answer) {
    let Answer { achieved, required, .. } = *answer;
    let finding = match answer.timestamp {
        Some(_) => "hold this version",
        None => "say that the key does not exist",
    };
    write!(
        out,
        r#""Only {achieved} of the {required} nodes required by the quorum {finding}, as far as could be confirmed in time; a later read may find an older one.""#
    )
    .unwrap_or_default();
}

fn push_member(out: &mut Vec<u8>, member: &Member, state: MemberState) {
    out.extend_from_slice(br#""id":"#);
    push_text(out, &member.id.to_string());
    out.extend_from_slice(br#","grpc_addr":"#);
    push_text(out, &member.grpc_addr);
    out.extend_from_slice(br#","http_addr":"#);
    push_text(out, &member.http_addr);
    out.extend_from_slice(br#","state":"#);
    push_text(out, state_name(state));
}

fn push_optional(out: &mut Vec<u8>, number: Option<impl std::fmt::Display>) {
    match number {
        Some(number) => write!(out, "{number}").unwrap_or_default(),
        None => out.extend_from_slice(b"null"),
    }
}

fn push_list<T>(out: &mut Vec<u8>, items: &[T], push: impl Fn(&mut Vec<u8>, &T)) {
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push(out, item);
    }
}

// Writing to a Vec does not fail, neither here nor elsewhere in this file.
fn push_timestamp(out: &mut Vec<u8>, timestamp: Timestamp) {
    // Every u64 of nanoseconds (up to the year 2554) is a time that jiff can show.
    let time = jiff::Timestamp::from_nanosecond(timestamp.as_nanos().into()).unwrap_or_default();
    out.push(b'"');
    NANOSECONDS.print_timestamp(&time, &mut *out).unwrap_or_default();
    out.push(b'"');
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    serde_json::to_writer(out, &number).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Phases;
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    fn shown(timestamp: u64) -> String {
        let mut out = Vec::new();
        push_timestamp(&mut out, Timestamp::from_nanos(timestamp));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn timestamps_are_utc_with_nine_digits_over_the_whole_range() {
        assert_eq!(shown(0), r#""1970-01-01T00:00:00.000000000Z""#);
        assert_eq!(shown(1_700_000_000_120_000_000), r#""2023-11-14T22:13:20.120000000Z""#);
        assert_eq!(shown(u64::MAX), r#""2554-07-21T23:34:33.709551615Z""#);
    }

    fn partial(call: Call, timestamp: Option<u64>) -> String {
        let answer = Answer {
            verdict: Verdict::Partial,
            value: None,
            timestamp: timestamp.map(Timestamp::from_nanos),
            required: 3,
            achieved: 1,
            phases: Phases::default(),
        };
        let mut out = Vec::new();
        push_message(&mut out, call, &answer);
        serde_json::from_slice(&out).unwrap()
    }

    async fn body_of(value: &str) -> Vec<u8> {
        let answer = Answer {
            verdict: Verdict::Success,
            value: Some(Value::new(value)),
            timestamp: Some(Timestamp::ZERO),
            required: 1,
            achieved: 1,
            phases: Phases::default(),
        };
        let body = super::answer(Call::Get, "k", &answer).into_body();
        let declared = hyper::body::Body::size_hint(&body).exact();
        let bytes = body.collect().await.unwrap().to_bytes();
        assert_eq!(declared, Some(bytes.len() as u64));
        bytes.to_vec()
    }

    #[tokio::test]
    async fn a_value_is_the_same_in_the_answer_however_long_it_is_and_whatever_is_in_it() {
        for length in [0, 1, LONG_VALUE_BYTES - 1, LONG_VALUE_BYTES, LONG_VALUE_BYTES + 1] {
            for end in ["", "\"", "\\", "\n", "é"] {
                let value = "v".repeat(length) + end;
                let expected = format!(
                    r#"{{"status":"success","key":"k","value":{},"timestamp":"1970-01-01T00:00:00.000000000Z","quorum":{{"required":1,"achieved":1}},"message":"Operation completed successfully."}}"#,
                    serde_json::to_string(&value).unwrap()
                );
                assert_eq!(body_of(&value).await, expected.into_bytes());
            }
        }
    }

    #[test]
    fn a_missed_quorum_says_how_many_answered_and_what_that_means() {
        let answered = "Only 1 of the 3 nodes required by the quorum answered in time; ";
        for (call, timestamp, consequence) in [
            (Call::Get, Some(1), "this is the newest value among their answers."),
            (Call::Get, None, "the key does not exist on them."),
            (
                Call::Add,
                Some(1),
                "the operation may have happened, and may still spread to the other nodes.",
            ),
            (
                Call::Remove,
                None,
                "the operation may have happened, and may still spread to the other nodes.",
            ),
        ] {
            assert_eq!(partial(call, timestamp), format!("{answered}{consequence}"));
        }
    }

    #[test]
    fn a_read_that_could_not_be_confirmed_says_what_may_follow() {
        let mut answer = Answer {
            verdict: Verdict::Partial,
            value: None,
            timestamp: Some(Timestamp::ZERO),
            required: 2,
            achieved: 1,
            phases: Phases::default(),
        };
        for (timestamp, finding) in
            [(Some(Timestamp::ZERO), "hold this version"), (None, "the key does not exist")]
        {
            answer.timestamp = timestamp;
            let mut out = Vec::new();
            push_unconfirmed(&mut out, &answer);
            let said: String = serde_json::from_slice(&out).unwrap();
            assert!(said.starts_with("Only 1 of the 2 nodes") && said.contains(finding), "{said}");
            assert!(said.ends_with("a later read may find an older one."), "{said}");
        }
    }

    #[tokio::test]
    async fn a_value_that_would_break_the_frame_is_escaped() {
        let text = "\",\"status\":\"x\0\n🦀";
        let found = Answer {
            verdict: Verdict::Success,
            value: Some(Value::new(text)),
            timestamp: Some(Timestamp::ZERO),
            required: 1,
            achieved: 1,
            phases: Phases::default(),
        };
        let body = answer(Call::Get, text, &found).into_body();
        let bytes = body.collect().await.unwrap().to_bytes();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((&json["key"], &json["value"]), (&text.into(), &text.into()));
        assert_eq!(json.as_object().unwrap().len(), 6);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn later_timestamps_show_as_larger_texts(a in any::<u64>(), b in any::<u64>()) {
            prop_assert_eq!(a.cmp(&b), shown(a).cmp(&shown(b)));
        }
    }
}
