//! The audit trail, and what the list `hooks` of the configuration can turn on by its name alone.

use std::sync::Arc;

use crate::ports::{Effect, Hook, Operation};

/// The names of the hooks that [`known`] finds.
pub const NAMES: &[&str] = &[AUDIT];

const AUDIT: &str = "audit";

/// The hook of this name.
pub fn known(name: &str) -> Option<Arc<dyn Hook>> {
    match name {
        AUDIT => Some(Arc::new(AuditHook)),
        _ => None,
    }
}

/// The audit trail: one event per operation, under the target `lally::audit` at level info, so
/// that it can be sent elsewhere or turned off by the log filter alone. Keys are in it, values
/// never are.
#[derive(Debug, Clone, Copy, Default)]
pub struct AuditHook;

impl Hook for AuditHook {
    fn name(&self) -> &'static str {
        AUDIT
    }

    fn after(&self, operation: &Operation, effect: Effect) {
        let version = operation.version;
        tracing::info!(
            target: "lally::audit",
            // Quoted and escaped: a key may hold line breaks, which would forge events.
            key = ?operation.key.as_str(),
            kind = operation.kind.as_str(),
            origin = operation.origin.as_str(),
            effect = effect_name(effect),
            version = version.map(|v| v.timestamp.as_nanos()),
            version_node = version.map(|v| tracing::field::display(v.node)),
            "operation"
        );
    }
}

const fn effect_name(effect: Effect) -> &'static str {
    match effect {
        Effect::Applied => "applied",
        Effect::Found => "found",
        Effect::NotFound => "not_found",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Key, NodeId, Timestamp, Value, Version};
    use crate::ports::{OpKind, Origin};
    use std::io::Write;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(operation: &Operation, effect: Effect) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .without_time()
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || AuditHook.after(operation, effect));
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn operation(version: Option<Version>) -> Operation {
        Operation {
            key: Key::new("user\n42").unwrap(),
            kind: OpKind::Add,
            origin: Origin::Replica,
            value: Some(Value::new("a secret")),
            version,
        }
    }

    #[test]
    fn an_operation_is_one_line_without_its_value() {
        let version = Version::new(Timestamp::from_nanos(123), NodeId::new(10));
        let text = logged(&operation(Some(version)), Effect::Applied);
        assert_eq!(text.lines().count(), 1);
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(event["target"], "lally::audit");
        assert_eq!(event["level"], "INFO");
        let fields = &event["fields"];
        assert_eq!(fields["message"], "operation");
        assert_eq!(fields["key"], r#""user\n42""#);
        assert_eq!(fields["kind"], "add");
        assert_eq!(fields["origin"], "replica");
        assert_eq!(fields["effect"], "applied");
        assert_eq!(fields["version"], 123);
        assert_eq!(fields["version_node"], "000000000000000a");
        assert!(!text.contains("secret"));
    }

    #[test]
    fn a_read_has_no_version() {
        let text = logged(&operation(None), Effect::NotFound);
        let event: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(event["fields"]["effect"], "not_found");
        assert!(event["fields"].get("version").is_none());
    }

    #[test]
    fn every_listed_hook_is_known_by_its_name() {
        for name in NAMES {
            assert_eq!(known(name).map(|hook| hook.name()), Some(*name));
        }
        assert!(known("webhook").is_none());
    }
}
