//! `LogSwitch`: changes the log level, and sees to it that the log says so.

use std::sync::{Arc, Mutex, PoisonError};

use crate::ports::LogLevel;

/// Has only that logged from now on which a filter in the form of `log_level` lets through.
pub type SetLogLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// The log level, by whoever it is changed.
pub(super) struct LogSwitch {
    set: SetLogLevel,
    current: Mutex<String>,
}

impl LogSwitch {
    /// Of a process that logs at this level, in the form of `log_level`.
    pub(super) fn new(set: SetLogLevel, current: &str) -> Self {
        Self { set, current: Mutex::new(current.to_owned()) }
    }

    /// Sets what an operator asks for.
    pub(super) fn ask(&self, level: LogLevel) {
        let to = level.as_str();
        self.change(to, |from| tracing::info!(from, to, "log level changed"));
    }

    /// Sets the level, and has it reported, with what it was, under whichever of the two lets that
    /// through.
    pub(super) fn change(&self, to: &str, report: impl Fn(&str)) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let is_heard = tracing::enabled!(tracing::Level::INFO);
        if is_heard {
            report(&current);
        }
        // It fails for a process that ends only.
        if let Err(reason) = (self.set)(to) {
            tracing::warn!(reason, "the log level stays as it is");
            return;
        }
        if !is_heard {
            report(&current);
        }
        to.clone_into(&mut current);
    }
}
