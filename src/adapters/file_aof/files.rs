//! The files of a log, and what stands at the beginning of each.
//!
//! A log is a directory of segments `0000000000000001.log`, ..., read in order. A snapshot
//! `0000000000000007.snap` stands for all segments before segment 7. Both begin with a header, all
//! numbers little-endian:
//!
//! 1. magic, 8 bytes, `LALLYLOG`; of a snapshot `LALLYSNP`
//! 2. format version, `u16`, 1
//! 3. length of the header, `u16`
//! 4. number of the segment, or of the one that follows the snapshot, `u64`
//! 5. id of the node that wrote it, `u64`
//! 6. sequence of the first record of that segment, `u64`
//! 7. salt, `u64`: random, enters the checksum of every record
//! 8. cluster name, UTF-8, up to the checksum
//! 9. CRC32C of all before, `u32`
//!
//! Records follow until the end of the file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::domain::NodeId;
use crate::ports::LogError;

use super::disk::is_full;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    /// Records in the order in which they were appended.
    Segment,
    /// What all segments before one come to, in any order.
    Snapshot,
}

impl FileKind {
    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Segment => b"LALLYLOG",
            Self::Snapshot => b"LALLYSNP",
        }
    }

    /// The word for it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Segment => "segment",
            Self::Snapshot => "snapshot",
        }
    }

    const fn extension(self) -> &'static str {
        match self {
            Self::Segment => "log",
            Self::Snapshot => "snap",
        }
    }
}

const VERSION: u16 = 1;

/// Of files that are being written.
pub(super) const DRAFT: &str = "new";

/// Bytes of the header without the cluster name.
const FIXED_BYTES: usize = 8 + 2 + 2 + 4 * 8 + 4;

/// Longest header: cluster names have at most 64 bytes, with room to spare.
const MAX_HEADER_BYTES: usize = 512;

/// What stands at the beginning of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) kind: FileKind,
    pub(super) number: u64,
    pub(super) node: NodeId,
    pub(super) first_sequence: u64,
    pub(super) salt: u64,
    pub(super) cluster: String,
}

impl FileHeader {
    /// Length on disk, in bytes.
    pub(super) fn bytes(&self) -> usize {
        FIXED_BYTES + self.cluster.len()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes());
        out.extend_from_slice(self.kind.magic());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&u16::try_from(self.bytes()).unwrap_or(u16::MAX).to_le_bytes());
        for field in [self.number, self.node.as_u64(), self.first_sequence, self.salt] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(self.cluster.as_bytes());
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// The header of a file, or what is wrong with it.
    pub(super) fn read(file: &File) -> io::Result<Result<Self, HeaderError>> {
        let mut bytes = vec![0; MAX_HEADER_BYTES];
        let read = read_at_most(file, &mut bytes, 0)?;
        Ok(Self::decode(bytes.get(..read).unwrap_or_default()))
    }

    /// The header at the beginning of these bytes, or what is wrong with it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let magic = bytes.first_chunk::<8>();
        let kinds = [FileKind::Segment, FileKind::Snapshot];
        let Some(kind) = kinds.into_iter().find(|kind| magic == Some(kind.magic())) else {
            return Err(HeaderError::NoMagic);
        };
        let short = || HeaderError::Short;
        let u16_at = |at: usize| {
            let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk());
            bytes.map(|b| u16::from_le_bytes(*b)).ok_or_else(short)
        };
        let u64_at = |at: usize| {
            let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk());
            bytes.map(|b| u64::from_le_bytes(*b)).ok_or_else(short)
        };
        let (version, length) = (u16_at(8)?, usize::from(u16_at(10)?));
        let header = bytes.get(..length).filter(|h| h.len() >= FIXED_BYTES).ok_or_else(short)?;
        let (fields, crc) = header.split_at(length - 4);
        if crc != crc32c::crc32c(fields).to_le_bytes() {
            return Err(HeaderError::Checksum);
        }
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let name = fields.get(FIXED_BYTES - 4..).unwrap_or_default();
        let cluster = std::str::from_utf8(name).map_err(|_| HeaderError::Cluster)?.to_owned();
        Ok(Self {
            kind,
            number: u64_at(12)?,
            node: NodeId::new(u64_at(20)?),
            first_sequence: u64_at(28)?,
            salt: u64_at(36)?,
            cluster,
        })
    }
}

/// What is wrong with the beginning of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("this is not a log of Lally (no LALLYLOG at the beginning)")]
    NoMagic,
    #[error("the file header is cut off")]
    Short,
    #[error("the file header does not match its checksum")]
    Checksum,
    /// Intact, and of another release.
    #[error("format version {0}; this release reads {VERSION}")]
    Version(u16),
    #[error("the name of the cluster in the file header is not UTF-8")]
    Cluster,
}

