//! Segments: the files of a log, and what stands at the beginning of each.
//!
//! A log is a directory of segments `0000000000000001.log`, ..., read in order. A segment begins
//! with a header, all numbers little-endian:
//!
//! 1. magic, 8 bytes, `LALLYLOG`
//! 2. format version, `u16`, 1
//! 3. length of the header, `u16`
//! 4. number of the segment, `u64`
//! 5. id of the node that wrote it, `u64`
//! 6. sequence of its first record, `u64`
//! 7. salt, `u64`: random, enters the checksum of every record
//! 8. cluster name, UTF-8, up to the checksum
//! 9. CRC32C of all before, `u32`
//!
//! Records follow until the end of the file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::domain::NodeId;
use crate::ports::LogError;

const MAGIC: &[u8; 8] = b"LALLYLOG";
const VERSION: u16 = 1;

/// Bytes of the header without the cluster name.
const FIXED_BYTES: usize = 8 + 2 + 2 + 4 * 8 + 4;

/// Longest header: cluster names have at most 64 bytes, with room to spare.
const MAX_HEADER_BYTES: usize = 512;

/// What stands at the beginning of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) number: u64,
    pub(super) node: NodeId,
    pub(super) first_sequence: u64,
    pub(super) salt: u64,
    pub(super) cluster: String,
}

impl SegmentHeader {
    /// Length on disk, in bytes.
    pub(super) fn bytes(&self) -> usize {
        FIXED_BYTES + self.cluster.len()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes());
        out.extend_from_slice(MAGIC);
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

    /// The header at the beginning of these bytes, or what is wrong with it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.first_chunk::<8>() != Some(MAGIC) {
            return Err("this is not a log of Lally (no LALLYLOG at the beginning)".into());
        }
        let short = || "the file header is cut off".to_owned();
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
            return Err("the file header does not match its checksum".into());
        }
        if version != VERSION {
            return Err(format!("format version {version}; this release reads {VERSION}"));
        }
        let name = fields.get(FIXED_BYTES - 4..).unwrap_or_default();
        let cluster = std::str::from_utf8(name).map_err(|error| error.to_string())?.to_owned();
        Ok(Self {
            number: u64_at(12)?,
            node: NodeId::new(u64_at(20)?),
            first_sequence: u64_at(28)?,
            salt: u64_at(36)?,
            cluster,
        })
    }
}

/// The most bytes a reader needs to see of a header.
pub(super) const fn max_header_bytes() -> usize {
    MAX_HEADER_BYTES
}

/// Creates a segment that survives a power cut: the header is on disk before the name is.
pub(super) fn create(dir: &Path, header: &SegmentHeader) -> Result<PathBuf, LogError> {
    let path = dir.join(file_name(header.number));
    let draft = path.with_extension("new");
    let write = || {
        let mut file = File::create(&draft)?;
        file.write_all(&header.encode())?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        sync_dir(dir)
    };
    write().map_err(|error| failed(&path, &error))?;
    Ok(path)
}

/// The segments in a directory, by number.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, LogError> {
    let mut segments = Vec::new();
    for file in fs::read_dir(dir).map_err(|error| failed(dir, &error))? {
        let path = file.map_err(|error| failed(dir, &error))?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            segments.push(path);
        }
    }
    // Names are numbers of equal length: their order is the numbers'.
    segments.sort();
    Ok(segments)
}

/// Makes the names in a directory survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// An error of the file system, with the file it is about.
pub(super) fn failed(path: &Path, error: &io::Error) -> LogError {
    LogError::Failed(format!("{}: {error}", path.display()))
}

fn file_name(number: u64) -> String {
    format!("{number:016}.log")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            number: 7,
            node: NodeId::new(8),
            first_sequence: 9,
            salt: 10,
            cluster: "lally".into(),
        }
    }

    #[test]
    fn a_header_survives_its_bytes() {
        let bytes = header().encode();
        assert_eq!(bytes.len(), header().bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header()));
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let bytes = header().encode();
        for length in 0..bytes.len() {
            assert!(SegmentHeader::decode(&bytes[..length]).is_err(), "{length}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&damaged).is_err(), "{bit}");
        }
    }
}
