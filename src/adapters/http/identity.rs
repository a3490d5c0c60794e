//! By what a request is found again: its id, and the trace that it is a part of.
//!
//! An id that a client sends comes back with the answer. Otherwise one is made up, but not for the
//! calls on data that go well in good time: nearly all are such, nobody looks for them, and a header
//! costs more than a tenth of what a read does.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::domain::TraceContext;

/// The header of the id, both ways.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Of the W3C's recommendation "Trace Context".
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A longer id is no id.
const MAX_ID_BYTES: usize = 128;

/// Makes ids up: unlike those of other nodes, by chance, and of each other.
#[derive(Debug)]
pub(super) struct Ids {
    first: u64,
    made: AtomicU64,
}

impl Default for Ids {
    fn default() -> Self {
        Self { first: rand::random(), made: AtomicU64::new(0) }
    }
}

impl Ids {
    fn make(&self) -> Option<HeaderValue> {
        let number = self.first.wrapping_add(self.made.fetch_add(1, Ordering::Relaxed));
        HeaderValue::try_from(format!("{number:016x}")).ok()
    }
}

/// What a request says of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    id: Option<HeaderValue>,
    trace: Option<TraceContext>,
}

impl Identity {
    /// What stands in the head of a request. What is no id, or has no meaning, is passed over.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        Self {
            id: headers.get(REQUEST_ID).filter(|id| is_id(id)).cloned(),
            trace: headers
                .get(TRACEPARENT)
                .and_then(|header| TraceContext::parse(header.to_str().ok()?)),
        }
    }

    /// With an id from now on, in any case.
    pub(super) fn or_made_by(&mut self, ids: &Ids) {
        if self.id.is_none() {
            self.id = ids.make();
        }
    }

    /// The id, if there is one.
    pub(super) fn id(&self) -> Option<&str> {
        self.id.as_ref()?.to_str().ok()
    }

    /// The trace that the request is a part of, if it says so.
    pub(super) const fn trace(&self) -> Option<TraceContext> {
        self.trace
    }

    /// Its id, to be shown.
    pub(super) fn trace_id(&self) -> Option<String> {
        self.trace.map(TraceContext::trace_id)
    }

    /// Puts the id, if there is one, into the head of the answer.
    pub(super) fn sign(self, headers: &mut HeaderMap) {
        if let Some(id) = self.id {
            headers.insert(REQUEST_ID, id);
        }
    }
}

/// Whether this is an id that can stand in logs and headers: visible ASCII, and not long.
fn is_id(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    (1..=MAX_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_visible_and_not_long() {
        let long = "i".repeat(MAX_ID_BYTES);
        for (text, is) in [
            ("a", true),
            ("req-1/2:{3}", true),
            (long.as_str(), true),
            ("", false),
            ("a b", false),
            ("a\tb", false),
            ("\u{e9}", false),
            (&format!("{long}i"), false),
        ] {
            let value = HeaderValue::from_bytes(text.as_bytes()).unwrap();
            assert_eq!(is_id(&value), is, "{text:?}");
        }
    }

    #[test]
    fn ids_that_are_made_up_differ() {
        let ids = Ids::default();
        let made: std::collections::BTreeSet<_> =
            (0..100).map(|_| ids.make().unwrap().to_str().unwrap().to_owned()).collect();
        assert!(made.len() == 100 && made.iter().all(|id| id.len() == 16));
        assert_ne!(Ids::default().first, ids.first);
    }
}