/// Reads from this place on until `into` is full or the file ends; how many bytes those are.
pub(super) fn read_at_most(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = into.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Why a file of the log was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unmade {
    /// It never had its name: the log is as it was.
    Undone(LogError),
    /// It has its name, which a power cut may take away again, or not. The log is right in either
    /// case, but only as long as nothing is added to it.
    Unforced(LogError),
}

impl From<Unmade> for LogError {
    fn from(unmade: Unmade) -> Self {
        match unmade {
            Unmade::Undone(error) | Unmade::Unforced(error) => error,
        }
    }
}

/// Creates a segment that survives a power cut: the header is on disk before the name is. What else
/// is needed of it `prepare` does with the draft: once it has its name nothing may be taken back. A
/// power cut would bring it back, while the segment before goes on with its sequences.
pub(super) fn create<T>(
    dir: &Path,
    header: &FileHeader,
    prepare: impl FnOnce(&Path) -> Result<T, LogError>,
) -> Result<(PathBuf, T), Unmade> {
    let path = dir.join(file_name(header.kind, header.number));
    let (draft, mut file) = begin_draft(&path).map_err(Unmade::Undone)?;
    let written = file.write_all(&header.encode()).and_then(|()| file.sync_all());
    let written = written.map_err(|error| failed(&draft, &error));
    let prepared = written.and_then(|()| prepare(&draft)).map_err(Unmade::Undone);
    let published = prepared.and_then(|prepared| publish(&draft, &path).map(|()| prepared));
    let prepared = published.inspect_err(|_| {
        // A draft that stays means nothing, and goes at the next start.
        fs::remove_file(&draft).ok();
    })?;
    Ok((path, prepared))
}

/// The draft of a file. A segment and a snapshot of one number have two.
pub(super) fn draft_of(path: &Path) -> PathBuf {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".");
    draft.push(DRAFT);
    draft.into()
}

/// Begins the draft of a file.
pub(super) fn begin_draft(path: &Path) -> Result<(PathBuf, File), LogError> {
    let draft = draft_of(path);
    let file = File::create(&draft).map_err(|error| failed(&draft, &error))?;
    Ok((draft, file))
}

/// Gives a draft, which is complete and on disk, its name.
pub(super) fn publish(draft: &Path, path: &Path) -> Result<(), Unmade> {
    let dir = path.parent().unwrap_or(Path::new("."));
    // Before the rename, behind which nothing may fail but the sync.
    let opened = File::open(dir).map_err(|error| Unmade::Undone(failed(dir, &error)))?;
    fs::rename(draft, path).map_err(|error| Unmade::Undone(failed(path, &error)))?;
    // Also if the disk is only full: what a sync has not done is not known afterwards.
    opened.sync_all().map_err(|error| Unmade::Unforced(not_forced(dir, &error)))
}

/// The files of a log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LogFiles {
    /// The newest snapshot.
    pub(super) snapshot: Option<PathBuf>,
    /// The segments, in their order; behind the snapshot, if there is one.
    pub(super) segments: Vec<PathBuf>,
    /// What the snapshot stands for, and drafts: worth nothing.
    pub(super) leftovers: Vec<PathBuf>,
}

impl LogFiles {
    /// Those in a directory.
    pub(super) fn list(dir: &Path) -> Result<Self, LogError> {
        let mut files = Self::default();
        let mut snapshots = Vec::new();
        for file in fs::read_dir(dir).map_err(|error| failed(dir, &error))? {
            let path = file.map_err(|error| failed(dir, &error))?.path();
            match kind_of(&path) {
                Some(FileKind::Segment) => files.segments.push(path),
                Some(FileKind::Snapshot) => snapshots.push(path),
                None if path.extension().is_some_and(|e| e == DRAFT) => files.leftovers.push(path),
                None => {}
            }
        }
        // Names are numbers of equal length: their order is the numbers'.
        files.segments.sort();
        snapshots.sort();
        files.snapshot = snapshots.pop();
        files.leftovers.extend(snapshots);
        if let Some(snapshot) = &files.snapshot {
            let behind = files.segments.partition_point(|s| s.file_stem() < snapshot.file_stem());
            files.leftovers.extend(files.segments.drain(..behind));
        }
        Ok(files)
    }

    /// This file alone.
    pub(super) fn only(path: &Path) -> Self {
        match kind_of(path) {
            Some(FileKind::Snapshot) => Self { snapshot: Some(path.to_owned()), ..Self::default() },
            _ => Self { segments: vec![path.to_owned()], ..Self::default() },
        }
    }

