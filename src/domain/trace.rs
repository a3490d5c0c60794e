//! The trace that a request is a part of, as the W3C's recommendation "Trace Context" has it.

use std::fmt;

/// Which trace, which of its spans the work is done for, and with what flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
}

impl TraceContext {
    /// The length of the form between nodes.
    pub const BYTES: usize = 25;

    /// What a `traceparent` says: `00-`, 32 hexadecimal digits, `-`, 16, `-`, 2, all lower case, of
    /// which neither id is zero. A later version may have more behind that, and `ff` is none. `None`
    /// for everything else.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.splitn(5, '-');
        let [version] = hex(parts.next()?)?;
        let (trace, span, [flags]) =
            (hex(parts.next()?)?, hex(parts.next()?)?, hex(parts.next()?)?);
        let ends = parts.next().is_none() || version != 0;
        Self { trace, span, flags }.if_valid().filter(|_| ends && version != 0xff)
    }

    /// From the form between nodes; `None` if this is none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (trace, rest) = bytes.split_first_chunk()?;
        let (span, rest) = rest.split_first_chunk()?;
        let [flags] = rest else { return None };
        Self { trace: *trace, span: *span, flags: *flags }.if_valid()
    }

    /// The form between nodes: the ids, then the flags.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [self.flags; Self::BYTES];
        for (place, byte) in bytes.iter_mut().zip(self.trace.into_iter().chain(self.span)) {
            *place = byte;
        }
        bytes
    }

    /// The id of the trace, 32 hexadecimal digits, as it stands in logs.
    pub fn trace_id(self) -> String {
        Hex(&self.trace).to_string()
    }

    fn if_valid(self) -> Option<Self> {
        (self.trace != [0; 16] && self.span != [0; 8]).then_some(self)
    }
}

/// The bytes that these digits are, exactly as many as are wanted.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (place, [high, low]) in bytes.iter_mut().zip(pairs) {
        *place = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_traceparent_is_taken_if_it_follows_the_recommendation_to_the_letter() {
        let trace_id = |text: &str| TraceContext::parse(text).map(TraceContext::trace_id);
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        assert_eq!(trace_id(&good).as_deref(), Some(TRACE));
        let later = format!("cc-{TRACE}-00f067aa0ba902b7-01-more");
        assert_eq!(trace_id(&later).as_deref(), Some(TRACE));
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
            assert_eq!(TraceContext::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn between_nodes_it_has_25_bytes_and_anything_else_is_none() {
        let context = TraceContext::parse(&format!("00-{TRACE}-00f067aa0ba902b7-01")).unwrap();
        let bytes = context.to_bytes();
        assert_eq!(bytes[..2], [0x4b, 0xf9]);
        assert_eq!(bytes[16..], [0x00, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7, 0x01]);
        assert_eq!(TraceContext::from_bytes(&bytes), Some(context));
        for wrong in [&[][..], &bytes[..24], &[&bytes[..], &[0]].concat(), &[0; 25]] {
            assert_eq!(TraceContext::from_bytes(wrong), None, "{wrong:?}");
        }
    }
}
