//! `Event`: a change as the receiver gets it.

use bytes::Bytes;
use serde::Serialize;

use crate::domain::{Timestamp, Value, Version};
use crate::ports::{OpKind, Operation};

/// What a waiting event takes beside its body.
const OVERHEAD: u64 = 64;

/// A change, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// What was written, by which it is told from every other change.
    pub(super) version: Version,
    /// JSON.
    pub(super) body: Bytes,
}

/// What is the same in every event of a webhook.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) webhook: String,
    pub(super) cluster: String,
    /// Whether values are sent along.
    pub(super) values: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    webhook: &'a str,
    cluster: &'a str,
    node: String,
    kind: &'a str,
    key: &'a str,
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
}

impl Source {
    /// The event of a change; `None` if it is none, or does not say of which version.
    pub(super) fn event(&self, change: &Operation) -> Option<Event> {
        let version = change.version.filter(|_| change.kind != OpKind::Get)?;
        let body = Body {
            id: &id(version),
            webhook: &self.webhook,
            cluster: &self.cluster,
            node: version.node.to_string(),
            kind: change.kind.as_str(),
            key: change.key.as_str(),
            timestamp: shown(version.timestamp),
            value: change.value.as_ref().filter(|_| self.values).map(Value::as_str),
        };
        // Texts and nothing else: this cannot fail.
        let body = serde_json::to_vec(&body).ok()?.into();
        Some(Event { version, body })
    }
}

impl Event {
    /// The same for each delivery of the same change, and for no other change.
    pub(super) fn id(&self) -> String {
        id(self.version)
    }

    /// What it takes while it waits.
    pub(super) fn weight(&self) -> u64 {
        self.body.len() as u64 + OVERHEAD
    }
}

fn id(version: Version) -> String {
    format!("{:016x}-{}", version.timestamp.as_nanos(), version.node)
}

fn shown(timestamp: Timestamp) -> String {
    let at = jiff::Timestamp::from_nanosecond(timestamp.as_nanos().into());
    format!("{:.9}", at.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Key, NodeId};
    use crate::ports::Origin;

    fn change(kind: OpKind, value: Option<&str>) -> Operation {
        let version = Version::new(Timestamp::from_nanos(1_500_000_000), NodeId::new(10));
        Operation {
            key: Key::new("a \"b\"\n").unwrap(),
            kind,
            origin: Origin::Client,
            value: value.map(Value::new),
            version: Some(version),
        }
    }

    fn source(values: bool) -> Source {
        Source { webhook: "search".into(), cluster: "lally".into(), values }
    }

    #[test]
    fn an_event_says_what_changed_and_the_value_if_it_is_wanted() {
        let id = "0000000059682f00-000000000000000a";
        let expected = format!(
            r#"{{"id":"{id}","webhook":"search","cluster":"lally","node":"000000000000000a","kind":"add","key":"a \"b\"\n","timestamp":"1970-01-01T00:00:01.500000000Z","value":"v"}}"#
        );
        let event = source(true).event(&change(OpKind::Add, Some("v"))).unwrap();
        assert_eq!((event.id().as_str(), event.body), (id, expected.clone().into()));
        let without = source(false).event(&change(OpKind::Add, Some("v"))).unwrap();
        assert_eq!(without.body, expected.replace(r#","value":"v""#, ""));
        let removal = source(true).event(&change(OpKind::Remove, None)).unwrap();
        assert!(!removal.body.windows(7).any(|part| part == b"\"value\""));
    }

    #[test]
    fn a_read_and_a_change_that_has_no_version_are_no_events() {
        assert_eq!(source(true).event(&change(OpKind::Get, None)), None);
        let unversioned = Operation { version: None, ..change(OpKind::Add, Some("v")) };
        assert_eq!(source(true).event(&unversioned), None);
    }
}
