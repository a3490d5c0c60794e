//! By what a request is found again: its id, and the trace that it is a part of.
//!
//! An id that a client sends comes back with the answer. Otherwise one is made up, but not for the
//! calls on data that go well in good time: nearly all are such, nobody looks for them, and a header
//! costs more than a tenth of what a read does.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

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
    traceparent: Option<HeaderValue>,
}

impl Identity {
    /// What stands in the head of a request. What is no id, or has no meaning, is passed over.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        Self {
            id: headers.get(REQUEST_ID).filter(|id| is_id(id)).cloned(),
            // Taken apart only where it is shown.
            traceparent: headers.get(TRACEPARENT).cloned(),
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
    pub(super) fn trace_id(&self) -> Option<&str> {
        trace_id(self.traceparent.as_ref()?.to_str().ok()?)
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

/// The trace id of a `traceparent`: `00-`, 32 hexadecimal digits, `-`, 16, `-`, 2, all lower case, of
/// which neither id is zero. A later version may have more behind that, and `ff` is none.
fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.splitn(5, '-');
    let (version, trace, span, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, digits: usize| {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        text.len() == digits && text.bytes().all(hex)
    };
    let is_zero = |text: &str| text.bytes().all(|digit| digit == b'0');
    let fits = is_hex(version, 2) && is_hex(trace, 32) && is_hex(span, 16) && is_hex(flags, 2);
    let ends = parts.next().is_none() || version != "00";
    (fits && ends && version != "ff" && !is_zero(trace) && !is_zero(span)).then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

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

    #[test]
    fn a_trace_id_is_taken_from_what_follows_the_recommendation_to_the_letter() {
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        assert_eq!(trace_id(&good), Some(TRACE));
        assert_eq!(trace_id(&format!("cc-{TRACE}-00f067aa0ba902b7-01-more")), Some(TRACE));
        let zeros = "0".repeat(32);
        for wrong in [
            "",
            "00",
            &good[..54],
            &format!("{good}-more"),
            &format!("{good}0"),
            &good.to_uppercase(),
            &format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            &format!("00-{zeros}-00f067aa0ba902b7-01"),
            &format!("00-{TRACE}-0000000000000000-01"),
            &format!("00-{TRACE}x-00f067aa0ba902b7-01"),
            &format!("0-{TRACE}-00f067aa0ba902b7-01"),
        ] {
            assert_eq!(trace_id(wrong), None, "{wrong}");
        }
    }
}
