//! Request bodies: read within bounds of size and time, and taken apart without copies.
//!
//! Messages of refusals say what is wrong and what is expected. They quote little of the body:
//! at most [`MAX_QUOTED_BYTES`] of what the JSON reader says about it.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::pin::pin;
use std::time::Duration;

use axum::http::{HeaderMap, Request, header};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::body::Body;
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use tokio::time::Instant;

use crate::domain::{InvalidNodeId, Key, NodeId, QuorumSpec, Value};
use crate::ports::{Consistency, InvalidLogLevel, LogLevel, RequestOptions};

use super::LiveOptions;
use super::admission::{Held, Places, Room};
use super::errors::{Code, Refusal};
use super::long_text::Cut;

/// Longest timeout that a client may ask for.
pub(super) const MAX_TIMEOUT_MS: u64 = 10_000;

/// How much of a body that is too long is read and thrown away before the answer. A client that
/// is still sending when its connection is closed loses the answer, and so never learns why.
const LINGER_BYTES: usize = 16 * 1_024 * 1_024;

/// Up to here the memory of a body that comes in pieces grows with it.
const SMALL_BYTES: usize = 64 * 1_024;

const MAX_QUOTED_BYTES: usize = 200;

const KEY_FORM: &str = r#"{"key": string}"#;
const KEY_VALUE_FORM: &str = r#"{"key": string, "value": string}"#;
const ID_FORM: &str = r#"{"id": a node id of 16 hexadecimal digits}"#;
const LEVEL_FORM: &str = r#"{"level": "off", "error", "warn", "info", "debug" or "trace"}"#;
const OPTIONAL_FIELDS: &str = r#", optionally "quorum": a whole number >= 1, "majority" or "all", and "timeout_ms": a whole number from 1 to 10000"#;

const OPTIONAL_GET_FIELDS: &str = r#", optionally "quorum": a whole number >= 1, "majority" or "all", "timeout_ms": a whole number from 1 to 10000, and "consistency": "default" or "confirmed""#;

/// A body, and the memory that it takes if it did not come with its head.
pub(super) type HeldBody<'a> = (Bytes, Option<Held<'a>>);

/// Reads the body of a request whose media type and size are as they should be. A body that is not
/// there with its head takes one of the places of those that are waited for, and room, and says how long
/// it `waited`.
pub(super) async fn read<'a, B: Body<Data = Bytes> + Unpin>(
    request: Request<B>,
    options: &LiveOptions,
    places: Places<'_>,
    room: Room<'a>,
    waited: &mut Duration,
) -> Result<HeldBody<'a>, Refusal> {
    check_media_type(request.headers())?;
    let max = options.max_body_bytes();
    // A client that asks first (RFC 9110, 10.1.1) waits for the answer before it sends anything.
    let asks_first = request.headers().contains_key(header::EXPECT);
    let declared = declared_length(request.headers());
    let too_long = declared.is_some_and(|length| length > max as u64);
    if too_long && asks_first {
        return Err(too_large(max));
    }
    let mut reading = pin!(collect(request.into_body(), max, declared));
    // Most bodies are there with their heads, and need neither a timer nor the memory for one.
    if let Some(read) = reading.as_mut().now_or_never() {
        return read.map(|body| (body, None));
    }
    let _place = places.take()?;
    // What is too long is thrown away as it comes. One that does not say may become as long as any.
    let expected = declared.map_or(Ok(max), usize::try_from).unwrap_or(max);
    let room = room.take(if too_long { 0 } else { expected })?;
    let since = Instant::now();
    let timeout = options.body_read_timeout();
    let read = Box::pin(tokio::time::timeout(timeout, reading)).await;
    *waited = since.elapsed();
    match read {
        Ok(read) => read.map(|body| (body, Some(room))),
        Err(_) if too_long => Err(too_large(max)),
        Err(_) => {
            let ms = timeout.as_millis();
            let message = format!("the body did not arrive within {ms} ms");
            Err(Refusal::new(Code::RequestTimeout, message))
        }
    }
}

