//! The hooks that a configuration asks for, put together in their order: those that refuse first.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::ClientConfig;

use crate::adapters::clock::SystemClock;
use crate::adapters::config::{Config, PolicyRuleConfig, WebhookConfig};
use crate::adapters::hooks::{
    self, KeyFilter, OutboxError, PolicyHook, PolicyRule, Secret, WebhookHook, WebhookOptions,
};
use crate::adapters::tls;
use crate::ports::Hook;

use super::errors::RunError;
use super::reload::{Prepared, Reloadable};
use super::storage::Storage;

/// What is known of the hooks before the data directory is opened.
pub(super) struct HookPlan {
    ready: Vec<Arc<dyn Hook>>,
    webhooks: Vec<(WebhookConfig, Secret, Option<Arc<ClientConfig>>)>,
}

impl HookPlan {
    /// Reads what hooks need beside the configuration. Touches nothing.
    ///
    /// # Errors
    /// What is wrong with each file, and each name.
    pub(super) fn read(config: &Config) -> Result<Self, Vec<String>> {
        let mut ready: Vec<Arc<dyn Hook>> = Vec::new();
        let mut mistakes = Vec::new();
        if !config.policy.is_empty() {
            ready.push(Arc::new(PolicyHook::new(config.policy.iter().map(rule).collect())));
        }
        for name in &config.hooks {
            match hooks::known(name) {
                Some(hook) => ready.push(hook),
                None => mistakes.push(format!("hooks: there is no hook {name:?}")),
            }
        }
        let mut webhooks = Vec::with_capacity(config.webhooks.len());
        for webhook in &config.webhooks {
            let wrong =
                |key: &str, wrong: String| format!("webhooks: {}, {key}: {wrong}", webhook.name);
            let secret = Secret::read(&webhook.secret_file);
            let needs_trust = webhook.url.scheme_str() == Some("https");
            let trust = needs_trust.then(|| tls::trusting(webhook.ca_file.as_deref())).transpose();
            match (secret, trust) {
                (Ok(secret), Ok(trust)) => webhooks.push((webhook.clone(), secret, trust)),
                (secret, trust) => {
                    mistakes.extend(secret.err().map(|error| wrong("secret_file", error)));
                    mistakes.extend(trust.err().map(|error| wrong("ca_file", error.to_string())));
                }
            }
        }
        if mistakes.is_empty() { Ok(Self { ready, webhooks }) } else { Err(mistakes) }
    }

    /// The secrets of the webhooks, to be read again.
    pub(super) fn secrets(&self) -> WebhookSecrets {
        let secret = |(webhook, secret, _): &(WebhookConfig, Secret, _)| {
            (webhook.name.clone(), webhook.secret_file.clone(), secret.clone())
        };
        WebhookSecrets(self.webhooks.iter().map(secret).collect())
    }

    /// Starts those that need the data directory. All hooks, in their order.
    pub(super) fn start(
        self,
        storage: &Storage,
        cluster: &str,
    ) -> Result<Vec<Arc<dyn Hook>>, RunError> {
        let mut hooks = self.ready;
        for (webhook, secret, trust) in self.webhooks {
            let options = WebhookOptions {
                outbox: webhook.outbox.then(|| storage.outbox_dir(&webhook.name)),
                name: webhook.name,
                cluster: cluster.to_owned(),
                url: webhook.url,
                secret,
                trust,
                keys: KeyFilter::new(&webhook.keys, &webhook.except_keys),
                kinds: webhook.kinds,
                values: webhook.values,
                timeout: webhook.timeout,
                parallel: webhook.parallel,
                give_up_after: webhook.give_up_after,
                max_queue_bytes: webhook.max_queue_bytes,
                max_queue_changes: webhook.max_queue_changes,
            };
            let failed = |error: OutboxError| RunError::DataDir(error.to_string());
            hooks.push(Arc::new(
                WebhookHook::start(options, Arc::new(SystemClock)).map_err(failed)?,
            ));
        }
        Ok(hooks)
    }
}

/// The name of each webhook, the file of its secret, and the secret as it is used.
pub(super) struct WebhookSecrets(Vec<(String, PathBuf, Secret)>);

impl Reloadable for WebhookSecrets {
    /// The files are those of the start.
    fn prepare(&self, _: &Config) -> Result<Prepared, Vec<String>> {
        let (mut read, mut mistakes) = (Vec::with_capacity(self.0.len()), Vec::new());
        for (webhook, file, secret) in &self.0 {
            match Secret::read(file) {
                Ok(new) => read.push((secret.clone(), new)),
                Err(wrong) => mistakes.push(format!("webhooks: {webhook}, secret_file: {wrong}")),
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Prepared {
            news: (!read.is_empty()).then(|| "secrets of webhooks read anew".to_owned()),
            commit: Box::new(move || {
                for (secret, new) in read {
                    secret.become_like(&new);
                }
            }),
        })
    }
}

fn rule(config: &PolicyRuleConfig) -> PolicyRule {
    PolicyRule {
        operations: config.refuse.clone(),
        keys: KeyFilter::new(&config.keys, &config.except_keys),
        value_over: config.value_over,
        reason: config.reason.clone(),
    }
}
