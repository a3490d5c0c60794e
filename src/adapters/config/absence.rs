//! What counts as left out in a configuration, and what must not.
//!
//! `None`, `null` and `~` say in words that there is to be no value. Nothing at all says that too, but for
//! the keys that keep strangers out: a template whose variable was empty must not open a node.

use std::fmt;

use figment::value::Value;
use serde::de::{Error, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::keys::KeySpec;

/// The keys that must not be left blank.
pub(super) const CLOSING: [&str; 7] = [
    "tokens",
    "metrics_need_token",
    "http_tls_cert",
    "http_tls_key",
    "peer_tls_ca",
    "peer_tls_cert",
    "peer_tls_key",
];

/// Whether this says that there is to be no value.
pub(super) fn is_absent(text: &str) -> bool {
    matches!(text, "None" | "null" | "~")
}

/// The value without what is left out in it.
pub(super) fn present(value: Value) -> Option<Value> {
    match value {
        Value::Empty(..) => None,
        Value::String(_, text) if is_absent(&text) => None,
        Value::Array(tag, items) => {
            Some(Value::Array(tag, items.into_iter().filter_map(present).collect()))
        }
        Value::Dict(tag, values) => {
            let given = values.into_iter().filter_map(|(key, value)| Some((key, present(value)?)));
            Some(Value::Dict(tag, given.collect()))
        }
        value => Some(value),
    }
}

/// Whether an environment variable counts: orchestrators that cannot leave one out set it to nothing.
pub(super) fn counts(variable: &str, text: &str) -> bool {
    let is_of = |key: &&str| KeySpec::find(key).is_some_and(|key| key.variable() == variable);
    !text.is_empty() || CLOSING.iter().any(is_of)
}

/// What is wrong with a key that was left blank, behind its place.
pub(super) fn blank(key: &str) -> String {
    let expected = KeySpec::find(key).map_or("a value", |key| key.expected);
    format!(
        "it is empty, which does not say that there is to be none; expected {expected}; or write None, or \
         leave the key out"
    )
}

/// The keys that must not be left blank, and are in this YAML, where a value that is left blank and one
/// that is `null` are the same once they are read.
pub(super) fn blank_in(yaml: &str) -> Vec<&'static str> {
    // What is wrong beside that is found out when it is read for good.
    serde_yaml::from_str(yaml).map(|Blank(keys)| keys).unwrap_or_default()
}

/// The keys of a mapping that were left blank.
struct Blank(Vec<&'static str>);

impl<'de> Deserialize<'de> for Blank {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Mapping)
    }
}

struct Mapping;

impl<'de> Visitor<'de> for Mapping {
    type Value = Blank;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Blank, A::Error> {
        let mut blank = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            match CLOSING.iter().find(|key| **key == name) {
                Some(key) => blank.extend(map.next_value::<IsBlank>()?.0.then_some(*key)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Blank(blank))
    }
}

/// Whether nothing is written where a value could be.
struct IsBlank(bool);

impl<'de> Deserialize<'de> for IsBlank {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // As text: what stands there, whatever it would be.
        from.deserialize_str(Scalar)
    }
}

struct Scalar;

impl Visitor<'_> for Scalar {
    type Value = IsBlank;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<IsBlank, E> {
        Ok(IsBlank(text.trim().is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_told_from_what_says_that_there_is_to_be_nothing() {
        for (yaml, expected) in [
            ("tokens:", &["tokens"][..]),
            ("tokens: # none yet", &["tokens"]),
            (
                "http_port: 1\npeer_tls_ca:\nhttp_tls_key: ''\nseed_node:\n",
                &["peer_tls_ca", "http_tls_key"],
            ),
            ("{tokens: , http_port: 1}", &["tokens"]),
            ("tokens: '  '", &["tokens"]),
            ("tokens: null", &[]),
            ("tokens: ~", &[]),
            ("tokens: None", &[]),
            ("tokens: a", &[]),
            ("metrics_need_token: false", &[]),
            ("policy:\n  - tokens:\n", &[]),
            ("# tokens:\n", &[]),
            ("", &[]),
            ("tokens: [", &[]),
        ] {
            assert_eq!(blank_in(yaml), expected, "{yaml}");
        }
    }

    #[test]
    fn every_key_that_closes_a_node_is_one() {
        for key in CLOSING {
            assert!(KeySpec::find(key).is_some(), "{key}");
        }
        let of_files = super::super::keys::KEYS.iter().filter(|key| key.name.contains("_tls_"));
        assert!(of_files.map(|key| key.name).all(|key| CLOSING.contains(&key)));
    }
}
