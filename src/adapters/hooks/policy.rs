//! `PolicyHook`: rules by which the operator refuses operations of clients.
//!
//! An operation is refused if any rule is about it; the first such rule gives the reason. The rules are
//! asked on the request's own thread: they compare texts in memory, and a rule that is passed over when
//! the node is busy would be none. What other nodes send is not asked about: it was, where its client
//! called, or replicas would differ. So every node needs the same rules.

use crate::ports::{Hook, OpKind, Operation, Origin, Veto};

use super::key_filter::KeyFilter;

/// What is refused.
#[derive(Debug, Clone)]
pub struct PolicyRule {
    /// Which operations.
    pub operations: Vec<OpKind>,
    /// Of which keys.
    pub keys: KeyFilter,
    /// Of values longer than this, in bytes; of any if there is no such limit.
    pub value_over: Option<usize>,
    /// What the client is told; `None` for the rule in words.
    pub reason: Option<String>,
}

impl PolicyRule {
    fn refuses(&self, operation: &Operation) -> Option<String> {
        let length = operation.value.as_ref().map_or(0, |value| value.as_str().len());
        let applies = self.operations.contains(&operation.kind)
            && self.value_over.is_none_or(|limit| length > limit)
            && self.keys.includes(operation.key.as_str());
        applies.then(|| self.reason.clone().unwrap_or_else(|| self.in_words(operation, length)))
    }

    fn in_words(&self, operation: &Operation, length: usize) -> String {
        let (call, keys) = (operation.kind.as_str(), self.keys.shown());
        match self.value_over {
            Some(limit) => {
                format!("the value has {length} bytes, and {call} of {keys} takes {limit} at most")
            }
            None => format!("{call} of {keys} is not allowed"),
        }
    }
}

/// The rules of a node.
#[derive(Debug, Clone)]
pub struct PolicyHook {
    rules: Vec<PolicyRule>,
}

impl PolicyHook {
    /// A hook that refuses what any of these rules is about.
    pub const fn new(rules: Vec<PolicyRule>) -> Self {
        Self { rules }
    }
}

impl Hook for PolicyHook {
    fn name(&self) -> &'static str {
        "policy"
    }

    fn may_veto(&self) -> bool {
        true
    }

    fn answers_at_once(&self) -> bool {
        true
    }

    fn before(&self, operation: &Operation) -> Result<(), Veto> {
        let refused = self.rules.iter().find_map(|rule| rule.refuses(operation));
        refused.map_or(Ok(()), |reason| Err(Veto { reason }))
    }

    fn watches(&self, _: OpKind, _: Origin) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Key, Value};

    fn operation(kind: OpKind, key: &str, value: Option<&str>) -> Operation {
        let (key, value) = (Key::new(key).unwrap(), value.map(Value::new));
        Operation { key, kind, origin: Origin::Client, value, version: None }
    }

    fn rule(operations: &[OpKind], any: &[&str], none: &[&str]) -> PolicyRule {
        let texts =
            |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>();
        let keys = KeyFilter::new(&texts(any), &texts(none));
        PolicyRule { operations: operations.to_vec(), keys, value_over: None, reason: None }
    }

    fn reason(rules: Vec<PolicyRule>, operation: &Operation) -> Option<String> {
        PolicyHook::new(rules).before(operation).err().map(|veto| veto.reason)
    }

    #[test]
    fn only_the_operations_and_keys_of_a_rule_are_refused() {
        let rules = vec![rule(&[OpKind::Add, OpKind::Remove], &["frozen:*"], &[])];
        let says = "is not allowed";
        for (kind, key, refused) in [
            (OpKind::Add, "frozen:1", true),
            (OpKind::Remove, "frozen:1", true),
            (OpKind::Get, "frozen:1", false),
            (OpKind::Add, "free:1", false),
        ] {
            let reason = reason(rules.clone(), &operation(kind, key, None));
            assert_eq!(reason.is_some_and(|reason| reason.contains(says)), refused, "{key}");
        }
    }

    #[test]
    fn a_value_is_refused_from_one_byte_above_the_limit() {
        let small = PolicyRule { value_over: Some(4), ..rule(&[OpKind::Add], &["k"], &[]) };
        let reason = |value| reason(vec![small.clone()], &operation(OpKind::Add, "k", Some(value)));
        assert_eq!(reason("1234"), None);
        let said = reason("12345").unwrap();
        assert_eq!(said, "the value has 5 bytes, and add of keys like k takes 4 at most");
    }

    #[test]
    fn the_first_rule_that_applies_gives_the_reason() {
        let own = PolicyRule {
            reason: Some("ask the owners".into()),
            ..rule(&[OpKind::Get], &[], &["open:*"])
        };
        let rules = vec![rule(&[OpKind::Get], &["a"], &[]), own];
        let said = |key| reason(rules.clone(), &operation(OpKind::Get, key, None));
        assert_eq!(said("a").as_deref(), Some("get of keys like a is not allowed"));
        assert_eq!(said("b").as_deref(), Some("ask the owners"));
        assert_eq!(said("open:1"), None);
    }
}
