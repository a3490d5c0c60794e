//! The form of an outbox on disk.
//!
//! A segment is a file of records, one behind the other:
//!
//! 1. 4 bytes: `LOB1`
//! 2. 4 bytes, little endian: the length of what is behind the checksum
//! 3. 4 bytes, little endian: CRC32C of the length and of what is behind the checksum
//! 4. 8 and 8 bytes, little endian: timestamp and node of the version
//! 5. the body of the request
//!
//! The mark is a file of one record of the same framing, `LOM1`, that is written in its place: up to
//! where everything is done with (segment and offset), and from which timestamp on a restart looks into
//! the log for changes that never got here.
//!
//! The four letters let a reader find the next record behind damage. A record counts only with its
//! checksum, so letters that happen to be in a body are no record.

use bytes::Bytes;

use crate::domain::{NodeId, Timestamp, Version};

use super::event::Event;

const RECORD: [u8; 4] = *b"LOB1";
const MARK: [u8; 4] = *b"LOM1";

const FRAME: usize = 12;
const VERSION: usize = 16;

/// No body is longer: six bytes for each of the longest value, and what is around it.
const MAX_PAYLOAD: usize = 128 << 20;

/// Up to where an outbox is done with, and from where on it resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) resume_from: Timestamp,
}

/// The bytes of an event.
pub(super) fn encode(event: &Event) -> Vec<u8> {
    let version = event.version;
    let numbers = [version.timestamp.as_nanos(), version.node.as_u64()];
    let mut payload = Vec::with_capacity(VERSION + event.body.len());
    payload.extend(numbers.into_iter().flat_map(u64::to_le_bytes));
    payload.extend_from_slice(&event.body);
    framed(RECORD, &payload)
}

/// The event of exactly these bytes.
pub(super) fn decode(bytes: &[u8]) -> Option<Event> {
    let (payload, rest) = unframed(RECORD, bytes)?;
    if !rest.is_empty() {
        return None;
    }
    let (version, body) = version_and_body(payload)?;
    Some(Event { version, body: Bytes::copy_from_slice(body) })
}

/// The bytes of a mark, always as many.
pub(super) fn encode_mark(mark: Mark) -> Vec<u8> {
    let numbers = [mark.segment, mark.offset, mark.resume_from.as_nanos()];
    framed(MARK, &numbers.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<_>>())
}

/// The mark of these bytes, if they are one.
pub(super) fn decode_mark(bytes: &[u8]) -> Option<Mark> {
    let (payload, _) = unframed(MARK, bytes)?;
    let (segment, rest) = number(payload)?;
    let (offset, rest) = number(rest)?;
    let (resume_from, _) = number(rest)?;
    Some(Mark { segment, offset, resume_from: Timestamp::from_nanos(resume_from) })
}

/// What is in a segment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Offset, length and version of every intact record.
    pub(super) records: Vec<(u64, usize, Version)>,
    /// Offsets where something is that is no record, with records behind it.
    pub(super) damaged: Vec<u64>,
    /// Where what is behind the last record begins, if anything is: a record that was not finished.
    pub(super) torn: Option<u64>,
}

/// Reads a segment. Of what is damaged, only the records that it is in are lost.
pub(super) fn scan(bytes: &[u8]) -> Scanned {
    let mut found = Scanned::default();
    let (mut at, mut broken) = (0, None);
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let record = unframed(RECORD, rest).and_then(|(payload, behind)| {
            let (version, _) = version_and_body(payload)?;
            Some((rest.len() - behind.len(), version))
        });
        if let Some((length, version)) = record {
            found.damaged.extend(broken.take());
            found.records.push((at as u64, length, version));
            at += length;
        } else {
            broken = broken.or(Some(at as u64));
            at += next_letters(rest);
        }
    }
    found.torn = broken;
    found
}

/// How far it is to the next place that may be a record.
fn next_letters(bytes: &[u8]) -> usize {
    let behind = bytes.get(1..).unwrap_or_default();
    let next = behind.windows(RECORD.len()).position(|letters| letters == RECORD);
    next.map_or(bytes.len(), |at| at + 1)
}

