//! `Cut`: a body with its long text left out, so that a JSON reader that looks at each byte need not
//! look at that one's: of a long value, that is most of what its request costs to read.

use super::json_text::plain_bytes;

/// A shorter text is read sooner than it is cut out.
const LONG_TEXT_BYTES: usize = 4 * 1_024;

/// A body with a text left out.
#[derive(Debug)]
pub(super) struct Cut<'a> {
    /// The body with an empty text in its place: JSON exactly if the body is.
    around: Vec<u8>,
    /// Where in it the text was.
    at: usize,
    /// What was between its quotes. It has no escapes, so this is the text.
    pub(super) text: &'a str,
}

impl<'a> Cut<'a> {
    /// Cuts out the first long text that stands for itself. None if there is none, or the body is no
    /// JSON up to there.
    pub(super) fn of(body: &'a [u8]) -> Option<Self> {
        if body.len() < LONG_TEXT_BYTES {
            return None;
        }
        let mut at = 0;
        loop {
            // Outside of texts, JSON has no quotes.
            let begin = at + body.get(at..)?.iter().position(|byte| *byte == b'"')? + 1;
            let (end, is_escaped) = end_of(body, begin)?;
            if !is_escaped && end - begin >= LONG_TEXT_BYTES {
                let (before, after) = (body.get(..begin)?, body.get(end..)?);
                let text = std::str::from_utf8(body.get(begin..end)?).ok()?;
                return Some(Self { around: [before, after].concat(), at: begin, text });
            }
            at = end + 1;
        }
    }

    /// The body without the text.
    pub(super) fn around(&self) -> &[u8] {
        &self.around
    }

    /// Whether this, read from what is `around`, is what is there in place of the text: and not another
    /// empty text.
    pub(super) fn was_at(&self, empty: &str) -> bool {
        let place = self.around.get(self.at..).map(<[u8]>::as_ptr);
        empty.is_empty() && place == Some(empty.as_ptr())
    }
}

/// Where the text that begins here has its closing quote, and whether there are escapes before.
fn end_of(body: &[u8], begin: usize) -> Option<(usize, bool)> {
    let (mut end, mut is_escaped) = (begin, false);
    loop {
        end += plain_bytes(body.get(end..)?);
        match body.get(end)? {
            b'"' => return Some((end, is_escaped)),
            b'\\' => (end, is_escaped) = (end + 2, true),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(character: &str) -> String {
        character.repeat(LONG_TEXT_BYTES)
    }

    #[test]
    fn the_first_long_text_without_escapes_is_cut_out() {
        let (text, escaped) = (long("ä"), long(r#"\""#));
        let body = format!(r#"{{"a\"b":"{escaped}","" : "c","value":"{text}","d":"{text}"}}"#);
        let cut = Cut::of(body.as_bytes()).unwrap();
        assert_eq!(cut.text, text);
        let around = format!(r#"{{"a\"b":"{escaped}","" : "c","value":"","d":"{text}"}}"#);
        assert_eq!(std::str::from_utf8(cut.around()), Ok(around.as_str()));
    }

    #[test]
    fn only_the_empty_text_in_its_place_is_its_place() {
        let body = format!(r#"{{"a":"","value":"{}"}}"#, long("x"));
        let cut = Cut::of(body.as_bytes()).unwrap();
        let around = std::str::from_utf8(cut.around()).unwrap();
        let places: Vec<_> = (0..=around.len())
            .filter(|at| around.get(*at..*at).is_some_and(|empty| cut.was_at(empty)))
            .collect();
        assert_eq!(places, [r#"{"a":"","value":""#.len()]);
        assert!(!cut.was_at(&around[places[0]..=places[0]]));
        assert!(!cut.was_at(""));
    }

    #[test]
    fn nothing_is_cut_out_of_what_has_no_long_text_or_is_no_json() {
        let text = long("x");
        for body in [
            String::new(),
            long(" "),
            format!(r#"{{"value":"{}"}}"#, &text[1..]),
            format!(r#"{{"value":"{text}"#),
            format!(r#"{{"value":"{text}\"#),
            format!("{{\"value\":\"{text}\n\"}}"),
            format!(r#"{{"value":"{text}\n"}}"#),
        ] {
            assert!(Cut::of(body.as_bytes()).is_none(), "{} bytes", body.len());
        }
        let not_text = [br#"{"value":""#.as_slice(), &[0xff; LONG_TEXT_BYTES], br#""}"#].concat();
        assert!(Cut::of(&not_text).is_none());
    }
}
