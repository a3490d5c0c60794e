//! `Settings`: what each key is set to, and by what.
//!
//! [`Config`] is what a node works with; this is what people are shown, and what two readings of the
//! configuration are compared by. Values are those that were written down. What is secret is in files, and
//! here are their paths; the URL of a webhook, whose path may be as good as one, is shown up to its host.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use axum::http::Uri;
use figment::value::Value;
use serde_json::{Map, Value as Json, json};

use super::keys::{CONFIG, KEYS, KeySpec, Kind};
use super::section::{SECTIONS, SectionSpec};
use super::{Config, PolicyRuleConfig, WebhookConfig, forms};

/// What set a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Default,
    /// The file of this path.
    File(String),
    /// The variable of this name.
    Environment(String),
    /// This flag.
    CommandLine(String),
}

impl Source {
    fn kind(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::File(_) => "file",
            Self::Environment(_) => "environment",
            Self::CommandLine(_) => "command line",
        }
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Default => None,
            Self::File(name) | Self::Environment(name) | Self::CommandLine(name) => Some(name),
        }
    }
}

/// What a key is set to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Setting {
    /// `null` if it is set to nothing.
    pub(super) value: Json,
    pub(super) source: Source,
}

impl Setting {
    /// Of a value that is known to be right.
    pub(super) fn new(key: &KeySpec, value: &Value, source: Source) -> Self {
        let list = (key.kind == Kind::List).then(|| forms::list(value).ok()).flatten();
        let value = match list {
            Some(items) => items.into(),
            None => serde_json::to_value(value).unwrap_or_default(),
        };
        Self { value, source }
    }

    /// Of a section that is known to be right.
    pub(super) fn of_section(value: &Value, source: Source) -> Self {
        Self { value: without_secrets(serde_json::to_value(value).unwrap_or_default()), source }
    }
}

/// How settings are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShowForm {
    /// With where each comes from.
    pub with_sources: bool,
    /// As JSON, for programs.
    pub json: bool,
}

