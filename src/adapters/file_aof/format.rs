//! Records: how one piece of the log is framed.
//!
//! A record on disk, all numbers little-endian:
//!
//! 1. payload length, `u32`
//! 2. kind, `u8`: 1 = write, 2 = clock bound, 3 = horizon, 4 = expunged version, 5 = end of a snapshot
//! 3. flags, `u8`, 0
//! 4. reserved, `u16`, 0
//! 5. sequence, `u64`: rises by one from record to record, across segments
//! 6. CRC32C of the segment's salt and fields 1 to 5, `u32`
//! 7. payload (protobuf wire format)
//! 8. CRC32C of the payload, `u32`
//!
//! The header has a checksum of its own, so that a damaged length is recognised as damage, not
//! followed. The salt is a secret of the file: no value that a client stores can contain bytes that
//! pass for a record. The sequence tells a record that is missing from one that never was.

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, key_len};

use crate::domain::{Entry, Key, KeyedEntry, MAX_VALUE_BYTES, NodeId, Timestamp, Value, Version};
use crate::ports::LogRecord;

/// Bytes before the payload.
pub(super) const HEADER_BYTES: usize = 20;

/// Bytes after the payload.
pub(super) const TRAILER_BYTES: usize = 4;

/// Longest payload: the largest value that can be configured, a key, and what frames them.
pub(super) const MAX_PAYLOAD_BYTES: usize = MAX_VALUE_BYTES + 4_096;

const KIND_WRITE: u8 = 1;
const KIND_CLOCK_BOUND: u8 = 2;
const KIND_HORIZON: u8 = 3;
const KIND_EXPUNGED: u8 = 4;
const KIND_END: u8 = 5;

const FIELD_KEY: u32 = 1;
const FIELD_TIMESTAMP: u32 = 2;
const FIELD_NODE: u32 = 3;
const FIELD_VALUE: u32 = 4;

/// A record's header, verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) payload_bytes: usize,
    pub(super) kind: u8,
    pub(super) sequence: u64,
}

/// A payload as read: a write has all but perhaps the value, an expunged version all but the value, a
/// clock bound or a horizon only the timestamp, and an end has the number of records there.
#[derive(Clone, PartialEq, Message)]
struct Payload {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(fixed64, tag = "2")]
    timestamp: u64,
    #[prost(fixed64, tag = "3")]
    node: u64,
    /// Absent in a tombstone.
    #[prost(string, optional, tag = "4")]
    value: Option<String>,
}

/// What is framed in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Record(LogRecord),
    /// Says that a snapshot of so many records is complete.
    End(u64),
}

/// Appends a record to `out`.
pub(super) fn encode(record: &LogRecord, sequence: u64, salt: u64, out: &mut Vec<u8>) {
    let start = out.len();
    encode_unnumbered(record, out);
    number(out.get_mut(start..).unwrap_or_default(), sequence, salt);
}

/// Appends the end of a snapshot of so many records to `out`.
pub(super) fn encode_end(records: u64, sequence: u64, salt: u64, out: &mut Vec<u8>) {
    let start = out.len();
    encode_framed(KIND_END, out, |out| encode_fixed64(FIELD_TIMESTAMP, records, out));
    number(out.get_mut(start..).unwrap_or_default(), sequence, salt);
}

/// Appends a record to `out` that is none yet: its header lacks the sequence and the checksum,
/// which [`number`] gives it once its place in the file is known.
pub(super) fn encode_unnumbered(record: &LogRecord, out: &mut Vec<u8>) {
    match record {
        LogRecord::Write(write) => encode_framed(KIND_WRITE, out, |out| encode_write(write, out)),
        LogRecord::ClockBound(bound) => encode_time(KIND_CLOCK_BOUND, *bound, out),
        LogRecord::Horizon(horizon) => encode_time(KIND_HORIZON, *horizon, out),
        LogRecord::Expunged { key, version } => {
            encode_framed(KIND_EXPUNGED, out, |out| encode_version(key, *version, out));
        }
    }
}

fn encode_time(kind: u8, time: Timestamp, out: &mut Vec<u8>) {
    encode_framed(kind, out, |out| encode_fixed64(FIELD_TIMESTAMP, time.as_nanos(), out));
}

fn encode_framed(kind: u8, out: &mut Vec<u8>, encode_payload: impl FnOnce(&mut Vec<u8>)) {
    encode_framed_around(kind, &[], out, encode_payload);
}

