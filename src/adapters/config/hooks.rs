//! The sections of the file for hooks: `policy` and `webhooks`.

use std::path::PathBuf;
use std::time::Duration;

use axum::http::Uri;
use figment::value::Value;

use crate::domain::MAX_VALUE_BYTES;
use crate::ports::OpKind;

use super::forms::{self, Wrong};
use super::section::{Section, texts};

const KIB: u64 = 1_024;
const GIB: u64 = KIB * KIB * KIB;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_GIVE_UP_AFTER: Duration = Duration::from_secs(24 * 3_600);
const DEFAULT_QUEUE_BYTES: u64 = 64 * KIB * KIB;
const DEFAULT_QUEUE_CHANGES: usize = 100_000;
const DEFAULT_PARALLEL: usize = 4;

/// Each has a thread of its own.
const MAX_WEBHOOKS: usize = 16;

const RULE_KEYS: [&str; 5] = ["refuse", "keys", "except_keys", "value_over", "reason"];

const WEBHOOK_KEYS: [&str; 14] = [
    "name",
    "url",
    "secret_file",
    "ca_file",
    "keys",
    "except_keys",
    "kinds",
    "values",
    "timeout",
    "parallel",
    "give_up_after",
    "max_queue_bytes",
    "max_queue_changes",
    "outbox",
];

/// One rule of the section `policy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRuleConfig {
    /// What it refuses, at least one.
    pub refuse: Vec<OpKind>,
    /// Patterns of keys; all keys if there are none.
    pub keys: Vec<String>,
    /// Patterns of keys that the others do not mean.
    pub except_keys: Vec<String>,
    /// Only of values that are longer, in bytes.
    pub value_over: Option<usize>,
    /// What the client is told.
    pub reason: Option<String>,
}

/// One webhook of the section `webhooks`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookConfig {
    /// Of its own among them; 1 to 64 characters of `[A-Za-z0-9._-]`, and no dots alone.
    pub name: String,
    /// `http` or `https`, with a host and without a user.
    pub url: Uri,
    /// Holds the secret that signs.
    pub secret_file: PathBuf,
    /// Certificates to trust, in place of those of the system.
    pub ca_file: Option<PathBuf>,
    /// Patterns of keys; all keys if there are none.
    pub keys: Vec<String>,
    /// Patterns of keys that the others do not mean.
    pub except_keys: Vec<String>,
    /// Additions, removals or both.
    pub kinds: Vec<OpKind>,
    /// Whether values are sent along.
    pub values: bool,
    /// For one attempt.
    pub timeout: Duration,
    /// Requests at a time.
    pub parallel: usize,
    /// How long a change is tried.
    pub give_up_after: Duration,
    /// What may wait, in bytes.
    pub max_queue_bytes: u64,
    /// What may wait, in changes.
    pub max_queue_changes: usize,
    /// Whether it waits on disk.
    pub outbox: bool,
}

/// The rules of the section `policy`.
pub(super) fn policy(value: &Value) -> Result<Vec<PolicyRuleConfig>, Wrong> {
    let rules = Section::all(value, "rule", &RULE_KEYS)?;
    rules.iter().map(rule).collect()
}

fn rule(section: &Section<'_>) -> Result<PolicyRuleConfig, Wrong> {
    let refuse = section.required("refuse", |v| kinds(v, &OpKind::ALL))?;
    let limit = |v: &Value| forms::in_range(forms::size(v)?, 0, MAX_VALUE_BYTES as u64, v);
    let value_over = section.optional("value_over", limit)?;
    if value_over.is_some() && refuse != [OpKind::Add] {
        return Err(section.wrong("value_over", "only add has a value; refuse: add"));
    }
    Ok(PolicyRuleConfig {
        refuse,
        keys: section.optional("keys", texts)?.unwrap_or_default(),
        except_keys: section.optional("except_keys", texts)?.unwrap_or_default(),
        value_over: value_over.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
        reason: section.optional("reason", |v| forms::text(v).map(str::to_owned))?,
    })
}

