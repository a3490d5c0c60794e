//! `JsonQuarantine`: entries that were taken out, as lines of JSON that a person can read.
//!
//! A file per start of the node that needs one, named by the time, in a directory of its own; each
//! entry is a line. Lines are forced to disk before the entries may leave the store. Nothing here is
//! ever read back or deleted by the node.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::Serialize;

use crate::domain::{KeyedEntry, Timestamp, Value};
use crate::ports::{Quarantine, QuarantineError};

/// A quarantine in this directory, which is created when it is needed.
#[derive(Debug, Clone)]
pub struct JsonQuarantine {
    dir: PathBuf,
    /// The file of this life, once there is one.
    open: Arc<Mutex<Option<(PathBuf, File)>>>,
}

#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    value: Option<&'a str>,
    timestamp: String,
    node: String,
    quarantined_at: String,
    reason: &'a str,
}

impl JsonQuarantine {
    /// The quarantine in this directory.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), open: Arc::default() }
    }

    fn append(&self, entries: &[KeyedEntry], now: Timestamp, reason: &str) -> io::Result<String> {
        let mut lines = Vec::new();
        for KeyedEntry { key, entry } in entries {
            let line = Line {
                key: key.as_str(),
                value: entry.value().map(Value::as_str),
                timestamp: shown(entry.version.timestamp),
                node: entry.version.node.to_string(),
                quarantined_at: shown(now),
                reason,
            };
            serde_json::to_writer(&mut lines, &line)?;
            lines.push(b'\n');
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (path, mut file) = match open.take() {
            Some(opened) => opened,
            None => self.create(now)?,
        };
        // After an error the next entries go into a file of their own, behind no torn line.
        file.write_all(&lines)?;
        file.sync_all()?;
        let place = path.display().to_string();
        *open = Some((path, file));
        Ok(place)
    }

    fn create(&self, now: Timestamp) -> io::Result<(PathBuf, File)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        if let Some(parent) = self.dir.parent() {
            File::open(parent)?.sync_all()?;
        }
        let at = jiff::Timestamp::from_nanosecond(now.as_nanos().into()).unwrap_or_default();
        let stem = at.strftime("%Y%m%dT%H%M%SZ").to_string();
        let names = std::iter::once(format!("{stem}.jsonl"))
            .chain((2..).map(|n: u64| format!("{stem}-{n}.jsonl")));
        for name in names {
            let path = self.dir.join(name);
            match OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => {
                    File::open(&self.dir)?.sync_all()?;
                    return Ok((path, file));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

#[async_trait]
impl Quarantine for JsonQuarantine {
    async fn keep(
        &self,
        entries: &[KeyedEntry],
        now: Timestamp,
        reason: &str,
    ) -> Result<String, QuarantineError> {
        let (this, entries, reason) = (self.clone(), entries.to_vec(), reason.to_owned());
        let keeping = tokio::task::spawn_blocking(move || this.append(&entries, now, &reason));
        let failed =
            |reason: String| QuarantineError { place: self.dir.display().to_string(), reason };
        let kept = keeping.await.map_err(|error| failed(error.to_string()))?;
        kept.map_err(|error| failed(error.to_string()))
    }
}

fn shown(timestamp: Timestamp) -> String {
    let at = jiff::Timestamp::from_nanosecond(timestamp.as_nanos().into());
    format!("{:.9}", at.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Entry, Key, NodeId, Version};

    #[tokio::test]
    async fn entries_are_lines_that_say_everything_and_two_lives_have_a_file_each() {
        let dir = tempfile::tempdir().unwrap();
        let version = Version::new(Timestamp::from_nanos(1_500_000_000), NodeId::new(7));
        let entry = Entry::live(version, Value::new("a \"b\"\n"));
        let ghost = KeyedEntry::new(Key::new("k").unwrap(), entry);
        let now = Timestamp::from_nanos(3_000_000_000);
        let mut places = Vec::new();
        for _life in 0..2 {
            let quarantine = JsonQuarantine::new(&dir.path().join("quarantine"));
            for _ in 0..2 {
                places
                    .push(quarantine.keep(std::slice::from_ref(&ghost), now, "why").await.unwrap());
            }
        }
        assert_eq!((&places[0], &places[2]), (&places[1], &places[3]));
        assert_ne!(places[0], places[2]);
        let line = r#"{"key":"k","value":"a \"b\"\n","timestamp":"1970-01-01T00:00:01.500000000Z","node":"0000000000000007","quarantined_at":"1970-01-01T00:00:03.000000000Z","reason":"why"}"#;
        for place in [&places[0], &places[2]] {
            assert_eq!(fs::read_to_string(place).unwrap(), format!("{line}\n{line}\n"));
        }
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_written_is_an_error_with_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let quarantine = JsonQuarantine::new(&file.path().join("quarantine"));
        let version = Version::new(Timestamp::ZERO, NodeId::new(7));
        let ghost = KeyedEntry::new(Key::new("k").unwrap(), Entry::live(version, Value::new("")));
        let error = quarantine.keep(&[ghost], Timestamp::ZERO, "why").await.unwrap_err();
        assert!(error.place.contains("quarantine"));
    }
}