/// Every key with its effective value.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The file that was read, if any.
    pub(super) file: Option<PathBuf>,
    /// In the order of the help.
    pub(super) keys: Vec<(&'static KeySpec, Setting)>,
    sections: Vec<(&'static SectionSpec, Setting)>,
    /// What the sections come to, to compare them by.
    pub(super) policy: Vec<PolicyRuleConfig>,
    pub(super) webhooks: Vec<WebhookConfig>,
}

impl Settings {
    /// Of this configuration, which these settings gave.
    pub(super) fn new(config: &Config, mut found: BTreeMap<&'static str, Setting>) -> Self {
        let keys = KEYS.iter().filter(|key| key.name != CONFIG).map(|key| {
            let found = found.remove(key.name);
            let derived = || Setting { value: derived(config, key), source: Source::Default };
            (key, found.unwrap_or_else(derived))
        });
        let keys = keys.collect();
        let sections = SECTIONS.iter().map(|section| {
            let none = || Setting { value: Json::Null, source: Source::Default };
            (section, found.remove(section.name).unwrap_or_else(none))
        });
        let (file, sections) = (config.config_file.clone(), sections.collect());
        let (policy, webhooks) = (config.policy.clone(), config.webhooks.clone());
        Self { file, keys, sections, policy, webhooks }
    }

    /// Keys and sections, by name.
    fn all(&self) -> impl Iterator<Item = (&'static str, &Setting)> {
        let sections = self.sections.iter().map(|(section, setting)| (section.name, setting));
        self.keys.iter().map(|(key, setting)| (key.name, setting)).chain(sections)
    }

    /// What is said of a configuration without a mistake.
    pub(super) fn found_fine(&self) -> String {
        let count = |kind| self.all().filter(|(_, s)| s.source.kind() == kind).count();
        let file = match &self.file {
            Some(path) => format!("{} from {}", count("file"), path.display()),
            None => "no file".to_owned(),
        };
        let (variables, flags) = (count("environment"), count("command line"));
        format!(
            "fine: {} settings ({file}, {variables} from the environment, {flags} from the command \
             line)\n",
            self.all().count()
        )
    }

    /// The settings as text: as YAML, which is a configuration file that says the same, or as JSON.
    pub(super) fn shown(&self, form: ShowForm) -> String {
        if form.json {
            let all = self.all().map(|(name, setting)| (name.to_owned(), setting.json(form)));
            let object = Json::Object(all.collect::<Map<_, _>>());
            return format!("{object:#}\n");
        }
        let lines: String = self.all().map(|(name, setting)| setting.line(name, form)).collect();
        let file = self.file.as_ref().map(|path| one_line(&path.display().to_string()));
        let file = file.map_or("none".to_owned(), |path| path);
        format!("# configuration file: {file}\n{lines}")
    }
}

impl Setting {
    fn json(&self, form: ShowForm) -> Json {
        if form.with_sources {
            let Self { value, source } = self;
            json!({"value": value, "source": source.kind(), "name": source.name()})
        } else {
            self.value.clone()
        }
    }

    fn line(&self, name: &str, form: ShowForm) -> String {
        let mut line = format!("{name}: {}", yaml(&self.value));
        if form.with_sources {
            let name = self.source.name().map(|name| format!(" {}", one_line(name)));
            // Writing to a String does not fail.
            write!(line, "  # {}{}", self.source.kind(), name.unwrap_or_default())
                .unwrap_or_default();
        }
        line + "\n"
    }
}

/// A section without what may be secret in it. What stands for that is refused in a configuration file.
fn without_secrets(mut value: Json) -> Json {
    let items = match &mut value {
        Json::Array(items) => items.as_mut_slice(),
        one => std::slice::from_mut(one),
    };
    for url in items.iter_mut().filter_map(|item| item.get_mut("url")) {
        let parsed = url.as_str().and_then(|text| text.parse::<Uri>().ok());
        let place = parsed.as_ref().and_then(|url| Some((url.scheme_str()?, url.authority()?)));
        *url = match place {
            Some((scheme, host)) => format!("{scheme}://{host}/<hidden>").into(),
            None => "<hidden>".into(),
        };
    }
    value
}

/// What a key is set to that nothing sets.
fn derived(config: &Config, key: &KeySpec) -> Json {
    match key.name {
        "max_body_bytes" => config.max_body_bytes.into(),
        "worker_threads" => config.worker_threads.get().into(),
        _ => Json::Null,
    }
}

/// A value in one line of YAML.
fn yaml(value: &Json) -> String {
    let plain = match value {
        Json::String(_) => serde_yaml::to_string(value).ok(),
        _ => None,
    };
    let plain = plain.map(|text| text.trim_end().to_owned()).filter(|text| !text.contains('\n'));
    // JSON is YAML.
    plain.unwrap_or_else(|| value.to_string())
}

/// What a comment may hold.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::config::{Command, Invocation, parse};

    fn settings(args: &[&str], env: &[(&str, &str)]) -> Settings {
        let args = ["lally"].iter().chain(args).map(Into::into).collect();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        match parse(args, env.collect()).unwrap() {
            Invocation::Run { settings, .. } => settings,
            other @ Invocation::Do(..) => panic!("{other:?}"),
        }
    }

    const PLAIN: ShowForm = ShowForm { with_sources: false, json: false };
    const SOURCES: ShowForm = ShowForm { with_sources: true, json: false };

    #[test]
    fn every_key_is_shown_with_what_set_it() {
        let shown = settings(
            &["--http-port", "1", "--seed-node", "a:1", "--seed-node", "b:2"],
            &[("LALLY_MAX_MEMORY", "1GiB"), ("RUST_LOG", "warn")],
        )
        .shown(SOURCES);
        for key in KEYS.iter().filter(|key| key.name != CONFIG) {
            assert!(shown.contains(&format!("\n{}: ", key.name)), "{}: {shown}", key.name);
        }
        for line in [
            "# configuration file: none",
            "http_port: 1  # command line --http-port",
            "seed_node: [\"a:1\",\"b:2\"]  # command line --seed-node",
            "max_memory: 1GiB  # environment LALLY_MAX_MEMORY",
            "log_level: warn  # environment RUST_LOG",
            "max_body_bytes: 2097152  # default",
            "replay_log: null  # default",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
        }
    }

    #[test]
    fn what_is_shown_is_a_file_that_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let odd = "it's # a: \"path\"\nof two lines";
        let args = ["--data-dir", odd, "--hooks", "audit", "--fresh", "--read-quorum=majority"];
        let first = settings(&args, &[]);
        for (number, form) in [PLAIN, SOURCES].into_iter().enumerate() {
            let file = dir.path().join(number.to_string());
            std::fs::write(&file, first.shown(form)).unwrap();
            let again = settings(&["--config", file.to_str().unwrap()], &[]);
            for ((key, one), (_, two)) in first.keys.iter().zip(&again.keys) {
                assert_eq!(one.value, two.value, "{}", key.name);
            }
        }
    }

    #[test]
    fn sections_are_shown_without_what_is_secret_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("lally.yml");
        let policy = "policy: [{refuse: remove, keys: ['frozen:*']}]";
        let webhooks = "webhooks: [{name: s, url: 'http://h:1/token?more', secret_file: /f}]";
        std::fs::write(&file, format!("{policy}\n{webhooks}\n")).unwrap();
        let path = file.display().to_string();
        let settings = settings(&["--config", &path], &[]);
        let shown = settings.shown(SOURCES);
        let policy = r#"policy: [{"keys":["frozen:*"],"refuse":"remove"}]"#;
        assert!(shown.contains(&format!("\n{policy}  # file {path}\n")), "{shown}");
        assert!(shown.contains("http://h:1/<hidden>") && shown.contains("/f"), "{shown}");
        let json = settings.shown(ShowForm { json: true, ..PLAIN });
        let all = format!("{shown}{json}{}", settings.shown(PLAIN));
        assert!(!all.contains("token?more"), "{all}");
        let json: Json = serde_json::from_str(&json).unwrap();
        assert_eq!(json["webhooks"][0]["name"], "s");
        assert!(settings.found_fine().contains("2 from"), "{}", settings.found_fine());
        // What is hidden passes for no URL.
        std::fs::write(&file, shown).unwrap();
        let args = ["lally", "--config", &path].map(Into::into).to_vec();
        let refused = parse(args, Vec::new()).unwrap_err();
        assert!(refused.text.contains("webhook 1, url"), "{refused}");
        // Without any, they are there as well.
        let none = self::settings(&[], &[]).shown(SOURCES);
        assert!(none.contains("\nwebhooks: null  # default\n"), "{none}");
    }

    #[test]
    fn as_json_values_keep_their_types() {
        let shown = |form| -> Json {
            serde_json::from_str(&settings(&["--http-port", "1"], &[]).shown(form)).unwrap()
        };
        let plain = shown(ShowForm { json: true, ..PLAIN });
        assert_eq!(plain["http_port"], 1);
        assert_eq!((&plain["fresh"], &plain["seed_node"]), (&json!(false), &Json::Null));
        let sources = shown(ShowForm { json: true, ..SOURCES });
        let port = json!({"value": 1, "source": "command line", "name": "--http-port"});
        assert_eq!(sources["http_port"], port);
        let bind = json!({"value": "127.0.0.1", "source": "default", "name": null});
        assert_eq!(sources["bind"], bind);
    }

    #[test]
    fn the_commands_print_what_a_node_with_the_same_flags_has() {
        let printed = |args: &[&str]| {
            let args = ["lally"].iter().chain(args).map(Into::into).collect();
            match parse(args, Vec::new()).unwrap() {
                Invocation::Do(Command::Print(text), _) => text,
                Invocation::Do(Command::CheckConfig { fine, .. }, _) => fine,
                other => panic!("{other:?}"),
            }
        };
        let flags = ["--http-port", "7"];
        let node = settings(&flags, &[]);
        assert_eq!(printed(&["config", "show", "--http-port", "7"]), node.shown(PLAIN));
        assert_eq!(printed(&["config", "show", "--sources", "--http-port=7"]), node.shown(SOURCES));
        let fine = printed(&["config", "check", "--http-port", "7"]);
        assert!(fine.starts_with("fine: ") && fine.contains("1 from the command line"), "{fine}");
    }
}