/// `{"key"}` and the optional fields, those of a read among them.
pub(super) fn parse_get(body: &[u8]) -> Result<(Key, RequestOptions), Refusal> {
    let fields: GetFields<'_> = parse(body, KEY_FORM, OPTIONAL_GET_FIELDS)?;
    let options = options(fields.quorum, fields.timeout_ms);
    Ok((key(&fields.key)?, RequestOptions { consistency: fields.consistency, ..options }))
}

/// `{"key"}` and the optional fields.
pub(super) fn parse_key(body: &[u8]) -> Result<(Key, RequestOptions), Refusal> {
    let fields: KeyFields<'_> = parse(body, KEY_FORM, OPTIONAL_FIELDS)?;
    Ok((key(&fields.key)?, options(fields.quorum, fields.timeout_ms)))
}

/// What a body of `/add` says.
#[derive(Debug, PartialEq)]
pub(super) struct Write {
    pub(super) key: Key,
    pub(super) value: Value,
    pub(super) options: RequestOptions,
    /// Whether it is known that the value is a JSON string as it is, but for the quotes.
    pub(super) is_plain: bool,
}

/// `{"key","value"}` and the optional fields.
pub(super) fn parse_write(body: &[u8]) -> Result<Write, Refusal> {
    parse_around_value(body).map_or_else(|| parse_whole(body), Ok)
}

fn parse_whole(body: &[u8]) -> Result<Write, Refusal> {
    let fields: KeyValueFields<'_> = parse(body, KEY_VALUE_FORM, OPTIONAL_FIELDS)?;
    let options = options(fields.quorum, fields.timeout_ms);
    let (key, value) = (key(&fields.key)?, Value::new(&fields.value));
    Ok(Write { key, value, options, is_plain: false })
}

/// The same of a body with a long value. None if it has none, or if it is to be refused: why, only the
/// whole body says.
fn parse_around_value(body: &[u8]) -> Option<Write> {
    let cut = Cut::of(body)?;
    let fields: KeyValueFields<'_> = parse(cut.around(), KEY_VALUE_FORM, OPTIONAL_FIELDS).ok()?;
    if !cut.was_at(&fields.value) {
        return None;
    }
    let options = options(fields.quorum, fields.timeout_ms);
    let (key, value) = (key(&fields.key).ok()?, Value::new(cut.text));
    Some(Write { key, value, options, is_plain: true })
}

/// `{"id"}`.
pub(super) fn parse_id(body: &[u8]) -> Result<NodeId, Refusal> {
    let fields: IdFields<'_> = parse(body, ID_FORM, "")?;
    let refuse = |wrong| Refusal::bad_request(format!("{wrong}; expected {ID_FORM}"));
    fields.id.parse().map_err(|wrong: InvalidNodeId| refuse(wrong))
}

/// `{"level"}`.
pub(super) fn parse_level(body: &[u8]) -> Result<LogLevel, Refusal> {
    let fields: LevelFields<'_> = parse(body, LEVEL_FORM, "")?;
    let refuse = |wrong| Refusal::bad_request(format!("{wrong}; expected {LEVEL_FORM}"));
    fields.level.parse().map_err(|wrong: InvalidLogLevel| refuse(wrong))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LevelFields<'a> {
    #[serde(borrow)]
    level: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IdFields<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GetFields<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(default, deserialize_with = "quorum")]
    quorum: Option<QuorumSpec>,
    #[serde(default, deserialize_with = "timeout_ms")]
    timeout_ms: Option<Duration>,
    #[serde(default, deserialize_with = "consistency")]
    consistency: Consistency,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFields<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(default, deserialize_with = "quorum")]
    quorum: Option<QuorumSpec>,
    #[serde(default, deserialize_with = "timeout_ms")]
    timeout_ms: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyValueFields<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    value: Cow<'a, str>,
    #[serde(default, deserialize_with = "quorum")]
    quorum: Option<QuorumSpec>,
    #[serde(default, deserialize_with = "timeout_ms")]
    timeout_ms: Option<Duration>,
}

struct QuorumVisitor;

