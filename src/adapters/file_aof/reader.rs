//! Reading a log back.
//!
//! What does not verify is one of two things. At the end of the last segment, with nothing readable
//! after it, it is a **torn tail**: the rest of a write that a crash interrupted, never
//! acknowledged. Anywhere else it is **damage**: something acknowledged is unreadable, and cutting
//! there would lose everything after it. So before a tail is called torn, the rest of the file is
//! searched for a record that verifies and comes later.
//!
//! Caveat: the damage of the very last record cannot be told from a torn write of it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::ports::{LogError, LogRecord, Replayed};

use super::files::{FileHeader, FileKind, LogFiles, failed};
use super::format::{HEADER_BYTES, Piece, TRAILER_BYTES, decode_header, decode_payload};
use super::own::of_another_cluster;
use super::scan::Window;

/// Bytes read from the file at a time.
const BUFFER_BYTES: usize = 256 * 1_024;

/// How often a long replay says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);

/// Where the records of a file end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) path: PathBuf,
    pub(super) header: FileHeader,
    /// Bytes up to the end of the last record that verifies.
    pub(super) good_bytes: u64,
    /// Bytes after that: a torn tail.
    pub(super) torn_bytes: u64,
    /// The sequence of the next record.
    pub(super) next_sequence: u64,
}

impl End {
    /// What is wrong where the records end.
    pub(super) fn corrupt(&self, reason: &str) -> LogError {
        corrupt(&self.path, self.good_bytes, reason)
    }
}

/// Reads the snapshot and the segments, in order, and changes nothing on disk. `None` when there are
/// none.
pub(super) fn read_all(
    files: &LogFiles,
    cluster: &str,
    mut visit: impl FnMut(LogRecord),
) -> Result<Option<(Replayed, End)>, LogError> {
    let lengths = files.to_read().filter_map(|path| path.metadata().ok()).map(|m| m.len());
    let mut progress = Progress::new(lengths.sum());
    let mut last: Option<End> = None;
    for path in files.to_read() {
        if let Some(before) = &last
            && before.torn_bytes > 0
        {
            let reason = "unreadable, although later segments follow";
            return Err(corrupt(&before.path, before.good_bytes, reason));
        }
        let expected = last.as_ref().map_or(1, |end| end.next_sequence);
        last = Some(read_file(path, cluster, expected, &mut progress, &mut visit)?);
    }
    Ok(last.map(|end| (Replayed { cut_bytes: end.torn_bytes, ..progress.replayed }, end)))
}

fn read_file(
    path: &Path,
    cluster: &str,
    expected_sequence: u64,
    progress: &mut Progress,
    visit: &mut impl FnMut(LogRecord),
) -> Result<End, LogError> {
    let file = File::open(path).map_err(|error| failed(path, &error))?;
    let length = file.metadata().map_err(|error| failed(path, &error))?.len();
    let header = read_header(path, &file, cluster)?;
    let is_snapshot = header.kind == FileKind::Snapshot;
    if !is_snapshot && expected_sequence != header.first_sequence {
        return Err(corrupt(path, 0, "the file before this one is missing or incomplete"));
    }
    let mut records = Records::new(path, &file, &header)?;
    while let Some(record) = records.next()? {
        progress.count(records.offset);
        visit(record);
    }
    let mut end = End {
        path: path.to_owned(),
        good_bytes: records.offset,
        torn_bytes: length.saturating_sub(records.offset),
        next_sequence: records.sequence,
        header,
    };
    if is_snapshot {
        // It was on disk before it had its name: whatever is missing is damage.
        if !records.is_ended || end.torn_bytes > 0 {
            let reason = "the snapshot is unreadable from here on";
            return Err(corrupt(path, end.good_bytes, reason));
        }
        end.next_sequence = end.header.first_sequence;
    } else if end.torn_bytes > 0 {
        refuse_damage(&file, length, &end)?;
    }
    progress.finish_file(end.good_bytes);
    Ok(end)
}

/// The file's header. It was on disk before the file had its name, so one that does not read is
/// damage, also if the file is empty.
pub(super) fn read_header(path: &Path, file: &File, cluster: &str) -> Result<FileHeader, LogError> {
    let header = FileHeader::read(file).map_err(|error| failed(path, &error))?;
    let header = header.map_err(|error| corrupt(path, 0, &error.to_string()))?;
    if header.cluster != cluster {
        return Err(corrupt(path, 0, &of_another_cluster(&header.cluster, cluster)));
    }
    Ok(header)
}

/// Looks for a record behind the end that verifies and comes later: then the end is damage.
fn refuse_damage(file: &File, length: u64, end: &End) -> Result<(), LogError> {
    let follows =
        Window::new(file, length).find(end.good_bytes + 1, end.header.salt, end.next_sequence);
    match follows.map_err(|error| failed(&end.path, &error))? {
        Some(at) => {
            let reason = format!("unreadable, although intact records follow from byte {at}");
            Err(end.corrupt(&reason))
        }
        None => Ok(()),
    }
}

