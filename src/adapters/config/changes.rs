//! `Changes`: what a configuration says anew, and what of that takes effect while a node runs.
//!
//! What can change at run time is asked anew for each request or connection, so that one that has
//! begun goes on under the limits with which it began. Everything else is what a node is (its
//! directory, its addresses, its cluster), or is wired up once: it waits for a restart, and is named
//! until then.

use std::fmt;

use figment::value::Value;
use serde_json::Value as Json;

use super::effective::Settings;
use super::forms;
use super::keys::KeySpec;

/// The keys that take effect when the configuration is read again. The waits that are not among them
/// belong to the server of connections, which is set up once.
const LIVE: [&str; 11] = [
    "log_level",
    "read_quorum",
    "write_quorum",
    "request_timeout",
    "max_value_bytes",
    "max_body_bytes",
    "max_memory",
    "max_in_flight",
    "max_pending_bytes",
    "max_connections",
    "body_read_timeout",
];

/// What a later reading of the configuration says otherwise than what a node runs with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// What takes effect at once.
    pub live: Vec<Change>,
    /// The keys that need a restart.
    pub need_restart: Vec<&'static str>,
}

/// A key that has another value.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The key.
    pub key: &'static str,
    from: Json,
    to: Json,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.key, Shown(&self.from), Shown(&self.to))
    }
}

struct Shown<'a>(&'a Json);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Json::Null => f.write_str("none"),
            Json::String(text) => f.write_str(text),
            other => write!(f, "{other}"),
        }
    }
}

impl Settings {
    /// What of `new` is not what a node with these settings runs with.
    ///
    /// # Errors
    /// When the file is gone that these settings were read from: to take that for a wish to have the
    /// defaults would lift every limit by a slip of `mv`.
    pub fn changes_to(&self, new: &Self) -> Result<Changes, String> {
        if let (Some(path), None) = (&self.file, &new.file) {
            let path = path.display();
            return Err(format!(
                "configuration file {path}, which the node was started with, does not exist any more; \
                 for the defaults, leave an empty file"
            ));
        }
        let mut changes = Changes::default();
        for ((key, was), (_, is)) in self.keys.iter().zip(&new.keys) {
            if canonical(key, &was.value) == canonical(key, &is.value) {
                continue;
            }
            if is_live(key) {
                let (from, to) = (was.value.clone(), is.value.clone());
                changes.live.push(Change { key: key.name, from, to });
            } else {
                changes.need_restart.push(key.name);
            }
        }
        // Hooks are put together once.
        if self.policy != new.policy {
            changes.need_restart.push("policy");
        }
        if self.webhooks != new.webhooks {
            changes.need_restart.push("webhooks");
        }
        Ok(changes)
    }

    /// Takes over what takes effect at once. The rest stays what the node was started with.
    pub fn take_live(&mut self, new: &Self) {
        self.file.clone_from(&new.file);
        for ((key, was), (_, is)) in self.keys.iter_mut().zip(&new.keys) {
            if is_live(key) {
                was.clone_from(is);
            }
        }
    }
}

fn is_live(key: &KeySpec) -> bool {
    LIVE.contains(&key.name)
}

