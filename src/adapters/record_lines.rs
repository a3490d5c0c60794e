//! Records of a log as lines of JSON: what `lally log dump` prints and `lally log import` reads.
//!
//! ```json
//! {"kind":"write","key":"k","value":"v","timestamp":"2026-01-31T12:00:00.123456789Z","node":"1f0c8e3a5b7d9241"}
//! {"kind":"tombstone","key":"k","timestamp":"2026-01-31T12:00:00.223456789Z","node":"1f0c8e3a5b7d9241"}
//! {"kind":"clock_bound","timestamp":"2026-01-31T12:00:00.373456789Z"}
//! {"kind":"horizon","timestamp":"2026-01-30T12:00:00.000000000Z"}
//! {"kind":"expunged","key":"k","timestamp":"2026-01-29T12:00:00.000000000Z","node":"1f0c8e3a5b7d9241"}
//! ```
//!
//! A line says everything that its record does, and nothing is read that is not expected: a misspelt
//! field must not become a record that says something else. `docs/log-format.md` is the reference.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::domain::{Entry, Key, KeyedEntry, MAX_VALUE_BYTES, NodeId, Timestamp, Value, Version};
use crate::ports::LogRecord;

/// The longest line: JSON may need six bytes for one of a value.
pub const MAX_LINE_BYTES: u64 = 6 * (MAX_VALUE_BYTES as u64 + 4_096);

const KINDS: &str = "write, tombstone, clock_bound, horizon or expunged";

/// In the order of the fields.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'a, str>>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    node: Option<Cow<'a, str>>,
}

/// Appends a record as a line, with its line break.
pub fn encode(record: &LogRecord, out: &mut Vec<u8>) {
    let (kind, key, value, timestamp, node) = match record {
        LogRecord::Write(KeyedEntry { key, entry }) => {
            let kind = if entry.is_tombstone() { "tombstone" } else { "write" };
            let Version { timestamp, node } = entry.version;
            (kind, Some(key), entry.value(), timestamp, Some(node))
        }
        LogRecord::ClockBound(bound) => ("clock_bound", None, None, *bound, None),
        LogRecord::Horizon(horizon) => ("horizon", None, None, *horizon, None),
        LogRecord::Expunged { key, version: Version { timestamp, node } } => {
            ("expunged", Some(key), None, *timestamp, Some(*node))
        }
    };
    let line = Line {
        kind: kind.into(),
        key: key.map(|key| key.as_str().into()),
        value: value.map(|value| value.as_str().into()),
        timestamp: shown(timestamp).into(),
        node: node.map(|node| node.to_string().into()),
    };
    // Memory takes everything, and there is nothing in a line that JSON cannot say.
    serde_json::to_writer(&mut *out, &line).ok();
    out.push(b'\n');
}

/// The record that a line says, or what is wrong with it and what is expected.
///
/// # Errors
/// As a sentence without the number of the line.
pub fn decode(line: &[u8]) -> Result<LogRecord, String> {
    let no_object =
        |what: &str| format!("{what}; expected an object with \"kind\" ({KINDS}) and its fields");
    // An array of five would do, if it were not asked.
    if !line.trim_ascii_start().starts_with(b"{") {
        return Err(no_object("this is no object"));
    }
    let line: Line<'_> = serde_json::from_slice(line).map_err(|error| {
        // There is one line, and its number here is not that in the file.
        no_object(error.to_string().split(" at line ").next().unwrap_or_default())
    })?;
    let timestamp = parse(&line.timestamp)?;
    let fields = match line.kind.as_ref() {
        "write" => "key, value, timestamp and node",
        "tombstone" | "expunged" => "key, timestamp and node",
        "clock_bound" | "horizon" => "timestamp alone",
        other => return Err(format!("there is no kind {other:?}; expected {KINDS}")),
    };
    let expected = || format!("the fields do not fit a {}; expected {fields}", line.kind);
    if matches!(line.kind.as_ref(), "clock_bound" | "horizon") {
        if line.key.is_some() || line.value.is_some() || line.node.is_some() {
            return Err(expected());
        }
        let is_bound = line.kind == "clock_bound";
        let record = if is_bound { LogRecord::ClockBound } else { LogRecord::Horizon };
        return Ok(record(timestamp));
    }
    let (Some(key), Some(node)) = (&line.key, &line.node) else { return Err(expected()) };
    let key = Key::new(key).map_err(|error| error.to_string())?;
    let node = node.parse::<NodeId>().map_err(|error| format!("node {node:?}: {error}"))?;
    let version = Version::new(timestamp, node);
    let entry = match (line.kind.as_ref(), &line.value) {
        ("write", Some(value)) if value.len() > MAX_VALUE_BYTES => {
            let bytes = value.len();
            return Err(format!("the value has {bytes} bytes; expected at most {MAX_VALUE_BYTES}"));
        }
        ("write", Some(value)) => Entry::live(version, Value::new(value)),
        ("tombstone", None) => Entry::tombstone(version),
        ("expunged", None) => return Ok(LogRecord::Expunged { key, version }),
        _ => return Err(expected()),
    };
    Ok(LogRecord::Write(KeyedEntry::new(key, entry)))
}

