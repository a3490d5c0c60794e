//! `Section`: a mapping inside the file, for what does not fit into one line of it.
//!
//! Sections stand in the file only: lists of mappings have no form that suits a flag or an environment
//! variable. The same is held of them as of the keys: what is unknown is refused, `None` is as good as
//! left out, and a refusal says where the mistake is and what is expected.

use figment::value::{Dict, Value};

use super::forms::{self, Wrong};

/// A key of the file that holds a list of mappings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct SectionSpec {
    pub(super) name: &'static str,
    /// Completes "expected ..." in refusals.
    pub(super) expected: &'static str,
}

/// Every section.
pub(super) const SECTIONS: [SectionSpec; 2] = [
    SectionSpec {
        name: "policy",
        expected: "a list of rules, as docs/hooks.md has them: - {refuse: [add, remove], keys: [\"frozen:*\"]}",
    },
    SectionSpec {
        name: "webhooks",
        expected: "a list of webhooks, as docs/hooks.md has them: - {name: search, url: \"http://HOST/PATH\", secret_file: PATH}",
    },
];

impl SectionSpec {
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        SECTIONS.iter().find(|section| section.name == name)
    }
}

/// One mapping of a section.
pub(super) struct Section<'a> {
    /// What a refusal calls it.
    called: String,
    values: &'a Dict,
}

impl<'a> Section<'a> {
    /// The mappings of a list, or of a list of one that was left out. Nothing but these keys may stand
    /// in them.
    pub(super) fn all(
        value: &'a Value,
        what: &str,
        keys: &[&str],
    ) -> Result<Vec<Section<'a>>, Wrong> {
        let items = match value {
            Value::Array(_, items) => items.as_slice(),
            one => std::slice::from_ref(one),
        };
        let numbered = items.iter().enumerate();
        numbered.map(|(at, item)| Self::open(item, format!("{what} {}", at + 1), keys)).collect()
    }

    fn open(value: &'a Value, called: String, keys: &[&str]) -> Result<Self, Wrong> {
        let Value::Dict(_, values) = value else {
            return Err(format!("{called} is no mapping but {}", forms::shown(value)));
        };
        match values.keys().find(|key| !keys.contains(&key.as_str())) {
            Some(unknown) => {
                let (unknown, known) = (forms::quoted(unknown), keys.join(", "));
                Err(format!("{called} has an unknown key {unknown}; known are {known}"))
            }
            None => Ok(Self { called, values }),
        }
    }

    pub(super) fn optional<T>(
        &self,
        key: &str,
        read: impl FnOnce(&Value) -> Result<T, Wrong>,
    ) -> Result<Option<T>, Wrong> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        read(value).map(Some).map_err(|wrong| self.wrong(key, &wrong))
    }

    pub(super) fn required<T>(
        &self,
        key: &str,
        read: impl FnOnce(&Value) -> Result<T, Wrong>,
    ) -> Result<T, Wrong> {
        self.optional(key, read)?.ok_or_else(|| format!("{} has no {key}", self.called))
    }

    /// What is wrong with the value of a key.
    pub(super) fn wrong(&self, key: &str, wrong: &str) -> Wrong {
        format!("{}, {key}: {wrong}", self.called)
    }
}

/// Texts as they stand, commas and all: one, or a list of them.
pub(super) fn texts(value: &Value) -> Result<Vec<String>, Wrong> {
    let items = match value {
        Value::Array(_, items) => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    items.iter().map(|item| forms::text(item).map(str::to_owned)).collect()
}
