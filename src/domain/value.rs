//! Values: UTF-8 text of any content, shared between the store, the log and the network.
//!
//! The text is owned exactly: a value never keeps the network frame alive from which it was cut.
//! How long a value may be is a limit of the edges, not of the type; none may allow more than
//! [`MAX_VALUE_BYTES`], for which logs, messages and buffers have room.

use std::fmt;

use arcstr::ArcStr;

/// The longest value that any node may be configured to take, in bytes of UTF-8.
pub const MAX_VALUE_BYTES: usize = 16 << 20;

/// What a register holds. A clone shares the text. Equality and order are by bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(ArcStr);

impl Value {
    /// A value with this text, copied.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Value {
    /// The length only: values belong to users and stay out of logs and panic messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_does_not_show_the_text() {
        assert_eq!(format!("{:?}", Value::new("secret")), "Value(6 bytes)");
    }
}