impl Visitor<'_> for QuorumVisitor {
    type Value = QuorumSpec;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"a quorum: a whole number >= 1, "majority" or "all""#)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<QuorumSpec, E> {
        let count = u32::try_from(number).ok().and_then(NonZeroU32::new);
        let invalid = || E::invalid_value(Unexpected::Unsigned(number), &self);
        count.map(QuorumSpec::Count).ok_or_else(invalid)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        let wrong = || E::invalid_type(Unexpected::Float(number), &self);
        let whole = whole(number).ok_or_else(wrong)?;
        self.visit_u64(whole)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<QuorumSpec, E> {
        match text {
            "majority" => Ok(QuorumSpec::Majority),
            "all" => Ok(QuorumSpec::All),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }
}

struct TimeoutVisitor;

impl Visitor<'_> for TimeoutVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"timeout_ms\" to be a whole number from 1 to {MAX_TIMEOUT_MS}")
    }

    fn visit_u64<E: Error>(self, ms: u64) -> Result<Duration, E> {
        if (1..=MAX_TIMEOUT_MS).contains(&ms) {
            Ok(Duration::from_millis(ms))
        } else {
            Err(E::invalid_value(Unexpected::Unsigned(ms), &self))
        }
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        let wrong = || E::invalid_type(Unexpected::Float(number), &self);
        let whole = whole(number).ok_or_else(wrong)?;
        self.visit_u64(whole)
    }
}

/// JSON has one kind of numbers: `2.0` is 2, and some clients write it so.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to fit")]
fn whole(number: f64) -> Option<u64> {
    let fits = number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number);
    fits.then_some(number as u64)
}

struct ConsistencyVisitor;

impl Visitor<'_> for ConsistencyVisitor {
    type Value = Consistency;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#""consistency" to be "default" or "confirmed""#)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Consistency, E> {
        match text {
            "default" => Ok(Consistency::Default),
            "confirmed" => Ok(Consistency::Confirmed),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }
}

// All are called only if the field is there, so a null is refused like any other wrong type.
fn quorum<'de, D: Deserializer<'de>>(field: D) -> Result<Option<QuorumSpec>, D::Error> {
    field.deserialize_any(QuorumVisitor).map(Some)
}

fn timeout_ms<'de, D: Deserializer<'de>>(field: D) -> Result<Option<Duration>, D::Error> {
    field.deserialize_any(TimeoutVisitor).map(Some)
}

fn consistency<'de, D: Deserializer<'de>>(field: D) -> Result<Consistency, D::Error> {
    field.deserialize_any(ConsistencyVisitor)
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], form: &str, optional: &str) -> Result<T, Refusal> {
    let refuse = |wrong: &str| Refusal::bad_request(format!("{wrong}; expected {form}{optional}"));
    match body.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => return Err(refuse("the body is empty")),
        // A derived struct would take an array of its fields in their order as well.
        Some(b'[') => return Err(refuse("the body is an array, not an object")),
        Some(_) => {}
    }
    serde_json::from_slice(body).map_err(|error| {
        let said = error.to_string();
        let said = quotable(&said);
        if error.is_data() {
            refuse(&said)
        } else {
            refuse(&format!("the body is not valid JSON: {said}"))
        }
    })
}

fn key(text: &str) -> Result<Key, Refusal> {
    Key::new(text).map_err(|invalid| Refusal::bad_request(invalid.to_string()))
}

const fn options(quorum: Option<QuorumSpec>, timeout: Option<Duration>) -> RequestOptions {
    RequestOptions { quorum, timeout, consistency: Consistency::Default, trace: None }
}

fn quotable(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_QUOTED_BYTES {
        return Cow::Borrowed(text);
    }
    let quoted = (0..=MAX_QUOTED_BYTES).rev().find_map(|end| text.get(..end)).unwrap_or_default();
    Cow::Owned(format!("{quoted}..."))
}

