//! `lally get`, `add`, `remove`, `nodes`, `cluster` and `status`: questions to a node that runs.
//!
//! `run` asks and decides how it ended, `answers` is what a node says, `shown` how people read it.

mod answers;
mod run;
mod shown;

pub(super) use run::ask;
