//! `MemoryQuarantine`: a quarantine that is a vector.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use crate::domain::{KeyedEntry, Timestamp};
use crate::ports::{Quarantine, QuarantineError};

/// A quarantine in memory.
#[derive(Debug, Default)]
pub struct MemoryQuarantine(Mutex<Vec<KeyedEntry>>);

impl MemoryQuarantine {
    /// What is kept, oldest first.
    pub fn kept(&self) -> Vec<KeyedEntry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Quarantine for MemoryQuarantine {
    async fn keep(
        &self,
        entries: &[KeyedEntry],
        _now: Timestamp,
        _reason: &str,
    ) -> Result<String, QuarantineError> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(entries);
        Ok("memory".to_owned())
    }
}