fn check_media_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let essence = given.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let ends_in_json = || {
        let suffix_at = essence.len().saturating_sub("+json".len());
        essence.get(suffix_at..).is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json"))
    };
    if essence.eq_ignore_ascii_case("application/json") || ends_in_json() {
        return Ok(());
    }
    let message = "the content type is not JSON; send `content-type: application/json`, or none at \
                   all (curl: --json instead of -d, or -H 'content-type: application/json')";
    Err(Refusal::new(Code::UnsupportedMediaType, message))
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(max: usize) -> Refusal {
    let message = format!("the body is longer than the {max} bytes allowed (max_body_bytes)");
    Refusal::new(Code::TooLarge, message)
}

async fn collect<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    max: usize,
    declared: Option<u64>,
) -> Result<Bytes, Refusal> {
    let limit = declared.map_or(Ok(max), usize::try_from).unwrap_or(usize::MAX);
    if limit > max {
        discard(body).await;
        return Err(too_large(max));
    }
    let Some(first) = next(&mut body).await? else {
        return Ok(Bytes::new());
    };
    if first.len() > max {
        discard(body).await;
        return Err(too_large(max));
    }
    // Nearly every body is one chunk, which is used as it is.
    let Some(second) = next(&mut body).await? else {
        return Ok(first);
    };
    let mut whole = BytesMut::from(first.as_ref());
    let mut more = Some(second);
    while let Some(chunk) = more {
        if whole.len() + chunk.len() > max {
            discard(body).await;
            return Err(too_large(max));
        }
        append(&mut whole, &chunk, limit);
        more = next(&mut body).await?;
    }
    Ok(whole.freeze())
}

/// Adds a chunk. There is a little room to spare at first, then at once all that is counted for a body of
/// up to `limit` bytes, of which doubling could take twice as much.
fn append(whole: &mut BytesMut, chunk: &[u8], limit: usize) {
    let needed = whole.len() + chunk.len();
    if needed > whole.capacity() {
        let wanted = if needed < SMALL_BYTES { limit.min(2 * needed) } else { limit };
        let before = std::mem::replace(whole, BytesMut::with_capacity(wanted.max(needed)));
        whole.extend_from_slice(&before);
    }
    whole.extend_from_slice(chunk);
}

/// The next chunk; trailers are passed over.
async fn next<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Result<Option<Bytes>, Refusal> {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Err(Refusal::bad_request("the body ended early, or its chunks are malformed"));
        };
        if let Ok(chunk) = frame.into_data() {
            return Ok(Some(chunk));
        }
    }
    Ok(None)
}