/// The records of a segment, up to the first that does not verify.
pub(super) struct Records<'a> {
    path: &'a Path,
    input: BufReader<&'a File>,
    salt: u64,
    /// End of the last record that verified.
    pub(super) offset: u64,
    /// Sequence of the next record.
    pub(super) sequence: u64,
    kind: FileKind,
    /// Whether the end of a snapshot was read.
    pub(super) is_ended: bool,
    payload: Vec<u8>,
}

impl<'a> Records<'a> {
    pub(super) fn new(
        path: &'a Path,
        file: &'a File,
        header: &FileHeader,
    ) -> Result<Self, LogError> {
        use std::io::Seek;
        let offset = header.bytes() as u64;
        let mut input = BufReader::with_capacity(BUFFER_BYTES, file);
        input.seek(io::SeekFrom::Start(offset)).map_err(|error| failed(path, &error))?;
        let (salt, kind) = (header.salt, header.kind);
        // A snapshot's records are numbered by themselves.
        let sequence = if kind == FileKind::Snapshot { 1 } else { header.first_sequence };
        let (is_ended, payload) = (false, Vec::new());
        Ok(Self { path, input, salt, offset, sequence, kind, is_ended, payload })
    }

    pub(super) fn next(&mut self) -> Result<Option<LogRecord>, LogError> {
        if self.is_ended {
            return Ok(None);
        }
        let mut header = [0; HEADER_BYTES];
        if !self.fill(&mut header)? {
            return Ok(None);
        }
        let Some(header) = decode_header(&header, self.salt) else { return Ok(None) };
        // The length is covered by the header's checksum and bounded: safe to allocate.
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(header.payload_bytes + TRAILER_BYTES, 0);
        let verified = self.fill(&mut payload)? && checksum_matches(&payload);
        self.payload = payload;
        if !verified {
            return Ok(None);
        }
        if header.sequence != self.sequence {
            let (found, expected) = (header.sequence, self.sequence);
            let reason = format!("record {found} stands where record {expected} belongs");
            return Err(corrupt(self.path, self.offset, &reason));
        }
        let payload = self.payload.get(..header.payload_bytes).unwrap_or_default();
        let piece = decode_payload(header.kind, payload)
            .map_err(|reason| corrupt(self.path, self.offset, &reason))?;
        match piece {
            Piece::End(records)
                if self.kind != FileKind::Snapshot || records.wrapping_add(1) != self.sequence =>
            {
                let reason = format!("the end of a snapshot of {records} records stands here");
                return Err(corrupt(self.path, self.offset, &reason));
            }
            Piece::Record(_) | Piece::End(_) => {}
        }
        self.offset += (HEADER_BYTES + header.payload_bytes + TRAILER_BYTES) as u64;
        self.sequence += 1;
        match piece {
            Piece::Record(record) => Ok(Some(record)),
            Piece::End(_) => {
                self.is_ended = true;
                Ok(None)
            }
        }
    }

    /// Whether there were enough bytes.
    fn fill(&mut self, into: &mut [u8]) -> Result<bool, LogError> {
        match self.input.read_exact(into) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(failed(self.path, &error)),
        }
    }
}

fn checksum_matches(payload_and_crc: &[u8]) -> bool {
    payload_and_crc
        .split_last_chunk()
        .is_some_and(|(payload, crc)| crc32c::crc32c(payload) == u32::from_le_bytes(*crc))
}

pub(super) fn corrupt(path: &Path, offset: u64, reason: &str) -> LogError {
    LogError::Corrupt { file: path.display().to_string(), offset, reason: reason.to_owned() }
}

/// Counts, and reports on long replays.
struct Progress {
    replayed: Replayed,
    finished_bytes: u64,
    total_bytes: u64,
    next_report: Instant,
}

impl Progress {
    fn new(total_bytes: u64) -> Self {
        let next_report = Instant::now() + PROGRESS_EVERY;
        Self { replayed: Replayed::default(), finished_bytes: 0, total_bytes, next_report }
    }

    fn count(&mut self, offset: u64) {
        self.replayed.records += 1;
        // Asking for the time costs more than reading a small record.
        if self.replayed.records.is_multiple_of(1_024) && Instant::now() >= self.next_report {
            self.next_report = Instant::now() + PROGRESS_EVERY;
            let percent = (self.finished_bytes + offset) * 100 / self.total_bytes.max(1);
            tracing::info!(percent, records = self.replayed.records, "replaying the log");
        }
    }

    const fn finish_file(&mut self, bytes: u64) {
        self.finished_bytes += bytes;
        self.replayed.bytes += bytes;
    }
}
