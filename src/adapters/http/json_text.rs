//! Texts as JSON strings (RFC 8259, section 7), many bytes at a time: of a long value, writing it
//! byte by byte is most of what its answer costs.

/// Bytes that are looked at together. Compilers turn the loop over them into a few instructions.
const LANES: usize = 32;

/// Appends a text as a JSON string with its quotes, as `serde_json` writes it: escaped are the quote,
/// the backslash and what is below the space.
pub(super) fn push_text(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let (plain, escaped) = rest.split_at(plain_bytes(rest));
        out.extend_from_slice(plain);
        let Some((byte, after)) = escaped.split_first() else { break };
        push_escaped(out, *byte);
        rest = after;
    }
    out.push(b'"');
}

/// Whether the text is a JSON string as it is, but for the quotes.
pub(super) fn is_plain(text: &str) -> bool {
    plain_bytes(text.as_bytes()) == text.len()
}

/// How many bytes at the beginning stand for themselves.
pub(super) fn plain_bytes(bytes: &[u8]) -> usize {
    let is_plain = |lanes: &&[u8]| !lanes.iter().fold(false, |any, byte| any | is_escaped(*byte));
    let plain = LANES * bytes.chunks_exact(LANES).take_while(is_plain).count();
    let rest = bytes.iter().skip(plain);
    plain + rest.take_while(|byte| !is_escaped(**byte)).count()
}

const fn is_escaped(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\'
}

fn push_escaped(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0c => b'f',
        b'\r' => b'r',
        _ => {
            let digit = |nibble: u8| if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte & 15)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(text: &str) -> String {
        let mut out = Vec::new();
        push_text(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_character_is_written_as_serde_json_does_at_every_place() {
        for character in
            (0..=0x2ff).filter_map(char::from_u32).chain(['🦀', '\u{2028}', '\u{ffff}'])
        {
            for place in 0..=2 * LANES + 1 {
                let text = format!(
                    "{}{character}{}",
                    "a".repeat(place),
                    "b".repeat(2 * LANES - place / 2)
                );
                assert_eq!(written(&text), serde_json::to_string(&text).unwrap(), "{text:?}");
            }
        }
    }

    #[test]
    fn the_empty_text_and_one_that_is_escaped_throughout() {
        assert_eq!(written(""), r#""""#);
        for length in 0..3 * LANES {
            let text = "\"\u{1}\\".repeat(length);
            assert_eq!(written(&text), serde_json::to_string(&text).unwrap());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_written_as_serde_json_does(text in any::<String>()) {
            prop_assert_eq!(written(&text), serde_json::to_string(&text).unwrap());
        }
    }
}
