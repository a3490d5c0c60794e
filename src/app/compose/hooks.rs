//! The hooks that a configuration asks for, put together in their order: those that refuse first.

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
use super::storage::Storage;

/// What is known of the hooks before the data directory is opened.
pub(super) struct HookPlan {
    ready: Vec<Arc<dyn Hook>>,
    webhooks: Vec<(WebhookConfig, Secret, Option<Arc<ClientConfig>>)>,
}

impl HookPlan {
    /// Reads what hooks need beside the configuration. Touches nothing.
    pub(super) fn read(config: &Config) -> Result<Self, RunError> {
        let mut ready: Vec<Arc<dyn Hook>> = Vec::new();
        if !config.policy.is_empty() {
            ready.push(Arc::new(PolicyHook::new(config.policy.iter().map(rule).collect())));
        }
        for name in &config.hooks {
            let unknown = || RunError::Usage(format!("hooks: there is no hook {name:?}"));
            ready.push(hooks::known(name).ok_or_else(unknown)?);
        }
        let mut webhooks = Vec::with_capacity(config.webhooks.len());
        for webhook in &config.webhooks {
            let wrong = |key: &str, wrong: String| {
                RunError::Usage(format!("webhooks: {}, {key}: {wrong}", webhook.name))
            };
            let secret = Secret::read(&webhook.secret_file).map_err(|e| wrong("secret_file", e))?;
            let needs_trust = webhook.url.scheme_str() == Some("https");
            let trust = needs_trust.then(|| tls::trusting(webhook.ca_file.as_deref())).transpose();
            let trust = trust.map_err(|error| wrong("ca_file", error.to_string()))?;
            webhooks.push((webhook.clone(), secret, trust));
        }
        Ok(Self { ready, webhooks })
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

fn rule(config: &PolicyRuleConfig) -> PolicyRule {
    PolicyRule {
        operations: config.refuse.clone(),
        keys: KeyFilter::new(&config.keys, &config.except_keys),
        value_over: config.value_over,
        reason: config.reason.clone(),
    }
}
