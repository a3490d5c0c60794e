//! `KeyFilter`: which keys something is about.
//!
//! Patterns are those that users know from Redis and from shells, without classes: `*` is any text,
//! the empty one too, `?` one character, the rest itself. A match takes time in proportion to the
//! pattern times the key at worst, so that no client can make a rule slow by its choice of keys.

use wildmatch::WildMatch;

/// Keys like any of some patterns and like none of others.
#[derive(Debug, Clone, Default)]
pub struct KeyFilter {
    any: Vec<WildMatch>,
    none: Vec<WildMatch>,
}

impl KeyFilter {
    /// Keys like one of `any` (all keys if that is empty), but for those like one of `none`.
    pub fn new(any: &[String], none: &[String]) -> Self {
        let patterns = |texts: &[String]| texts.iter().map(|text| WildMatch::new(text)).collect();
        Self { any: patterns(any), none: patterns(none) }
    }

    /// Whether it is about this key.
    pub fn includes(&self, key: &str) -> bool {
        let is_like = |pattern: &WildMatch| pattern.matches(key);
        (self.any.is_empty() || self.any.iter().any(is_like)) && !self.none.iter().any(is_like)
    }

    /// The same in words, to go behind a verb.
    pub(super) fn shown(&self) -> String {
        let list = |patterns: &[WildMatch]| {
            let shown: Vec<_> = patterns.iter().map(ToString::to_string).collect();
            shown.join(" or ")
        };
        match (self.any.as_slice(), self.none.as_slice()) {
            ([], []) => "any key".to_owned(),
            ([], none) => format!("keys other than {}", list(none)),
            (any, []) => format!("keys like {}", list(any)),
            (any, none) => format!("keys like {} other than {}", list(any), list(none)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(any: &[&str], none: &[&str]) -> KeyFilter {
        let texts =
            |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>();
        KeyFilter::new(&texts(any), &texts(none))
    }

    #[test]
    fn patterns_are_stars_question_marks_and_themselves() {
        for (pattern, key, is_like) in [
            ("user:*", "user:1", true),
            ("user:*", "user:", true),
            ("user:*", "users:1", false),
            ("user:*", "a user:1", false),
            ("*:secret", "a:b:secret", true),
            ("*", "", true),
            ("k?", "k\u{1F980}", true),
            ("k?", "k", false),
            ("a.[b]+", "a.[b]+", true),
            ("K", "k", false),
            ("line*", "line\nbreak", true),
        ] {
            assert_eq!(filter(&[pattern], &[]).includes(key), is_like, "{pattern} {key}");
        }
    }

    #[test]
    fn a_key_is_included_by_any_pattern_and_excluded_by_any_other() {
        let some = filter(&["a:*", "b:*"], &["*:tmp"]);
        let included: Vec<_> =
            ["a:1", "b:1", "c:1", "a:tmp"].into_iter().filter(|key| some.includes(key)).collect();
        assert_eq!(included, ["a:1", "b:1"]);
        assert!(filter(&[], &[]).includes("anything"));
        assert!(!filter(&[], &["x"]).includes("x"));
    }

    #[test]
    fn a_pattern_made_to_be_slow_is_not() {
        let (pattern, key) = ("*a".repeat(64), "a".repeat(1_023) + "b");
        let begun = std::time::Instant::now();
        assert!(!filter(&[&pattern], &[]).includes(&key));
        assert!(begun.elapsed() < std::time::Duration::from_secs(1));
    }
}
