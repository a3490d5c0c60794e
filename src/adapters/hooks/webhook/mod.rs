//! Webhooks: other programs are told of changes, by a signed POST for each.
//!
//! `hook` hears of changes and puts those that its filter lets pass, as the finished body of a request
//! (`event`), into a `backlog`, in memory or on disk (`outbox`, in the form of `record`). A thread of its
//! own takes them out and delivers them (`sender`), over connections that `connection` makes, signed as
//! `signature` says; what a failure means and when to try again are the plain decisions in `retry`.
//! Nothing here ever waits on the thread of a request.

mod backlog;
mod connection;
mod event;
mod hook;
mod outbox;
mod record;
mod retry;
mod sender;
mod signature;

pub use hook::{WebhookHook, WebhookOptions};
pub use outbox::OutboxError;
pub use signature::Secret;
