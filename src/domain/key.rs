//! Keys: non-empty UTF-8 text of at most [`MAX_KEY_BYTES`] bytes, cheap to clone.

use std::borrow::Borrow;
use std::fmt;

use arcstr::ArcStr;

/// Longest key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1_024;

/// The name of a register. A clone shares the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(ArcStr);

impl Key {
    /// A key with this text.
    ///
    /// # Errors
    /// [`InvalidKey`] when the text is empty or longer than [`MAX_KEY_BYTES`].
    pub fn new(text: &str) -> Result<Self, InvalidKey> {
        match text.len() {
            0 => Err(InvalidKey::Empty),
            n if n > MAX_KEY_BYTES => Err(InvalidKey::TooLong { bytes: n }),
            _ => Ok(Self(text.into())),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.as_str())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a text is not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// The text has no bytes.
    #[error("the key is empty; it must have 1 to {MAX_KEY_BYTES} bytes")]
    Empty,
    /// The text has more than [`MAX_KEY_BYTES`] bytes.
    #[error("the key has {bytes} bytes; it must have 1 to {MAX_KEY_BYTES} bytes of UTF-8")]
    TooLong {
        /// Length of the refused text.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_to_1024_bytes_not_characters() {
        assert_eq!(Key::new(""), Err(InvalidKey::Empty));
        assert!(Key::new("k").is_ok());
        assert!(Key::new(&"k".repeat(1_024)).is_ok());
        assert_eq!(Key::new(&"k".repeat(1_025)), Err(InvalidKey::TooLong { bytes: 1_025 }));
        assert_eq!(Key::new(&"é".repeat(513)), Err(InvalidKey::TooLong { bytes: 1_026 }));
    }

    #[test]
    fn any_text_is_kept_as_it_is() {
        for text in [" ", "a b", "a\nb", "\0", "\"", "🦀", "../../etc"] {
            assert_eq!(Key::new(text).map(|k| k.as_str().to_owned()), Ok(text.to_owned()));
        }
    }
}
