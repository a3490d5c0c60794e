//! `Scan`: the records of one file, and what lies between them, to the end.
//!
//! A replay ends at the first byte that does not verify. A scan goes on behind it, for people who want
//! to know how much is damaged, and for a repair. Up to there it makes of the file what a replay does:
//! `tests/it/contracts/log_sweep.rs` holds the two against each other.

use std::fs::File;
use std::io;
use std::ops::Range;

use crate::ports::LogRecord;

use super::files::{FileHeader, FileKind, HeaderError, read_at_most};
use super::format::{HEADER_BYTES, Header, Piece, TRAILER_BYTES, decode_header, decode_payload};

/// Bytes read at a time.
const READ_BYTES: usize = 256 * 1_024;

/// Bytes searched at a time.
const SEARCHED_BYTES: usize = 1 << 20;

/// Where the salt stands in a file, whatever is wrong with the rest of its header.
const SALT_AT: u64 = 36;

/// Something in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Record(LogRecord),
    /// These bytes hold no record, or something is missing at this place.
    Damage {
        bytes: Range<u64>,
        reason: String,
    },
    /// These bytes at the end are the rest of a write that was interrupted, if nothing follows.
    Torn {
        bytes: Range<u64>,
    },
}

/// Reads one file.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    window: Window<'a>,
    kind: FileKind,
    salt: u64,
    /// Where the next record should begin.
    offset: u64,
    /// Its sequence, unless any will do: after a gap.
    sequence: Option<u64>,
    is_damaged: bool,
    /// Whether the end of a snapshot was read.
    is_ended: bool,
    /// Whether there is no more to say.
    is_done: bool,
}

impl<'a> Scan<'a> {
    /// Reads the records behind this header.
    pub(super) fn new(file: &'a File, length: u64, header: &FileHeader) -> Self {
        let first = if header.kind == FileKind::Snapshot { 1 } else { header.first_sequence };
        Self {
            window: Window::new(file, length),
            kind: header.kind,
            salt: header.salt,
            offset: header.bytes() as u64,
            sequence: Some(first),
            is_damaged: false,
            is_ended: false,
            is_done: false,
        }
    }

    /// Reads the records of a file whose header is damaged: the salt may be intact, and is if any
    /// record verifies with it.
    pub(super) fn without_header(
        file: &'a File,
        length: u64,
        kind: FileKind,
        reason: HeaderError,
    ) -> io::Result<(Self, Found)> {
        let mut salt = [0; 8];
        let has_salt = read_at_most(file, &mut salt, SALT_AT)? == salt.len();
        let mut scan = Self {
            window: Window::new(file, length),
            kind,
            salt: u64::from_le_bytes(salt),
            offset: 0,
            sequence: None,
            is_damaged: true,
            is_ended: false,
            is_done: false,
        };
        let first = if has_salt { scan.window.find(0, scan.salt, 0)? } else { None };
        scan.offset = first.unwrap_or(length);
        scan.is_done = first.is_none();
        let found = Found::Damage { bytes: 0..scan.offset, reason: reason.to_string() };
        Ok((scan, found))
    }

    /// The sequence behind the last record, if it is certain.
    pub(super) const fn next_sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// What comes next; `None` at the end of the file.
    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        loop {
            if self.is_done {
                return Ok(None);
            }
            let here = self.offset;
            if here >= self.window.length || self.is_ended {
                self.is_done = true;
                return Ok(self.at_the_end());
            }
            let Some((header, payload)) = self.window.record(here, self.salt)? else {
                return self.skip().map(Some);
            };
            let behind = here + record_bytes(header);
            if let Some(expected) = self.sequence.filter(|expected| *expected != header.sequence) {
                // It verifies, so it is read nevertheless, the next time.
                self.sequence = Some(header.sequence);
                let found = header.sequence;
                let reason = format!("record {found} stands where record {expected} belongs");
                return Ok(Some(self.damage(here..here, reason)));
            }
            let piece = decode_payload(header.kind, payload);
            self.offset = behind;
            self.sequence = header.sequence.checked_add(1);
            match piece {
                Ok(Piece::Record(record)) => return Ok(Some(Found::Record(record))),
                Ok(Piece::End(records))
                    if self.kind == FileKind::Snapshot
                        && records.wrapping_add(1) == header.sequence =>
                {
                    self.is_ended = true;
                }
                Ok(Piece::End(records)) => {
                    let reason = format!("the end of a snapshot of {records} records stands here");
                    return Ok(Some(self.damage(here..behind, reason)));
                }
                Err(reason) => return Ok(Some(self.damage(here..behind, reason))),
            }
        }
    }

    fn at_the_end(&mut self) -> Option<Found> {
        let rest = self.offset..self.window.length;
        match (self.kind, self.is_ended) {
            (FileKind::Snapshot, false) => {
                Some(self.damage(rest, "the snapshot is unreadable from here on".into()))
            }
            (FileKind::Snapshot, true) if !rest.is_empty() => {
                Some(self.damage(rest, "the snapshot has ended before".into()))
            }
            (FileKind::Snapshot | FileKind::Segment, _) => None,
        }
    }

    /// Goes on to the next record that verifies.
    fn skip(&mut self) -> io::Result<Found> {
        let here = self.offset;
        // As a replay does, until it is known that the file is damaged; then every record counts.
        let least = if self.is_damaged { 0 } else { self.sequence.unwrap_or_default() };
        if let Some(at) = self.window.find(here + 1, self.salt, least)? {
            (self.offset, self.sequence) = (at, None);
            let reason = format!("unreadable, although intact records follow from byte {at}");
            return Ok(self.damage(here..at, reason));
        }
        let rest = here..self.window.length;
        self.offset = self.window.length;
        self.is_done = true;
        Ok(match (self.kind, self.is_damaged) {
            (FileKind::Segment, false) => Found::Torn { bytes: rest },
            (FileKind::Segment, true) => {
                self.damage(rest, "unreadable to the end of the file".into())
            }
            (FileKind::Snapshot, _) => {
                self.damage(rest, "the snapshot is unreadable from here on".into())
            }
        })
    }

    fn damage(&mut self, bytes: Range<u64>, reason: String) -> Found {
        self.is_damaged = true;
        Found::Damage { bytes, reason }
    }
}