async fn discard<B: Body<Data = Bytes> + Unpin>(mut body: B) {
    let mut discarded = 0;
    while let Ok(Some(chunk)) = next(&mut body).await {
        discarded += chunk.len();
        if discarded > LINGER_BYTES {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::HttpOptions;
    use super::*;
    use axum::body::Body;
    use axum::extract::Request;
    use std::sync::atomic::AtomicUsize;

    async fn read_all(request: Request, options: &HttpOptions) -> Result<Bytes, Refusal> {
        let (live, places) = (LiveOptions::from(*options), AtomicUsize::new(0));
        let (room, mut waited) = (AtomicUsize::new(0), Duration::default());
        let (places, room) = (Places::new(&places, 1), Room::new(&room, options.max_body_bytes));
        read(request, &live, places, room, &mut waited).await.map(|(body, _)| body)
    }
    use axum::http::HeaderValue;
    use futures_util::stream;
    use proptest::prelude::*;

    fn wrong(body: &str) -> String {
        let refusal = parse_write(body.as_bytes()).unwrap_err();
        assert_eq!(refusal.code, Code::BadRequest);
        refusal.message.into_owned()
    }

    #[test]
    fn a_whole_number_with_a_decimal_point_is_one() {
        let body = br#"{"key":"k","quorum":2.0,"timeout_ms":5e1}"#;
        let (_, options) = parse_key(body).unwrap();
        assert_eq!(options.quorum, Some("2".parse().unwrap()));
        assert_eq!(options.timeout, Some(Duration::from_millis(50)));
        for wrong in ["0.0", "-0.0", "1.5", "-1.0", "4294967296.0", "1e300"] {
            let body = format!(r#"{{"key":"k","quorum":{wrong}}}"#);
            assert!(parse_key(body.as_bytes()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn any_text_comes_through_as_it_is() {
        for text in ["a", " ", "a b", "a\nb", "\0", "\"", "\\", "🦀", "\u{7f}", "é\u{301}"] {
            let body = serde_json::json!({"key": text, "value": text}).to_string();
            let Write { key, value, options, .. } = parse_write(body.as_bytes()).unwrap();
            assert_eq!((key.as_str(), value.as_str()), (text, text));
            assert_eq!(options, RequestOptions::default());
        }
        let empty = parse_write(br#"{"key":"k","value":""}"#).unwrap();
        assert_eq!(empty.value.as_str(), "");
    }

    #[test]
    fn optional_fields_are_taken() {
        let quorum = |body: &str| parse_key(body.as_bytes()).unwrap().1.quorum;
        assert_eq!(quorum(r#"{"key":"k","quorum":1}"#), Some(QuorumSpec::ONE));
        assert_eq!(quorum(r#"{"quorum":"majority","key":"k"}"#), Some(QuorumSpec::Majority));
        assert_eq!(quorum(r#"{"key":"k","quorum":"all"}"#), Some(QuorumSpec::All));
        for ms in [1, 10_000] {
            let body = format!(r#"{{"key":"k","timeout_ms":{ms}}}"#);
            let timeout = parse_key(body.as_bytes()).unwrap().1.timeout;
            assert_eq!(timeout, Some(Duration::from_millis(ms)));
        }
    }

    #[test]
    fn a_read_may_be_confirmed_and_nothing_else_may() {
        let consistency = |body: &str| parse_get(body.as_bytes()).unwrap().1.consistency;
        assert_eq!(consistency(r#"{"key":"k"}"#), Consistency::Default);
        assert_eq!(consistency(r#"{"key":"k","consistency":"default"}"#), Consistency::Default);
        let confirmed = r#"{"key":"k","consistency":"confirmed"}"#;
        assert_eq!(consistency(confirmed), Consistency::Confirmed);
        let removal = parse_key(confirmed.as_bytes()).unwrap_err();
        assert!(removal.message.contains("unknown field `consistency`"), "{}", removal.message);
        let addition = r#"{"key":"k","value":"v","consistency":"confirmed"}"#;
        assert!(wrong(addition).contains("unknown field `consistency`"));
        for consistency in [r#""linearizable""#, r#""Confirmed""#, r#""""#, "null", "true", "2"] {
            let body = format!(r#"{{"key":"k","consistency":{consistency}}}"#);
            let refusal = parse_get(body.as_bytes()).unwrap_err();
            assert_eq!(refusal.code, Code::BadRequest);
            let forms = r#""consistency": "default" or "confirmed""#;
            assert!(refusal.message.contains(forms), "{body}: {}", refusal.message);
        }
    }

    #[test]
    fn a_refusal_says_what_is_wrong_and_what_is_expected() {
        for (body, says) in [
            ("", "the body is empty"),
            ("  ", "the body is empty"),
            ("{", "not valid JSON"),
            ("{]", "not valid JSON"),
            ("hello", "not valid JSON"),
            (r#"{"key":"k","value":"v"} x"#, "not valid JSON"),
            (r#"{"key":"\ud800","value":"v"}"#, "not valid JSON"),
            ("{\"key\":\"a\nb\",\"value\":\"v\"}", "not valid JSON"),
            (r#"["k","v"]"#, "is an array"),
            (r#""k""#, "string \"k\""),
            ("5", "integer `5`"),
            ("null", "null"),
            (r#"{"key":"k"}"#, "missing field `value`"),
            (r#"{"value":"v"}"#, "missing field `key`"),
            (r#"{"key":"k","value":"v","ttl":1}"#, "unknown field `ttl`"),
            (r#"{"key":"k","key":"k","value":"v"}"#, "duplicate field `key`"),
            (r#"{"key":1,"value":"v"}"#, "integer `1`"),
            (r#"{"key":"k","value":null}"#, "null"),
            (r#"{"key":"k","value":{"a":1}}"#, "map"),
            (r#"{"key":"k","value":"v","quorum":0}"#, "integer `0`"),
            (r#"{"key":"k","value":"v","quorum":-1}"#, "integer `-1`"),
            (r#"{"key":"k","value":"v","quorum":1.5}"#, "floating point `1.5`"),
            (r#"{"key":"k","value":"v","quorum":4294967296}"#, "integer `4294967296`"),
            (r#"{"key":"k","value":"v","quorum":"two"}"#, "string \"two\""),
            (r#"{"key":"k","value":"v","quorum":"2"}"#, "string \"2\""),
            (r#"{"key":"k","value":"v","quorum":null}"#, "null"),
            (r#"{"key":"k","value":"v","quorum":[1]}"#, "sequence"),
            (r#"{"key":"k","value":"v","timeout_ms":0}"#, "integer `0`"),
            (r#"{"key":"k","value":"v","timeout_ms":10001}"#, "from 1 to 10000"),
            (r#"{"key":"k","value":"v","timeout_ms":"1s"}"#, "string \"1s\""),
        ] {
            let message = wrong(body);
            assert!(message.contains(says), "{body}: {message}");
            assert!(message.contains(r#"expected {"key": string, "value": string}"#), "{message}");
            assert!(message.contains("majority"), "{message}");
        }
    }

    #[test]
    fn an_id_is_16_hexadecimal_digits_and_nothing_else_is() {
        let id = parse_id(br#"{"id":"00000000000000ff"}"#);
        assert_eq!(id, Ok(NodeId::new(255)));
        for body in [
            "",
            "{}",
            "[]",
            r#"{"id":255}"#,
            r#"{"id":"ff"}"#,
            r#"{"id":"00000000000000fg"}"#,
            r#"{"id":"00000000000000ff","force":true}"#,
            r#"{"id":null}"#,
        ] {
            let refusal = parse_id(body.as_bytes()).unwrap_err();
            assert_eq!(refusal.code, Code::BadRequest);
            assert!(refusal.message.ends_with(&format!("expected {ID_FORM}")), "{body}");
        }
    }

    #[test]
    fn keys_have_1_to_1024_bytes() {
        assert!(wrong(r#"{"key":"","value":"v"}"#).contains("empty"));
        let long = format!(r#"{{"key":"{}","value":"v"}}"#, "k".repeat(1_025));
        assert!(wrong(&long).contains("1025 bytes"));
        let longest = format!(r#"{{"key":"{}"}}"#, "k".repeat(1_024));
        assert!(parse_key(longest.as_bytes()).is_ok());
    }

    #[test]
    fn bytes_that_are_not_utf8_are_refused() {
        let refusal = parse_key(b"{\"key\":\"\xff\"}").unwrap_err();
        assert!(refusal.message.contains("not valid JSON"), "{}", refusal.message);
    }

    #[test]
    fn a_refusal_quotes_little_of_a_long_body() {
        let body = format!(r#"{{"key":"k","value":"v","quorum":"{}"}}"#, "é".repeat(100_000));
        assert!(wrong(&body).len() < 600);
        let deep = format!(r#"{{"key":{}"#, "[".repeat(100_000));
        assert!(wrong(&deep).len() < 600);
    }

    #[test]
    fn json_media_types_and_none_at_all_are_accepted() {
        let check = |given: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(given));
            check_media_type(&headers).map_err(|refusal| refusal.code)
        };
        assert_eq!(check_media_type(&HeaderMap::new()), Ok(()));
        for json in ["application/json", "Application/JSON ; charset=utf-8", "application/x+json"] {
            assert_eq!(check(json), Ok(()), "{json}");
        }
        for other in ["text/plain", "", "json", "application/jsonx", "application/x-www-form"] {
            assert_eq!(check(other), Err(Code::UnsupportedMediaType), "{other}");
        }
    }

    fn chunked(chunks: Vec<&'static [u8]>) -> Body {
        Body::from_stream(stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>)))
    }

    #[tokio::test]
    async fn a_body_in_pieces_is_put_together_and_its_length_is_counted() {
        let options = HttpOptions { max_body_bytes: 5, ..HttpOptions::default() };
        let read = |chunks| read_all(Request::new(chunked(chunks)), &options);
        assert_eq!(read(vec![]).await, Ok(Bytes::new()));
        assert_eq!(read(vec![b"abcde"]).await, Ok(Bytes::from_static(b"abcde")));
        assert_eq!(read(vec![b"a", b"bc", b"de"]).await, Ok(Bytes::from_static(b"abcde")));
        for long in [vec![&b"abcdef"[..]], vec![b"abc", b"def"], vec![b"a", b"b", b"cdef", b"g"]] {
            assert_eq!(read(long).await.unwrap_err().code, Code::TooLarge);
        }
    }

    #[test]
    fn a_body_in_pieces_takes_no_more_memory_than_is_counted_for_it() {
        for limit in [10, SMALL_BYTES, 2 << 20, (5 << 20) + 1, 17 << 20] {
            for piece in [1 << 10, 10_000, 64 << 10, 1 << 20] {
                let mut whole = BytesMut::new();
                let (mut moves, mut at) = (0, whole.as_ptr());
                while whole.len() < limit {
                    let chunk = vec![b'x'; piece.min(limit - whole.len())];
                    append(&mut whole, &chunk, limit);
                    assert!(
                        whole.capacity() <= limit.max(64),
                        "{piece} of {limit}: {}",
                        whole.capacity()
                    );
                    moves += usize::from(whole.as_ptr() != at);
                    at = whole.as_ptr();
                }
                assert!(moves <= 9, "{piece} of {limit}: moved {moves} times");
            }
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_refused() {
        let chunks = vec![Ok(&b"ab"[..]), Err(std::io::Error::other("reset"))];
        let request = Request::new(Body::from_stream(stream::iter(chunks)));
        let refusal = read_all(request, &HttpOptions::default()).await.unwrap_err();
        assert_eq!(refusal.code, Code::BadRequest);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_given_up() {
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let refusal = read_all(Request::new(never), &HttpOptions::default()).await.unwrap_err();
        assert_eq!(refusal.code, Code::RequestTimeout);
        assert!(refusal.message.contains("10000 ms"));
    }

    #[tokio::test]
    async fn a_client_that_asks_first_is_refused_before_it_sends() {
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let mut request = Request::new(never);
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("9999999"));
        request.headers_mut().insert(header::EXPECT, HeaderValue::from_static("100-continue"));
        let refusal = read_all(request, &HttpOptions::default()).await.unwrap_err();
        assert_eq!(refusal.code, Code::TooLarge);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_a_client_sends_is_what_is_stored(key in ".{1,40}", value in ".{0,80}") {
            let body = serde_json::json!({"key": key, "value": value}).to_string();
            let Write { key: k, value: v, .. } = parse_write(body.as_bytes()).unwrap();
            prop_assert_eq!((k.as_str(), v.as_str()), (key.as_str(), value.as_str()));
        }

        #[test]
        fn a_long_value_is_read_as_the_whole_body_says(
            key in ".{0,3}|x{5000}", field in "value|v|key|quorum", value in ".{4100}|[a-z]{4100}|",
            quorum in r#"1|0|"all"|"none"|\[1]|"#, end in r"\}|\},|\]| \n\}|", cut in 0_usize..9_000,
        ) {
            let (key, value) = (serde_json::json!(key), serde_json::json!(value));
            let body = format!(r#"{{"quorum":{quorum}, "key" :{key},"{field}": {value}{end}"#);
            let (first, last) = body.as_bytes().split_at(cut.min(body.len()));
            for body in [body.as_bytes(), first, last] {
                let read = parse_write(body).map(|write| {
                    assert!(!write.is_plain || super::super::json_text::is_plain(write.value.as_str()));
                    Write { is_plain: false, ..write }
                });
                prop_assert_eq!(read, parse_whole(body));
            }
        }

        #[test]
        fn no_bytes_make_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse_key(&body).is_err());
            prop_assert!(parse_write(&body).is_err());
        }
    }
}
