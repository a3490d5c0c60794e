//! Versions: which of two writes of a key is the newer one.

use std::fmt;
use std::str::FromStr;

/// Nanoseconds since the Unix epoch, from a [hybrid logical clock](super::HybridClock).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The epoch: older than every write.
    pub const ZERO: Self = Self(0);

    /// This many nanoseconds since the Unix epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the Unix epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This instant and `nanos` more, at most the end of time (the year 2554).
    #[must_use]
    pub const fn plus_nanos(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// Nanoseconds by which this instant lies after `earlier`; 0 if it does not.
    pub const fn nanos_after(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The random 64-bit name of a node, kept in its data directory. Shown as 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u64);

impl NodeId {
    /// The node of this number.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// The number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = InvalidNodeId;

    fn from_str(text: &str) -> Result<Self, InvalidNodeId> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u64::from_str_radix(text, 16) {
            Ok(id) if digits => Ok(Self(id)),
            _ => Err(InvalidNodeId),
        }
    }
}

/// The text is not 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a node id is 16 hexadecimal digits")]
pub struct InvalidNodeId;

/// When and by whom a write was stamped. The larger one wins; two writes never share one, because
/// a node never stamps the same timestamp twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// When, by the coordinator's hybrid logical clock. Compared first.
    pub timestamp: Timestamp,
    /// The coordinator; decides between equal timestamps.
    pub node: NodeId,
}

impl Version {
    /// A version of this time by this node.
    pub const fn new(timestamp: Timestamp, node: NodeId) -> Self {
        Self { timestamp, node }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_timestamp_wins_and_the_node_decides_between_equal_ones() {
        let v = |t, n| Version::new(Timestamp::from_nanos(t), NodeId::new(n));
        assert!(v(2, 1) > v(1, 9));
        assert!(v(2, 2) > v(2, 1));
    }

    #[test]
    fn a_node_id_survives_its_text_form() {
        for id in [0, 1, 0xdead_beef, u64::MAX] {
            assert_eq!(NodeId::new(id).to_string().parse(), Ok(NodeId::new(id)));
        }
        for text in ["", "1", "+00000000000000a", "00000000000000000", "zzzzzzzzzzzzzzzz"] {
            assert_eq!(text.parse::<NodeId>(), Err(InvalidNodeId), "{text}");
        }
    }
}