/// The webhooks of the section `webhooks`.
pub(super) fn webhooks(value: &Value) -> Result<Vec<WebhookConfig>, Wrong> {
    let sections = Section::all(value, "webhook", &WEBHOOK_KEYS)?;
    if sections.len() > MAX_WEBHOOKS {
        return Err(format!("there are {}, and at most {MAX_WEBHOOKS}", sections.len()));
    }
    let mut webhooks: Vec<WebhookConfig> = Vec::with_capacity(sections.len());
    for section in &sections {
        let webhook = webhook(section)?;
        if webhooks.iter().any(|other| other.name == webhook.name) {
            let wrong = format!("{} is the name of another one", forms::quoted(&webhook.name));
            return Err(section.wrong("name", &wrong));
        }
        webhooks.push(webhook);
    }
    Ok(webhooks)
}

fn webhook(section: &Section<'_>) -> Result<WebhookConfig, Wrong> {
    let url = section.required("url", url)?;
    let ca_file = section.optional("ca_file", path)?;
    if ca_file.is_some() && url.scheme_str() != Some("https") {
        return Err(section.wrong("ca_file", "the url is not https, where no certificate is shown"));
    }
    let number = |key: &str, max: u64, default: usize| {
        let read = |v: &Value| forms::in_range(forms::integer(v)?, 1, max, v);
        let number = section.optional(key, read)?;
        Ok::<_, Wrong>(number.and_then(|n| usize::try_from(n).ok()).unwrap_or(default))
    };
    let bytes = |v: &Value| forms::in_range(forms::size(v)?, 64 * KIB, 16 * GIB, v);
    let changes = [OpKind::Add, OpKind::Remove];
    Ok(WebhookConfig {
        name: section.required("name", name)?,
        url,
        secret_file: section.required("secret_file", path)?,
        ca_file,
        keys: section.optional("keys", texts)?.unwrap_or_default(),
        except_keys: section.optional("except_keys", texts)?.unwrap_or_default(),
        kinds: section.optional("kinds", |v| kinds(v, &changes))?.unwrap_or(changes.to_vec()),
        values: section.optional("values", forms::switch)?.unwrap_or(false),
        timeout: section
            .optional("timeout", |v| duration(v, 100, 60_000))?
            .unwrap_or(DEFAULT_TIMEOUT),
        parallel: number("parallel", 64, DEFAULT_PARALLEL)?,
        give_up_after: section
            .optional("give_up_after", |v| duration(v, 1_000, 720 * 3_600_000))?
            .unwrap_or(DEFAULT_GIVE_UP_AFTER),
        max_queue_bytes: section.optional("max_queue_bytes", bytes)?.unwrap_or(DEFAULT_QUEUE_BYTES),
        max_queue_changes: number("max_queue_changes", 1_000_000, DEFAULT_QUEUE_CHANGES)?,
        outbox: section.optional("outbox", forms::switch)?.unwrap_or(false),
    })
}

fn kinds(value: &Value, known: &[OpKind]) -> Result<Vec<OpKind>, Wrong> {
    let mut kinds = Vec::new();
    for name in forms::list(value)? {
        let Some(kind) = known.iter().find(|kind| kind.as_str() == name) else {
            let names: Vec<_> = known.iter().map(|kind| kind.as_str()).collect();
            return Err(format!("{} is none of {}", forms::quoted(name), names.join(", ")));
        };
        if !kinds.contains(kind) {
            kinds.push(*kind);
        }
    }
    if kinds.is_empty() { Err("the list is empty".to_owned()) } else { Ok(kinds) }
}

/// A name that may be that of a directory.
fn name(value: &Value) -> Result<String, Wrong> {
    let name = forms::cluster_name(value)?;
    if name.chars().all(|c| c == '.') {
        return Err(format!("{} has nothing but dots", forms::quoted(&name)));
    }
    Ok(name)
}

fn path(value: &Value) -> Result<PathBuf, Wrong> {
    forms::text(value).map(PathBuf::from)
}

fn duration(value: &Value, min_ms: u64, max_ms: u64) -> Result<Duration, Wrong> {
    let (min, max) = (Duration::from_millis(min_ms), Duration::from_millis(max_ms));
    forms::in_range(forms::duration(value)?, min, max, value)
}