const fn record_bytes(header: Header) -> u64 {
    (HEADER_BYTES + header.payload_bytes + TRAILER_BYTES) as u64
}

/// The part of a file that is in memory.
#[derive(Debug)]
pub(super) struct Window<'a> {
    file: &'a File,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Window<'a> {
    pub(super) const fn new(file: &'a File, length: u64) -> Self {
        Self { file, length, start: 0, bytes: Vec::new() }
    }

    /// The record at this place with its payload, if it verifies.
    fn record(&mut self, at: u64, salt: u64) -> io::Result<Option<(Header, &[u8])>> {
        let head = self.up_to(at, HEADER_BYTES)?;
        let Some(header) = head.first_chunk().and_then(|head| decode_header(head, salt)) else {
            return Ok(None);
        };
        // The length is covered by the header's checksum and bounded: safe to allocate.
        let framed = header.payload_bytes + TRAILER_BYTES;
        let bytes = self.up_to(at + HEADER_BYTES as u64, framed)?;
        let framed = bytes.get(..framed).and_then(<[u8]>::split_last_chunk::<TRAILER_BYTES>);
        let Some((payload, crc)) = framed else { return Ok(None) };
        let verifies = crc32c::crc32c(payload) == u32::from_le_bytes(*crc);
        Ok(verifies.then_some((header, payload)))
    }

    /// Where the next record begins that verifies and has at least this sequence.
    pub(super) fn find(&mut self, from: u64, salt: u64, least: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        loop {
            let bytes = self.up_to(at, SEARCHED_BYTES)?;
            let Some(searched) = bytes.len().checked_sub(HEADER_BYTES) else { return Ok(None) };
            let hit = bytes.windows(HEADER_BYTES).position(|bytes| {
                let header = bytes.first_chunk().and_then(|bytes| decode_header(bytes, salt));
                header.is_some_and(|header| header.sequence >= least)
            });
            match hit {
                Some(hit) => {
                    at += hit as u64;
                    if self.record(at, salt)?.is_some() {
                        return Ok(Some(at));
                    }
                    at += 1;
                }
                None => at += searched as u64 + 1,
            }
        }
    }

    /// The bytes from this place on, so many of them at most; fewer at the end of the file.
    fn up_to(&mut self, at: u64, wanted: usize) -> io::Result<&[u8]> {
        let there = usize::try_from(self.length.saturating_sub(at)).unwrap_or(usize::MAX);
        let wanted = wanted.min(there);
        let skipped = at.checked_sub(self.start).and_then(|skipped| usize::try_from(skipped).ok());
        let held = skipped.filter(|skipped| self.bytes.len() >= skipped + wanted);
        let from = if let Some(skipped) = held {
            skipped
        } else {
            self.bytes.resize(wanted.max(READ_BYTES).min(there), 0);
            let read = read_at_most(self.file, &mut self.bytes, at)?;
            // Shorter than it was, where the node cut off what did not fit on the disk.
            self.bytes.truncate(read);
            self.start = at;
            0
        };
        let rest = self.bytes.get(from..).unwrap_or_default();
        Ok(rest.get(..wanted).unwrap_or(rest))
    }
}