/// A value such that equal ones are equal: `1GiB` is `1024MiB`.
fn canonical(key: &KeySpec, value: &Json) -> Json {
    let text = || value.as_str().map(|text| Value::from(text.to_owned()));
    let number = match key.placeholder {
        "SIZE" => text().and_then(|text| forms::size(&text).ok()).map(u128::from),
        "DURATION" => text().and_then(|text| forms::duration(&text).ok()).map(|d| d.as_millis()),
        _ => None,
    };
    let number = number.and_then(|number| u64::try_from(number).ok()).map(Json::from);
    number.unwrap_or_else(|| value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::config::keys::KEYS;
    use crate::adapters::config::{Invocation, parse};

    fn settings(args: &[&str]) -> Settings {
        let args = ["lally"].iter().chain(args).map(Into::into).collect();
        match parse(args, Vec::new()).unwrap() {
            Invocation::Run { settings, .. } => settings,
            other @ Invocation::Do(..) => panic!("{other:?}"),
        }
    }

    fn changes(from: &[&str], to: &[&str]) -> Changes {
        settings(from).changes_to(&settings(to)).unwrap()
    }

    #[test]
    fn what_takes_effect_at_once_is_told_from_what_needs_a_restart() {
        let to = ["--max-memory=1GiB", "--fsync=always", "--log-level=debug", "--grpc-port=1"];
        let changes = changes(&["--read-quorum=2"], &to);
        let live: Vec<_> = changes.live.iter().map(ToString::to_string).collect();
        let expected =
            ["read_quorum: 2 -> 1", "log_level: info -> debug", "max_memory: none -> 1GiB"];
        assert_eq!(live, expected);
        assert_eq!(changes.need_restart, ["grpc_port", "fsync"]);
    }

    #[test]
    fn the_same_in_other_words_is_no_change() {
        let from = ["--max-memory=1GiB", "--request-timeout=2s", "--max-value-bytes=1024"];
        let to = ["--max-memory=1024MiB", "--request-timeout=2000ms", "--max-value-bytes=1KiB"];
        assert_eq!(changes(&from, &to), Changes::default());
        // What is no size and no duration is what it says.
        assert_eq!(changes(&["--data-dir=1s"], &["--data-dir=1000ms"]).need_restart, ["data_dir"]);
    }

    #[test]
    fn what_needs_a_restart_is_named_until_then() {
        let (mut running, new) = (settings(&[]), settings(&["--max-in-flight=7", "--bind=::1"]));
        running.take_live(&new);
        let left = running.changes_to(&new).unwrap();
        assert_eq!((left.live, left.need_restart), (vec![], vec!["bind"]));
        let back = running.changes_to(&settings(&[])).unwrap();
        assert_eq!(back.live.len(), 1);
        assert!(back.need_restart.is_empty());
    }

    #[test]
    fn sections_need_a_restart_if_they_say_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            let file = dir.path().join("lally.yml");
            std::fs::write(&file, text).unwrap();
            settings(&["--config", file.to_str().unwrap()])
        };
        let webhook =
            |rest: &str| format!("webhooks: {{name: s, url: 'http://h/a', secret_file: f{rest}}}");
        let before = read(&format!("policy: [{{refuse: [add]}}]\n{}", webhook("")));
        let same = read(&format!("{}\npolicy: {{refuse: add}}", webhook(", timeout: 5s")));
        assert_eq!(before.changes_to(&same).unwrap(), Changes::default());
        let other = read(&format!("policy: {{refuse: get}}\n{}", webhook(", timeout: 6s")));
        let changes = before.changes_to(&other).unwrap();
        assert_eq!((changes.live, changes.need_restart), (vec![], vec!["policy", "webhooks"]));
        assert_eq!(before.changes_to(&read(&webhook(""))).unwrap().need_restart, ["policy"]);
        // Also in what is not shown of them.
        let moved =
            read(&format!("policy: {{refuse: add}}\n{}", webhook("").replace("h/a", "h/b")));
        assert_eq!(before.changes_to(&moved).unwrap().need_restart, ["webhooks"]);
    }

    #[test]
    fn a_file_that_is_gone_is_no_wish_for_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lally.yml");
        std::fs::write(&file, "").unwrap();
        let with = settings(&["--config", file.to_str().unwrap()]);
        let refused = with.changes_to(&settings(&[])).unwrap_err();
        assert!(refused.contains("lally.yml") && refused.contains("empty file"), "{refused}");
        assert!(settings(&[]).changes_to(&with).is_ok());
    }

    /// The table of the reference is this list.
    #[test]
    fn the_reference_names_what_takes_effect_at_once() {
        let reference = include_str!("../../../docs/configuration.md");
        let start = reference.find("## Changing settings").unwrap();
        let table = reference[start..].split("\n## ").next().unwrap();
        for key in &KEYS {
            let row = format!("| `{}` |", key.name);
            assert_eq!(table.contains(&row), is_live(key), "{}", key.name);
        }
    }
}
