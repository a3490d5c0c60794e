//! The hooks that come with Lally: the trail of operations (`audit`), the rules that refuse some of
//! them (`policy`) and the calls that tell other programs of changes (`webhook`). Whose keys a rule or
//! a webhook is about is said by `key_filter`. `docs/hooks.md` is the reference for users.

mod audit;
mod key_filter;
mod policy;
mod webhook;

pub use audit::{AuditHook, NAMES, known};
pub use key_filter::KeyFilter;
pub use policy::{PolicyHook, PolicyRule};
pub use webhook::{OutboxError, Secret, WebhookHook, WebhookOptions};
