//! A walk over all files of a log and past everything that is damaged: what checking, printing and
//! repairing have in common.

use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use crate::ports::{LogError, LogRecord};

use super::files::{FileHeader, FileKind, HeaderError, failed, kind_of};
use super::own::{Owner, of_another_cluster};
use super::reader::corrupt;
use super::scan::{Found, Scan};
use super::source::{Source, SourceFile};

/// A place in a log that holds no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flaw {
    /// The file.
    pub file: PathBuf,
    /// Which bytes of it; none where a record or a file is missing.
    pub bytes: Range<u64>,
    /// What is wrong.
    pub reason: String,
}

/// Places listed; of more, the number says enough.
const LISTED: usize = 100;

/// Places in a log that hold no record, the first of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flaws {
    /// In the order of the log.
    pub listed: Vec<Flaw>,
    /// How many more there are.
    pub more: u64,
}

impl Flaws {
    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.listed.is_empty()
    }

    pub(super) fn note(&mut self, flaw: Flaw) {
        if self.listed.len() < LISTED {
            self.listed.push(flaw);
        } else {
            self.more += 1;
        }
    }
}

impl Flaw {
    /// As a replay reports it.
    pub(super) fn corrupt(&self) -> LogError {
        corrupt(&self.file, self.bytes.start, &self.reason)
    }
}

/// What a walk comes by.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// A file begins.
    File { path: &'a Path, kind: FileKind, bytes: u64 },
    /// A record in it.
    Record(LogRecord),
    /// Something is damaged.
    Damage(Flaw),
    /// The rest of a write that was interrupted, at the very end.
    Torn(Flaw),
}

/// What holds for the log as a whole.
struct Walk<'a> {
    is_whole: bool,
    owner: Option<&'a Owner>,
    /// As the first file says that can be read.
    cluster: Option<String>,
    /// The sequence at which the next file must begin.
    next_sequence: Option<u64>,
    visit: &'a mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
}

/// Walks over a log until the visitor breaks off. In a log that is read as a whole, the files must
/// follow on each other, and be of this owner, if there is one; or of one cluster, at least.
///
/// # Errors
/// What cannot be read at all, and a file of another format version, of which nothing can be said.
pub(super) fn walk(
    source: &Source,
    owner: Option<&Owner>,
    visit: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
) -> Result<(), LogError> {
    let mut walk =
        Walk { is_whole: source.is_whole, owner, cluster: None, next_sequence: Some(1), visit };
    let last = source.files.len().saturating_sub(1);
    for (at, file) in source.files.iter().enumerate() {
        let read = walk.file(file, at == last).map_err(|error| failed(&file.path, &error))?;
        if read.is_break() {
            return Ok(());
        }
    }
    Ok(())
}

impl Walk<'_> {
    fn file(&mut self, source: &SourceFile, is_last: bool) -> io::Result<ControlFlow<()>> {
        let SourceFile { path, file, length } = source;
        let header = FileHeader::read(file)?;
        let kind = match &header {
            Ok(header) => header.kind,
            Err(_) => kind_of(path).unwrap_or(FileKind::Segment),
        };
        if (self.visit)(Step::File { path, kind, bytes: *length }).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let mut scan = match header {
            Ok(header) => {
                if let Some(reason) = self.wrong(&header)
                    && self.damage(path, 0..0, reason).is_break()
                {
                    return Ok(ControlFlow::Break(()));
                }
                Scan::new(file, *length, &header)
            }
            Err(reason @ HeaderError::Version(_)) => {
                // Whatever would verify in there would mean something else.
                self.next_sequence = None;
                return Ok(self.damage(path, 0..*length, reason.to_string()));
            }
            Err(reason) => {
                let (scan, damage) = Scan::without_header(file, *length, kind, reason)?;
                if self.found(path, damage, is_last).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                scan
            }
        };
        while let Some(found) = scan.next()? {
            if self.found(path, found, is_last).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        if kind == FileKind::Segment {
            self.next_sequence = scan.next_sequence();
        } else if is_last && self.is_whole && self.owner.is_some() {
            // Where nobody writes a snapshot may be all there is: a backup.
            let reason = "the segment that follows this snapshot is missing".to_owned();
            return Ok(self.damage(path, *length..*length, reason));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What is wrong with an intact header.
    fn wrong(&mut self, header: &FileHeader) -> Option<String> {
        let cluster = self.cluster.get_or_insert_with(|| header.cluster.clone());
        let reason = if let Some(reason) = self.owner.and_then(|owner| owner.refuses(header)) {
            Some(reason)
        } else if *cluster != header.cluster {
            Some(of_another_cluster(&header.cluster, cluster))
        } else if header.kind == FileKind::Segment
            && self.is_whole
            && self.next_sequence.is_some_and(|next| next != header.first_sequence)
        {
            Some("the file before this one is missing or incomplete".to_owned())
        } else {
            None
        };
        if header.kind == FileKind::Snapshot {
            self.next_sequence = Some(header.first_sequence);
        }
        reason
    }

    fn found(&mut self, path: &Path, found: Found, is_last: bool) -> ControlFlow<()> {
        match found {
            Found::Record(record) => (self.visit)(Step::Record(record)),
            Found::Damage { bytes, reason } => self.damage(path, bytes, reason),
            Found::Torn { bytes } if is_last => {
                let reason = "the rest of a write that was interrupted".to_owned();
                (self.visit)(Step::Torn(Flaw { file: path.to_owned(), bytes, reason }))
            }
            Found::Torn { bytes } => {
                let reason = "unreadable, although later segments follow".to_owned();
                self.damage(path, bytes, reason)
            }
        }
    }

    fn damage(&mut self, path: &Path, bytes: Range<u64>, reason: String) -> ControlFlow<()> {
        (self.visit)(Step::Damage(Flaw { file: path.to_owned(), bytes, reason }))
    }
}
