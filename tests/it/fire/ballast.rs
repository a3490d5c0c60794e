//! Data that is on the disk and that nobody writes: it makes snapshots long, so that failures fall
//! into the middle of them.

use super::server::{Outcome, Session};

/// In all more than a snapshot is written with at a time, several times over.
const KEYS: usize = 24;
const VALUE_BYTES: usize = 256 << 10;

/// Whether a server has it.
#[derive(Debug, Default)]
pub struct Ballast {
    is_aboard: bool,
}

impl Ballast {
    /// Writes it, if that was not done, and has the log compacted: after that it is on the disk,
    /// whatever the policy.
    pub fn take_on(&mut self, session: &mut dyn Session) -> Result<(), String> {
        if self.is_aboard {
            return Ok(());
        }
        let outcomes = (0..KEYS).map(|i| session.put(&name(i), Some(&value(i))));
        let refused = outcomes.into_iter().find(|outcome| *outcome != Outcome::Acknowledged);
        match refused.unwrap_or_else(|| session.compact()) {
            Outcome::Acknowledged => {
                self.is_aboard = true;
                Ok(())
            }
            outcome => Err(format!("ballast: {outcome:?}")),
        }
    }

    /// What is wrong with it after a restart.
    pub fn missing_from(&self, session: &mut dyn Session) -> Option<String> {
        let mut aboard = 0..if self.is_aboard { KEYS } else { 0 };
        let lost = aboard.find(|i| session.get(&name(*i)) != Some(value(*i)))?;
        Some(format!("{} is not what it was", name(lost)))
    }
}

fn name(i: usize) -> String {
    format!("ballast-{i}")
}

fn value(i: usize) -> String {
    format!("{i}:{}", "b".repeat(VALUE_BYTES))
}