    /// Whether there is nothing to read.
    pub(super) const fn is_empty(&self) -> bool {
        self.snapshot.is_none() && self.segments.is_empty()
    }

    /// The files to read, in their order.
    pub(super) fn to_read(&self) -> impl Iterator<Item = &PathBuf> {
        self.snapshot.iter().chain(&self.segments)
    }

    /// Removes the leftovers. One that stays costs space, and is tried again.
    pub(super) fn remove_leftovers(&self) {
        for path in &self.leftovers {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(file = %path.display(), %error, "old file of the log not removed");
            }
        }
    }
}

/// Makes the names in a directory survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Creates the directory of a log, if it does not exist, so that its name survives a power cut.
pub(super) fn create_dir(dir: &Path) -> Result<(), LogError> {
    let made = fs::create_dir_all(dir).and_then(|()| match dir.parent() {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    });
    made.map_err(|error| failed(dir, &error))
}

/// An error of the file system, with the file it is about.
pub(super) fn failed(path: &Path, error: &io::Error) -> LogError {
    if is_full(error) {
        // The error has no room for it.
        tracing::warn!(file = %path.display(), %error, "disk full");
        return LogError::DiskFull;
    }
    LogError::Failed(format!("{}: {error}", path.display()))
}

/// A sync that failed, whyever: nothing that it should have forced is believed.
pub(super) fn not_forced(path: &Path, error: &io::Error) -> LogError {
    LogError::Failed(format!("{}: sync: {error}", path.display()))
}

/// Of the segment with this number, or of the snapshot before it.
pub(super) fn file_name(kind: FileKind, number: u64) -> String {
    format!("{number:016}.{}", kind.extension())
}

/// What a file with this name would be.
pub(super) fn kind_of(path: &Path) -> Option<FileKind> {
    let extension = path.extension()?;
    [FileKind::Segment, FileKind::Snapshot].into_iter().find(|kind| extension == kind.extension())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: FileKind) -> FileHeader {
        FileHeader {
            kind,
            number: 7,
            node: NodeId::new(8),
            first_sequence: 9,
            salt: 10,
            cluster: "lally".into(),
        }
    }

    #[test]
    fn a_header_survives_its_bytes() {
        for kind in [FileKind::Segment, FileKind::Snapshot] {
            let bytes = header(kind).encode();
            assert_eq!(bytes.len(), header(kind).bytes());
            assert_eq!(FileHeader::decode(&bytes), Ok(header(kind)));
        }
    }

    #[test]
    fn a_snapshot_stands_for_what_comes_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let name = |name: &str| dir.path().join(name);
        let all = [
            "1.log",
            "2.log",
            "2.snap",
            "3.log",
            "3.snap",
            "4.log",
            "4.snap.new",
            "5.new",
            "README",
        ];
        for file in all {
            File::create(name(file)).unwrap();
        }
        let mut files = LogFiles::list(dir.path()).unwrap();
        files.leftovers.sort();
        let names = |names: &[&str]| names.iter().copied().map(name).collect::<Vec<_>>();
        assert_eq!(files.snapshot, Some(name("3.snap")));
        assert_eq!(files.segments, names(&["3.log", "4.log"]));
        assert_eq!(files.leftovers, names(&["1.log", "2.log", "2.snap", "4.snap.new", "5.new"]));
        files.remove_leftovers();
        let left = LogFiles::list(dir.path()).unwrap();
        assert_eq!(left, LogFiles { leftovers: Vec::new(), ..files });
        assert!(name("README").exists());
    }

    #[test]
    fn a_segment_that_cannot_be_begun_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        // In the way of the name.
        fs::create_dir(dir.path().join("0000000000000007.log")).unwrap();
        let unmade = create(dir.path(), &header(FileKind::Segment), |_| Ok(()));
        assert!(matches!(unmade, Err(Unmade::Undone(_))), "{unmade:?}");
        assert_eq!(LogFiles::list(dir.path()).unwrap().leftovers, Vec::<PathBuf>::new());
    }

    #[test]
    fn a_segment_that_cannot_be_prepared_never_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let prepare = |draft: &Path| {
            assert_eq!(draft.metadata().unwrap().len(), header(FileKind::Segment).bytes() as u64);
            Err::<(), _>(LogError::DiskFull)
        };
        let unmade = create(dir.path(), &header(FileKind::Segment), prepare);
        assert_eq!(unmade, Err(Unmade::Undone(LogError::DiskFull)));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let bytes = header(FileKind::Segment).encode();
        for length in 0..bytes.len() {
            assert!(FileHeader::decode(&bytes[..length]).is_err(), "{length}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(FileHeader::decode(&damaged).is_err(), "{bit}");
        }
    }
}