fn shown(timestamp: Timestamp) -> String {
    let at = jiff::Timestamp::from_nanosecond(timestamp.as_nanos().into());
    format!("{:.9}", at.unwrap_or_default())
}

fn parse(text: &str) -> Result<Timestamp, String> {
    let wrong = || {
        format!(
            "timestamp {text:?}; expected one as 2026-01-31T12:00:00.123456789Z, of the years 1970 to 2554"
        )
    };
    let at: jiff::Timestamp = text.parse().map_err(|_| wrong())?;
    u64::try_from(at.as_nanosecond()).map(Timestamp::from_nanos).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};

    fn line(record: &LogRecord) -> String {
        let mut bytes = Vec::new();
        encode(record, &mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_record_survives_its_line(
            key in "\\PC{1,40}|[\\x00-\\x1f\"\\\\]{1,20}",
            value in proptest::option::of("\\PC{0,80}|[\\x00-\\x1f\"\\\\]{0,20}"),
            time in any::<u64>(), node in any::<u64>(),
        ) {
            let version = Version::new(Timestamp::from_nanos(time), NodeId::new(node));
            let key = Key::new(&key).unwrap();
            let entry = value.map_or(Entry::tombstone(version), |v| Entry::live(version, Value::new(&v)));
            for record in [
                LogRecord::Write(KeyedEntry::new(key.clone(), entry)),
                LogRecord::ClockBound(version.timestamp),
                LogRecord::Horizon(version.timestamp),
                LogRecord::Expunged { key, version },
            ] {
                let text = line(&record);
                prop_assert_eq!(text.matches('\n').count(), 1);
                prop_assert_eq!(decode(text.as_bytes()), Ok(record));
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(decode(&bytes));
        }
    }

    #[test]
    fn the_lines_are_those_of_the_reference() {
        let reference = include_str!("../../docs/log-format.md");
        let lines = reference.lines().filter(|line| line.starts_with(r#"{"kind":"#));
        let mut kinds = 0;
        for text in lines {
            let record = decode(text.as_bytes()).unwrap();
            assert_eq!(line(&record).trim_end(), text);
            kinds += 1;
        }
        assert_eq!(kinds, 5);
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_expected() {
        const AT: &str = r#""timestamp":"2026-01-31T12:00:00Z""#;
        const NODE: &str = r#""node":"1f0c8e3a5b7d9241""#;
        for (text, says) in [
            (String::new(), &["expected an object"][..]),
            (
                r#"["write","k","v","2026-01-31T12:00:00Z","1f0c8e3a5b7d9241"]"#.into(),
                &["no object"],
            ),
            (r#"{"kind":"write""#.into(), &["expected"]),
            (format!(r#"{{"kind":"write","key":"k","vlaue":"v",{AT},{NODE}}}"#), &["vlaue"]),
            (
                format!(r#"{{"kind":"write","key":"k","key":"l","value":"v",{AT},{NODE}}}"#),
                &["key"],
            ),
            (
                format!(r#"{{"kind":"wirte","key":"k","value":"v",{AT},{NODE}}}"#),
                &["wirte", "tombstone"],
            ),
            (format!(r#"{{"kind":"write","key":"k",{AT},{NODE}}}"#), &["key, value, timestamp"]),
            (format!(r#"{{"kind":"write","key":"k","value":null,{AT},{NODE}}}"#), &["key, value"]),
            (format!(r#"{{"kind":"write","key":"k","value":5,{AT},{NODE}}}"#), &["integer"]),
            (format!(r#"{{"kind":"write","key":"","value":"v",{AT},{NODE}}}"#), &["1 to 1024"]),
            (format!(r#"{{"kind":"write","key":"k","value":"v",{AT}}}"#), &["and node"]),
            (format!(r#"{{"kind":"write","key":"k","value":"v",{NODE}}}"#), &["timestamp"]),
            (
                format!(r#"{{"kind":"write","key":"k","value":"v",{AT},"node":"7"}}"#),
                &["16 hexadecimal"],
            ),
            (
                format!(r#"{{"kind":"tombstone","key":"k","value":"v",{AT},{NODE}}}"#),
                &["tombstone", "key, timestamp"],
            ),
            (format!(r#"{{"kind":"horizon","key":"k",{AT}}}"#), &["timestamp alone"]),
            (r#"{"kind":"horizon","timestamp":"yesterday"}"#.into(), &["yesterday", "2026-01-31T"]),
            (r#"{"kind":"horizon","timestamp":"1969-12-31T23:59:59Z"}"#.into(), &["1970"]),
            (r#"{"kind":"horizon","timestamp":"2600-01-01T00:00:00Z"}"#.into(), &["2554"]),
            (format!(r#"{{"kind":"horizon",{AT}}} x"#), &["trailing"]),
        ] {
            let refused = decode(text.as_bytes()).unwrap_err();
            for part in says {
                assert!(refused.contains(part), "{text}: {part:?} is not in {refused:?}");
            }
            assert!(!refused.contains("line 1"), "{refused}");
        }
    }

    #[test]
    fn a_time_in_another_zone_is_the_same_time() {
        let text = r#"{"kind":"horizon","timestamp":"2026-01-31T13:00:00.5+01:00"}"#;
        let record = decode(text.as_bytes()).unwrap();
        assert!(line(&record).contains("2026-01-31T12:00:00.500000000Z"));
    }
}
