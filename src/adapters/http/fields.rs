//! What bodies of requests say: taken apart without copies.
//!
//! Messages of refusals say what is wrong and what is expected. They quote little of the body:
//! at most [`MAX_QUOTED_BYTES`] of what the JSON reader says about it.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use crate::domain::{InvalidNodeId, Key, NodeId, QuorumSpec, Value};
use crate::ports::{Consistency, InvalidLogLevel, LogLevel, RequestOptions};

use super::errors::Refusal;
use super::long_text::Cut;

/// Longest timeout that a client may ask for.
pub(super) const MAX_TIMEOUT_MS: u64 = 10_000;

const MAX_QUOTED_BYTES: usize = 200;

const KEY_FORM: &str = r#"{"key": string}"#;
const KEY_VALUE_FORM: &str = r#"{"key": string, "value": string}"#;
const ID_FORM: &str = r#"{"id": a node id of 16 hexadecimal digits}"#;
const LEVEL_FORM: &str = r#"{"level": "off", "error", "warn", "info", "debug" or "trace"}"#;
const OPTIONAL_FIELDS: &str = r#", optionally "quorum": a whole number >= 1, "majority" or "all", and "timeout_ms": a whole number from 1 to 10000"#;

const OPTIONAL_GET_FIELDS: &str = r#", optionally "quorum": a whole number >= 1, "majority" or "all", "timeout_ms": a whole number from 1 to 10000, and "consistency": "default" or "confirmed""#;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::errors::Code;
    use super::super::json_text::is_plain;
    use super::*;

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
                    assert!(!write.is_plain || is_plain(write.value.as_str()));
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