/// The same of a payload whose end is elsewhere: where in `out` that belongs.
fn encode_framed_around(
    kind: u8,
    end: &[u8],
    out: &mut Vec<u8>,
    encode_beginning: impl FnOnce(&mut Vec<u8>),
) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    encode_beginning(out);
    let beginning = out.get(start + HEADER_BYTES..).unwrap_or_default();
    let payload_bytes = beginning.len() + end.len();
    let payload_crc = crc32c::crc32c_append(crc32c::crc32c(beginning), end);
    let place = out.len();
    out.extend_from_slice(&payload_crc.to_le_bytes());
    let fields = encode_fields(Header { payload_bytes, kind, sequence: 0 });
    if let Some(head) = out.get_mut(start..start + fields.len()) {
        head.copy_from_slice(&fields);
    }
    place
}

/// Appends a write to `out` that is no record yet, and lacks its value, too: where that belongs.
pub(super) fn encode_around(write: &KeyedEntry, value: &Value, out: &mut Vec<u8>) -> usize {
    let value = value.as_str().as_bytes();
    encode_framed_around(KIND_WRITE, value, out, |out| {
        encode_version(&write.key, write.entry.version, out);
        encode_length(FIELD_VALUE, value.len(), out);
    })
}

/// Gives the record at the beginning of these bytes, numbered before or not, its sequence.
pub(super) fn number(record: &mut [u8], sequence: u64, salt: u64) {
    if let Some(head) = record.first_chunk_mut::<HEADER_BYTES>() {
        *head = encode_header(Header { sequence, ..read_fields(head) }, salt);
    }
}

/// The header in these bytes, if they are one.
pub(super) fn decode_header(bytes: &[u8; HEADER_BYTES], salt: u64) -> Option<Header> {
    let header = read_fields(bytes);
    // Cheap refusals first: the search for records behind a damage tries every offset.
    let plausible = (KIND_WRITE..=KIND_END).contains(&header.kind)
        && header.payload_bytes <= MAX_PAYLOAD_BYTES
        && bytes.get(5..8) == Some(&[0; 3]);
    (plausible && encode_header(header, salt) == *bytes).then_some(header)
}

/// What has this header and payload. The checksum was verified; what can still be wrong is what
/// wrote it.
pub(super) fn decode_payload(kind: u8, payload: &[u8]) -> Result<Piece, String> {
    let payload = Payload::decode(payload).map_err(|error| error.to_string())?;
    let timestamp = Timestamp::from_nanos(payload.timestamp);
    match kind {
        KIND_CLOCK_BOUND => return Ok(Piece::Record(LogRecord::ClockBound(timestamp))),
        KIND_HORIZON => return Ok(Piece::Record(LogRecord::Horizon(timestamp))),
        KIND_END => return Ok(Piece::End(payload.timestamp)),
        _ => {}
    }
    let key = Key::new(&payload.key).map_err(|error| error.to_string())?;
    let version = Version::new(timestamp, NodeId::new(payload.node));
    if kind == KIND_EXPUNGED {
        return Ok(Piece::Record(LogRecord::Expunged { key, version }));
    }
    let entry = match payload.value {
        Some(value) => Entry::live(version, Value::new(&value)),
        None => Entry::tombstone(version),
    };
    Ok(Piece::Record(LogRecord::Write(KeyedEntry::new(key, entry))))
}

/// The largest size of a record on disk.
pub(super) fn max_encoded_bytes(record: &LogRecord) -> usize {
    const FIXED_FIELDS: usize = 64;
    let payload = match record {
        LogRecord::Write(write) => write.payload_bytes(),
        LogRecord::Expunged { key, .. } => key.as_str().len(),
        LogRecord::ClockBound(_) | LogRecord::Horizon(_) => 0,
    };
    HEADER_BYTES + FIXED_FIELDS + payload + TRAILER_BYTES
}

/// A header without its checksum.
const FIELDS_BYTES: usize = HEADER_BYTES - 4;

fn encode_header(header: Header, salt: u64) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let (fields, crc) = bytes.split_at_mut(FIELDS_BYTES);
    fields.copy_from_slice(&encode_fields(header));
    let salted = crc32c::crc32c(&salt.to_le_bytes());
    crc.copy_from_slice(&crc32c::crc32c_append(salted, fields).to_le_bytes());
    bytes
}

fn encode_fields(header: Header) -> [u8; FIELDS_BYTES] {
    let payload_bytes = u32::try_from(header.payload_bytes).unwrap_or(u32::MAX);
    let low = u64::from(payload_bytes) | u64::from(header.kind) << 32;
    (u128::from(low) | u128::from(header.sequence) << 64).to_le_bytes()
}

/// What a header says, without a look at its checksum.
fn read_fields(header: &[u8; HEADER_BYTES]) -> Header {
    let fields = header.first_chunk::<FIELDS_BYTES>().copied().unwrap_or_default();
    let [a, b, c, d, kind, _, _, _, sequence @ ..] = fields;
    Header {
        payload_bytes: u32::from_le_bytes([a, b, c, d]) as usize,
        kind,
        sequence: u64::from_le_bytes(sequence),
    }
}