/// The text is not shown: who knows the path of a webhook can call it, with many services.
fn url(value: &Value) -> Result<Uri, Wrong> {
    let text = forms::text(value)?;
    let url: Uri = text.parse().map_err(|_| "it is no URL".to_owned())?;
    let authority = url.authority().map_or("", |authority| authority.as_str());
    if !matches!(url.scheme_str(), Some("http" | "https")) || url.host().is_none_or(str::is_empty) {
        return Err("expected http://HOST[:PORT]/PATH, or https://".to_owned());
    }
    if authority.contains('@') {
        return Err("a user in it would be sent to nobody; the signature says who calls".to_owned());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use figment::value::Value;

    fn value(yaml: &str) -> Value {
        let yaml: serde_yaml::Value = serde_yaml::from_str(yaml).unwrap();
        Value::serialize(&yaml).unwrap()
    }

    #[test]
    fn a_rule_may_say_as_little_as_what_it_refuses() {
        let rules = policy(&value("[{refuse: remove}]")).unwrap();
        let (refuse, keys, except_keys) = (vec![OpKind::Remove], Vec::new(), Vec::new());
        let least = PolicyRuleConfig { refuse, keys, except_keys, value_over: None, reason: None };
        assert_eq!(rules, [least]);
        let all =
            "[{refuse: [add], keys: 'a,b*', except_keys: ['c'], value_over: 1KiB, reason: r}]";
        let rule = policy(&value(all)).unwrap().remove(0);
        assert_eq!((rule.keys, rule.value_over), (vec!["a,b*".to_owned()], Some(1_024)));
    }

    #[test]
    fn a_mistake_in_a_rule_is_refused_with_its_place() {
        for (yaml, says) in [
            ("refuse", "rule 1 is no mapping"),
            ("[{refuse: add}, {keys: a}]", "rule 2 has no refuse"),
            ("[{refuse: update}]", "rule 1, refuse: \"update\" is none of get, add, remove"),
            ("[{refuse: []}]", "the list is empty"),
            ("[{refuse: add, key: a}]", "rule 1 has an unknown key \"key\""),
            ("[{refuse: remove, value_over: 1}]", "only add has a value"),
            ("[{refuse: add, value_over: 1 apple}]", "is not a size"),
            ("[{refuse: add, keys: 5}]", "is not a text"),
        ] {
            let wrong = policy(&value(yaml)).unwrap_err();
            assert!(wrong.contains(says), "{yaml}: {wrong}");
        }
    }

    #[test]
    fn a_webhook_may_say_as_little_as_its_name_its_url_and_its_secret() {
        let least = "{name: s, url: 'http://[::1]:80/x?y', secret_file: f}";
        let webhook = webhooks(&value(least)).unwrap().remove(0);
        assert_eq!(webhook.url.host(), Some("[::1]"));
        assert_eq!(webhook.kinds, [OpKind::Add, OpKind::Remove]);
        assert_eq!((webhook.values, webhook.outbox, webhook.parallel), (false, false, 4));
        assert_eq!(webhook.timeout, Duration::from_secs(5));
    }

    #[test]
    fn a_mistake_in_a_webhook_is_refused_without_its_url() {
        let least = "name: s, url: 'http://h/token', secret_file: f";
        for (rest, says) in [
            ("outbox: yes please", "outbox"),
            ("kinds: get", "none of add, remove"),
            ("parallel: 0", "parallel: 0 is out of range"),
            ("timeout: 61s", "timeout"),
            ("max_queue_bytes: 1KiB", "max_queue_bytes"),
            ("ca_file: f", "not https"),
            ("secret: s3cret", "unknown key \"secret\""),
        ] {
            let wrong = webhooks(&value(&format!("[{{{least}, {rest}}}]"))).unwrap_err();
            assert!(wrong.contains(says) && !wrong.contains("token"), "{rest}: {wrong}");
        }
        for url in ["ftp://h/token", "token", "http:///token", "http://me:token@h/", "a b"] {
            let yaml = format!("[{{name: s, url: '{url}', secret_file: f}}]");
            let wrong = webhooks(&value(&yaml)).unwrap_err();
            assert!(wrong.contains("webhook 1, url") && !wrong.contains("token"), "{wrong}");
        }
        for name in ["..", "a/b", ""] {
            let yaml = format!("[{{name: '{name}', url: 'http://h', secret_file: f}}]");
            assert!(webhooks(&value(&yaml)).unwrap_err().contains("webhook 1, name"));
        }
        let wrong = webhooks(&value(&format!("[{{{least}}}, {{{least}}}]"))).unwrap_err();
        assert!(wrong.contains("webhook 2, name: \"s\" is the name of another one"), "{wrong}");
    }
}