fn framed(letters: [u8; 4], payload: &[u8]) -> Vec<u8> {
    // No event is near that long: see MAX_PAYLOAD.
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes();
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&length), payload);
    let mut bytes = Vec::with_capacity(FRAME + payload.len());
    bytes.extend(letters);
    bytes.extend(length);
    bytes.extend(checksum.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn unframed(letters: [u8; 4], bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let bytes = bytes.strip_prefix(&letters)?;
    let (length, bytes) = bytes.split_first_chunk::<4>()?;
    let (checksum, bytes) = bytes.split_first_chunk::<4>()?;
    let payload_bytes = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if payload_bytes > MAX_PAYLOAD {
        return None;
    }
    let (payload, behind) = bytes.split_at_checked(payload_bytes)?;
    let found = crc32c::crc32c_append(crc32c::crc32c(length), payload);
    (found == u32::from_le_bytes(*checksum)).then_some((payload, behind))
}

fn version_and_body(payload: &[u8]) -> Option<(Version, &[u8])> {
    let (timestamp, rest) = number(payload)?;
    let (node, body) = number(rest)?;
    Some((Version::new(Timestamp::from_nanos(timestamp), NodeId::new(node)), body))
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: u64, body: &str) -> Event {
        let version = Version::new(Timestamp::from_nanos(at), NodeId::new(7));
        Event { version, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    /// Three records, and where each ends.
    fn segment() -> (Vec<u8>, [usize; 3]) {
        // The letters of a record in a body are no record.
        let events = [event(1, "one"), event(2, "LOB1 and LOB1"), event(3, "")];
        let mut bytes = Vec::new();
        let ends = events.map(|event| {
            bytes.extend(encode(&event));
            bytes.len()
        });
        (bytes, ends)
    }

    fn stamps(scanned: &Scanned) -> Vec<u64> {
        scanned.records.iter().map(|(_, _, version)| version.timestamp.as_nanos()).collect()
    }

    #[test]
    fn an_event_and_a_mark_come_back_as_they_were() {
        let event = event(u64::MAX, "body");
        assert_eq!(decode(&encode(&event)), Some(event.clone()));
        assert_eq!(decode(&[encode(&event), vec![0]].concat()), None);
        let mark = Mark { segment: 5, offset: 6, resume_from: Timestamp::from_nanos(7) };
        assert_eq!(decode_mark(&encode_mark(mark)), Some(mark));
        assert_eq!(decode_mark(&encode(&event)), None);
    }

    #[test]
    fn a_segment_cut_anywhere_holds_the_records_before_the_cut() {
        let (bytes, ends) = segment();
        for cut in 0..=bytes.len() {
            let scanned = scan(&bytes[..cut]);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(scanned.records.len(), whole, "{cut}");
            assert!(scanned.damaged.is_empty(), "{cut}");
            let end = if whole == 0 { 0 } else { ends[whole - 1] };
            assert_eq!(scanned.torn, (end < cut).then_some(end as u64), "{cut}");
        }
    }

    #[test]
    fn a_bit_that_flipped_costs_the_record_that_it_is_in() {
        let (bytes, ends) = segment();
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let hit = ends.iter().position(|end| bit / 8 < *end).unwrap();
            let expected: Vec<_> = (1..=3).filter(|stamp| *stamp != hit as u64 + 1).collect();
            let scanned = scan(&bytes);
            assert_eq!(stamps(&scanned), expected, "{bit}");
            let begin = if hit == 0 { 0 } else { ends[hit - 1] as u64 };
            if hit == 2 {
                assert_eq!((scanned.damaged.len(), scanned.torn), (0, Some(begin)), "{bit}");
            } else {
                assert_eq!((scanned.damaged, scanned.torn), (vec![begin], None), "{bit}");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_segment_are_no_records() {
        let garbage: Vec<u8> = (0..4_096_u32).map(|n| (n * 7 % 251) as u8).collect();
        assert!(scan(&garbage).records.is_empty());
        assert_eq!(scan(&[]), Scanned::default());
        let long = [b"LOB1".as_slice(), &u32::MAX.to_le_bytes(), &[0; 64]].concat();
        assert!(scan(&long).records.is_empty());
    }
}