/// As [`Payload`] would be, without copying the texts into one first.
fn encode_write(write: &KeyedEntry, out: &mut Vec<u8>) {
    let value = write.entry.value().map(Value::as_str);
    out.reserve(write.payload_bytes() + 4 * key_len(FIELD_VALUE) + 32);
    encode_version(&write.key, write.entry.version, out);
    if let Some(value) = value {
        encode_text(FIELD_VALUE, value, out);
    }
}

fn encode_version(key: &Key, version: Version, out: &mut Vec<u8>) {
    encode_text(FIELD_KEY, key.as_str(), out);
    encode_fixed64(FIELD_TIMESTAMP, version.timestamp.as_nanos(), out);
    encode_fixed64(FIELD_NODE, version.node.as_u64(), out);
}

fn encode_text(field: u32, text: &str, out: &mut Vec<u8>) {
    encode_length(field, text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

fn encode_length(field: u32, bytes: usize, out: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(bytes as u64, out);
}

fn encode_fixed64(field: u32, number: u64, out: &mut Vec<u8>) {
    encode_key(field, WireType::SixtyFourBit, out);
    out.extend_from_slice(&number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    fn decode(bytes: &[u8], salt: u64) -> (Header, LogRecord) {
        let header = decode_header(bytes.first_chunk().unwrap(), salt).unwrap();
        let payload = &bytes[HEADER_BYTES..HEADER_BYTES + header.payload_bytes];
        let crc = &bytes[HEADER_BYTES + header.payload_bytes..];
        assert_eq!(crc, crc32c::crc32c(payload).to_le_bytes());
        match decode_payload(header.kind, payload).unwrap() {
            Piece::Record(record) => (header, record),
            Piece::End(records) => panic!("the end of {records} records"),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_record_survives_its_bytes(
            key in ".{1,40}", value in proptest::option::of(".{0,200}"),
            time in any::<u64>(), node in any::<u64>(), sequence in any::<u64>(), salt in any::<u64>()
        ) {
            let version = Version::new(Timestamp::from_nanos(time), NodeId::new(node));
            let entry = value.map_or(Entry::tombstone(version), |v| Entry::live(version, Value::new(&v)));
            let record = LogRecord::Write(KeyedEntry::new(Key::new(&key).unwrap(), entry));
            let key = Key::new(&key).unwrap();
            let others = [
                LogRecord::ClockBound(version.timestamp),
                LogRecord::Horizon(version.timestamp),
                LogRecord::Expunged { key, version },
            ];
            for record in others.into_iter().chain([record]) {
                let mut bytes = Vec::new();
                encode(&record, sequence, salt, &mut bytes);
                let (header, decoded) = decode(&bytes, salt);
                prop_assert_eq!(&decoded, &record);
                prop_assert_eq!(header.sequence, sequence);
                prop_assert!(bytes.len() <= max_encoded_bytes(&record));
            }
        }

        #[test]
        fn no_bytes_make_the_payload_reader_panic(kind in 1u8..6, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(decode_payload(kind, &bytes));
        }
    }

    #[test]
    fn a_record_without_its_number_is_none() {
        let mut bytes = Vec::new();
        encode_unnumbered(&LogRecord::ClockBound(Timestamp::ZERO), &mut bytes);
        assert_eq!(decode_header(bytes.first_chunk().unwrap(), 2), None);
    }

    #[test]
    fn an_empty_value_is_not_a_removal() {
        let version = Version::new(Timestamp::from_nanos(1), NodeId::new(1));
        let empty = Entry::live(version, Value::new(""));
        let record = LogRecord::Write(KeyedEntry::new(Key::new("k").unwrap(), empty));
        let mut bytes = Vec::new();
        encode(&record, 1, 2, &mut bytes);
        assert_eq!(decode(&bytes, 2).1, record);
    }

    #[test]
    fn an_end_survives_its_bytes() {
        for records in [0, 1, u64::MAX] {
            let mut bytes = Vec::new();
            encode_end(records, 3, 2, &mut bytes);
            let header = decode_header(bytes.first_chunk().unwrap(), 2).unwrap();
            let payload = &bytes[HEADER_BYTES..bytes.len() - TRAILER_BYTES];
            assert_eq!(decode_payload(header.kind, payload), Ok(Piece::End(records)));
        }
    }

    #[test]
    fn a_record_of_another_file_is_not_one_of_this() {
        let mut bytes = Vec::new();
        encode(&LogRecord::ClockBound(Timestamp::ZERO), 1, 2, &mut bytes);
        assert_eq!(decode_header(bytes.first_chunk().unwrap(), 3), None);
    }

    #[test]
    fn a_length_beyond_every_limit_is_refused() {
        let header = Header { payload_bytes: MAX_PAYLOAD_BYTES + 1, kind: KIND_WRITE, sequence: 1 };
        assert_eq!(decode_header(&encode_header(header, 2), 2), None);
    }
}
